"""`shapes`: ten classes of drawn figures, 32x32, so that the first command works without any data.

Each figure has its own place, size, angle, two colours and noise, all from the plan's hash, so that every
machine draws the same set. Distances are signed, negative inside, in units of the figure's radius.
"""

import math

import numpy as np

from pipelines.plan import hash32, unit

CLASSES = ("circle", "cross", "diamond", "half", "heart", "ring", "square", "star", "stripes", "triangle")
COUNTS = {"train": 10_000, "test": 2_000}
SIDE = 32


def draw(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(uint8[N,32,32,3], int64[N]) of "train" or "test"; the classes come in turn."""
    count = COUNTS[split]
    ids = np.arange(count) + (0 if split == "train" else COUNTS["train"])
    labels = np.arange(count) % len(CLASSES)
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for label in range(len(CLASSES)):
        mine = labels == label
        pictures[mine] = _pictures(CLASSES[label], ids[mine])
    return pictures, labels


def _pictures(name: str, ids: np.ndarray) -> np.ndarray:
    """uint8[B,32,32,3]: one figure a sample, drawn with one pixel of soft edge."""

    def uniform(stream, low, high, shape=()):
        wide = ids[:, None] * int(np.prod(shape, initial=1)) + np.arange(int(np.prod(shape, initial=1)))
        values = unit(hash32(20, 0, 1000 + stream, wide.ravel())).reshape(len(ids), *shape, *(1,) * (3 - len(shape)))
        return low + (high - low) * values

    grid = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE - 0.5
    radius, angle = uniform(0, 0.2, 0.42)[..., 0], uniform(1, -0.5, 0.5)[..., 0]
    y = grid[None, :, None] - uniform(2, -0.15, 0.15)[..., 0]
    x = grid[None, None, :] - uniform(3, -0.15, 0.15)[..., 0]
    u = (x * np.cos(angle) + y * np.sin(angle)) / radius
    v = (y * np.cos(angle) - x * np.sin(angle)) / radius
    inside = np.clip(0.5 - FIGURES[name](u, v) * radius * SIDE, 0, 1)[..., None]
    paper = uniform(4, 0, 255, (3,)).reshape(-1, 1, 1, 3)
    ink = (paper + uniform(5, 70, 185, (3,)).reshape(-1, 1, 1, 3)) % 255  # never the paper's own colour
    noise = uniform(6, -30, 30, (SIDE, SIDE, 3))
    return np.clip(paper + (ink - paper) * inside + noise, 0, 255).astype(np.uint8)


def _star(u, v):
    """Five points: the angle is folded onto half a point, whose edge is the line from (1, 0) to 0.45 at 36 degrees."""
    r, a = np.hypot(u, v), np.arctan2(u, -v)
    half = math.pi / 5
    folded = abs((a + half) % (2 * half) - half)
    along, across = 1 - 0.45 * math.cos(half), 0.45 * math.sin(half)
    return ((r * np.cos(folded) - 1) * across + r * np.sin(folded) * along) / math.hypot(along, across)


def _heart(u, v):
    return np.sqrt(u**2 + (0.95 * -v - 0.65 * np.sqrt(np.abs(u)) + 0.1) ** 2) - 0.85


FIGURES = {
    "circle": lambda u, v: np.hypot(u, v) - 0.9,
    "cross": lambda u, v: np.maximum(np.minimum(abs(u), abs(v)) - 0.25, np.maximum(abs(u), abs(v)) - 0.95),
    "diamond": lambda u, v: 1.6 * abs(u) + 0.9 * abs(v) - 0.95,
    "half": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, v),
    "heart": _heart,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.7) - 0.22,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - 0.75,
    "star": _star,
    "stripes": lambda u, v: np.maximum(np.maximum(abs(u), abs(v)) - 0.85, abs((v * 1.75 + 0.5) % 1 - 0.5) - 0.25),
    "triangle": lambda u, v: np.maximum(abs(u) * 1.73 - v - 0.95, v - 0.65) * 0.7,
}

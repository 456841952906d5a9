"""The pictures of a run, drawn with matplotlib: curves, confusion matrix, wrong predictions, training images.

`plt` is None where matplotlib is not installed. Shapes: images uint8[N,H,W,C].
"""

from __future__ import annotations  # plt.Figure is not looked up, as plt may be None

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.files import replacing
from train.gallery import Mistake, Sheet, wrong_ones
from train.testing import Outcome

try:
    import matplotlib

    matplotlib.use("Agg")  # no screen is asked for
    import matplotlib.pyplot as plt

    matplotlib.rcParams["text.parse_math"] = False  # a class may be called "$5"
except ImportError:  # a borrowed GPU's image may lack it, and a training is worth more than its pictures
    plt = None

TRAIN, TEST = "#4477aa", "#cc3311"  # told apart by colour-blind eyes too (Tol, "Colour schemes", 2021)
GALLERY = 40  # wrong predictions shown
REASONS = 12  # of which with their reasons
TILE, GAP, LABEL = 64, 6, 26  # pixels: a side of a picture in a row of them, between two, and for two lines of text


def save(path: Path, figure: plt.Figure) -> None:
    """Write a figure whole, and let go of it."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)


def log_scale(axes: plt.Axes, spelled: Callable[[float], str] = lambda value: f"{value:g}") -> None:
    """A log scale for x, with numbers at 1, 2 and 5 of each decade, or of three decades and more at 1, `spelled` out: matplotlib's own are in the notation that is off here."""
    from matplotlib.ticker import LogLocator, NullLocator  # here: there may be no matplotlib

    axes.set_xscale("log")
    least, most = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 1000 * least else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: spelled(value))


def curves(history: list[dict], title: str) -> plt.Figure:
    """Loss and accuracy of both splits against the epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for split, colour in (("train", TRAIN), ("test", TEST)):
        epochs, accuracy = points(history, f"{split}_accuracy")
        left.plot(*points(history, f"{split}_loss"), "o-", ms=3, color=colour)
        right.plot(epochs, [100 * a for a in accuracy], "o-", ms=3, color=colour, label=f"{split}, last {accuracy[-1]:.1%}")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.set_ylim(0, 1.02 * left.get_ylim()[1])  # one epoch's point is not cut
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    return figure


def points(history: list[dict], key: str) -> tuple[list[int], list[float]]:
    """(epochs, values) of a metric where it has one: not every epoch is tested, and a loss may be no finite number."""
    lines = [line for line in history if line[key] is not None]
    return [line["epoch"] for line in lines], [line[key] for line in lines]


def confusion(table: np.ndarray, classes: tuple[str, ...], data: str) -> plt.Figure:
    """Share of each true class (row) by predicted class (column); numbers where they can be read."""
    count = len(classes)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(max(4.5, 0.62 * count), 16)
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion, % of each true class\n{data}, {table.sum():,} images")
    if count <= 30:
        axes.set_xticks(range(count), classes, rotation=45, ha="right")
        axes.set_yticks(range(count), classes)
        for i, j in np.ndindex(table.shape):
            if shares[i, j] >= 0.005:
                axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=9, color="white" if shares[i, j] > 0.5 else "black")
    return figure


def mistakes(images: np.ndarray, outcome: Outcome, classes: tuple[str, ...], data: str) -> plt.Figure:
    """The first wrong predictions, spread over the test split. images uint8[N,H,W,C]."""
    shown, count = wrong_ones(outcome, GALLERY), int((outcome.predicted != outcome.true).sum())
    columns = 8
    rows = max(1, -(-len(shown) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.75 * rows + 0.6), squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, shown):
        axes.imshow(images[i].squeeze(), cmap="gray" if images.shape[-1] == 1 else None, interpolation="nearest")
        predicted, true = classes[outcome.predicted[i]], classes[outcome.true[i]]
        axes.set_title(f"{predicted}\n", fontsize=9, color=TEST, pad=2)
        axes.text(0.5, 1.03, f"is {true}", transform=axes.transAxes, ha="center", va="bottom", fontsize=8, color="0.3")
    figure.suptitle(f"{count:,} of {len(outcome.true):,} misclassified: predicted (red) and true class, {data}")
    return figure


def reasons(found: list[Mistake]) -> plt.Figure:
    """Wrong predictions in rows of four, each beside what speaks for the class it was taken for and what for its own."""
    found = found[:REASONS]
    each = [[one.image, one.why, one.why_not] if one.why is not None and one.why_not is not None else [one.image] for one in found]
    columns = 4
    rows = [sum(each[i : i + columns], []) for i in range(0, len(each), columns)]
    figure, axes = tiles(rows, label=LABEL)
    for i, one in enumerate(found):
        x, y = (i % columns) * len(each[0]) * (TILE + GAP), (i // columns) * (TILE + GAP + LABEL) + TILE
        axes.text(x, y + 10, f"{one.taken} {one.shares[0]:.0%}", fontsize=7, color=TEST, va="center")
        axes.text(x, y + 22, f"is {one.own} {one.shares[1]:.0%}", fontsize=7, color=TRAIN, va="center")
    return figure


def sheet(made: Sheet, data: str) -> plt.Figure:
    """Training images as they are and as the net saw them: a row an image, a column an epoch."""
    figure, axes = tiles([[images[row] for images in made.columns.values()] for row in range(len(made.ids))])
    for i, heading in enumerate(made.columns):
        axes.text(i * (TILE + GAP) + TILE / 2, -6, heading, fontsize=8, ha="center")
    for row, name in enumerate(made.names):
        axes.text(-6, row * (TILE + GAP) + TILE / 2, name, fontsize=8, ha="right", va="center")
    axes.set_title(f"Training images as the net sees them, augmented\n{data}\n", fontsize=9)
    return figure


def tiles(rows: list[list[np.ndarray]], label: int = 0) -> tuple[plt.Figure, plt.Axes]:
    """Rows of pictures, uint8[H,W,C] each, enlarged to `TILE`, with `label` pixels of room below each row; axes count in pixels."""
    height, width = len(rows) * (TILE + GAP + label), max(map(len, rows)) * (TILE + GAP)
    paper = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = i * (TILE + GAP + label), j * (TILE + GAP)
            made = Image.fromarray(np.ascontiguousarray(image.squeeze() if image.shape[-1] == 1 else image)).convert("RGB")
            paper[y : y + TILE, x : x + TILE] = np.asarray(made.resize((TILE, TILE), Image.Resampling.NEAREST))
    figure, axes = plt.subplots(figsize=(width / 80, height / 80))
    axes.imshow(paper, interpolation="nearest")
    axes.axis("off")
    return figure, axes

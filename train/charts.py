"""Line charts as SVG text: they take the page's colours, light or dark, and need no library and no other file.

Sizes are in SVG units, about a pixel on the page.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 38  # room for the axes
DOTS = 40  # points; more of them are a line alone


@dataclass(frozen=True)
class Line:
    """Points (x, y) in one colour of the page's palette (`colour` is its name there); `faint` for the background."""

    name: str
    colour: str
    points: list[tuple[float, float]]
    faint: bool = False


def chart(title: str, lines: list[Line], x: str, y: str, show: Callable[[float], str] = "{:g}".format, zero: bool = False) -> str:
    """A figure of `lines` over named axes. `show` writes a value of y; `zero` has y start there."""
    points = [p for line in lines for p in line.points if all(map(math.isfinite, p))]
    if not points:
        return f"<figure><figcaption>{escape(title)}</figcaption><p>nothing was measured</p></figure>"
    wide, high = (span([p[axis] for p in points]) for axis in (0, 1))
    high = (min(0.0, high[0]), high[1]) if zero else high

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = ((v - low) / (top - low) for v, (low, top) in zip(point, (wide, high)))
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    drawn = [*axes(wide, high, place, x, y, show), *(part for line in lines for part in stroke(line, place, x, show))]
    legend = "".join(f'<span class="key {line.colour}{" faint" if line.faint else ""}">{escape(line.name)}</span>' for line in lines if line.name)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}<div class=legend>{legend}</div></figure>"


def axes(wide, high, place, x: str, y: str, show) -> list[str]:
    """Grid, figures and names."""
    parts = []
    for value in ticks(*wide):
        at, bottom = place((value, high[0]))
        parts.append(f'<text x="{at}" y="{bottom + 15}" text-anchor=middle>{value:g}</text>')
    for value in ticks(*high):
        left, at = place((wide[0], value))
        parts.append(f'<path class=grid d="M{left} {at}H{WIDTH - RIGHT}"/><text x="{left - 6}" y="{at + 4}" text-anchor=end>{escape(show(value))}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor=middle>{escape(x)}</text>', f"<title>{escape(y)} by {escape(x)}</title>"]


def stroke(line: Line, place, x: str, show) -> list[str]:
    """One line, with dots that say their value where there are few."""
    finite = [p for p in line.points if all(map(math.isfinite, p))]
    if not finite:
        return []
    path = "L".join(f"{a} {b}" for a, b in map(place, finite))
    parts = [f'<path class="line {line.colour}{" faint" if line.faint else ""}" d="M{path}"/>']
    if not line.faint and len(finite) <= DOTS:
        for point in finite:
            a, b = place(point)
            said = f"{line.name}: {show(point[1])} at {x} {point[0]:g}"
            parts.append(f'<circle class="{line.colour}" cx="{a}" cy="{b}" r="2.6"><title>{escape(said)}</title></circle>')
    return parts


def span(values: list[float]) -> tuple[float, float]:
    """(least, most), apart even where all are one."""
    low, high = min(values), max(values)
    if low == high:
        reach = abs(low) / 2 or 0.5
        return low - reach, high + reach
    return low, high


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values in [low, high], at most `most`: multiples of 1, 2 or 5 of a power of ten."""
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(power * k for k in (1, 2, 5, 10, 20) if (high - low) / (power * k) <= most - 1)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def thinned(points: list[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """At most `most` points: the means of equal stretches, in order."""
    size = -(-len(points) // most) if points else 1
    parts = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)) for part in parts]

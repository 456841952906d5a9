"""Names beside the dots of a scatter plot, each where it covers the least."""

from collections.abc import Sequence
from dataclasses import dataclass

# where a name may stand, the best first: its offset from the dot, points, and how it is aligned there
PLACES = (
    ((6, -3), "left", "top"),
    ((-6, 3), "right", "bottom"),
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
    ((6, 3), "left", "bottom"),
    ((-6, -3), "right", "top"),
    ((8, 0), "left", "center"),
    ((-8, 0), "right", "center"),
)
DOT = 5.0  # what a dot keeps free around its centre, points


@dataclass(frozen=True)
class Label:
    """The name of the dot at `x` and `y` of the data, in its colour and size."""

    text: str
    x: float
    y: float
    colour: str
    size: float = 8


def place(axes, labels: Sequence[Label]) -> None:
    """Write the names, once scales and limits are final; each goes where it overlaps the dots and the names before it least, and within the axes."""
    from matplotlib.transforms import Bbox  # here: there may be no matplotlib

    figure = axes.figure
    figure.draw_without_rendering()  # so that the layout is that of the picture
    frame, around = axes.get_window_extent(), DOT * figure.dpi / 72
    centres = [axes.transData.transform((one.x, one.y)) for one in labels]
    taken = [Bbox.from_extents(x - around, y - around, x + around, y + around) for x, y in centres]
    for one in labels:
        best, least = PLACES[0], float("inf")
        text = axes.annotate(one.text, (one.x, one.y), best[0], textcoords="offset points", fontsize=one.size, color=one.colour)
        for option in PLACES:
            _put(text, option)
            box = text.get_window_extent()
            covered = _area(box) - _overlap(box, frame) + sum(_overlap(box, other) for other in taken)
            if covered < least:
                best, least = option, covered
        _put(text, best)
        taken.append(text.get_window_extent())


def _put(text, option: tuple[tuple[float, float], str, str]) -> None:
    offset, horizontal, vertical = option
    text.set(position=offset, ha=horizontal, va=vertical)


def _area(box) -> float:
    return box.width * box.height


def _overlap(one, other) -> float:
    width, height = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)

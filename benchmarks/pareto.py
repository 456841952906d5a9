"""Accuracy against parameters and multiply-adds: the family of tiny nets, the ladder, the anchor, and published figures.

    python benchmarks/pareto.py RECIPE --out DIR [--nets tiny10k level1 ...] [--runs K] [--field value ...]

Every net trains with the same recipe, K seeds each; a point is the mean of the last epoch's test accuracies with its 95% interval. DIR keeps
finished seeds and one JSON file per net: called again, the command continues. Writes DIR/pareto.md and DIR/pareto.png.

Published figures are on the original pixels and with their authors' own recipes; they are drawn hollow and not connected.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

import nets  # noqa: E402
from benchmarks.flags import leave_out  # noqa: E402
from benchmarks.labels import Label, place  # noqa: E402
from benchmarks.measure import table  # noqa: E402
from benchmarks.points import Point, about  # noqa: E402
from pipelines.errors import exit_code  # noqa: E402
from pipelines.files import replacing  # noqa: E402
from train.assembly import known  # noqa: E402
from train.figures import TEST, TRAIN, log_scale, plt, save  # noqa: E402
from train.flags import named, parse  # noqa: E402
from train.recipe import Recipe  # noqa: E402

HEADER = ["net", "parameters", "MACs", "test accuracy", "sd; 95% interval", "train accuracy", "runs"]
FAMILY, OTHERS, PUBLISHED = TEST, TRAIN, "0.55"


@dataclass(frozen=True)
class Published:
    """A figure of others, on the original pixels."""

    who: str
    parameters: int
    accuracy: float


FIELD = (
    Published("TinyVision", 24_990, 0.876),
    Published("ThriftyNet", 40_000, 0.91),
    Published("ladder level 1, its author", 83_368, 0.7872),
    Published("ladder level 4, its author", 96_490, 0.8142),
    Published("tiniest", 97_530, 0.944),
    Published("DenseNet-BC-40", 176_122, 0.936),
    Published("ResNet-20, well trained", 272_474, 0.94),
)


def is_family(net: str) -> bool:
    return net.startswith("tiny")


def frontier(points: list[Point], cost: str) -> list[Point]:
    """Those that no other beats at as little cost ("parameters" or "macs"), from the cheapest on."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.values[cost], -p.accuracy.mean)):
        if not kept or point.accuracy.mean > kept[-1].accuracy.mean:
            kept.append(point)
    return kept


def rows(points: list[Point]) -> list[list]:
    """The table's cells, the smallest net first."""
    return [[p.name, f"{p.values['parameters']:,}", f"{p.values['macs'] / 1e6:.1f}M", *p.cells()] for p in sorted(points, key=lambda p: p.values["parameters"])]


def chart(points: list[Point], path: Path) -> None:
    """Two panels: accuracy against parameters, and against MACs; nothing without matplotlib."""
    if plt is None:
        return
    figure, panels = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    labels = []
    for axes, cost, label in zip(panels, ("parameters", "macs"), ("trainable parameters", "multiply-adds an image")):
        labels.append([draw(axes, point, cost, FAMILY if is_family(point.values["net"]) else OTHERS) for point in points])
        for colour, name in ((FAMILY, "Tenfold's tiny nets"), (OTHERS, "other nets, same recipe and files")):
            axes.plot([], [], "o", color=colour, label=name)
        best = frontier(points, cost)
        axes.plot([p.values[cost] for p in best], [100 * p.accuracy.mean for p in best], color=FAMILY, lw=1, alpha=0.5, zorder=0)
        if cost == "parameters":
            labels[-1] += published(axes, points)
        axes.set_xlabel(f"{label}, log scale")
        log_scale(axes, lambda value: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12, y=0.1)
    panels[0].set_ylabel("accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    figure.suptitle(about(points), fontsize=10)
    for axes, some in zip(panels, labels):
        place(axes, some)
    save(path, figure)


def draw(axes, point: Point, cost: str, colour: str) -> Label:
    """A dot with its interval; gives back its name."""
    reached = point.accuracy
    reach = {"yerr": 100 * (reached.high - reached.mean)} if reached.n > 1 else {}
    axes.errorbar(point.values[cost], 100 * reached.mean, fmt="o", ms=6, capsize=3, color=colour, **reach)
    return Label(point.name, point.values[cost], 100 * reached.mean, colour)


def published(axes, points: list[Point]) -> list[Label]:
    """The field's figures between the smallest and the largest of ours, and somewhat beyond; gives back their names."""
    sizes = [p.values["parameters"] for p in points]
    some = [one for one in FIELD if min(sizes) / 2 <= one.parameters <= 2 * max(sizes)]
    axes.plot([one.parameters for one in some], [100 * one.accuracy for one in some], "o", mfc="none", color=PUBLISHED, label="published, on original pixels")
    return [Label(one.who, one.parameters, 100 * one.accuracy, PUBLISHED, 7) for one in some]


def report(points: list[Point], out: Path) -> str:
    """Write pareto.png and pareto.md; gives back the table."""
    chart(points, out / "pareto.png")
    shown = table(HEADER, rows(points))
    published_rows = table(["published, on original pixels", "parameters", "test accuracy"], [[p.who, f"{p.parameters:,}", f"{p.accuracy:.1%}"] for p in FIELD])
    with replacing(out / "pareto.md") as temporary:
        text = f"# Accuracy against size\n\n{about(points)}\n\n    {points[0].values['command']}\n\n{shown}\n\n![](pareto.png)\n\n{published_rows}\n"
        temporary.write_text(text, encoding="utf-8")
    return shown


def options(given: list[str] | None) -> tuple[list[str], Path, str, Recipe]:
    """(nets, folder, the recipe's name, the recipe). Raises `InputError` for a net that there is not."""
    parser = argparse.ArgumentParser(
        prog="pareto.py", description=__doc__.split("\n")[0], allow_abbrev=False, epilog="all other flags are settings of python -m train"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results: pareto.md, pareto.png, and a JSON file and the seeds of every net")
    parser.add_argument("--nets", nargs="+", help="nets to train (default: the tiny family, level1 and the anchor)")
    asked, rest = parser.parse_known_args(given)
    leave_out(rest, "name the nets with --nets, and the seeds of each with --runs", "net", "sweep")
    name, recipe = parse(rest, named())
    chosen = asked.nets or [*(net for net in nets.names() if is_family(net)), "level1", "tiniest"]
    for net in chosen:
        known(replace(recipe, net=net))
    return chosen, Path(asked.out), name, recipe


def main(given: list[str] | None = None) -> None:
    chosen, out, _, recipe = options(given)
    points = []
    for net in chosen:
        points.append(Point.train(net, replace(recipe, net=net), out))
        shown = report(points, out)  # what there is, should the next be interrupted
    print(f"\n{about(points)}\n{shown}\n{out / 'pareto.md'}")


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""The ladder explained: its four nets with their author's recipes and with a modern one, and the gap between train and test.

    python benchmarks/ladder.py --out DIR [--levels 1 2 3 4] [--changes] [--epochs E] [--runs K] [--modern RECIPE] [--field value ...]

The nets are the same in both rows of a level; only the training differs. --changes also trains level 3 with one of its
author's settings undone at a time. --epochs shortens every training, the author's too, and the report says so. DIR keeps finished
trainings: called again, the command continues. Writes DIR/ladder.md and DIR/ladder.png.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

from benchmarks.flags import leave_out, sets  # noqa: E402
from benchmarks.measure import table  # noqa: E402
from benchmarks.points import Point, about  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from pipelines.files import replacing  # noqa: E402
from train import recipes  # noqa: E402
from train.figures import TEST, TRAIN, plt, save  # noqa: E402
from train.flags import named, parse  # noqa: E402
from train.recipe import Recipe, flag  # noqa: E402

PUBLISHED = {1: (0.9737, 0.7872), 2: (0.9850, 0.7878), 3: (0.605, 0.7261), 4: (0.7329, 0.8142)}  # best train and test, on original pixels
CHANGES = {  # of level 3, one at a time
    "a neutral square": {"erase_fill": "mean"},
    "rotation up to 7 degrees instead of 45": {"rotate": 7.0},
    "no dropout": {"net": "level2"},
    "no augmentation": {"affine_p": 0.0, "erase_p": 0.0},
}
FINDINGS = {
    "by heart": "The net has learnt its images by heart; every pass shows it the same pixels, and nothing in the recipe speaks against that.",
    "too hard": "It does worse on what it is shown than on plain images: what is shown is too hard for it, and the net is short of training, not of restraint.",
}
AGAIN = {"by heart": "By heart, again.", "too hard": "Too hard, again, for the time that it has."}
HEADER = ["training", "test accuracy", "sd; 95% interval", "train accuracy", "runs", "gap", "author's best, original pixels"]


def trainings(levels: list[int], changes: bool, modern: Recipe, given: dict) -> dict[str, tuple[str, Recipe]]:
    """Folder → (what it is called, recipe). given: settings that all of them get."""
    wanted = {}
    for level in levels:
        author = getattr(recipes, f"level{level}")()
        wanted[f"level{level}-author"] = (f"level {level}, its author's recipe", replace(author, **given))
        wanted[f"level{level}-modern"] = (f"level {level}, modern recipe", replace(modern, net=f"level{level}", **given))
    for name, change in CHANGES.items() if changes else ():
        wanted["level3-" + name.replace(" ", "-")] = (f"level 3, {name}", replace(recipes.level3(), **{**given, **change}))
    return wanted


def rows(points: dict[str, Point]) -> list[list]:
    """The table's cells; the gap is train minus test accuracy, in points."""
    made = []
    for title, point in points.items():
        gap = 100 * (point.values["train_accuracy"] - point.accuracy.mean)
        level = int(title.split()[1].strip(","))
        theirs = "train {:.1%}, test {:.1%}".format(*PUBLISHED[level]) if title.endswith("author's recipe") else ""
        made.append([title, *point.cells(), f"{gap:+.1f}", theirs])
    return made


def chart(points: dict[str, Point], path: Path) -> None:
    """A panel a level: train (dashed) and test accuracy of the first seed by epoch, by both recipes, and the means of all; nothing without matplotlib."""
    levels = sorted({title.split(",")[0] for title in points})
    if plt is None:
        return
    figure, panels = plt.subplots(1, len(levels), figsize=(4.2 * len(levels) + 0.6, 4.2), sharey=True, squeeze=False, layout="constrained")
    for axes, level in zip(panels[0], levels):
        for kind, colour in (("its author's recipe", TRAIN), ("modern recipe", TEST)):
            point = points.get(f"{level}, {kind}")
            for split, style in (("train", "--"), ("test", "-")) if point else ():
                lines = [line for line in point.history() if line[f"{split}_accuracy"] is not None]
                ended = point.accuracy.mean if split == "test" else point.values["train_accuracy"]
                label = f"{kind.removeprefix('its ')}, {split} {100 * ended:.1f}%" + (f", mean of {point.accuracy.n}" if point.accuracy.n > 1 else "")
                axes.plot([line["epoch"] for line in lines], [100 * line[f"{split}_accuracy"] for line in lines], style, color=colour, lw=1.5, label=label)
        size = next(p.values["parameters"] for title, p in points.items() if title.startswith(f"{level},"))
        axes.set(xlabel="epoch", title=f"{level}, {size:,} parameters")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    one = ", the first seed" if any(point.accuracy.n > 1 for point in points.values()) else ""
    panels[0][0].set_ylabel(f"accuracy (%){one}\ntrain: while training, augmented")
    save(path, figure)


def told(points: dict[str, Point]) -> list[str]:
    """What the figures say, a paragraph a finding, with the figures in it."""
    said, explained = [], set()
    for title, point in points.items():
        level, _, kind = title.partition(", ")
        modern = points.get(f"{level}, modern recipe")
        train, test = 100 * point.values["train_accuracy"], 100 * point.accuracy.mean
        if kind != "its author's recipe":
            continue
        gap = f"{level.capitalize()}: the author's recipe ends at {train:.1f}% on the images that it trains on and {test:.1f}% on the test images."
        finding = "by heart" if train > test + 5 else "too hard" if train < test else ""
        if finding:
            gap += f" {(AGAIN if finding in explained else FINDINGS)[finding]}"
            explained.add(finding)
        if modern:
            gap += f" The same net by the modern recipe reaches {100 * modern.accuracy.mean:.1f}%, {100 * modern.accuracy.mean - test:+.1f} points."
        said.append(gap)
    base = points.get("level 3, its author's recipe")
    for name in CHANGES if base else ():
        if point := points.get(f"level 3, {name}"):
            said.append(f"Level 3 with {name}: {100 * (point.accuracy.mean - base.accuracy.mean):+.1f} points of test accuracy.")
    return said


def differences(author: Recipe, modern: Recipe) -> list[list[str]]:
    """(flag, author's value, modern value) of every setting in which the recipes of a level differ."""
    left_out = ("out", "data", "net")
    return [[f"--{flag(k)}", str(v), str(getattr(modern, k))] for k, v in vars(author).items() if k not in left_out and v != getattr(modern, k)]


def report(points: dict[str, Point], shortened: int, out: Path) -> str:
    """Write ladder.png and ladder.md; gives back the table."""
    chart(points, out / "ladder.png")
    shown, first = table(HEADER, rows(points)), next(iter(points.values()))
    length = f" Every training was cut to {shortened} epochs; its author's have 50 (level 4: 100)." if shortened else ""
    parts = ["# The ladder, explained", about(list(points.values())) + "." + length, f"    {first.values['command']}", shown, "![](ladder.png)", *told(points)]
    pair = [(points.get(f"level {n}, its author's recipe"), points.get(f"level {n}, modern recipe")) for n in PUBLISHED]
    if both := next((p for p in pair if all(p)), None):
        parts += ["## What the recipes differ in", table(["setting", "author", "modern"], differences(both[0].recipe, both[1].recipe))]
    with replacing(out / "ladder.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return shown


def options(given: list[str] | None) -> tuple[argparse.Namespace, dict, Recipe]:
    """(own flags, settings for every training, the modern recipe)."""
    parser = argparse.ArgumentParser(
        prog="ladder.py",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
        epilog="all other flags are settings of python -m train, and apply to all trainings",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results: ladder.md, ladder.png, and one folder per training")
    parser.add_argument("--levels", nargs="+", type=int, choices=sorted(PUBLISHED), default=sorted(PUBLISHED))
    parser.add_argument("--changes", action="store_true", help="also level 3 with each of its author's settings undone")
    parser.add_argument("--modern", default="modern", metavar="RECIPE", help="recipe to compare with the author's (default modern)")
    asked, rest = parser.parse_known_args(given)
    if asked.modern not in named():
        raise InputError(f"--modern {asked.modern}: choose one of {', '.join(named())}")
    if any(not word.startswith("-") for word in rest[:1]):
        raise InputError(f"{rest[0]}: both recipes are known: name the modern one with --modern")
    leave_out(rest, "name the trainings with --levels and --changes", "net", "sweep")
    _, asked_for = parse(rest, named())
    settings = {key: value for key, value in vars(asked_for).items() if sets(rest, key)}
    return asked, settings, named()[asked.modern]()


def main(given: list[str] | None = None) -> None:
    asked, settings, modern = options(given)
    points, out = {}, Path(asked.out)
    for folder, (title, recipe) in trainings(asked.levels, asked.changes, modern, settings).items():
        points[title] = Point.train(folder, recipe, out)
        shown = report(points, settings.get("epochs", 0), out)  # what there is, should the next be interrupted
    print(f"\n{about(list(points.values()))}\n{shown}\n{out / 'ladder.md'}")


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""How long does an epoch take through each pipeline, and does the loader change what is learned?

    python benchmarks/epoch_time.py --data PATH [--json FILE] [--chart FILE]

Every pipeline trains the same net on the same pixels, interleaved epoch by epoch, so that a slow minute of a
shared machine affects all of them. "fixed batch" trains on one batch over and over: the ceiling that a loader without
any cost would reach. Set-up (opening, compiling, first batch) and the first epoch are reported separately.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

from benchmarks.contenders import CEILING, Contender, arguments, parse  # noqa: E402
from benchmarks.measure import Spread, facts, table  # noqa: E402
from pipelines import data  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from pipelines.files import write_json  # noqa: E402
from train.assembly import known  # noqa: E402
from train.device import device_of  # noqa: E402
from train.recipe import Recipe  # noqa: E402
from train.split import split  # noqa: E402
from train.testing import evaluate  # noqa: E402

HEADER = ["pipeline", "set-up s", "first epoch s", "loader images/s", "training images/s", "epoch s", "of ceiling", "test accuracy"]


@dataclass
class Row(Contender):
    """One pipeline's figures, in seconds."""

    loading: list[float] = field(default_factory=list)  # of each pass without training
    epochs: list[float] = field(default_factory=list)  # of each training epoch, the first included
    accuracy: float = 0.0

    def images_per_second(self, seconds: list[float]) -> Spread:
        count = len(self.training.train.plan.ids)
        return Spread.of([count / s for s in seconds])


def load(row: Row, epoch: int) -> None:
    """One pass without training, every batch taken and let go."""
    with row.training.watch.lap("loading"):
        for _ in row.training.train.epoch(epoch):
            pass
    row.loading.append(row.training.watch.seconds["loading"] - sum(row.loading))


def train(row: Row, epoch: int) -> None:
    """One epoch of training."""
    with row.training.watch.lap("train"):
        row.training.epoch(epoch)
    row.epochs.append(row.training.watch.seconds["train"] - sum(row.epochs))


def measure(names: list[str], recipe: Recipe, passes: int, say=print) -> list[Row]:
    """All rows, measured in turns: first the passes without training, then the training epochs."""
    device, store = device_of(recipe), data.locate(recipe.data, recipe.size)
    rows = [Row(name) for name in [*names, CEILING]]
    for row in rows:
        row.prepare(recipe, store, device)
    running = [row for row in rows if row.training]
    for number in range(passes + 1):
        for row in running:
            if row.name != CEILING:
                load(row, number)
        say(f"pass {number} of {passes} without training")
    for epoch in range(recipe.epochs):
        for row in running:
            train(row, epoch)
        say(f"epoch {epoch + 1} of {recipe.epochs}")
    for row in running:
        row.accuracy = evaluate(row.training.net, row.training.test, row.training.look).accuracy
    return rows


def figures(rows: list[Row]) -> list[dict]:
    """One flat dict a row; medians and spread leave the first pass and the first epoch out."""
    ceiling = next(r for r in rows if r.name == CEILING)
    out = []
    for row in rows:
        if row.missing:
            out.append({"pipeline": row.name, "missing": row.missing})
            continue
        speed = row.images_per_second(row.epochs[1:])
        out.append(
            {
                "pipeline": row.name,
                "setup_seconds": row.setup,
                "first_epoch_seconds": row.epochs[0],
                "loader_images_per_second": row.images_per_second(row.loading[1:]) if row.loading else None,
                "images_per_second": speed,
                "epoch_seconds": Spread.of(row.epochs[1:]),
                "of_ceiling": median(top / own for top, own in zip(ceiling.epochs[1:], row.epochs[1:])),  # of epochs that followed one another
                "test_accuracy": None if row.name == CEILING else row.accuracy,
            }
        )
    return out


def lines(results: list[dict]) -> list[list[str]]:
    """The table's rows."""
    out = []
    for r in results:
        if "missing" in r:
            out.append([r["pipeline"], "not installed", *[""] * 6])
            continue
        accuracy = "" if r["test_accuracy"] is None else f"{r['test_accuracy']:.4f}"
        loading = r["loader_images_per_second"] or ""
        times = [f"{r['setup_seconds']:.1f}", f"{r['first_epoch_seconds']:.1f}"]
        out.append([r["pipeline"], *times, loading, r["images_per_second"], r["epoch_seconds"], f"{r['of_ceiling']:.1%}", accuracy])
    return out


def chart(results: list[dict], title: str, path: str) -> None:
    """Bars: images/s of each loader alone (log axis), and in training beside the ceiling."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from train.figures import log_scale, save

    shown = [r for r in results if "missing" not in r]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.55 * len(shown) + 1.6))
    for ax, key, label in zip(axes, ("loader_images_per_second", "images_per_second"), ("the loader alone (log scale)", "in training")):
        bars = [r for r in shown if r[key]][::-1]
        values = [r[key].median for r in bars]
        reach = [[r[key].median - r[key].least for r in bars], [r[key].largest - r[key].median for r in bars]]
        colours = ["#bbbbbb" if r["pipeline"] == CEILING else "#cc3311" if r["pipeline"] == "resident" else "#4477aa" for r in bars]
        ax.barh([r["pipeline"] for r in bars], values, xerr=reach, color=colours, error_kw={"lw": 1, "capsize": 2})
        ax.set(xlabel=f"images/s, {label}")
        if key.startswith("loader"):
            ax.set_xlim(1000, 4 * max(r[key].largest for r in bars))
            log_scale(ax, lambda value: f"{value:,.0f}")
        for i, (value, high) in enumerate(zip(values, reach[1])):
            ax.text(value + high, i, f"  {value:,.0f}", va="center", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.3)
    figure.suptitle(title)
    figure.tight_layout()
    save(Path(path), figure)


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=4, help="training epochs, the first of which is reported separately (default 4)")
    parser.add_argument("--passes", type=int, default=5, help="passes without training, after a first one that is not counted (default 5)")
    parser.add_argument("--lr", type=float, default=0.1)
    asked, names, files = parse(parser, given)
    passes = asked.pop("passes")
    if asked["epochs"] < 2 or passes < 1:
        raise InputError("--epochs needs 2 or more and --passes 1 or more: the first of each is not counted")
    recipe = Recipe(**asked, momentum=0.9, schedule="linear")
    known(recipe)
    results = figures(measure(names, recipe, passes, say=lambda text: print(text, file=sys.stderr)))
    device, store = device_of(recipe), data.locate(recipe.data, recipe.size)
    about = facts(store, device, {**asked, "passes": passes})
    print(table(HEADER, lines(results)))
    _, ids = split(recipe, store.labels("train"))
    images = len(store.labels("train") if ids is None else ids)
    title = f"{recipe.net}, {images:,} images of {about['data']['name']}, batch {recipe.batch_size}, {about['hardware']['device']}"
    print(f"\n{title}; median (least to largest) of {recipe.epochs - 1} epochs and {passes} passes, commit {about['commit']}")
    if files["json"]:
        write_json(files["json"], {**about, "rows": results})
    if files["chart"]:
        chart(results, title, files["chart"])


if __name__ == "__main__":
    sys.exit(exit_code(main))

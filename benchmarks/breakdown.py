"""Where does a training step's time go, through each pipeline: does the loader matter for this net at all?

    python benchmarks/breakdown.py --data PATH --net NET [--json FILE] [--chart FILE]

The parts are data (waiting for a batch), forward (net and loss), backward, optimiser, and the rest (learning rate,
training accuracy, progress bar). All pipelines take turns, round by round; a round is an epoch of whole batches, whose
first steps are reported separately, since workers start and queues fill there. Each round runs twice, once instrumented
(`marks.py`) and once with only its two ends timed, and both are reported, so that the cost of measuring is visible.

A figure is the mean over the counted steps of a round (a loader with several workers delivers batches in bursts, and a
median over steps would hide the waits), then the median over rounds. The JSON has the medians over steps as well.
"If data were free" is the rate without the wait; "fixed batch" is the rate of training on one batch over and over,
which is higher where the loader's threads compete with the training for the processor.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

from benchmarks.contenders import CEILING, Contender, arguments, parse  # noqa: E402
from benchmarks.marks import PARTS, Marks, mean_parts, plain_round, split_round  # noqa: E402
from benchmarks.measure import Spread, facts, table  # noqa: E402
from pipelines import data  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from pipelines.files import write_json  # noqa: E402
from train.assembly import known  # noqa: E402
from train.device import device_of  # noqa: E402
from train.recipe import Recipe  # noqa: E402

HEADER = ["pipeline", "ms a step", *PARTS, "data share", "if data were free", "fixed batch", "host waits", "first step", "marking"]
COLOURS = dict(zip(PARTS, ("#cc3311", "#4477aa", "#66ccee", "#228833", "#bbbbbb")))  # Tol's, as in train/figures.py


@dataclass
class Row(Contender):
    """One pipeline's rounds, in seconds."""

    plain: list[float] = field(default_factory=list)  # a step of each round that was not marked
    parts: list[dict[str, float]] = field(default_factory=list)  # a step of each marked round, by part
    steps: list[dict[str, float]] = field(default_factory=list)  # every counted step of the marked rounds
    waits: list[float] = field(default_factory=list)  # the host's, a step of each marked round
    firsts: list[float] = field(default_factory=list)  # the first step of each marked round

    def round(self, marks: Marks, number: int, first: int) -> None:
        """One round marked and one not, in turns first."""
        for split in (False, True) if number % 2 else (True, False):
            if not split:
                self.plain.append(plain_round(self.training, marks, number, first))
                continue
            steps, waits = split_round(self.training, marks, number)
            self.firsts.append(sum(steps[0].values()))
            self.steps += steps[first:]
            self.parts.append(mean_parts(steps[first:]))
            self.waits.append(sum(waits[first:]) / len(waits[first:]))


def sized(recipe: Recipe, count: int, steps: int, first: int) -> Recipe:
    """The recipe on as many images as a round takes: whole batches, so that no loader works ahead into another's turn.

    count  training images there are
    steps  counted steps of a round; 0 for all there are
    """
    there = (recipe.limit or count) // recipe.batch_size
    if there <= first:
        images = f"{recipe.limit or count} images are {there} batches of {recipe.batch_size}"
        raise InputError(f"{images}, and a round needs {first + 1}: lower --batch-size or --first")
    return replace(recipe, limit=recipe.batch_size * min(there, first + steps if steps else there))


def measure(names: list[str], recipe: Recipe, steps: int, first: int, rounds: int, say=print) -> tuple[list[Row], float]:
    """(all rows, measured in turns; host seconds a step that marking takes)."""
    device, store = device_of(recipe), data.locate(recipe.data, recipe.size)
    recipe = sized(recipe, store.count("train"), steps, first)
    rows, marks = [Row(name) for name in [*names, CEILING]], Marks(device)
    for row in rows:
        row.prepare(recipe, store, device)
    for number in range(rounds):
        for row in rows:
            if row.training:
                row.round(marks, number, first)
        say(f"round {number + 1} of {rounds}")
    return rows, marks.cost()


def figures(rows: list[Row]) -> list[dict]:
    """One flat dict a row; seconds a step, each a `Spread` over the rounds."""
    ceiling = median(next(row for row in rows if row.name == CEILING).plain)
    return [{"pipeline": row.name, "missing": row.missing} if row.missing else _figures(row, ceiling) for row in rows]


def _figures(row: Row, ceiling: float) -> dict:
    whole = [sum(parts.values()) for parts in row.parts]
    wait = [parts["data"] for parts in row.parts]
    return {
        "pipeline": row.name,
        "setup_seconds": row.setup,
        "first_step_seconds": Spread.of(row.firsts),
        "step_seconds": Spread.of(row.plain),
        "marked_step_seconds": Spread.of(whole),
        "marked_over_plain": median(whole) / median(row.plain),
        "part_seconds": {part: Spread.of([parts[part] for parts in row.parts]) for part in PARTS},
        "part_median_step_seconds": {part: median(step[part] for step in row.steps) for part in PARTS},
        "counted_steps": len(row.steps),
        "host_wait_seconds": Spread.of(row.waits),
        "data_share": median(w / s for w, s in zip(wait, whole)),
        "speedup_if_data_were_free": median(s / (s - w) for w, s in zip(wait, whole)),
        "speedup_of_fixed_batch": median(row.plain) / ceiling,
        "rounds": row.parts,
    }


def lines(results: list[dict]) -> list[list[str]]:
    """The table's rows; times in ms."""
    out = []
    for r in results:
        if "missing" in r:
            out.append([r["pipeline"], "not installed", *[""] * (len(HEADER) - 2)])
            continue
        step = r["step_seconds"]
        parts = [_ms(r["part_seconds"][part].median) for part in PARTS]
        gains = [f"{r['data_share']:.1%}", f"{r['speedup_if_data_were_free']:.2f}x", f"{r['speedup_of_fixed_batch']:.2f}x"]
        rest = [_ms(r["host_wait_seconds"].median), _ms(r["first_step_seconds"].median), f"{r['marked_over_plain'] - 1:+.1%}"]
        out.append([r["pipeline"], f"{_ms(step.median)} ({_ms(step.least)} to {_ms(step.largest)})", *parts, *gains, *rest])
    return out


def _ms(seconds: float) -> str:
    """Milliseconds to three digits or more."""
    value = 1000 * seconds
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def chart(results: list[dict], title: str, path: str) -> None:
    """Bars: ms a step by part, and the share of data beside each."""
    from train.figures import plt, save

    shown = [r for r in results if "missing" not in r][::-1]
    figure, axes = plt.subplots(figsize=(10, 0.55 * len(shown) + 1.9))
    names, ends = [r["pipeline"] for r in shown], [0.0] * len(shown)
    widest = 1000 * max(r["marked_step_seconds"].median for r in shown)
    for part in PARTS:
        values = [1000 * r["part_seconds"][part].median for r in shown]
        axes.barh(names, values, left=ends, color=COLOURS[part], label=part)
        for i, value in enumerate(values):
            if value > 0.055 * widest:  # else the number does not fit into its bar
                dark = part in ("data", "forward", "optimiser")
                at = dict(ha="center", va="center", fontsize=8, color="white" if dark else "black")
                axes.text(ends[i] + value / 2, i, _ms(value / 1000), **at)
        ends = [end + value for end, value in zip(ends, values)]
    for i, (end, r) in enumerate(zip(ends, shown)):
        axes.text(end, i, f"  {_ms(end / 1000)} ms, data {r['data_share']:.0%}", va="center", fontsize=9)
    axes.set(xlabel="ms a training step", xlim=(0, 1.25 * widest))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="lower center", ncols=len(PARTS), frameon=False)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    save(Path(path), figure)


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=12, help="counted steps per round; 0 for as many as the images allow (default 12)")
    parser.add_argument("--first", type=int, default=4, help="steps before them, reported separately (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with and without instrumentation (default 5)")
    asked, names, files = parse(parser, given)
    steps, first, rounds = (asked.pop(key) for key in ("steps", "first", "rounds"))
    if steps < 0 or first < 1 or rounds < 1:
        raise InputError("--steps needs 0 or more, --first and --rounds 1 or more")
    recipe = Recipe(**asked, lr=0.01, schedule="constant")  # too low to diverge: only the time is of interest
    known(recipe)
    rows, cost = measure(names, recipe, steps, first, rounds, say=lambda text: print(text, file=sys.stderr))
    results = figures(rows)
    about = facts(data.locate(recipe.data, recipe.size), device_of(recipe), {**asked, "steps": steps, "first": first, "rounds": rounds})
    about["precision"] = rows[-1].training.precision
    print(table(HEADER, lines(results)))
    title = f"{recipe.net} on {about['data']['name']}, batch {recipe.batch_size}, {about['precision']}, {about['hardware']['device']}"
    counted = f"{rounds} rounds of {len(rows[-1].steps) // rounds} steps"
    print(f"\n{title}; times in ms, median (least to largest) of {counted}, commit {about['commit']}.")
    print(f'Marking costs the host {1e6 * cost:.1f} µs a step; "marking" is how much longer the steps of the marked rounds were.')
    if files["json"]:
        write_json(files["json"], {**about, "marking_seconds": cost, "rows": results})
    if files["chart"]:
        chart(results, title, files["chart"])


if __name__ == "__main__":
    sys.exit(exit_code(main))

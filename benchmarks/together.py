"""How many trainings per hour, one at a time and several as one program?

    python benchmarks/together.py RECIPE --sizes 1 8 [--steps N] [--passes P] [--json FILE] [--field value ...]

Every size trains that many seeds of the recipe for some steps, pass by pass in turns. Trainings per hour: steps per hour, times the seeds,
over the steps of the recipe's training, loading included; set-up, compilation, tests and files are not counted. As one program
(`train/together.py`) on a GPU; on a CPU, where that is slower, the seeds of a group train in turns, unless --as-one asks for one program.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

import torch  # noqa: E402

from benchmarks.flags import check_files, leave_out  # noqa: E402
from benchmarks.measure import Spread, facts, table  # noqa: E402
from pipelines import data  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from pipelines.files import write_json  # noqa: E402
from pipelines.store import Store  # noqa: E402
from train.assembly import assemble, known  # noqa: E402
from train.device import device_of  # noqa: E402
from train.flags import named, parse  # noqa: E402
from train.recipe import Recipe  # noqa: E402
from train.stopwatch import Stopwatch  # noqa: E402
from train.summary import dataset_name  # noqa: E402
from train.together import Together  # noqa: E402

HEADER = ["together", "set-up s", "ms a step of all", "images/s, all", "trainings an hour", "of one at a time"]


@dataclass
class Row:
    """A group of seeds, and its images/s in each pass."""

    size: int
    group: Together
    setup: float
    speeds: list[float] = field(default_factory=list)

    @classmethod
    def make(cls, size: int, recipe: Recipe, store: Store, device: torch.device, as_one: bool) -> "Row":
        """Seeds `seed`, `seed + 1`, ..., compiled where the recipe says so."""
        watch = Stopwatch(device)
        with watch.lap("setup"):
            each = [assemble(replace(recipe, seed=recipe.seed + i), store, device, Stopwatch(device)) for i in range(size)]
            batched = as_one or (device.type == "cuda" and size > 1)
            group = Together(each, batched)
            group.warm_up()
        return cls(size, group, watch.seconds["setup"])

    def time(self, number: int, steps: int) -> None:
        """One pass over the first `steps` batches of an epoch, after three that are not counted."""
        each, seen = [t.batches(number) for t in self.group.trainings], 0
        for batches in islice(zip(*each), 3):
            self.group.step(list(batches))
        begin = self.now()
        for batches in islice(zip(*each), steps):
            self.group.step(list(batches))
            seen += sum(len(images) for images, _ in batches)
        self.speeds.append(seen / (self.now() - begin))

    def now(self) -> float:
        if self.group.device.type == "cuda":
            torch.cuda.synchronize(self.group.device)
        return time.perf_counter()

    def figures(self, alone: "Row", images: int) -> dict:
        """Plain values. images: of one training, all epochs."""
        first = self.group.trainings[0]
        hours = [3600 * speed / images for speed in self.speeds]
        step = [1000 * self.size * first.recipe.batch_size / speed for speed in self.speeds]
        ratio = Spread.of([ours / theirs for ours, theirs in zip(self.speeds, alone.speeds)])
        spreads = {"images_per_second": Spread.of(self.speeds), "milliseconds_a_step": Spread.of(step), "trainings_an_hour": Spread.of(hours)}
        return {"together": self.size, "one_program": self.group.batched, "setup_seconds": round(self.setup, 2), **spreads, "of_one_at_a_time": ratio}


def options(given: list[str] | None) -> tuple[argparse.Namespace, str, Recipe]:
    """(own flags, the recipe's name, the recipe). Raises `InputError` for sizes and counts that are none, and for a recipe that cannot be reckoned."""
    parser = argparse.ArgumentParser(
        prog="together.py", description=__doc__.split("\n")[0], allow_abbrev=False, epilog="all other flags are settings of python -m train"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8], help="numbers of seeds trained together; the first is the baseline")
    parser.add_argument("--steps", type=int, default=50, help="counted steps per pass")
    parser.add_argument("--passes", type=int, default=9)
    parser.add_argument("--as-one", action="store_true", help="train as one program on a CPU, too")
    parser.add_argument("--json", metavar="FILE")
    asked, rest = parser.parse_known_args(given)
    if min(*asked.sizes, asked.steps, asked.passes, 1) < 1:
        raise InputError("--sizes, --steps and --passes: give 1 or more")
    leave_out(rest, "say how many seeds go together with --sizes, and where the figures go with --json", "runs", "together", "sweep", "out")
    check_files(asked.json)
    name, recipe = parse(rest, named())
    known(recipe)
    if recipe.first_side or recipe.settle < 1 or recipe.freeze < 1:  # the hour is reckoned from steps of the first epoch
        raise InputError(f"{name}: its steps take less time in some epochs than in others: add --first-side 0 --settle 1 --freeze 1")
    return asked, name, recipe


def main(given: list[str] | None = None) -> None:
    asked, name, recipe = options(given)
    device, store = device_of(recipe), data.locate(recipe.data, recipe.size)
    rows = []
    for size in asked.sizes:
        rows.append(Row.make(size, recipe, store, device, asked.as_one))
        print(f"{size} together: set up in {rows[-1].setup:.1f} s", file=sys.stderr, flush=True)
    first = rows[0].group.trainings[0]
    if asked.steps > (most := len(first.train) - 4):  # a last batch may be smaller
        remedy = f"give at most {most}" if most > 0 else "give more images or a smaller --batch-size"
        raise InputError(f"--steps {asked.steps}: an epoch has {len(first.train)} steps of {recipe.batch_size}: {remedy}")
    for number in range(asked.passes):
        for row in rows if number % 2 else reversed(rows):
            row.time(number, asked.steps)
        made = [row.figures(rows[0], recipe.epochs * len(first.train.plan.ids)) for row in rows]
        if asked.json:  # after every pass: a machine may be lent for minutes
            settings = {"recipe": {"name": name, **vars(recipe)}, "steps": asked.steps, "passes": number + 1}
            write_json(asked.json, facts(store, device, settings) | {"precision": first.precision, "rows": made})
    keys = ("milliseconds_a_step", "images_per_second", "trainings_an_hour", "of_one_at_a_time")
    cells = [[f"{m['together']}" + (", one program" if m["one_program"] else ""), f"{m['setup_seconds']:.1f}", *(m[key] for key in keys)] for m in made]
    print(f"{recipe.net} by {name}, {dataset_name(store)}, {first.precision}, compiled: {recipe.compiled}")
    print(table(HEADER, cells))


if __name__ == "__main__":
    sys.exit(exit_code(main))

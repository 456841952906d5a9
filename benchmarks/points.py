"""Trainings whose accuracies are compared: each is one experiment, some seeds, and a JSON file that a later call reads again."""

from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import facts
from pipelines import data
from pipelines.files import write_json
from train import result
from train.device import device_of
from train.interval import Interval
from train.jobs import gathered, seeds, train_jobs
from train.recipe import Recipe
from train.run import Kept, make_folder
from train.summary import tested_on


@dataclass(frozen=True)
class Point:
    """The seeds of one recipe, in `out/<name>/seed-N`, and what they reached, in `out/<name>.json`."""

    name: str
    recipe: Recipe
    out: Path
    values: dict

    @classmethod
    def train(cls, name: str, recipe: Recipe, out: Path, say=print) -> "Point":
        """Train what is not there yet. Raises `InputError` where `out` holds that name with other settings, or all its seeds diverged."""
        make_folder(out)
        device, store = device_of(recipe), data.locate(recipe.data, recipe.size)
        outcomes = train_jobs(seeds(recipe, out / name), recipe.together, device, name, say, Kept())
        runs, last = gathered(outcomes, out / name), next(o for o in reversed(outcomes) if "diverged" not in o)
        values = facts(store, device, {"recipe": {"name": name, **asdict(recipe)}}) | {"tested_on": tested_on(recipe), "runs": runs}
        values |= {key: last[key] for key in ("commit", "net", "parameters", "macs", "precision", "hardware", "versions", "taught")}
        values["train_accuracy"] = Interval.of([o["train_accuracy"] for o in outcomes if "diverged" not in o]).mean
        write_json(out / f"{name}.json", values)
        return cls(name, recipe, out, values)

    @property
    def accuracy(self) -> Interval:
        return Interval.of(self.values["runs"]["test_accuracies"])

    @property
    def data(self) -> str:
        """The data's name, as it stands beside an accuracy."""
        return self.values["data"]["name"]

    def history(self) -> list[dict]:
        """metrics.jsonl of the first seed that was finished, a line an epoch."""
        return result.lines(self.out / self.name / f"seed-{self.values['runs']['seeds'][0]}", "metrics.jsonl")

    def cells(self) -> list[str]:
        """test accuracy, what its spread is, train accuracy, runs: as text."""
        reached, lost = self.accuracy, len(self.values["runs"]["diverged"])
        spread = "one run" if reached.n == 1 else f"{100 * reached.deviation:.2f}; {100 * reached.low:.2f} to {100 * reached.high:.2f}"
        return [f"{100 * reached.mean:.2f}%", spread, f"{100 * self.values['train_accuracy']:.2f}%", f"{reached.n}" + (f" + {lost} diverged" if lost else "")]


def about(points: list[Point]) -> str:
    """One line of what all points share: data, what was tested, precision and machine, or those of them all."""
    first = points[0].values
    images = first["settings"]["recipe"]["limit"]
    some = f"{images:,} training images, balanced" if images else "all training images"
    precisions = " and ".join(dict.fromkeys(point.values["precision"] for point in points))
    machines = " and ".join(dict.fromkeys(point.values["hardware"]["device"] for point in points))
    return f"{points[0].data}, {some}, tested on {first['tested_on']}; final epoch; {precisions} on {machines}"

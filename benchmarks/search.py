"""Which values of a recipe's settings are better, and what do they cost? Trainings at settings drawn at random around it, and a fit of the results.

    python benchmarks/search.py RECIPE --vary lr=0.05..0.2 muon_norm=filter,row [...] --trials N --out DIR [--stop-after MINUTES] [--field value ...]

A trial draws all settings at once from their ranges (`surface.py` says how) and has its own seed, so that every trial tells something about every
setting, and about how much a seed matters. All trials train in one process, not compiled (on a GPU a step is recorded instead), and `--together G` of them as one
program. Trials that differ only in what the host decides (rates, epochs, sizes, shifts) share the recorded step; any other setting has it recorded anew, which
takes longer than a short training. Each is tested once, on images held out of the training set: a tenth of them, or `--held-out`. DIR keeps what is finished: called
again, with more trials or not, the command continues. Writes DIR/search.md, search.json and search.png.

low → high      fitted difference between the two ends of a range, with half of its individual 95% interval; bold where that excludes zero
middle          how far the middle is above the mean of the two ends
train           low → high of the last epoch's train accuracy, which is less noisy than that of few test images; augmentation lowers it
seconds         low → high of the field's clock: training and the last test pass
"""

import argparse
import sys
import time
from dataclasses import asdict, fields, replace
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

from benchmarks.findings import chart, found  # noqa: E402
from benchmarks.measure import facts, field_seconds  # noqa: E402
from benchmarks.surface import Choice, Range, draws  # noqa: E402
from pipelines import data  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from pipelines.files import replacing, write_json  # noqa: E402
from pipelines.store import Store  # noqa: E402
from train.assembly import known  # noqa: E402
from train.device import device_of  # noqa: E402
from train.figures import plt  # noqa: E402
from train.flags import named, parse  # noqa: E402
from train.jobs import train_jobs  # noqa: E402
from train.recipe import Recipe, flag  # noqa: E402
from train.run import Kept, make_folder  # noqa: E402
from train.summary import dataset_name, tested_on  # noqa: E402
from train.sweep import SHAPES, typed  # noqa: E402

ALL = ("search.md", "search.json", "search.png")


def ranges_of(words: list[str], recipe: Recipe) -> list[Range | Choice]:
    """What `--vary` means. Raises `InputError` for what is no setting, has no such values, or leaves out the recipe's own."""
    found: list[Range | Choice] = []
    for word in words:
        name, _, text = word.partition("=")
        name, (low, dots, high) = name.replace("-", "_"), text.partition("..")
        values = typed("--vary", word, name, [low, high] if dots else text.split(",") if text else [])
        kind = next(f.type for f in fields(Recipe) if f.name == name)
        for value in values:
            known(replace(recipe, **{name: value}))  # says what is wrong with it
        if dots and (kind not in (int, float) or not values[0] < values[1]):
            raise InputError(f"--vary {word}: LOW..HIGH takes two numbers, the lower first; of words or switches give a list: {flag(name)}=A,B")
        if len(set(values)) < 2 or name in [one.name for one in found]:
            raise InputError(f"--vary {word}: give each setting once, with two values or more")
        one = Range(name, *values, kind) if dots else Choice(name, tuple(dict.fromkeys(values)))
        if not one.holds(getattr(recipe, name)):
            raise InputError(f"--vary {word}: the recipe has {getattr(recipe, name)}: take it in, or change the recipe with --{flag(name)}")
        if recipe.together > 1 and name in SHAPES:
            raise InputError(f"--vary {word}: changes the shape of a training, so that they cannot go together: leave --together out")
        found.append(one)
    return found


def train(recipe: Recipe, name: str, settings: list[dict], out: Path, until: float, say=print) -> list[tuple[dict, dict]]:
    """(settings, outcome) of each trial that is finished when no more may begin: `until`, by the clock of `time.monotonic`."""
    kept, device, done = Kept(), device_of(recipe), []
    for first in range(0, len(settings), recipe.together):
        if done and time.monotonic() >= until:
            break
        some = settings[first : first + recipe.together]
        places = [out / f"trial-{first + i:04d}" for i in range(len(some))]
        jobs = [(replace(recipe, seed=recipe.seed + first + i, together=1, **trial), places[i]) for i, trial in enumerate(some)]
        for i, (trial, place, outcome) in enumerate(zip(some, places, train_jobs(jobs, recipe.together, device, name, lambda *_: None, kept))):
            for large in ("checkpoint.pt", "model.safetensors"):
                (place / large).unlink(missing_ok=True)  # of hundreds of trials
            reached = outcome.get("diverged") or f"{outcome['test_accuracy']:.2%} in {field_seconds(outcome['seconds']):.2f} s"
            say(f"trial {first + i + 1}/{len(settings)}: {' '.join(f'{flag(key)} {value}' for key, value in trial.items())}: {reached}")
            done.append((trial, outcome))
    return done


def options(given: list[str] | None) -> tuple[argparse.Namespace, str, Recipe]:
    """(own flags, the recipe's name, the recipe). Raises `InputError` for what cannot be searched."""
    parser = argparse.ArgumentParser(
        prog="search.py", description=__doc__.split("\n")[0], allow_abbrev=False, epilog="all other flags are settings of python -m train"
    )
    parser.add_argument("--vary", nargs="+", required=True, metavar="FIELD=LOW..HIGH", help="or FIELD=A,B,...: settings and the values to draw from")
    parser.add_argument("--trials", type=int, default=32, help="trainings in total; those already in DIR always count")
    parser.add_argument("--stop-after", type=float, default=0.0, metavar="MINUTES", help="start no trial after this time; 0 for no limit")
    parser.add_argument(
        "--second-costs", type=float, default=0.0, metavar="POINTS", help="points of accuracy that a second costs, when looking for the best settings"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help=f"folder of the results: {', '.join(ALL)}, and every trial")
    asked, rest = parser.parse_known_args(given)
    name, recipe = parse(rest, named())
    known(recipe)
    if asked.trials < 1 or not asked.stop_after >= 0:
        raise InputError("--trials: give 1 or more; --stop-after: minutes, or 0")
    if recipe.runs > 1 or recipe.sweep or recipe.minutes:
        raise InputError("--runs, --sweep and --minutes: a trial is one training of so many epochs: leave them out")
    asked.ranges = ranges_of(asked.vary, recipe)
    compiled = recipe.compiled
    recipe = replace(recipe, compiled=False, recorded=recipe.recorded or compiled, eval_every=0, report=False)
    return asked, name, recipe


def finished(out: Path) -> int:
    """How many trials are finished there, from the first on."""
    return next(i for i in count() if not any((out / f"trial-{i:04d}" / name).exists() for name in ("summary.json", "diverged.json")))


def on_held_out(recipe: Recipe, store: Store) -> Recipe:
    """The recipe, tested on a tenth of the training images where it does not say on how many."""
    return recipe if recipe.held_out else replace(recipe, held_out=store.count("train") // 10)


def main(given: list[str] | None = None) -> None:
    begin = time.monotonic()
    asked, name, recipe = options(given)
    store, device, out = data.locate(recipe.data, recipe.size), device_of(recipe), Path(asked.out)
    recipe = on_held_out(recipe, store)
    make_folder(out)
    until = begin + 60 * asked.stop_after if asked.stop_after else float("inf")
    settings = draws(asked.ranges, max(asked.trials, finished(out)), recipe.seed)
    done = train(recipe, name, settings, out, until)
    text, plain, fit = found(recipe, asked.ranges, done, asked.second_costs)
    title = f"{recipe.net} by {name}, {dataset_name(store)}, tested on {tested_on(recipe)}"
    about = facts(store, device, {"recipe": {"name": name, **asdict(recipe)}, "vary": asked.vary, "second_costs": asked.second_costs})
    keys = ("seed", "test_accuracy", "train_accuracy", "diverged", "epoch", "step")
    trials = [{**trial, **{k: o[k] for k in keys if k in o}, "seconds": field_seconds(o["seconds"]) if "seconds" in o else None} for trial, o in done]
    write_json(out / "search.json", about | {"tested_on": tested_on(recipe), "fit": plain, "trials": trials})
    if fit:
        chart(recipe, asked.ranges, done, fit, f"{title}; {about['hardware']['device']}", out / "search.png")
    with replacing(out / "search.md") as temporary:
        picture = "\n\n![](search.png)" if fit and plt else ""
        temporary.write_text(f"# {title}\n\n    {about['command']}\n\n{text}{picture}\n", encoding="utf-8")
    print(f"\n{title}\n{text}\n{out / 'search.md'}")


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""Trainings of several seeds or settings, a folder each: one after another, several as one program, or dealt out to processes; a finished one is kept."""

import json
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean

from pipelines import data
from pipelines.errors import InputError, reason
from pipelines.files import write_json
from train import result
from train.course import Diverged
from train.failures import explained
from train.interval import Interval
from train.recipe import ANYWAY, Recipe
from train.run import Kept, Run, train_once
from train.saving import CtrlC
from train.state import read, recipe_of
from train.together import Stopped, Together

MEANS = ("train_accuracy", "test_accuracy", "images_per_second")  # of a summary of several seeds


def seeds(recipe: Recipe, out: Path) -> list[tuple[Recipe, Path]]:
    """(recipe, folder) of each of a recipe's runs."""
    return [(replace(recipe, seed=seed, runs=1, together=1, sweep=""), out / f"seed-{seed}") for seed in range(recipe.seed, recipe.seed + recipe.runs)]


def check_kind(out: Path, recipe: Recipe) -> None:
    """Raise `InputError` where a folder holds trainings of another kind of command, whose files would be mixed."""
    single, seeded, swept = (
        any(os.path.exists(out / name) for name in ("checkpoint.pt", "model.safetensors")),
        bool(result.matching(out, "seed-*")),
        os.path.exists(out / "sweep.json"),
    )
    wrong = single or seeded if recipe.sweep else single or swept if recipe.runs > 1 else seeded or swept
    if wrong:
        kind = "a single training" if single else "a sweep" if swept else "several seeds"
        raise InputError(f"{out}: holds {kind}: name another folder with --out, or remove it")


def train_jobs(jobs: list[tuple[Recipe, Path]], together: int, device, name: str, say, kept: Kept) -> list[dict]:
    """What each job's folder says of it in the end: its summary, or where it diverged. A finished one is not trained again.

    Several processes take turns in taking `together` of them, and all get all outcomes.
    """
    mine, recipe = kept.ranks, jobs[0][0]
    outcomes = mine.same(lambda: all_earlier(jobs))
    for place in [place for place in outcomes if outcomes[place] and not mine.rank]:
        say(f"{place}: finished earlier, kept")
    waiting = [job for job in jobs if not outcomes[job[1]]]
    if mine.several:
        kept.locate(recipe)
        say = partial(prefixed, say, f"process {mine.rank}: ")
    groups = [waiting[first : first + together] for first in range(0, len(waiting), together)]
    ended = {}
    for group in mine.dealt(groups):
        ended |= {place: outcome for (_, place), outcome in zip(group, attempt(group, device, name, say, kept))}
    outcomes |= mine.of_all(ended)
    return [outcomes[place] for _, place in jobs]


def prefixed(say, before: str, line: str) -> None:
    """Say which of several processes says it."""
    say(before + line)


def finished(outcomes: list[dict], out: Path) -> list[dict]:
    """Those that did not diverge. Raises `InputError` where all did."""
    found = [o for o in outcomes if "diverged" not in o]
    if not found:
        raise InputError(f"{out}: all {len(outcomes)} runs diverged ({outcomes[0]['diverged']})")
    return found


def gathered(outcomes: list[dict], out: Path) -> dict:
    """The accuracies of several runs with their interval, and where others diverged. Raises `InputError` where all did."""
    good = finished(outcomes, out)
    if len({json.dumps(run.get("data"), sort_keys=True) for run in good}) > 1:
        raise InputError(f"{out}: its seeds were trained on different data: remove those of the old data, or name another folder with --out")
    accuracies = [run["test_accuracy"] for run in good]
    interval = asdict(Interval.of(accuracies))
    if len(good) == 1:
        interval |= dict.fromkeys(("deviation", "low", "high"))  # JSON has no NaN
    lost = [{key: run[key] for key in ("seed", "epoch", "step")} for run in outcomes if "diverged" in run]
    return {"seeds": [run["seed"] for run in good], "test_accuracies": accuracies, **interval, "diverged": lost}


def of_runs(runs: dict) -> Interval:
    """The interval of `gathered` runs."""
    return Interval.of(runs["test_accuracies"])


def attempt(jobs: list[tuple[Recipe, Path]], device, name: str, say, kept: Kept) -> list[dict]:
    """The summary of each job, which goes on where it was interrupted; where it diverges, what `diverged.json` says of it.

    Several go together, but where an interruption left them at different steps: then one after another.
    """
    states = [interrupted(one, place) for one, place in jobs]
    if len(jobs) > 1 and len({state and (state["epoch"], state["step"]) for state in states}) > 1:
        return [outcome for job in jobs for outcome in attempt([job], device, name, say, kept)]
    if len(jobs) > 1:
        return go_together(jobs, states, device, name, say, kept)
    ((one, place),) = jobs
    try:
        return [train_once(one, place, device, name, say, kept, states[0])]
    except Diverged as error:
        return [diverged(error, one, place, name, say, kept)]


def go_together(jobs: list[tuple[Recipe, Path]], states: list[dict | None], device, name: str, say, kept: Kept) -> list[dict]:
    """`attempt` of several jobs of one shape as one program."""
    runs = [Run(*job, device, name, say, kept, state, slot) for slot, (job, state) in enumerate(zip(jobs, states))]
    ctrl_c = CtrlC()
    for run in runs:
        run.together, run.group = len(runs), ctrl_c
    trainings = [run.training for run in runs]
    group = kept.group = kept.group if kept.group and kept.group.holds(trainings) else Together(trainings, batched=device.type == "cuda")
    with runs[0].watch.lap("compile"), explained(jobs[0][0], device):
        group.warm_up()
    with ctrl_c:
        try:
            errors = group.follow([run.course() for run in runs], ctrl_c)
        except Stopped as error:
            for i in error.going:  # all at one step, so that they can go on together
                with group.random_of(i):
                    runs[i].saver.save()
            say(f"saved: to go on, {runs[0].remedy}")
            raise
        if ctrl_c.asked:  # behind the last epoch, which was saved
            say(f"saved: to go on, {runs[0].remedy}")
    return [diverged(error, *job, name, say, kept) if error else run.finish() for error, job, run in zip(errors, jobs, runs)]


def summed_up(outcomes: list[dict], out: Path) -> dict:
    """Write the summary of several seeds, and give it: that of the last which did not diverge, but for `MEANS`, which are those of all, and what all of them
    reached. Raises `InputError` where all diverged."""
    good = finished(outcomes, out)
    means = {key: mean(run[key] for run in good) for key in MEANS if all(key in run for run in good)}  # an earlier version's may lack one
    summary = {**good[-1], **means, "runs": gathered(outcomes, out)}
    write_json(out / "summary.json", summary)
    return summary


def diverged(error: Diverged, recipe: Recipe, place: Path, name: str, say, kept: Kept) -> dict:
    """Say and write where a run diverged."""
    say(str(error))
    place.mkdir(parents=True, exist_ok=True)
    outcome = {"diverged": str(error), "seed": recipe.seed, "epoch": error.epoch, "step": error.step}
    write_json(place / "diverged.json", {**outcome, "data": {"sha256": kept.locate(recipe).sha256}, "recipe": {"name": name, **asdict(recipe)}})
    return outcome


def interrupted(recipe: Recipe, place: Path) -> dict | None:
    """The checkpoint that an interrupted call left of this seed; None where there is none. Raises `InputError` where it is of other settings."""
    if not os.path.exists(place / "checkpoint.pt"):
        return None
    state = read(place)
    check_same(recipe, asdict(recipe_of(state, place)[1]), place, "an interrupted run")
    return state


def check_same(recipe: Recipe, theirs: dict, place: Path, what: str) -> None:
    """Raise `InputError` where a folder has a run of other settings: figures of two experiments are not averaged, and nothing is written over."""
    differ = [key for key, value in recipe.experiment().items() if value != theirs.get(key) and key not in ANYWAY]
    if differ or theirs.get("seed") != recipe.seed:
        raise InputError(f"{place}: {what} with another {', '.join(differ) or 'seed'}: remove it, or name another folder with --out")


def check_data(recipe: Recipe, outcomes: dict[Path, dict]) -> None:
    """Raise `InputError` where a folder's outcome is of other data than the recipe's: by their checksums, as they may have moved.

    An outcome without checksums is of the data that its command named; so is one of data that are gone, whose command is given again.
    """
    moved = [place for place, outcome in outcomes.items() if outcome["recipe"].get("data") != recipe.data]
    try:
        store = data.locate(recipe.data, recipe.size) if outcomes else None
    except InputError:
        if moved:
            raise
        return
    for place, outcome in outcomes.items():
        theirs = outcome.get("data")
        sums = theirs.get("sha256") if isinstance(theirs, dict) else None
        if sums != store.sha256 if sums else place in moved:
            raise InputError(f"{place}: a run of other data than {store.path}: give its own with --data, remove it, or name another folder with --out")


def all_earlier(jobs: list[tuple[Recipe, Path]]) -> dict[Path, dict | None]:
    """`earlier` of each job, by its folder. Raises `InputError` where one was of other data, too."""
    outcomes = {place: earlier(one, place) for one, place in jobs}
    check_data(jobs[0][0], {place: outcome for place, outcome in outcomes.items() if outcome})
    return outcomes


def earlier(recipe: Recipe, place: Path) -> dict | None:
    """What an earlier call left of this seed: its summary or `diverged.json`; None where it did not finish.

    Raises `InputError` where the folder's run had other settings.
    """
    for file in (place / "summary.json", place / "diverged.json"):
        if not os.path.exists(file):
            continue
        outcome = read_outcome(file)
        check_same(recipe, {**outcome["recipe"], "seed": outcome["seed"]}, place, "a run")
        return None if "diverged" not in outcome and lacks_report(recipe, place) else outcome
    return None


def lacks_report(recipe: Recipe, place: Path) -> bool:
    """Whether a finished run has none, which is asked for: it was interrupted, or left out. From its checkpoint it goes on to the end again."""
    return recipe.report and not os.path.exists(place / "report.html") and os.path.exists(place / "checkpoint.pt")


def read_outcome(file: Path) -> dict:
    """A seed's summary or `diverged.json`. Raises `InputError` where what `train_many` needs of it is not there, or of another kind."""
    try:
        outcome = json.loads(file.read_text(encoding="utf-8"))
        needed = {"seed": int, "recipe": dict} | ({"diverged": str, "epoch": int, "step": int} if "diverged" in outcome else {"test_accuracy": float})
        wrong = [key for key, kind in needed.items() if type(outcome[key]) is not kind]
        json.dumps(outcome, allow_nan=False)  # it is written again, into the summary of all seeds
        if wrong or not 0 <= outcome.get("test_accuracy", 0) <= 1:
            raise ValueError(f"its {wrong[0] if wrong else 'test_accuracy'} is none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not a run's summary ({reason(error)}): remove {file.parent}, or name another folder with --out") from None
    return outcome

"""--sweep FIELD=VALUE,VALUE,...: a training for each value of a setting, or --runs K of them, and a table of what they reached.

Values are tried on what the recipe tests on: for choosing a setting, give --held-out too. `--together G` takes G of the
trainings at once, where the setting does not change a net's shape or the number and size of its steps.
"""

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import torch

from nets.__main__ import table
from pipelines.errors import InputError
from pipelines.files import write_json
from train.assembly import check, known
from train.jobs import all_earlier, check_kind, finished, gathered, of_runs, seeds, summed_up, train_jobs
from train.recipe import Recipe, flag
from train.run import Kept, make_folder
from train.summary import on_what

FIXED = ("seed", "runs", "together", "sweep", "out", "data", "size", "device", "deterministic", "minutes")  # not settings of one training, or the same for all
SHAPES = (
    "net",
    "norm",
    "limit",
    "held_out",
    "epochs",
    "eval_every",
    "batch_size",
    "precision",
    "compiled",
    "recorded",
    "optimiser",
    "first_side",
    "grown",
    "settle",
    "freeze",
    "pipeline",
)


def train(recipe: Recipe, out: Path, device: torch.device, name: str, say, kept: Kept) -> dict:
    """Train all values, each in `out/FIELD-VALUE` (with its seeds below it), and write and say how they ended. Raises `InputError` where all diverged."""
    setting, values = read(recipe)
    if recipe.together > 1 and setting in SHAPES:
        raise InputError(f"--sweep {flag(setting)}: changes the shape of a training, so that they cannot go together: leave --together out")
    places = [out / f"{flag(setting)}-{value}" for value in values]
    each = [replace(recipe, sweep="", **{setting: value}) for value in values]
    for place in places:
        check_kind(place, replace(recipe, sweep=""))
    jobs = [seeds(one, place) if recipe.runs > 1 else [(replace(one, runs=1, together=1), place)] for one, place in zip(each, places)]
    every = [job for several in jobs for job in several]
    if kept.ranks.same(lambda: begins(out, setting, every)):
        for one in each:  # without data, or with values that they do not allow, there is nothing to write
            check(one, kept.locate(recipe))
        if not kept.ranks.rank:  # or what is interrupted could become another command's
            make_folder(out)
            write_json(out / "sweep.json", {"sweep": setting, "values": []})
    outcomes = train_jobs(every, recipe.together, device, name, say, kept)
    if kept.ranks.rank:
        return {}
    finished(outcomes, out)
    rest, ends = iter(outcomes), []
    for value, place, several in zip(values, places, jobs):
        ended = [next(rest) for _ in several]
        good = next((one for one in ended if "diverged" not in one), None)
        if good and recipe.runs > 1:
            summed_up(ended, place)
        tested = {key: good[key] for key in ("tested_on", "data") if key in good} if good else {}  # the setting may decide it
        ends.append({setting: value, **(gathered(ended, place) | tested if good else {"diverged": [one["diverged"] for one in ended]})})
    summary = {"sweep": setting, "values": ends}
    write_json(out / "sweep.json", summary)
    say(shown(setting, ends))
    return summary


def begins(out: Path, setting: str, jobs: list[tuple[Recipe, Path]]) -> bool:
    """Whether the folder has yet to say which setting's sweep it holds. Raises `InputError` where it holds something else."""
    check_setting(out, setting)
    all_earlier(jobs)
    return not os.path.exists(out / "sweep.json")


def check_setting(out: Path, setting: str) -> None:
    """Raise `InputError` where a folder holds the sweep of another setting, whose `sweep.json` would be written over."""
    try:
        theirs = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["sweep"]
    except OSError:
        return
    except (ValueError, KeyError, TypeError, RecursionError):
        theirs = "something else"
    if theirs != setting:
        raise InputError(f"{out}: holds a sweep of {theirs}: name another folder with --out, or remove it")


def shown(setting: str, ends: list[dict]) -> str:
    """A line a value, the best last."""
    ends = sorted(ends, key=lambda end: end.get("mean", -1.0))
    reached = [f"{of_runs(end)}{on_what(end)}" if "mean" in end else end["diverged"][0] for end in ends]
    return table((flag(setting), "test accuracy"), [(str(end[setting]), said) for end, said in zip(ends, reached)], left=2)


def read(recipe: Recipe) -> tuple[str, list]:
    """(field, values of its type) that a recipe's `sweep` means. Raises `InputError` for what is none."""
    word, equals, given = recipe.sweep.partition("=")
    setting = word.replace("-", "_")
    values = typed("--sweep", recipe.sweep, setting, given.split(",") if equals and given else [])
    for value in values:
        known(replace(recipe, sweep="", **{setting: value}))  # says what is wrong with it
    return setting, list(dict.fromkeys(values))


def typed(option: str, given: str, setting: str, texts: list[str]) -> list:
    """Values of a setting's type. option, given: what a line about a wrong one names. Raises `InputError` for no setting, no values, or another type."""
    kinds = {f.name: f.type for f in fields(Recipe) if f.name not in FIXED}
    if setting not in kinds or not texts:
        raise InputError(f"{option} {given}: give FIELD=VALUE,VALUE,... with a setting such as lr")
    kind = switch if kinds[setting] is bool else kinds[setting]
    try:
        return [kind(text) for text in texts]
    except ValueError:
        raise InputError(f"{option} {given}: {flag(setting)} takes values of type {kinds[setting].__name__}") from None


def switch(text: str) -> bool:
    """True or False. Raises `ValueError` for anything else."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"

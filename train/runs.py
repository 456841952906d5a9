"""A training and its repetitions: `--runs K` trains K seeds in one process, each in a folder of its own."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

import nets
import pipelines
from pipelines.errors import InputError, reason
from train.interval import Interval
from train.device import device_of
from train.loop import Diverged
from train.recipe import Recipe
from train.resume import read, recipe_of
from train.run import Kept, folder, train_once, write_json

NOT_COMPARED = ("name", "seed", "runs", "out", "data")  # what two runs of one experiment may differ in


def train(recipe: Recipe, name: str = "", say=print, state: dict | None = None) -> dict:
    """Train a recipe, `recipe.runs` times, and write its run folder. Gives back the (last) summary.

    state  of a checkpoint of this recipe, to go on from (`resume.read`)

    Raises `InputError` for data, a net, a pipeline or a folder that cannot be used, before training starts.
    """
    device = device_of(recipe)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for; read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
    pipelines.load(recipe.pipeline)
    if recipe.net not in nets.names():
        raise InputError(f"net {recipe.net!r}: choose one of {', '.join(nets.names())}")
    out = folder(recipe)
    if recipe.runs == 1:
        return train_once(recipe, out, device, name, say, Kept(), state)
    return train_many(recipe, out, device, name, say)


def train_many(recipe: Recipe, out: Path, device, name: str, say) -> dict:
    """Seeds `seed`, `seed + 1`, ..., each in `out/seed-N`. A seed that is finished there is not trained again.

    A diverged seed is written to its folder's `diverged.json`, counted, and left out of no count; the accuracies
    are of the others. Raises `InputError` where the folder holds another experiment's seeds, or all diverged.
    """
    finished, diverged, kept = [], [], Kept()
    for seed in range(recipe.seed, recipe.seed + recipe.runs):
        one, place = replace(recipe, seed=seed, runs=1), out / f"seed-{seed}"
        outcome = earlier(one, place)
        if outcome:
            say(f"{place}: finished earlier, kept")
        else:
            outcome = attempt(one, place, device, name, say, kept)
        (diverged if "diverged" in outcome else finished).append(outcome)
    if not finished:
        raise InputError(f"{out}: all {recipe.runs} runs diverged ({diverged[0]['diverged']})")
    if len({json.dumps(run.get("data"), sort_keys=True) for run in finished}) > 1:
        raise InputError(f"{out}: its seeds were trained on different data: remove those of the old data, or name another folder with --out")
    accuracies = [run["test_accuracy"] for run in finished]
    interval = Interval.of(accuracies)
    lost = [{key: run[key] for key in ("seed", "epoch", "step")} for run in diverged]
    together = {"seeds": [run["seed"] for run in finished], "test_accuracies": accuracies, **asdict(interval), "diverged": lost}
    if interval.n == 1:
        together |= dict.fromkeys(("deviation", "low", "high"))  # JSON has no NaN
    summary = {**finished[-1], "runs": together}
    write_json(out / "summary.json", summary)
    say(f"{recipe.runs} runs: test accuracy {interval}" + "".join(f"; {run['diverged']}" for run in diverged))
    return summary


def attempt(recipe: Recipe, place: Path, device, name: str, say, kept: Kept) -> dict:
    """The summary of one seed, which goes on where it was interrupted; where it diverges, what `diverged.json` says of it."""
    try:
        return train_once(recipe, place, device, name, say, kept, interrupted(recipe, place))
    except Diverged as error:
        say(str(error))
        place.mkdir(parents=True, exist_ok=True)
        outcome = {"diverged": str(error), "seed": recipe.seed, "epoch": error.epoch, "step": error.step}
        write_json(place / "diverged.json", {**outcome, "recipe": {"name": name, **asdict(recipe)}})
        return outcome


def interrupted(recipe: Recipe, place: Path) -> dict | None:
    """The checkpoint that an interrupted call left of this seed; None where there is none of the same settings."""
    if not (place / "checkpoint.pt").exists():
        return None
    state = read(place)
    theirs = asdict(recipe_of(state, place)[1])
    return state if all(theirs[key] == value for key, value in asdict(recipe).items() if key not in ("out", "data", "runs")) else None


def earlier(recipe: Recipe, place: Path) -> dict | None:
    """What an earlier call left of this seed: its summary or `diverged.json`; None where it did not finish.

    Raises `InputError` where the folder's run had other settings: figures of two experiments are not averaged.
    """
    for file in (place / "summary.json", place / "diverged.json"):
        if not os.path.exists(file):
            continue
        outcome, ours = read_outcome(file), asdict(recipe)
        theirs = outcome["recipe"]
        differ = [key for key in ours if key not in NOT_COMPARED and ours[key] != theirs.get(key)]
        if differ or theirs.get("seed") != recipe.seed or outcome["seed"] != recipe.seed:
            raise InputError(f"{place}: a run with another {', '.join(differ) or 'seed'}: remove it, or name another folder with --out")
        return outcome
    return None


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

"""The state of a training: all that a later process needs to go on from there to the same bits, as plain values and tensors.

It holds everything but the data: a pipeline's whole state is (seed, epoch, step).
"""

import os
import time
from dataclasses import fields
from pathlib import Path

import torch

from pipelines.errors import InputError, reason
from pipelines.store import Store
from train import checkpoint, result
from train.course import Progress
from train.loop import Training
from train.recipe import Recipe

STATE = {
    "net",
    "optimiser",
    "scaler",
    "average",
    "plateau",
    "random",
    "history",
    "seconds",
    "epoch",
    "step",
    "losses",
    "right",
    "seen",
    "epoch_seconds",
    "recipe",
    "data",
}


WAYS = ("fused", "foreach", "capturable")  # how an optimiser works on a device: the training's own, not its checkpoint's


def taken(training: Training) -> dict:
    """The state, whose tensors are the training's own; waits for the device."""
    at, average = training.progress, training.average
    optimiser, seconds = training.optimiser.state_dict(), dict(training.watch.seconds)
    seconds["train"] -= at.seconds  # of an epoch that was gone on with, which has them
    for group in optimiser["param_groups"]:
        group["lr"] = float(group["lr"])  # a tensor where steps are recorded, which another device may not do
        for name in WAYS:
            group.pop(name, None)
    return {
        "net": training.net.state_dict(),
        "optimiser": optimiser,
        "scaler": training.scaler.state_dict(),
        "average": average.state_dict() if average else None,
        "plateau": vars(training.plateau),
        "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if training.device.type == "cuda" else []},
        "history": training.history,
        "seconds": seconds,
        "epoch": at.epoch,
        "step": at.step,
        "losses": torch.stack(at.losses).tolist() if at.losses else [],
        "right": int(at.right),
        "seen": at.seen,
        "epoch_seconds": at.seconds + time.perf_counter() - training.began if at.step else 0.0,
    }


def put(training: Training, state: dict) -> None:
    """Have a training go on from a state, in the tensors that it has: programs know them by address.

    Raises `KeyError`, `TypeError`, `ValueError` or `RuntimeError` where it is none of its recipe's.
    """
    training.net.load_state_dict(state["net"])
    put_optimiser(training.optimiser, state["optimiser"])
    training.scaler.load_state_dict(state["scaler"])
    if training.average:
        training.average.load_state_dict(state["average"])
    vars(training.plateau).update({key: state["plateau"][key] for key in vars(training.plateau)})
    torch.set_rng_state(state["random"]["cpu"].cpu())
    if training.device.type == "cuda" and state["random"]["cuda"]:
        for device, kept in zip(range(torch.cuda.device_count()), state["random"]["cuda"]):  # the checkpoint's machine may have had more
            torch.cuda.set_rng_state(kept.cpu(), device)
    training.history = list(state["history"])
    watch = training.watch
    for lap in ("train", "eval"):
        watch.seconds[lap] = state["seconds"][lap]
    watch.start -= state["seconds"]["train"] + state["seconds"]["eval"] + state["epoch_seconds"]  # they are of the total, too
    losses = [torch.tensor(loss, device=training.device) for loss in state["losses"]]
    training.progress = Progress(state["epoch"], state["step"], losses, state["right"], state["seen"], state["epoch_seconds"])


def put_optimiser(optimiser: torch.optim.Optimizer, state: dict) -> None:
    """`load_state_dict` into the tensors that are there; those that are not yet are made."""
    rates = [group["lr"] for group in optimiser.param_groups]
    before = {parameter: dict(values) for parameter, values in optimiser.state.items()}
    own = [{name: group[name] for name in WAYS if name in group} for group in optimiser.param_groups]
    optimiser.load_state_dict({**state, "param_groups": [theirs | ways for theirs, ways in zip(state["param_groups"], own, strict=True)]})
    for group, rate in zip(optimiser.param_groups, rates):
        if torch.is_tensor(rate):
            group["lr"] = rate.fill_(float(group["lr"]))
    for parameter, values in before.items():
        new = optimiser.state[parameter]
        for key, value in values.items():
            if torch.is_tensor(value) and torch.is_tensor(new.get(key)):
                new[key] = value.copy_(new[key])


def read(folder: str | Path) -> dict:
    """The checkpoint of a run folder. Raises `InputError` where there is none, or it is not one to go on from."""
    path = Path(folder) / "checkpoint.pt"
    if not os.path.exists(path):
        several = result.matching(folder, "seed-*") or result.matching(folder, "sweep.json")
        again = " (for several seeds or values, give the first command again with the same --out)" if several else ""
        raise InputError(f"{path}: no checkpoint: name the folder of an interrupted run{again}")
    state = checkpoint.load(path)
    if not isinstance(state, dict) or STATE - state.keys():
        raise InputError(f"{path}: not a checkpoint to go on from: train again")
    return state


def recipe_of(state: dict, folder: Path) -> tuple[str, Recipe]:
    """(name, recipe) that a checkpoint was made with. Raises `InputError` where it is no recipe of this version."""
    try:
        values = dict(state["recipe"])
        name = values.pop("name")
        kinds = {setting.name: setting.type for setting in fields(Recipe)}
        values |= {key: float(value) for key, value in values.items() if type(value) is int and kinds.get(key) is float}
        wrong = [key for key in values if type(values[key]) is not kinds.get(key)]
        if wrong or not isinstance(name, str):
            raise TypeError(f"unknown or mistyped setting {', '.join(map(str, wrong))}")
        return name, Recipe(**values)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{folder / 'checkpoint.pt'}: its recipe is not one of this version ({reason(error)}): train again") from None


def go_on(training: Training, state: dict, store: Store, folder: Path) -> None:
    """Put a training where its checkpoint was. Raises `InputError` where the checkpoint does not fit it, or the data are others."""
    check_data(state, store, folder)
    try:
        check(training, state)
        put(training, state)
    except Exception as error:  # what is not a checkpoint of ours can raise anything
        raise InputError(f"{folder / 'checkpoint.pt'}: does not fit its recipe ({reason(error)}): train again") from None


def check_data(state: dict, store: Store, folder: Path) -> None:
    """Raise `InputError` unless a checkpoint's training saw the store's images."""
    theirs = state["data"]
    if not isinstance(theirs, dict) or not all(isinstance(v, str) for v in theirs.values()) or theirs != store.sha256:
        raise InputError(f"{store.path}: not the data that {folder} was trained on: name that with --data")


def check(training: Training, state: dict) -> None:
    """Raise `ValueError`, `KeyError` or another where a training could not go on from what was read."""
    fresh = taken(training)
    wrong = [key for key, ours in fresh.items() if not alike(state[key], ours | {"cuda": []} if key == "random" else ours)]
    kept, groups = state["optimiser"]["state"], fresh["optimiser"]["param_groups"]
    if wrong or [group["params"] for group in state["optimiser"]["param_groups"]] != [group["params"] for group in groups]:
        raise ValueError(f"its {wrong[0] if wrong else 'optimiser'} is of another kind")
    trained = [p for group in training.optimiser.param_groups for p in group["params"]]
    for place, values in kept.items():  # momenta, as large as what they move, and counts
        ours = trained[place]
        if not all(v is None or v.dtype == ours.dtype and v.shape == (() if key == "step" else ours.shape) for key, v in values.items()):
            raise ValueError(f"its optimiser's values of parameter {place} are of another kind")
    at, size, count = (state["epoch"], state["step"]), training.train.plan.batch_size, len(training.train.plan.ids)
    if not (0 <= at[0] <= training.recipe.epochs and 0 <= at[1] <= len(training.train) and at[0] == len(state["history"])):
        raise ValueError(f"it is at epoch {at[0]}, step {at[1]}")
    if len(state["losses"]) != at[1] or not 0 <= state["right"] <= state["seen"] == min(at[1] * size, count):
        raise ValueError("its counts are not those of its step")
    for line in state["history"]:
        result.check_line(line, result.EPOCH)
    if not all(type(loss) is float for loss in state["losses"]):
        raise ValueError("a loss is no number")


def alike(theirs, ours) -> bool:
    """Whether what was read is of the kind of `ours` all the way down: dicts with the same keys or more, tensors of one
    shape and type. In a list that is empty with us there may be anything."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and (theirs.shape, theirs.dtype) == (ours.shape, ours.dtype)
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and theirs.keys() >= ours.keys() and all(alike(theirs[key], ours[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return isinstance(theirs, (list, tuple)) and (not ours or len(theirs) == len(ours)) and all(map(alike, theirs, ours))
    return type(theirs) in (int, float) if isinstance(ours, float) else type(theirs) is type(ours)

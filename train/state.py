"""The state of a training: all that a later process needs to go on from there to the same bits, as plain values and tensors.

It holds everything but the data: a pipeline's whole state is (seed, epoch, step).
"""

import time

import torch

from train.course import Progress
from train.loop import Training


def taken(training: Training) -> dict:
    """The state, whose tensors are the training's own; one host sync."""
    at, average = training.progress, training.average
    return {
        "net": training.net.state_dict(),
        "optimiser": training.optimiser.state_dict(),
        "scaler": training.scaler.state_dict(),
        "average": average.state_dict() if average else None,
        "plateau": vars(training.plateau),
        "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if training.device.type == "cuda" else []},
        "history": training.history,
        "seconds": dict(training.watch.seconds),
        "epoch": at.epoch,
        "step": at.step,
        "losses": torch.stack(at.losses).tolist() if at.losses else [],
        "right": int(at.right),
        "seen": at.seen,
        "epoch_seconds": at.seconds + time.perf_counter() - training.began if at.step else 0.0,
    }


def put(training: Training, state: dict) -> None:
    """Have a training go on from a state, in the tensors that it has: programs know them by address. Raises `KeyError`, `TypeError`, `ValueError` or `RuntimeError` where it is none of its recipe's."""
    training.net.load_state_dict(state["net"])
    put_optimiser(training.optimiser, state["optimiser"])
    training.scaler.load_state_dict(state["scaler"])
    if training.average:
        training.average.load_state_dict(state["average"])
    vars(training.plateau).update({key: state["plateau"][key] for key in vars(training.plateau)})
    torch.set_rng_state(state["random"]["cpu"].cpu())
    if training.device.type == "cuda" and state["random"]["cuda"]:
        torch.cuda.set_rng_state_all([kept.cpu() for kept in state["random"]["cuda"]])
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
    optimiser.load_state_dict(state)
    for group, rate in zip(optimiser.param_groups, rates):
        if torch.is_tensor(rate):
            group["lr"] = rate.fill_(float(group["lr"]))
    for parameter, values in before.items():
        new = optimiser.state[parameter]
        for key, value in values.items():
            if torch.is_tensor(value) and torch.is_tensor(new.get(key)):
                new[key] = value.copy_(new[key])

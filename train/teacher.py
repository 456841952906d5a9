"""The net that another learns from, or several of them as one (`--teacher`).

Shapes: images_BCHW as a training has them, logits_BK.
"""

import os
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from pipelines.errors import InputError
from pipelines.store import Store
from train import result
from train.recipe import Recipe


class Ensemble(nn.Module):
    """The mean of several nets' logits, each counted so many times: an ensemble teaches more than its best member (Hinton et al. 2015, arXiv:1503.02531)."""

    def __init__(self, nets: list[nn.Module], counts: list[int]):
        super().__init__()
        self.nets, self.counts = nn.ModuleList(nets), counts

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        every = [logits for net, count in zip(self.nets, self.counts) for logits in [net(images_BCHW)] * count]
        return torch.stack(every).mean(0)


def teacher(folders: str, store: Store) -> nn.Module:
    """The net of a run folder; of one of several seeds, or of several folders (`os.pathsep` between them), the `Ensemble` of all that finished, in which
    a folder counts as often as it is named.

    Raises `InputError` where there is none, or it knows other classes or takes other images than the store's.
    """
    counts = Counter(finished(folders))
    models = {path: result.model(path) for path in counts}
    if not models:
        raise InputError(f"--teacher {folders}: names no folder: name one that a training wrote")
    for path, model in models.items():
        if (model.classes, model.mean, model.std) != (store.classes, store.mean, store.std):
            raise InputError(f"--teacher {path}: trained on other classes or images than {store.path}: train one on these")
    nets = [model.net for model in models.values()]
    return nets[0] if len(nets) == 1 else Ensemble(nets, list(counts.values()))


def leak(recipe: Recipe) -> str:
    """What to say where a teacher, or the run that the weights are of, has learnt images that are held out here, "" where none has, or it is not known."""
    others = finished(recipe.teacher) + ([Path(recipe.weights)] if recipe.weights else [])
    less = [path for path in others if held_out(path, recipe.held_out) < recipe.held_out]
    return f"note: {less[0]} was trained on images that are held out here: train it with --held-out {recipe.held_out}, too" if less else ""


def held_out(path: Path, unknown: int) -> int:
    """How many images a run's recipe held out."""
    try:
        count = result.summary(path)["recipe"].get("held_out", 0)
    except InputError:  # a model is all that is needed of a teacher
        return unknown
    return count if type(count) is int else unknown


def finished(folders: str) -> list[Path]:
    """The folders in which the models of several run folders lie."""
    return [place for folder in filter(None, folders.split(os.pathsep)) for place in places(Path(folder))]


def places(folder: Path) -> list[Path]:
    """The folders in which a run's models lie: itself, as a model is all that is needed of a single training, or those of its seeds that finished."""
    alone = os.path.exists(folder / "model.safetensors") or not os.path.exists(folder / "summary.json")
    return [folder] if alone else result.seeds(folder) or [folder]

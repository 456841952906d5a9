"""A run as its folder keeps it: what it was, its metrics, and its net.

Shapes: images_NHWC uint8 pixels, logits_NK float32.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import nn

import nets
from pipelines.errors import InputError
from pipelines.reference import table
from train.checkpoint import load_model

NEEDED = ("net", "data", "recipe", "parameters", "test_accuracy", "images_per_second", "seconds")
SIDE = 32  # pixels, of CIFAR's images: what a model without a size in its header was trained on


@dataclass(frozen=True)
class Model:
    """A trained net in evaluation mode on the CPU, and what its inputs and outputs mean.

    classes        names in label order
    mean, std      of the training images, fractions of 1, a value a channel
    height, width  of the images it was trained on, pixels
    """

    name: str
    net: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    height: int
    width: int

    def inputs(self, images_NHWC: np.ndarray) -> torch.Tensor:
        """float32[N,C,H,W], channels_last: pixels normalised as every pipeline does."""
        lookup, channels = table(self, torch.float32), torch.arange(len(self.mean))
        return lookup[torch.from_numpy(images_NHWC.astype(np.int64)), channels].permute(0, 3, 1, 2)

    @torch.no_grad()
    def logits(self, images_NHWC: np.ndarray, batch: int = 1000) -> torch.Tensor:
        """float32[N,K], in float32 whatever the precision of the training."""
        return torch.cat([self.net(self.inputs(images_NHWC[i : i + batch])) for i in range(0, len(images_NHWC), batch)])


def summary(folder: str | Path) -> dict:
    """What `summary.json` of a run folder holds. Raises `InputError` where there is none that can be read."""
    path = Path(folder) / "summary.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = "no such folder" if not Path(folder).exists() else f"no finished run ({path.name}: {error.strerror})"
        raise InputError(f"{folder}: {reason}: name the folder that a training wrote") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}): train again") from None
    missing = [key for key in NEEDED if not isinstance(values, dict) or key not in values]
    if missing:
        raise InputError(f"{path}: not a run's summary, it lacks {', '.join(missing)}: train again")
    return values


def seeds(folder: str | Path) -> list[Path]:
    """The folders of single trainings in a run folder: itself, or those of its finished seeds."""
    together = summary(folder).get("runs")
    if not together:
        return [Path(folder)]
    return [Path(folder) / f"seed-{seed}" for seed in together["seeds"]]


def lines(folder: str | Path, name: str) -> list[dict]:
    """`metrics.jsonl` (a line an epoch) or `steps.jsonl` (a line a step) of a single training."""
    path = Path(folder) / name
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): train again") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}): train again") from None


def model(folder: str | Path) -> Model:
    """The trained net of a run folder; `model.safetensors` is all that is needed of it.

    Raises `InputError` where it is missing, damaged, or of a net that is not here any more.
    """
    path = Path(folder) / "model.safetensors"
    if not path.exists():
        several = sorted(Path(folder).glob("seed-*"))
        remedy = f"name one of its seeds, such as {several[0]}" if several else "name the folder that a training wrote"
        raise InputError(f"{folder}: no {path.name} in it: {remedy}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        classes, mean, std = (tuple(json.loads(header[key])) for key in ("classes", "mean", "std"))
        height, width = (int(header.get(key, SIDE)) for key in ("height", "width"))
        options = {} if header["norm"] == "batch" else {"norm": header["norm"]}
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and then replaced
            net = nets.load(header["net"], len(classes), **options)
    except nets.UnknownNet as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a header that lies can raise anything
        raise InputError(f"{path}: not the model of a run ({error!r:.200}): train again") from None
    return Model(header["net"], load_model(path, net).eval(), classes, mean, std, height, width)

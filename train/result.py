"""A run as its folder keeps it: what it was, its metrics, and its net.

Shapes: images_NHWC uint8 pixels, logits_NK float32.
"""

import json
import os
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import nn

import nets
from pipelines.errors import InputError, reason
from pipelines.pictures import LARGEST
from pipelines.reference import table
from train.checkpoint import load_model

NUMBER, LARGE = (int, float), 1e300
SUMMARY = {"net": str, "data": dict, "recipe": dict, "parameters": int, "test_accuracy": NUMBER, "images_per_second": NUMBER, "seconds": dict}
OPTIONAL = {"runs": dict, "hardware": dict, "versions": dict, "tested_on": str, "command": str}
SEVERAL = {"seeds": list, "diverged": list}  # of a summary's "runs"
EPOCH = {"epoch": int, "lr": NUMBER, "train_loss": NUMBER, "train_accuracy": NUMBER, "images_per_second": NUMBER, "seconds": NUMBER}
TESTED = ("test_loss", "test_accuracy")  # None in an epoch without a test pass
LINES = {"metrics.jsonl": EPOCH, "steps.jsonl": {"epoch": int, "step": int, "loss": NUMBER}}
SIDE = 32  # pixels, of CIFAR's images: what a model without a size in its header was trained on


@dataclass(frozen=True)
class Model:
    """A trained net in evaluation mode on the CPU, and what its inputs and outputs mean.

    name, norm     of the net, as `nets.load` takes them
    classes        names in label order
    mean, std      of the training images, fractions of 1, a value a channel
    height, width  of the images it was trained on, pixels
    """

    name: str
    norm: str
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


def matching(folder: str | Path, pattern: str) -> list[Path]:
    """What a folder has of that name, sorted; nothing where one may not look into it or no folder can have its name, where `Path.glob` raises."""
    return [Path(folder, name) for name in sorted(glob(pattern, root_dir=folder))]


def summary(folder: str | Path) -> dict:
    """What `summary.json` of a run folder holds. Raises `InputError` where there is none that can be read."""
    path = Path(folder) / "summary.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        check(values, SUMMARY)
        check(values, {key: kind for key, kind in OPTIONAL.items() if key in values})
        check(values["data"], {"name": str} | ({"sha256": dict} if "sha256" in values["data"] else {}))
        check(values["seconds"], {"train": NUMBER, "total": NUMBER})
        if "runs" in values:
            check(values["runs"], SEVERAL)
            check(dict(enumerate(values["runs"]["seeds"])), dict.fromkeys(range(max(len(values["runs"]["seeds"]), 1)), int))
    except OSError as error:
        what = "no such folder" if not os.path.exists(folder) else f"no finished run ({path.name}: {error.strerror})"
        inside = matching(folder, "*/summary.json")
        raise InputError(f"{folder}: {what}: name " + (f"one in it, such as {inside[0].parent}" if inside else "the folder that a training wrote")) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a run's summary ({reason(error)}): train again") from None
    return values


def check(values, kinds: dict) -> None:
    """Raise `ValueError` unless `values` is a dict that holds a value of each kind; numbers are finite."""
    if not isinstance(values, dict):
        raise ValueError(f"{str(values):.40} stands for several values")
    for key, kind in kinds.items():
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, kind) or (isinstance(value, NUMBER) and not abs(value) < LARGE):
            raise ValueError(f"its {key} is {str(value):.40}" if key in values else f"it lacks {key}")


def check_line(line, kinds: dict) -> None:
    """`check` for a line of metrics; what there is only in an epoch with a test pass is None in others."""
    check(line, kinds)
    check(line, {key: NUMBER for key in TESTED if line.setdefault(key) is not None})


def seeds(folder: str | Path) -> list[Path]:
    """The folders of single trainings in a run folder: itself, or those of its finished seeds."""
    together = summary(folder).get("runs")
    if not together:
        return [Path(folder)]
    return [Path(folder) / f"seed-{seed}" for seed in together["seeds"]]


def lines(folder: str | Path, name: str) -> list[dict]:
    """`metrics.jsonl` (a line an epoch) or `steps.jsonl` (a line a step) of a single training.

    A last line that is not whole is left away: the training may be writing it. Raises `InputError` where the file is
    missing or damaged.
    """
    path = Path(folder) / name
    try:
        text = path.read_text(encoding="utf-8")
        found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        for line in found:
            check_line(line, LINES[name])
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): train again") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({reason(error)}): train again") from None
    return found


def model(folder: str | Path) -> Model:
    """The trained net of a run folder; `model.safetensors` is all that is needed of it.

    Raises `InputError` where it is missing, damaged, or of a net that is not here any more.
    """
    path = Path(folder) / "model.safetensors"
    if not os.path.exists(path):
        several = matching(folder, "seed-*")
        remedy = f"name one of its seeds, such as {several[0]}" if several else "name the folder that a training wrote"
        if os.path.exists(Path(folder) / "checkpoint.pt"):
            remedy = f"the training is not finished: python -m train --resume {folder}"
        raise InputError(f"{folder}: no {path.name} in it: {remedy}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        name, norm = header["net"], header["norm"]
        classes, mean, std = (tuple(json.loads(header[key])) for key in ("classes", "mean", "std"))
        height, width = (int(header.get(key, SIDE)) for key in ("height", "width"))
        if not (all(isinstance(c, str) for c in classes) and len(mean) == len(std) == 3 and all(0 <= v <= 1 for v in mean) and all(0 < v <= 1 for v in std)):
            raise ValueError("its classes, mean or std are none")
        if not (1 <= height <= LARGEST and 1 <= width <= LARGEST):
            raise ValueError(f"images of {width}x{height} pixels")
        options = {} if norm == "batch" else {"norm": norm}
        with torch.device("meta"), torch.no_grad():  # how large it is, without its memory, and that it takes such images
            empty = nets.load(name, len(classes), **options).eval()
            size = sum(t.numel() * t.element_size() for t in empty.state_dict().values())
            empty(torch.empty(1, len(mean), height, width))
        if size > path.stat().st_size:
            raise ValueError("its weights are fewer than the net has")
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and then replaced
            net = nets.load(name, len(classes), **options)
    except nets.UnknownNet as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a header that lies can raise anything
        raise InputError(f"{path}: not the model of a run ({error!r:.200}): train again") from None
    return Model(name, norm, load_model(path, net).eval(), classes, mean, std, height, width)

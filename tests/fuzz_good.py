"""Good files of every kind that is fuzzed, and a training to go on with.

Those of sources are functions; `prepare` makes those that the project's own writers make, once a session, before anything is spoilt.
"""

import io
import json
import pickle
import tarfile
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from makers import picture, python2_pickle
from PIL import Image
from torch import nn

import nets
from pipelines import reference
from pipelines.convert import convert
from pipelines.sources import find
from pipelines.store import Store
from train import checkpoint
from train.budget import settings
from train.loop import Training
from train.recipe import Recipe
from train.state import taken
from train.stopwatch import Stopwatch

CLASSES = ("ant", "bee")
KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF")
OTHERS = ("EPS", "PCX", "ICO", "ICNS", "JPEG2000", "TGA", "SGI", "DDS", "IM")  # readable by Pillow, and no image format of ours
RECIPE = Recipe(seed=3)
FITTED = Recipe(seed=3, minutes=2.0)

GOOD: dict[str, bytes] = {}
STORE: list[Store] = []
STATES: list[dict] = []  # of a training, after each step and epoch


@cache
def image(kind: str, seed: int, mode: str = "RGB") -> bytes:
    options = {"TIFF": {"compression": (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")[seed % 4]}, "JPEG": {"progressive": seed % 2 == 1}}
    file = io.BytesIO()
    Image.fromarray(picture(seed, 32 if kind in OTHERS else 8)).convert(mode).save(file, kind, **options.get(kind, {}))
    return file.getvalue()


@cache
def picture_files(kind: str) -> dict[str, bytes]:
    return {
        f"{split}/{name}/{i}.png": image(kind, 4 * s + 2 * c + i)
        for s, split in enumerate(("train", "test"))
        for c, name in enumerate(CLASSES)
        for i in range(2)
    }


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@cache
def official_files(protocol: int) -> dict[str, bytes]:
    """CIFAR-10's seven pickles, two images in each. Protocol 0 is what Python 2 wrote; it made protocol 2 without memo."""
    dump = python2_pickle if protocol == 0 else lambda value: pickle.dumps(value, protocol)
    rng, files = np.random.default_rng(protocol), {"batches.meta": dump({b"num_vis": 3072, b"label_names": [b"ant", b"bee", b"fly"]})}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {b"batch_label": b"a batch", b"labels": [1, 2], b"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), b"filenames": [b"a.png", b"b.png"]}
        files[name] = dump(batch)
    return {f"cifar-10-batches-py/{name}": data for name, data in files.items()}


@cache
def cifar100_files(protocol: int) -> dict[str, bytes]:
    """CIFAR-100's three pickles, two images in each split."""
    rng, files = np.random.default_rng(protocol), {"meta": {b"fine_label_names": [b"ant", b"bee"], b"coarse_label_names": [b"all"]}}
    for name in ("train", "test"):
        files[name] = {b"fine_labels": [0, 1], b"coarse_labels": [0, 0], b"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8)}
    return {f"cifar-100-python/{name}": pickle.dumps(value, protocol) for name, value in files.items()}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def training(store: Store) -> Training:
    """Two epochs of two steps, the last batch of one image."""
    recipe = replace(RECIPE, pipeline="reference", device="cpu", precision="fp32", epochs=2, batch_size=3, lr=0.01, cutout=0, translate=2)
    loaders = [reference.open(store, split, batch_size=3, policy=recipe.policy(), seed=3) for split in ("train", "test")]
    return Training(recipe, net(), *loaders, torch.device("cpu"), Stopwatch())


def prepare(folder: Path) -> None:
    """Make the good files that the project's own writers make. Each reader reads its own once."""
    make_stores(folder)
    make_weights(folder)
    make_reports()
    Image.init()
    made = training(STORE[0])
    made.run(lambda *_: STATES.append(deepcopy(taken(made))), lambda: STATES.append(deepcopy(taken(made))))


def make_stores(folder: Path) -> None:
    for encoding, kind in (("raw", "PNG"), ("jpeg", "JPEG")):
        source = folder / "source.tar"
        source.write_bytes(tar_of(picture_files(kind)))
        convert(find(source), folder / "a.safetensors", encoding)
        GOOD[encoding] = (folder / "a.safetensors").read_bytes()
    (folder / "a.safetensors").write_bytes(GOOD["raw"])
    STORE.append(Store(folder / "a.safetensors"))


def make_weights(folder: Path) -> None:
    """A checkpoint, a model of the small net, and one of a net that has a name."""
    torch.manual_seed(0)
    trained = net()
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.ones(2, 3, 3, 3)).sum().backward()
    optimiser.step()
    state = {"net": trained.state_dict(), "optimiser": optimiser.state_dict(), "epoch": 2, "random": {"cpu": torch.get_rng_state()[:16].clone()}}
    torch.save({**state, "history": [{"epoch": 1, "loss": 0.5}], "plateau": None, "recipe": kept_recipe()}, folder / "checkpoint.pt")
    checkpoint.save_model(folder / "model.safetensors", trained, {"net": "small", "classes": '["ant", "bee"]'})
    described = {"classes": '["ant", "bee"]', "mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}
    checkpoint.save_model(folder / "level1.safetensors", nets.load("level1", 2), {"net": "level1", "norm": "batch", **described, "height": "32", "width": "32"})
    for name in ("checkpoint.pt", "model.safetensors", "level1.safetensors"):
        GOOD[name] = (folder / name).read_bytes()


def make_reports() -> None:
    """What a run folder says: of a run, of a run that is one of several, of several, of one that diverged, and their lines."""
    summary = {"schema": 1, "recipe": kept_recipe(), "seed": 3, "epochs": 2, "train_accuracy": 0.5, "test_accuracy": 0.25, "seconds": {"train": 1.5}}
    figures = {"net": "level1", "parameters": 83368, "images_per_second": 999.5, "seconds": {"train": 1.5, "total": 2.0}, "command": "python -m train"}
    data = {"name": "CIFAR-10", "sha256": {"test.images": "0"}}
    about = {"data": data, "hardware": {"device": "cpu", "threads": 2}, "versions": {"torch": "2"}, "tested_on": "test"}
    several = {"seeds": [3, 4], "test_accuracies": [0.25, 0.25], "n": 2, "mean": 0.25, "deviation": 0.0, "low": 0.25, "high": 0.25, "diverged": []}
    diverged = {"diverged": "seed 3 diverged", "seed": 3, "epoch": 1, "step": 2, "recipe": kept_recipe()}
    fitted = {"minutes": 2.0, "epochs": 7, "seconds_of_a_step": {"16": 0.01, "32": 0.03}, "recipe": settings(FITTED)}
    documents = {
        "summary": summary,
        "diverged": diverged,
        "budget": fitted,
        "run": summary | figures | about,
        "runs": summary | figures | about | {"runs": several},
    }
    GOOD.update((f"{name}.json", json.dumps(document).encode()) for name, document in documents.items())
    line = {
        "epoch": 1,
        "lr": 0.1,
        "train_loss": 2.0,
        "train_accuracy": 0.5,
        "test_loss": None,
        "test_accuracy": None,
        "images_per_second": 99.0,
        "seconds": 1.5,
    }
    GOOD["metrics.jsonl"] = lines_of(line | change for change in ({}, {"epoch": 2, "test_loss": 1.5, "test_accuracy": 0.25}))
    GOOD["steps.jsonl"] = lines_of({"epoch": e, "step": k, "loss": 2.0} for e in (1, 2) for k in (1, 2))


def kept_recipe() -> dict:
    """As a run writes it down."""
    return {"name": "", **asdict(RECIPE)}


def lines_of(values: Iterable[dict]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)

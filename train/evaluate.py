"""python -m train evaluate RUN...: test trained nets again, on the images that they were tested on or on others.

Without settings a net is tested as its run did: the same images, views and precision, the first run's for all. With --data on other images: they are
normalised as those that the net learnt, classes are matched by name, and some of its classes will do; of a folder of class folders --split all takes
all images, not the one in five that training would hold out. Of several runs, or of a run of several seeds, also what the mean of their logits (an
ensemble) gives, in which a run that is named twice counts twice.
"""

import argparse
import os
from collections import Counter
from collections.abc import Collection
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nets
import pipelines
from nets.__main__ import table
from pipelines import data
from pipelines.errors import InputError, plain
from pipelines.files import check_writable, write_json
from pipelines.plan import PLAIN
from pipelines.sources import NAMED
from pipelines.store import Store
from train import result
from train.assembly import TEST_BATCH, verified
from train.command import parser_of
from train.compare import names
from train.device import DTYPES, device_of, precision_of
from train.interval import Interval
from train.machine import hardware, versions
from train.recipe import Recipe, flag
from train.result import Model
from train.split import split
from train.summary import SCHEMA, dataset_name, tested_on
from train.teacher import Ensemble, places
from train.testing import Outcome, evaluate, fitting
from train.usage import metavar

ASKED = {  # the settings of a training that a test has, too
    "data": "other images: store, image folder, archive or dataset name",
    "size": "crop and resize a source's images to this side, pixels",
    "held_out": "test on this many training images, the same that a training holds out; 0 for the test split",
    "views": "average the logits of 2 (mirrored) or 6 (mirrored and shifted) views of each image",
    "views_share": "share of the images, the least confident, that get these views",
    "precision": "precision of the forward pass",
    "device": "where to test; auto takes a GPU if there is one",
}
KINDS = {"weights": "pretrained", "teacher": "taught"}  # those that say how a net came about
SPLITS = ("test", "train", "all")
MEAN = "mean of their logits"


@dataclass(frozen=True)
class Tested:
    """A net, or the mean of several, and what it says of the images."""

    name: str
    model: Model
    outcome: Outcome
    parameters: int
    kind: str = ""

    def row(self) -> tuple:
        """Its line of the table."""
        return (plain(self.name), f"{self.outcome.accuracy:.2%}", f"{self.outcome.loss:.4f}", self.parameters, self.kind)

    def facts(self, store: Store) -> dict:
        """It as plain values."""
        classes = order(store, self.model)
        confusion = self.outcome.confusion(len(classes)).tolist()
        found = {"accuracy": self.outcome.accuracy, "loss": self.outcome.loss, "classes": classes, "confusion": confusion}
        return {"run": self.name, "net": self.model.name, "parameters": self.parameters, "kind": self.kind, **found}


@dataclass(frozen=True)
class Test:
    """What nets are tested on, and how: a recipe's settings, and the store that its `data` means."""

    recipe: Recipe
    store: Store
    device: torch.device
    splits: tuple[str, ...] = ("test",)  # without a recipe's held-out images

    @property
    def precision(self) -> str:
        """Of the forward pass."""
        return precision_of(self.recipe, self.device)

    def of(self, model: Model, net: nn.Module) -> Outcome:
        """What `net` says of the images, which it has as `model` knows them. Classes of the model that the store lacks count behind the store's.

        Raises `InputError` where the store has other classes than the model, or images of another size.
        """
        store, precision = self.store, self.precision
        if unknown := [name for name in store.classes if name not in model.classes]:
            raise InputError(f"{store.path}: {plain(unknown[0])} is none of the {len(model.classes)} classes that the net knows: give images of those")
        if (store.height, store.width) != (model.height, model.width):
            remedy = f"add --size {model.height}" if model.height == model.width else "convert them to that size"
            raise InputError(f"{store.path}: images of {store.width}x{store.height} pixels, the net learnt {model.width}x{model.height}: {remedy}")
        columns = torch.tensor([model.classes.index(name) for name in order(store, model)], device=self.device)
        net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

        def look(images: torch.Tensor, views: int) -> torch.Tensor:
            with torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "fp32"):
                return fitting(net, images, views)[:, columns]

        held = split(self.recipe, store.labels("train"))[0] if self.recipe.held_out else None
        common = dict(batch_size=TEST_BATCH[self.device.type], policy=PLAIN, device=self.device, dtype=DTYPES[precision], ids=held)
        loaders = [pipelines.open("resident", normalised(store, model), name, **common) for name in (("train",) if self.recipe.held_out else self.splits)]
        return joined([evaluate(net, loader, look, self.recipe.views, self.recipe.views_share) for loader in loaders])

    def __str__(self) -> str:
        """Which images, and how many views of each."""
        which = tested_on(self.recipe)
        return which if self.recipe.held_out else which.replace("test", " and ".join(self.splits), 1)


def joined(outcomes: list[Outcome]) -> Outcome:
    """What was said of the images of several splits as one."""
    counts = [len(one.true) for one in outcomes]
    loss = sum(one.loss * count for one, count in zip(outcomes, counts)) / sum(counts)
    return Outcome(np.concatenate([one.predicted for one in outcomes]), np.concatenate([one.true for one in outcomes]), loss)


def order(store: Store, model: Model) -> list[str]:
    """The model's classes, the store's first and in its order."""
    return [*store.classes, *(name for name in model.classes if name not in store.classes)]


def normalised(store: Store, model: Model) -> Store:
    """The store with the statistics of the images that a model learnt."""
    same = copy(store)
    same.mean, same.std = model.mean, model.std
    return same


def settings(path: Path, wanted: Collection[str]) -> dict:
    """Those of a run's settings that its summary tells; none where there is only a model."""
    if not os.path.exists(path / "summary.json"):
        return {}
    summary = result.summary(path)
    return {key: value for key, value in {**summary["recipe"], "precision": summary.get("precision", "auto")}.items() if key in wanted}


def recipe_of(path: Path, given: dict) -> Recipe:
    """How to test: as a run was, but for what is given. Raises `InputError` where that cannot be."""
    kept = settings(path, ASKED)
    if "data" in given:
        kept.pop("size", None)
    if "split" in given:
        kept.pop("held_out", None)
        given = {key: value for key, value in given.items() if key != "split"}
        if given.get("held_out"):
            raise InputError("--held-out: names training images by itself: leave --split out")
    recipe = Recipe(**kept | given)
    if "data" not in given and recipe.data and not (os.path.exists(recipe.data) or recipe.data in NAMED):
        raise InputError(f"{recipe.data}: {path} had its images there, and there are none: name them with --data")
    return recipe


def by_class(outcome: Outcome, classes: list[str]) -> str:
    """Of a net's images, class by class, how many are right, and what most of the others are taken for."""
    rows = []
    for place, counts in enumerate(outcome.confusion(len(classes))):
        wrong = counts.copy()
        wrong[place] = 0
        if counts.sum():
            share = wrong.max() / counts.sum()
            taken = f"{plain(classes[wrong.argmax()])} ({share:.1%})" if share else ""
            rows.append((plain(classes[place]), int(counts.sum()), f"{counts[place] / counts.sum():.1%}", f"  {taken}"))
    header = ("class", "images", "right", "  most often taken for")
    widest = max(len(cells[3]) for cells in (header, *rows))  # the last column is text, and stands to the left
    return table(header, [(*cells[:3], cells[3].ljust(widest)) for cells in rows])


def tested(paths: list[Path], test: Test) -> list[Tested]:
    """The net of each run folder, once, and behind them the mean of their logits where there are several that learnt the same images."""
    counts = Counter(paths)
    models = [result.model(path) for path in counts]
    found = []
    for name, path, model in zip(names([str(path) for path in counts]), counts, models):
        kind = ", ".join(text for key, text in KINDS.items() if settings(path, KINDS).get(key))
        found.append(Tested(name, model, test.of(model, model.net), nets.parameters(model.net), kind))
    if len(models) > 1 and len({(model.classes, model.mean, model.std) for model in models}) == 1:
        every = Ensemble([model.net for model in models], list(counts.values()))
        found.append(Tested(MEAN, models[0], test.of(models[0], every), sum(one.parameters for one in found)))
    return found


def parser() -> argparse.ArgumentParser:
    made = parser_of("evaluate", __doc__)
    made.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    known = {setting.name: setting for setting in fields(Recipe)}
    for name, text in ASKED.items():
        how = dict(type=known[name].type, choices=known[name].metadata["choices"], metavar=metavar(known[name]))
        made.add_argument(f"--{flag(name)}", **how, default=argparse.SUPPRESS, help=text)
    made.add_argument("--split", choices=SPLITS, default=argparse.SUPPRESS, help="which images, where no others are held out [test]")
    made.add_argument("--json", metavar="FILE", help="also write what was found, with the confusion of classes")
    return made


def main(arguments: list[str]) -> None:
    given = vars(parser().parse_args(arguments))
    paths = [path for run in given["runs"] for path in places(Path(run))]
    recipe = recipe_of(paths[0], {key: given[key] for key in (*ASKED, "split") if key in given})
    store, asked = verified(data.locate(recipe.data, recipe.size)), given.get("split", "test")
    test = Test(recipe, store, device_of(recipe), store.splits if asked == "all" else (asked,))
    if given["json"]:
        check_writable(given["json"])
    each = tested(paths, test)
    print(f"{len(each[0].outcome.true):,} images: {test}, {dataset_name(test.store)}; {test.precision} on {hardware(test.device)['device']}\n")
    lines = table(("net", "accuracy", "loss", "parameters", ""), [one.row() for one in each]).splitlines()
    if len(each) == 1:
        lines += ["", *by_class(each[0].outcome, order(test.store, each[0].model)).splitlines()]
    elif len({one.model.name for one in each}) == 1:
        lines += ["", f"{each[0].model.name}: {Interval.of([one.outcome.accuracy for one in each if one.name != MEAN])}"]
    print("\n".join(line.rstrip() for line in lines))
    if given["json"]:
        about = {"tested_on": str(test), "precision": test.precision, "hardware": hardware(test.device), "versions": versions()}
        kept = {"name": dataset_name(test.store), "encoding": test.store.encoding, "sha256": test.store.sha256}
        write_json(given["json"], {"schema": SCHEMA, "data": kept, **about, "nets": [one.facts(test.store) for one in each]})

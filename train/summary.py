"""What is said of a run: its summary as plain values, and lines for a person."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import nets
from pipelines.store import Store
from train.command import counted
from train.flags import named, words
from train.loop import Training
from train.machine import hardware, versions
from train.recipe import Recipe

SCHEMA = 1
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "cifar10-jpeg": "CIFAR-10 (JPEG q75)", "svhn": "SVHN", "tiny-imagenet": "Tiny-ImageNet"}


def summarise(recipe: Recipe, training: Training, store: Store, name: str) -> dict:
    """The run as plain values: what `summary.json` holds, but for the seconds."""
    last = training.history[-1]
    shape = (store.channels, store.height, store.width)
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", "-m", "train", *asked(name, recipe)]),
        "hardware": {**hardware(training.device), "processes": training.ranks.count},
        "versions": versions(),
        "data": {"name": dataset_name(store), "encoding": store.encoding, "sha256": store.sha256},
        "net": recipe.net,
        "parameters": nets.parameters(training.net),
        "macs": nets.macs(training.net, shape),
        "pipeline": ", ".join(dict.fromkeys(line.get("pipeline", recipe.pipeline) for line in training.history)),
        "precision": training.precision,
        "recipe": {"name": name, **asdict(recipe)},
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "train_accuracy": last["train_accuracy"],
        "test_accuracy": last["test_accuracy"],
        "tested_on": tested_on(recipe),
        "taught": bool(recipe.teacher),
        "pretrained": bool(recipe.weights),
        "images_per_second": round(float(np.median([line["images_per_second"] for line in training.history])), 1),
    }


def asked(name: str, recipe: Recipe) -> list[str]:
    """The words of the command line; where that goes on with a run, fits epochs to a time, or is another program's, those that train it again from the start."""
    program, given = Path(sys.argv[0]), sys.argv[1:]
    found = any(word.split("=")[0] in ("--resume", "--minutes") for word in given)
    if (program.name == "train" or (program.name, program.parent.name) == ("__main__.py", "train")) and not found:
        return given
    made = named()
    return words(name, recipe, made) if name in made else min((words(other, recipe, made) for other in made), key=len)


def tested_on(recipe: Recipe) -> str:
    """What the test accuracy is of: images, their views where there are several, and a net that was taught by another. Figures that differ in it are not compared."""
    images = f"{recipe.held_out:,} images held out of train" if recipe.held_out else "test"
    some = "" if recipe.views_share == 1 else f" of the least confident {recipe.views_share:.0%}"
    said = [text for given, text in ((recipe.weights, ", from another run's weights"), (recipe.teacher, ", taught by another net")) if given]
    return images + (f", the mean of {recipe.views} views{some}" if recipe.views > 1 else "") + "".join(said)


def on_what(summary: dict) -> str:
    """What stands behind an accuracy of a run: of which images it is, where not plainly of the test split's, and the data's name."""
    kind, data = summary.get("tested_on", "test"), summary.get("data")  # of an earlier version there may be neither
    return (f" ({kind})" if kind != "test" else "") + (f" on {data['name']}" if isinstance(data, dict) and "name" in data else "")


def dataset_name(store: Store) -> str:
    """What to write beside an accuracy."""
    return NAMES.get(store.source, store.source)


def headline(recipe: Recipe, training: Training, store: Store, device: torch.device) -> str:
    """What is about to happen, in one line."""
    count = nets.parameters(training.net)
    images = len(training.train.plan.ids)
    return (
        f"{recipe.net}: {count:,} parameters, {images:,} images of {dataset_name(store)} through {recipe.pipeline}, "
        f"{counted(recipe.epochs, 'epoch')} of batch {recipe.batch_size}, {training.precision} on {hardware(device)['device']}"
    )


def epoch_line(line: dict, epochs: int) -> str:
    """One epoch for a person to read."""
    tested = "" if line["test_accuracy"] is None else f"test {line['test_accuracy']:6.2%}  "
    return (
        f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}  train {line['train_accuracy']:6.2%}  loss {line['train_loss']:.4f}  "
        f"{tested}{line['images_per_second']:>9,.0f} images/s  {line['seconds']:7.1f} s"
    )

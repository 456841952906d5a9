"""What the benchmarks that train have in common: their flags, and each pipeline made ready to train.

A contender is one row of a table. "fixed batch" is the contender that trains on one batch over and over: the
ceiling that a loader that costs nothing would reach.
"""

import argparse
import time
from dataclasses import dataclass, replace

import torch

import pipelines
from benchmarks.flags import check_files
from pipelines.errors import NotInstalled
from pipelines.store import Store
from train.assembly import assemble
from train.loop import Training
from train.recipe import Recipe
from train.stopwatch import Stopwatch

CEILING = "fixed batch"


class FixedBatch:
    """The first batch of a pipeline, again and again: loading that costs nothing."""

    def __init__(self, pipeline):
        self.plan, (self.images, self.labels) = pipeline.plan, next(iter(pipeline.epoch(0)))

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0):
        for ids in self.plan.batches(epoch, start):
            yield self.images[: len(ids)], self.labels[: len(ids)]


@dataclass
class Contender:
    """One pipeline under measurement; `missing` says why it has no figures, `setup` is in seconds."""

    name: str
    missing: str = ""
    setup: float = 0.0
    training: Training | None = None

    def prepare(self, recipe: Recipe, store: Store, device: torch.device) -> None:
        """Open the pipeline and take its first batch; one whose library is absent says so in `missing`."""
        begin = time.perf_counter()
        loader = recipe.pipeline if self.name == CEILING else self.name
        try:
            self.training = assemble(replace(recipe, pipeline=loader), store, device, Stopwatch(device))
        except NotInstalled as missing:
            self.missing = str(missing)
            return
        if self.name == CEILING:
            self.training.train = FixedBatch(self.training.train)
        self.training.warm_up()
        self.setup = time.perf_counter() - begin


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all of these benchmarks take; each adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default="", help="store or source (default: that of python -m train)")
    parser.add_argument("--pipelines", nargs="+", default=[n for n in pipelines.names() if n != "reference"], help="pipelines to measure (default: all)")
    parser.add_argument("--net", default="level1")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--limit", type=int, default=0, help="training images, balanced; 0 for all")
    parser.add_argument("--cutout", type=int, default=8, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--chart", metavar="FILE", help="write a bar chart to this file (.png)")
    return parser


def parse(parser: argparse.ArgumentParser, given: list[str] | None = None) -> tuple[dict, list[str], dict]:
    """(settings, names of pipelines, files by flag) of a command line. Raises `InputError` before anything is measured."""
    settings = vars(parser.parse_args(given))
    files = {key: settings.pop(key) for key in ("json", "chart")}
    check_files(**files)
    return settings, settings.pop("pipelines"), files

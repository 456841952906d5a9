"""Data pipelines that give the same pixels: the contract, and opening one by name.

A pipeline is a module `pipelines/<name>.py` with

    open(store, split, *, batch_size, policy, seed, device, dtype, ids, drop_last, share) -> Pipeline

To add one, add the file. Nothing here imports a pipeline's library before its name is asked for.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from pipelines.errors import InputError
from pipelines.plan import Plan


class Pipeline(Protocol):
    """An open loader. `plan` says what it yields; the loader only decides how fast."""

    plan: Plan

    def __len__(self) -> int:
        """Steps an epoch."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch after another: the first loop is `epoch(0)`, the next `epoch(1)` (`turns.Turns`)."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of an epoch from step `start` on, pixel for pixel as `reference.py` does.

        images  [B,C,H,W] of the pipeline's dtype, channels_last, on its device, (value - mean) / std
        labels  int64[B] on its device

        With a share, the part of each batch; a last batch that is too small for a part of it here is not yielded.
        A batch stays as it is for as long as the caller holds it. Leaving the loop early is allowed; one
        epoch runs at a time.
        """


def names() -> list[str]:
    """The pipelines there are: the modules beside this one that define `open`."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [f.stem for f in files if f.stem != "__init__" and "\ndef open(" in f.read_text(encoding="utf-8")]


def load(name: str):
    """The module of a pipeline. Raises `InputError` for an unknown name, `NotInstalled` without its library."""
    if name not in names():
        raise InputError(f"pipeline {name!r:.60}: choose one of {', '.join(names())}")
    return importlib.import_module(f"pipelines.{name}")


def open(name: str, store, split: str = "train", **options) -> Pipeline:
    """Open the pipeline `name` on a store.

    store       a path to a store, or an open `Store`
    split       "train" or "test"
    batch_size  images a batch
    policy      a `plan.Policy`; without one, train is augmented and test is left as it is
    seed        integer in [0, 2**32)
    device      "cpu", "cuda" or a torch.device: where the batches are wanted
    dtype       torch.float32, torch.float16 or torch.bfloat16
    ids         int[n], the samples to use, as positions in the split; all of them without it
    drop_last   leave out a last batch that is not full
    share       (rank, ranks): the rank-th part of each batch, for one of several processes that train together; `batch_size`
                is that of all parts, and a multiple of 2 * ranks

    Raises `InputError` for an unknown name, an unreadable store, or what the loader cannot do, and
    `NotInstalled` where its library is absent.
    """
    return load(name).open(store, split, **options)

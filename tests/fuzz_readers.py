"""The readers that are fuzzed, by name, and good files that each must accept.

A `Reader` has `make(rng) -> (mutation's name, {file name: bytes})` and `read(folder)`, which gives what was read or raises. A
reader that accepts a file must hand out what the file says: the asserts in `fuzz_sources.py` and `fuzz_runs.py` are the "right result" of a case.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import fuzz_layouts as layouts
import fuzz_runs as runs
import fuzz_sources as sources
from fuzz_good import GOOD, KINDS, cifar100_files, image, official_files, picture_files, tar_of


@dataclass(frozen=True)
class Reader:
    """A kind of file: what is tried, and how it is read."""

    make: Callable[[Random], tuple[str, dict[str, bytes]]]
    read: Callable[[Path], object]


READERS = {
    "official": Reader(sources.make_official, sources.read_official),
    "tar": Reader(sources.make_tar, sources.read_tar),
    "images": Reader(sources.make_folder, sources.read_folder),
    "svhn": Reader(layouts.make_svhn, sources.read_layout),
    "tiny": Reader(partial(layouts.make_tiny, partial(image, "JPEG")), sources.read_layout),
    "classes": Reader(partial(layouts.make_classes, partial(image, "PNG")), sources.read_layout),
    "store": Reader(runs.make_store, runs.read_store),
    "checkpoint": Reader(runs.make_checkpoint, runs.read_checkpoint),
    "resume": Reader(runs.make_resume, runs.read_resume),
    "model": Reader(runs.make_model, runs.read_model),
    "summary": Reader(runs.make_summary, runs.read_summary),
    "run": Reader(runs.make_run, runs.read_run),
    "picture": Reader(sources.make_picture, sources.read_picture),
}


def good_cases() -> list[tuple[str, dict[str, bytes]]]:
    """(reader, files) of files that every reader must accept."""
    cases = [("official", {"a.tar": tar_of(official_files(p))}) for p in (0, 2, 3, 4)]
    cases += [("official", official_files(2)), ("tar", {"a.tar.gz": gzip.compress(tar_of(picture_files("PNG")))})]
    cases += [("images", {f"images/{s}/bee/0.png": image(kind, 1) for s in ("train", "test")}) for kind in KINDS]
    cases += [("picture", {"0.png": image(kind, 1)}) for kind in KINDS]
    cases += [("official", cifar100_files(2)), ("official", {"a.tar": tar_of(cifar100_files(4))})]
    cases += [("svhn", layouts.svhn_files(compress)) for compress in (True, False)]
    cases += [
        ("tiny", {f"tiny/{name}": data for name, data in layouts.tiny_files(partial(image, "JPEG")).items()}),
        ("classes", layouts.class_files(partial(image, "PNG"))),
    ]
    cases += [("store", {"a.safetensors": GOOD[encoding]}) for encoding in ("raw", "jpeg")]
    cases += [("model", {"model.safetensors": GOOD["model.safetensors"]}), ("model", {"run/model.safetensors": GOOD["level1.safetensors"]})]
    cases += [
        ("checkpoint", {"checkpoint.pt": GOOD["checkpoint.pt"]}),
        *(("summary", {name: GOOD[name]}) for name in ("summary.json", "diverged.json", "budget.json")),
    ]
    seeds = {f"seed-{seed}/{name}": GOOD[good] for seed in (3, 4) for name, good in (("summary.json", "run.json"), ("metrics.jsonl", "metrics.jsonl"))}
    single = {"summary.json": GOOD["run.json"], "metrics.jsonl": GOOD["metrics.jsonl"], "steps.jsonl": GOOD["steps.jsonl"]}
    return [*cases, ("run", {"summary.json": GOOD["runs.json"], **seeds}), ("run", single)]

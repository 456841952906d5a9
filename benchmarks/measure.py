"""What all benchmarks share: a spread of values, the facts of a run, a table."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from pipelines.store import Store
from train.machine import commit, hardware, versions
from train.summary import dataset_name


@dataclass(frozen=True)
class Spread:
    """n values by their median, least and largest."""

    median: float
    least: float
    largest: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 2
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} to {self.largest:,.{digits}f})"


def facts(store: Store, device: torch.device, settings: dict) -> dict:
    """Command, commit, machine, versions, data and settings: what stands beside every figure."""
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "commit": commit(),
        "hardware": hardware(device),
        "versions": versions(),
        "data": {"name": dataset_name(store), "encoding": store.encoding},
        "settings": settings,
    }


def field_seconds(seconds: dict) -> float:
    """The field's clock of a run's `seconds`: training and the last test pass."""
    return seconds["train"] + seconds.get("final_eval", seconds["eval"])


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table; the first column is text, the others are set right."""
    cells = [header, *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |" for row in cells]
    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])

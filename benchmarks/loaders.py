"""How many images per second does each loader deliver, with nothing else to do?

    python benchmarks/loaders.py --data PATH [--only NAMES] [--batch-sizes 64 512] [--dtypes float32] [--json FILE] [--chart FILE]

Our pipelines, and the peers following our plan, are rows named after their pipelines; "-docs" rows are the peers as their own
documentation uses them, with their own random operators (`peers.py`); "record-" rows are the two ways in which the speed
records load (`whole_epoch.py`). All do the same work: flip, shift by up to 4 pixels, cutout of 8 pixels, normalisation.

All rows take turns in every pass, and each pass begins with a copy of large buffers, which gives the bandwidth that bounds
them. A row moves each image's bytes once, uint8 in and dtype out; GB/s counts those, whatever else the loader moves.
A consumer holds one batch at a time; on CUDA the host synchronises at the ends of a pass only.
A pass is a whole epoch, or fewer whole steps where an epoch would take longer than --seconds. Set-up
is the time from opening a loader to its first batch (compiling, decoding, padding, starting workers); the warm-up
passes after it, which find out how many steps fit, are not counted. FFCV's file is written before.
"""

import argparse
import gc
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

import pipelines  # noqa: E402
from benchmarks import charts, peers, whole_epoch  # noqa: E402
from benchmarks.flags import check_files  # noqa: E402
from benchmarks.measure import Spread, facts, table  # noqa: E402
from benchmarks.peers import CUTOUT, TRANSLATE, Task  # noqa: E402
from pipelines import data  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from pipelines.files import write_json  # noqa: E402
from pipelines.plan import Policy, balanced  # noqa: E402
from pipelines.threads import threads_kept  # noqa: E402

PEERS = {
    "torchvision-docs": peers.Torchvision,
    "torchvision-pil-docs": peers.TorchvisionPIL,
    "ffcv-docs": peers.Ffcv,
    "dali-docs": peers.Dali,
    "record-masks": whole_epoch.Masks,
    "record-gather": whole_epoch.Gather,
}
NAMES = ["resident", "ffcv", "dali", "torchvision", "reference", *PEERS]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HEADER = ["loader", "set-up s", "images a pass", "images/s", "GB/s", "of the copy bound", "resident is"]
COPIES, COPIED = 9, {"cpu": 1 << 28, "cuda": 1 << 31}  # copies at the start of a pass, and of how many bytes


@dataclass
class Row:
    """One loader under one batch size and dtype; `missing` says why it has no figures."""

    name: str
    task: Task
    missing: str = ""
    setup: float = 0.0  # seconds to the first batch
    steps: int = 0  # batches a pass
    seen: int = 0  # images a pass
    speeds: list[float] = field(default_factory=list)  # images/s of each pass
    loader: object = None

    def open(self):
        """The loader: a pipeline or a peer."""
        if self.name in PEERS:
            return PEERS[self.name](self.task)
        task, policy = self.task, Policy(translate=TRANSLATE, cutout=CUTOUT)
        ids = None if task.whole else task.ids
        wanted = {"batch_size": task.batch_size, "device": task.device, "dtype": task.dtype}
        return pipelines.open(self.name, task.store, policy=policy, ids=ids, **wanted)

    def expected(self, steps: int) -> int:
        """Images in the last `steps` batches of an epoch."""
        return len(self.task.ids) - (len(self.loader) - steps) * self.task.batch_size

    def take(self, number: int, steps: int) -> float:
        """Seconds for the last `steps` batches of an epoch, each let go when the next has come."""
        begin, seen = now(self.task.device), 0
        for _, labels in self.loader.epoch(number, len(self.loader) - steps):
            seen += len(labels)
        seconds = now(self.task.device) - begin
        if seen != self.expected(steps):
            raise RuntimeError(f"{seen} images instead of {self.expected(steps)}")
        return seconds

    def prepare(self, seconds: float) -> None:
        """Open, take the first batch and warm up until it is known how many steps fit into `seconds`."""
        begin = now(self.task.device)
        self.loader = self.open()
        for images, labels in self.loader.epoch(0, len(self.loader) - 1):
            check(self.task, images, labels)
        self.setup = now(self.task.device) - begin
        most, number = len(self.loader), 1
        steps = most if getattr(self.loader, "whole", False) else 1
        while (took := self.take(number, steps)) < seconds / 4 and steps < most:
            steps, number = min(4 * steps, most), number + 1
        self.steps = most if getattr(self.loader, "whole", False) else max(1, min(most, int(steps * seconds / took)))
        self.seen = self.expected(self.steps)

    def attempt(self, action, *given) -> None:
        """Do it with the thread counts that there were; what goes wrong ends this row and no other."""
        if self.missing:
            return
        with threads_kept():
            try:
                action(*given)
            except ImportError as error:
                self.missing = f"not installed: {error}"
            except InputError as error:
                self.missing = f"cannot: {error}"
            except Exception as error:  # of any library: out of memory, no compiler
                self.missing = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]:.120}"
        if self.missing:
            self.loader = None

    def time(self, number: int) -> None:
        """One counted pass."""
        self.speeds.append(self.seen / self.take(number, self.steps))


def check(task: Task, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise `RuntimeError` unless a batch is what every row must hand over."""
    last = len(task.ids) - (task.steps - 1) * task.batch_size
    shape = last, task.store.channels, task.store.height, task.store.width
    laid = images.is_contiguous(memory_format=torch.channels_last)
    if images.shape != shape or images.dtype != task.dtype or images.device.type != task.device.type or not laid:
        raise RuntimeError(f"a batch of {images.dtype} {tuple(images.shape)} on {images.device}, channels_last {laid}")
    if labels.shape != (last,) or labels.dtype != torch.int64 or labels.device.type != task.device.type:
        raise RuntimeError(f"labels of {labels.dtype} {tuple(labels.shape)} on {labels.device}")


def now(device: torch.device) -> float:
    """Seconds, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Copy:
    """A copy of buffers far larger than any cache, by all cores or by the device."""

    def __init__(self, device: torch.device):
        count = COPIED[device.type] // 4
        self.device, self.source = device, torch.ones(count, device=device)
        self.target = torch.zeros_like(self.source).copy_(self.source)

    def bandwidth(self) -> float:
        """Bytes a second, read and written: the median of some copies."""
        speeds = []
        for _ in range(COPIES):
            begin = now(self.device)
            self.target.copy_(self.source)
            speeds.append(2 * self.source.nbytes / (now(self.device) - begin))
        return median(speeds)


def measure(names: list[str], task: Task, passes: int, seconds: float, say=print) -> tuple[list[Row], list[float]]:
    """All rows, measured in turns, and the copy's bytes a second at the start of each pass."""
    rows, copy, bandwidth = [Row(name, task) for name in names], Copy(task.device), []
    for row in rows:
        row.attempt(row.prepare, seconds)
        say(f"{row.name}: {row.missing or f'set up in {row.setup:.1f} s'}")
    for number in range(passes):
        bandwidth.append(copy.bandwidth())
        for row in rows:
            row.attempt(row.time, 100 + number)  # epochs that the warm-up has not had
        say(f"pass {number + 1} of {passes}")
    for row in rows:
        row.loader = None
    gc.collect()  # workers and device memory go before the next setting
    return rows, bandwidth


def figures(rows: list[Row], bandwidth: list[float]) -> list[dict]:
    """One flat dict a row. Fractions and ratios are taken within each pass, then their medians."""
    out = []
    resident = next((row.speeds for row in rows if row.name == "resident" and not row.missing), None)
    for row in rows:
        task = row.task
        head = {"loader": row.name, "batch_size": task.batch_size, "dtype": str(task.dtype).removeprefix("torch.")}
        if row.missing:
            out.append({**head, "missing": row.missing})
            continue
        a_image = task.store.height * task.store.width * task.store.channels * (1 + task.dtype.itemsize)
        figure = {
            "setup_seconds": row.setup,
            "images_a_pass": row.seen,
            "images_per_second": Spread.of(row.speeds),
            "bytes_an_image": a_image,
            "gb_per_second": Spread.of([speed * a_image / 1e9 for speed in row.speeds]),
            "of_copy_bound": Spread.of([speed * a_image / copied for speed, copied in zip(row.speeds, bandwidth)]),
            "resident_is": Spread.of([a / b for a, b in zip(resident, row.speeds)]) if resident else None,
        }
        out.append({**head, **figure})
    return out


def lines(results: list[dict]) -> list[list[str]]:
    """The table's rows; a loader without figures says why."""
    out = []
    for r in results:
        if "missing" in r:
            out.append([r["loader"], *[""] * 2, r["missing"].split(":")[0], *[""] * 3])
            continue
        times = f"{r['resident_is'].median:,.3g}×" if r["resident_is"] and r["loader"] != "resident" else ""
        moved = f"{r['gb_per_second'].median:.3g}", f"{r['of_copy_bound'].median:.2%}"
        out.append([r["loader"], f"{r['setup_seconds']:.1f}", f"{r['images_a_pass']:,}", r["images_per_second"], *moved, times])
    return out


def libraries() -> dict[str, str]:
    """Versions of the loaders' libraries, of those that are installed."""
    found = {}
    for name in ("torchvision", "ffcv", "nvidia-dali-cuda120", "numba", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="", help="store or source (default: that of python -m train)")
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help=f"a selection of {', '.join(NAMES)}")
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="default 64 512 5000, and 50000 on a GPU")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default float32, and float16 bfloat16 on a GPU")
    parser.add_argument("--passes", type=int, default=5, help="default 5")
    parser.add_argument("--seconds", type=float, default=4.0, help="longest time of a pass (default 4)")
    parser.add_argument("--limit", type=int, default=0, help="training images, balanced; 0 for all")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file, after each setting")
    parser.add_argument("--chart", metavar="FILE", help="write a bar chart to this file (.png), of batch 512 and float32 if measured")
    return parser


def settings(asked: argparse.Namespace) -> torch.device:
    """The device meant; fills in what was left to it. Raises `InputError` for what cannot be measured."""
    found = torch.cuda.is_available()
    if asked.device == "cuda" and not found:
        raise InputError("--device cuda: torch finds no CUDA device here: use --device cpu, or mend the driver (nvidia-smi)")
    cuda = asked.device == "cuda" or (asked.device == "auto" and found)
    asked.batch_sizes = asked.batch_sizes or [64, 512, 5000, *([50000] if cuda else [])]
    asked.dtypes = asked.dtypes or (list(DTYPES) if cuda else ["float32"])
    if asked.passes < 1 or asked.seconds <= 0 or asked.limit < 0 or min(asked.batch_sizes) < 1:
        raise InputError("--passes and --batch-sizes need 1 or more, --seconds more than 0, --limit 0 or more")
    check_files(asked.json, asked.chart)
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def main(given: list[str] | None = None) -> None:
    asked = arguments().parse_args(given)
    device, store = settings(asked), data.locate(asked.data)
    labels = store.labels("train")
    ids = balanced(labels, asked.limit) if asked.limit else np.arange(len(labels))
    wanted = {key: getattr(asked, key) for key in ("only", "batch_sizes", "dtypes", "passes", "seconds", "limit")}
    about = facts(store, device, {**wanted, "images": len(ids), "translate": TRANSLATE, "cutout": CUTOUT})
    about["versions"] |= libraries()
    results, copies = [], []
    for dtype in asked.dtypes:
        for size in asked.batch_sizes:
            task = Task(store, ids, size, device, DTYPES[dtype])
            rows, bandwidth = measure(asked.only, task, asked.passes, asked.seconds, say=lambda text: print(text, file=sys.stderr))
            new, copied = figures(rows, bandwidth), Spread.of([b / 1e9 for b in bandwidth])
            results, copies = results + new, [*copies, {"batch_size": size, "dtype": dtype, "copy_gb_per_second": copied}]
            print(f"Batch {size:,}, {dtype}; copy bandwidth {copied} GB/s\n\n{table(HEADER, lines(new))}\n", flush=True)
            if asked.json:
                write_json(asked.json, {**about, "copies": copies, "rows": results})
    title = f"{about['data']['name']}, {about['hardware']['device']}, {about['hardware']['threads']} threads"
    print(f"{len(ids):,} images of {title}; median (least to largest) of {asked.passes} passes, commit {about['commit']}")
    if asked.chart:
        charts.loaders(results, copies, title, asked.chart)


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""Everything there is to measure on a GPU that is available for a short while.

    python -m benchmarks gpu --out DIR --minutes M [--data PATH]

First the GPU tests, and beside them short runs of everything that compiles, so that the compiled programs are cached; then the benchmarks one by one, the most
important first (`entries.py`). Each result is in DIR as soon as it is known, and DIR/summary.md tells the progress. The command ends within M minutes. Called
again with the same DIR on the same commit, it continues where it stopped (`steps.py` says what that means). To add a benchmark, add an entry to `entries.py`;
`--only NAME ...` runs a selection.

Charts need matplotlib, and the tests pytest, hypothesis and psutil; where they are missing these parts are skipped
with that reason. DALI and FFCV are then rows that say "not installed". `--device cpu --quick` tries the whole machinery on
tiny sizes; its figures mean nothing.
"""

import argparse
import hashlib
import importlib.util
import json
import signal
import sys
from pathlib import Path

import torch

from benchmarks.entries import ENTRIES, Entry
from benchmarks.steps import ROOT, Index, Step, run
from pipelines.errors import InputError
from train.machine import commit

NEEDED = {"numpy": "numpy", "numba": "numba", "safetensors": "safetensors", "torchvision": "torchvision", "PIL": "pillow"}
PYTHON = sys.executable


PEER_SECONDS = 300  # more where a record's script runs, too: it compiles for minutes


def steps(folder: Path, data: str, device: str, quick: bool, peers: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> list[Step]:
    """The list, in the order in which it is run. folder: where results go; data: as `--data` everywhere; peers: scripts; only: names, all without them.

    Raises `InputError` for a name that there is not.
    """
    names = ["tests", *(entry.name for entry in ENTRIES)]
    for name in only:
        if name not in names:
            raise InputError(f"--only {name}: choose from {', '.join(names)}")
    wanted = [entry for entry in ENTRIES if entry.name in (only or names)]
    first = Step(
        "machine",
        (PYTHON, "-m", "benchmarks.gpu", data, device, str(folder / "machine.json")),
        "What is measured on, and with which data?",
        "machine.json",
        most=300,  # the data may have to be downloaded and converted
    )
    tests = Step(
        "tests",
        (PYTHON, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--junit-xml", str(folder / "tests.xml"), "tests"),
        "Do the GPU's kernels and loaders give the reference's pixels?",
        "tests.xml",
        least=20,
        most=300,
        needs=("pytest", "hypothesis", "psutil"),
        skip="" if device == "cuda" else "the tests marked gpu need a CUDA device",
        beside=True,
    )
    drawn = bool(importlib.util.find_spec("matplotlib"))

    def benchmark(entry: Entry, programs: bool = False) -> Step:
        files = entry.writes if programs else entry.writes | (entry.charts if drawn else {})
        place = folder / "programs" if programs else folder
        paths = {flag: place / name for flag, name in files.items()} | {flag: folder / name for flag, name in entry.reads.items()}
        written = (word for flag, path in paths.items() for word in (flag, str(path)))
        flags = entry.quick if quick else entry.programs if programs else entry.full
        where = () if entry.kernels else ("--data", data, "--device", device)
        command = (PYTHON, "-m", entry.module, *flags.split(), *where, *written)
        most = entry.most
        if entry.module == "benchmarks.time_to_accuracy" and peers:
            command += ("--target", "peer", *(word for script in peers for word in ("--peer", script)))
            most += PEER_SECONDS * len(peers)
        if programs:
            return Step(f"programs-{entry.name}", command, f"Programs for {entry.name}; its figures mean nothing.", most=most, after="machine", beside=True)
        skip = "kernels for a CUDA device" if entry.kernels and device != "cuda" else ""
        limits = dict(least=0 if quick else entry.least, most=most, goes_on="--out" in entry.writes)  # a folder, which keeps what is finished
        return Step(entry.name, command, entry.asks, entry.result, after=entry.after, skip=skip, **limits)

    tested = [tests] if "tests" in (only or names) else []
    return [first, *tested, *(benchmark(entry, True) for entry in wanted if entry.programs), *map(benchmark, wanted)]


def machine(data: str, device: str, file: str) -> None:
    """Find (download, convert) the data, and write what the machine is."""
    from benchmarks.measure import facts
    from pipelines.data import locate
    from pipelines.files import write_json

    store, where = locate(data), torch.device(device)
    values = facts(store, where, {"data": data, "images": {split: store.count(split) for split in store.splits}})
    del values["command"]
    if where.type == "cuda":
        seen = torch.cuda.get_device_properties(where)
        capability = f"{seen.major}.{seen.minor}"
        values["hardware"] |= {"device_bytes": seen.total_memory, "capability": capability, "cuda": torch.version.cuda}
    write_json(file, values)
    print(json.dumps(values, indent=1))


def identity() -> str:
    """What results belong to: the commit, with a digest of the sources where they are not just that commit's."""
    here = commit()
    if here and not here.endswith("+"):
        return here
    digest = hashlib.sha256()
    for folder in ("pipelines", "nets", "train", "benchmarks", "tests"):
        for file in sorted(f for f in (ROOT / folder).rglob("*") if f.suffix in (".py", ".c", ".h")):
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return f"{here or 'sources-'}{digest.hexdigest()[:8]}"


def gpu(given: list[str], begin: float) -> None:
    """The command, called at `begin` (`time.monotonic()`).

    Exit code 0 where nothing failed, 1 where a step did; `InputError` where nothing can be run.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results; continues what is in it")
    parser.add_argument("--minutes", type=float, required=True, metavar="M", help="end within this many minutes")
    parser.add_argument("--data", default="", help="store or source (default: that of python -m train)")
    parser.add_argument("--peer", action="append", default=[], metavar="SCRIPT", help="a speed record's script to run beside ours (repeatable)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"a selection of tests, {', '.join(entry.name for entry in ENTRIES)}")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is only for trying the command")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the command: the figures mean nothing")
    asked = parser.parse_args(given)
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device here: mend the driver (nvidia-smi), or try the command with --device cpu --quick")
    if missing := [package for module, package in NEEDED.items() if not importlib.util.find_spec(module)]:
        raise InputError(f"not installed: {' '.join(missing)}: pip install {' '.join(missing)}")
    if not asked.minutes > 0:
        raise InputError(f"--minutes {asked.minutes:g}: give more than 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step at work is ended too
    data = str(Path(asked.data).resolve()) if asked.data and Path(asked.data).exists() else asked.data
    steps(Path(), "", asked.device, asked.quick, only=tuple(asked.only))  # says what is wrong with it before a folder is made
    index = Index(Path(asked.out).resolve(), identity() + ("-quick" if asked.quick else "") + ("-cpu" if asked.device == "cpu" else ""))
    (index.folder / "programs").mkdir(exist_ok=True)
    listed = steps(index.folder, data, asked.device, asked.quick, tuple(str(Path(script).resolve()) for script in asked.peer), tuple(asked.only))
    states = run(listed, index, begin + 60 * asked.minutes, say=lambda text: print(text, flush=True))
    done = states.count("done")
    rest = "" if done == len(states) else "; it says why not all: call again with the same --out to go on"
    print(f"{index.out / 'summary.md'}: {done} of {len(states)} steps done{rest}", flush=True)
    if "failed" in states:
        sys.exit(1)


if __name__ == "__main__":  # the first step
    if len(sys.argv) != 4:
        print("error: the command is python -m benchmarks gpu: this file by itself is its first step", file=sys.stderr)
        sys.exit(2)
    machine(*sys.argv[1:])

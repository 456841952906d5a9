"""Runs a peer's script on our data: a speed record's script from a folder of the user's. None of their code is ours to ship.

The script is started with this Python in a temporary folder that contains `cifar10/train.pt` and `cifar10/test.pt` (dicts of `images`,
uint8[N,32,32,3], `labels`, int64[N], and `classes`, a list of names). Of the flags --train, --test and --runs it gets those that it
declares. It trains many times and prints a table whose header has the columns `run`, `epoch` (`eval` in the row that ends a run), `val_acc`,
`tta_val_acc` if it uses test-time augmentation, and last `time_seconds` or `total_time_seconds`; a run's number may appear in its first row only.

The first run is its warm-up, named so or not: it compiles, and airbench96 compiles inside that run's clock. It does not count.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipelines.errors import InputError
from pipelines.files import write_json
from pipelines.store import Store
from train.machine import hardware
from train.recipe import Recipe
from train.split import split

NO_CUDA = "not run: no CUDA device"
PATIENCE = 10  # seconds that a script has to end when it is asked to


def write_data(store: Store, recipe: Recipe, folder: Path) -> None:
    """Write both splits as the records read them: the images that the recipe trains on, and those that it is tested on."""
    folder.mkdir(parents=True, exist_ok=True)
    held, ids = split(recipe, store.labels("train"))
    for name, source, chosen in (("train", "train", ids), ("test", "test" if held is None else "train", held)):
        chosen = slice(None) if chosen is None else chosen
        images, labels = (torch.tensor(array[chosen]) for array in (store.images(source), store.labels(source)))
        torch.save({"images": images, "labels": labels, "classes": list(store.classes)}, folder / f"{name}.pt")


def arguments(text: str, runs: int) -> list[str]:
    """The flags to start a script with, by what its `text` declares with argparse."""
    known = {"--train": "cifar10/train.pt", "--test": "cifar10/test.pt", "--runs": str(runs)}
    declared = re.findall(r"""add_argument\(\s*["'](--\w+)["']""", text)
    return [word for flag in known if flag in declared for word in (flag, known[flag])]


def needs_cuda(text: str) -> bool:
    """Whether a script takes a CUDA device for granted."""
    return "cuda" in text and "cuda.is_available" not in text


def results(lines: Iterable[str]) -> Iterator[dict]:
    """Each finished run in a record's output, the warm-up too: {"run", "seconds", "accuracy", "plain_accuracy", "diverged"}.

    run             as the script calls it
    accuracy        with the test-time views where the script has them, a fraction
    plain_accuracy  without, or None
    diverged        whether a figure of the run is not a number
    """
    columns, run = [], ""
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "epoch" in cells and cells[-1].endswith("time_seconds"):
            columns = cells
        elif columns and len(cells) == len(columns):
            row = dict(zip(columns, cells))
            run = row.get("run") or run
            if row["epoch"] == "eval":
                plain, viewed = (float(row[key]) if row.get(key) else None for key in ("val_acc", "tta_val_acc"))
                accuracy = plain if viewed is None else viewed
                lost = accuracy is None or "nan" in cells
                yield {"run": run, "seconds": float(cells[-1]), "accuracy": accuracy, "plain_accuracy": plain, "diverged": lost}


@contextmanager
def started(command: list[str], folder: Path, log: Path):
    """Start a command in `folder`; an iterator over the lines it prints, which go to `log` too. In the end it is ended."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    with log.open("a", encoding="utf-8") as kept, subprocess.Popen(command, cwd=folder, env=environment, **streams) as process:

        def lines() -> Iterator[str]:
            for line in process.stdout:
                kept.write(line)
                yield line

        try:
            yield lines()
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def finished(script: Path, store: Store, recipe: Recipe, runs: int, log: Path) -> Iterator[dict]:
    """The script's finished runs but its warm-up, as they come, `runs` of them at most.

    Beside what `results` gives, `wall_seconds` since the run before (set-up, reports and pauses included), and `process_seconds` since
    the script was started.
    """
    with tempfile.TemporaryDirectory(prefix="tenfold-peer-") as work:  # what the script writes goes with it: it holds the script's code
        write_data(store, recipe, Path(work) / "cifar10")
        command = [sys.executable, str(script), *arguments(script.read_text(encoding="utf-8"), runs + 1)]  # whose first may be its warm-up
        with started(command, Path(work), log) as lines:
            begin = last = time.perf_counter()
            count = 0
            for number, run in enumerate(results(lines)):
                now = time.perf_counter()
                if number and run["run"] != "warmup":
                    count += 1
                    yield {**run, "wall_seconds": round(now - last, 3), "process_seconds": round(now - begin, 3)}
                if count == runs:
                    return
                last = time.perf_counter()


def peer(script: Path, store: Store, recipe: Recipe, out: Path, say) -> dict:
    """A peer's row: {"who", "runs", "diverged", "process_seconds", "missing"}; `missing` says why there are fewer than `recipe.runs`.

    It is kept in `out/peers` after every run: what is there is not run again. Raises `InputError` where that is of another script,
    of other images, or of another device.
    """
    text = script.read_text(encoding="utf-8")
    images = {"sha256": store.sha256, "held_out": recipe.held_out, "limit": recipe.limit}
    where = hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu"))["device"]
    identity = {"script": script.name, "script_sha256": hashlib.sha256(text.encode()).hexdigest(), "images": images, "device": where}
    place = out / "peers" / f"{script.parent.name}-{script.stem}"
    row = earlier(place, identity) or {"who": script.stem, **identity, "runs": [], "diverged": [], "process_seconds": 0.0}
    row["missing"] = ""
    left = recipe.runs - len(row["runs"]) - len(row["diverged"])
    if left <= 0:
        say(f"{row['who']}: {len(row['runs'])} runs finished earlier, kept")
        return {**row, "runs": row["runs"][: recipe.runs]}
    if needs_cuda(text) and not torch.cuda.is_available():
        say(f"{row['who']}: {NO_CUDA}: torch finds none here, and the script needs one")
        return {**row, "missing": NO_CUDA}
    place.mkdir(parents=True, exist_ok=True)
    before, log = row["process_seconds"], place / "log.txt"
    for run in finished(script, store, recipe, left, log):
        left -= 1
        row["process_seconds"] = round(before + run.pop("process_seconds"), 3)
        if run.pop("diverged"):
            row["diverged"].append({"run": run["run"]})
            say(f"{row['who']}: run {run['run']} diverged")
        else:
            row["runs"].append(run)
            say(f"{row['who']}: run {run['run']}: test accuracy {run['accuracy']:.4f} in {run['seconds']:.2f} s")
        write_json(place / "result.json", row)
    if left:
        row["missing"] = f"ended {left} runs early ({last_words(log)}): see {log}"
        say(f"{row['who']}: {row['missing']}")
    return row


def earlier(place: Path, identity: dict) -> dict | None:
    """The row that an earlier call left, None where there is none. Raises `InputError` where it is another experiment's."""
    file = place / "result.json"
    if not file.exists():
        return None
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
        same = all(row[key] == value for key, value in identity.items()) and isinstance(row["runs"], list)
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file}: not a peer's results: remove {place}, or name another folder with --out") from None
    if not same:
        raise InputError(f"{file}: of another script, other images or another device: remove {place}, or name another folder with --out")
    return row


def last_words(log: Path) -> str:
    """The last line of a log that is not blank, at most 200 characters."""
    said = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return said[-1][:200] if said else "it printed nothing"

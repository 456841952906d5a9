"""Runs a peer's script on our data: the speed records' scripts, from a folder that the user has.

A record's script reads `cifar10/train.pt` and `cifar10/test.pt` from its working directory (dicts of `images`, uint8[N,32,32,3],
`labels`, int64[N], and `classes`), trains many times, and prints a table: a header row with the columns `run`, `epoch`, `val_acc`,
`tta_val_acc` and `time_seconds`, and rows whose epoch is `eval` for finished runs. Runs that are not numbered ("warmup") do not count.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from pipelines.errors import InputError
from pipelines.store import Store


def write_data(store: Store, folder: Path) -> None:
    """Write both splits as the records read them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images = torch.from_numpy(store.images(split).copy())
        labels = torch.from_numpy(store.labels(split).astype("int64"))
        torch.save({"images": images, "labels": labels, "classes": list(store.classes)}, folder / f"{split}.pt")


def results(lines: Iterable[str]) -> Iterator[dict]:
    """{"seconds", "accuracy", "plain_accuracy"} of each finished run in a record's output.

    accuracy        with the test-time views where the script has them, a fraction
    plain_accuracy  without, or None
    """
    columns = None
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "time_seconds" in cells:
            columns = cells
        elif columns and len(cells) == len(columns):
            row = dict(zip(columns, cells))
            if row.get("epoch") == "eval" and row.get("run", "0").isdigit():
                plain, viewed = (float(row[key]) if row.get(key) else None for key in ("val_acc", "tta_val_acc"))
                yield {"seconds": float(row["time_seconds"]), "accuracy": plain if viewed is None else viewed, "plain_accuracy": plain}


def run_peer(script: Path, store: Store, runs: int, work: Path) -> dict:
    """Run `script` in `work` on the store's images until `runs` runs are finished or it ends.

    {"script", "runs": [...], "wall_seconds", "log"}; the log is kept in `work`. Raises `InputError` where there is no such
    script, or it ends without a finished run (its last line is then in the message).
    """
    if not script.is_file():
        raise InputError(f"{script}: no such script: name a peer's Python file with --peer")
    write_data(store, work / "cifar10")
    begin, log, rows = time.perf_counter(), work / "log.txt", []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(script.resolve())]
    with log.open("w") as kept, subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def lines() -> Iterator[str]:
            for line in process.stdout:
                kept.write(line)
                yield line

        for row in results(lines()):
            rows.append(row)
            if len(rows) == runs:
                process.terminate()
                break
    if not rows:
        said = [line for line in log.read_text().splitlines() if line.strip()]
        raise InputError(f"{script}: ended without a finished run ({said[-1] if said else 'no output'}): see {log}")
    return {"script": script.name, "runs": rows, "wall_seconds": round(time.perf_counter() - begin, 3), "log": str(log)}

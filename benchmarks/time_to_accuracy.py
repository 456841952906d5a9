"""Seconds to an accuracy, over independent seeds, with the field's clock and the true one.

    python benchmarks/time_to_accuracy.py RECIPE --runs N --target A|peer --out DIR [--peer FOLDER/SCRIPT.py ...] [--field value ...]

field clock   training and the last test pass: from the first use of the training pixels in memory to the last prediction; compiling and
              warm-up apart, as the speed records count
wall clock    all of a seed's run, files and pictures included; `process`, from this process's start to its last result

Ours first, then every peer (`adapter.py` says what a peer's script must print). The folder keeps finished seeds and finished peers: called
again, it goes on. A diverged seed is counted and named, and is in no mean. A training is taken as three passes of 2 x MACs for each image.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

BEGIN = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

import torch  # noqa: E402

from benchmarks.adapter import run_peer  # noqa: E402
from benchmarks.measure import facts, table, write_json  # noqa: E402
from pipelines import data  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from train.__main__ import named  # noqa: E402
from train.interval import Interval, p_at_least  # noqa: E402
from train.loop import DTYPES, device_of, precision_of  # noqa: E402
from train.recipe import Recipe, parse  # noqa: E402
from train.run import dataset_name  # noqa: E402
from train.runs import train  # noqa: E402


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of a large matrix product, the best of repeated ones over some `seconds`: what the device gives at most."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait()
        begin = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def finished(out: Path, seeds: list[int]) -> list[dict]:
    """The summaries of these seeds."""
    return [json.loads((out / f"seed-{seed}" / "summary.json").read_text(encoding="utf-8")) for seed in seeds]


def ours(recipe: Recipe, name: str, out: Path, say) -> dict:
    """Train all seeds; what they took and reached."""
    summary = train(replace(recipe, out=str(out)), name, say)
    if recipe.runs == 1:
        (seeds, diverged), single = ([recipe.seed], []), summary
        runs = [single]
    else:
        seeds, diverged = summary["runs"]["seeds"], summary["runs"]["diverged"]
        runs = finished(out, seeds)
    rows = [
        {
            "seed": run["seed"],
            "accuracy": run["test_accuracy"],
            "seconds": round(run["seconds"]["train"] + run["seconds"]["final_eval"], 3),
            "wall_seconds": run["seconds"]["total"],
            "images_per_second": run["images_per_second"],
        }
        for run in runs
    ]
    flops = 6 * summary["macs"] * median(row["images_per_second"] for row in rows)
    return {"who": f"Tenfold {name}", "runs": rows, "diverged": diverged, "flop_per_second": flops, "tested_on": summary["tested_on"]}


def peer(script: Path, store, runs: int, out: Path, device: torch.device) -> dict:
    """A peer's row; what an earlier call finished is kept. Without CUDA it says that it was not run."""
    file = out / "peers" / script.parent.name / f"{script.stem}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    row = {"who": f"{script.parent.name}/{script.stem}", "runs": [], "diverged": []}
    if not script.is_file():
        raise InputError(f"{script}: no such script: name a peer's Python file with --peer")
    if "cuda" in script.read_text(encoding="utf-8", errors="replace") and device.type != "cuda":
        return {**row, "missing": "not run: the script needs a CUDA device"}
    work = file.parent / script.stem
    work.mkdir(parents=True, exist_ok=True)
    result = run_peer(script, store, runs, work)
    row |= {"runs": result["runs"], "process_seconds": result["wall_seconds"]}
    write_json(file, row)
    return row


def figures(row: dict, target: float | None) -> dict:
    """Interval of time and accuracy of a row, and the p-value that its mean accuracy reaches `target`."""
    if not row["runs"]:
        return row
    made = {key: Interval.of([run[key] for run in row["runs"]]) for key in ("seconds", "accuracy")}
    p = None if target is None else p_at_least([run["accuracy"] for run in row["runs"]], target)
    spread = {key: {k: None if v != v else v for k, v in asdict(interval).items()} for key, interval in made.items()}  # JSON has no NaN
    return {**row, **{f"{key}_interval": spread[key] for key in spread}, "target": target, "p_at_least_target": None if p is None or p != p else p}


def lines(rows: list[dict], rate: float) -> list[list[str]]:
    """The table's rows: one contestant each."""
    shown = []
    for row in rows:
        if not row["runs"]:
            shown.append([row["who"], row.get("missing", "all diverged"), *[""] * 7])
            continue
        seconds, accuracy = row["seconds_interval"], row["accuracy_interval"]
        flops = row.get("flop_per_second")
        shown.append(
            [
                row["who"],
                f"{accuracy['mean']:.4f}",
                spread(accuracy, 4),
                f"{seconds['mean']:.2f}",
                spread(seconds, 2),
                f"{accuracy['n']}" + (f" + {len(row['diverged'])} diverged" if row["diverged"] else ""),
                "" if row["p_at_least_target"] is None else f"{row['p_at_least_target']:.3g}",
                f"{median(run['images_per_second'] for run in row['runs']):,.0f}" if "images_per_second" in row["runs"][0] else "",
                f"{flops / 1e12:.3g} ({flops / rate:.0%})" if flops else "",
            ]
        )
    return shown


def spread(interval: dict, digits: int) -> str:
    """Deviation, and the 95% interval; nothing where there is one run."""
    if interval["deviation"] is None:
        return "n 1"
    return f"{interval['deviation']:.{digits}f}; {interval['low']:.{digits}f} to {interval['high']:.{digits}f}"


HEADER = ["who", "accuracy", "sd; 95% interval", "seconds", "sd; 95% interval", "n", "p", "images/s", "TFLOP/s (of matrix rate)"]


def chart(rows: list[dict], title: str, path: Path) -> None:
    """A dot a run, and a cross of the two intervals a contestant; nothing without matplotlib."""
    from train.report import TEST, TRAIN, plt, save

    if plt is None:
        return
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    for row, colour in zip([row for row in rows if row["runs"]], (TEST, TRAIN, "#999933", "#aa3377", "#228833")):
        seconds, accuracy = row["seconds_interval"], row["accuracy_interval"]
        axes.plot([run["seconds"] for run in row["runs"]], [100 * run["accuracy"] for run in row["runs"]], "o", ms=5, alpha=0.5, mec="none", color=colour)
        reach = {}
        if seconds["n"] > 1:
            reach = {"xerr": seconds["high"] - seconds["mean"], "yerr": 100 * (accuracy["high"] - accuracy["mean"])}
        label = f"{row['who']}: {accuracy['mean']:.2%} in {seconds['mean']:.3g} s (n {accuracy['n']})"
        axes.errorbar(seconds["mean"], 100 * accuracy["mean"], **reach, fmt="+", ms=10, capsize=3, color=colour, label=label)
    if rows[0].get("target"):
        axes.axhline(100 * rows[0]["target"], color="0.4", lw=1, ls="--", zorder=0)
    axes.set(xlabel="seconds (field's clock: training and last test pass)", ylabel="test accuracy (%)", title=title)
    axes.margins(x=0.15, y=0.25)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    save(path, figure)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="time_to_accuracy.py", description=__doc__.split("\n")[0], allow_abbrev=False, epilog="all other flags are the recipe's")
    parser.add_argument("--target", default="", metavar="A|peer", help="accuracy whose p-value is given; peer: the first peer's mean on these files")
    parser.add_argument("--peer", action="append", default=[], metavar="SCRIPT", help="a peer's script in a folder of yours; may be repeated")
    parser.add_argument("--out", required=True, metavar="DIR", help="results: result.json, result.png, seeds and peers")
    asked, rest = parser.parse_known_args(given)
    name, recipe = parse(rest, named())
    target = None
    if asked.target not in ("", "peer"):
        try:
            target = float(asked.target)
        except ValueError:
            raise InputError(f"--target {asked.target}: give a fraction such as 0.94, or peer") from None
        if not 0 < target < 1:
            raise InputError(f"--target {asked.target}: give a fraction such as 0.94, or peer")
    if asked.target == "peer" and not asked.peer:
        raise InputError("--target peer: name the peer's script with --peer")
    out, device = Path(asked.out), device_of(recipe)
    store = data.locate(recipe.data)
    rate = matrix_rate(device, DTYPES[precision_of(recipe, device)])
    rows = [ours(recipe, name, out, print), *(peer(Path(script), store, recipe.runs, out, device) for script in asked.peer)]
    if asked.target == "peer" and rows[1]["runs"]:
        target = Interval.of([run["accuracy"] for run in rows[1]["runs"]]).mean
    rows = [figures(row, target) for row in rows]
    about = {**facts(store, device, {"recipe": asdict(recipe), "peers": asked.peer}), "matrix_flop_per_second": rate}
    write_json(out / "result.json", {**about, "rows": rows, "process_seconds": round(time.perf_counter() - BEGIN, 3)})
    chart(rows, f"{dataset_name(store)}, {about['hardware']['device']}", out / "result.png")
    print(f"\n{dataset_name(store)}, tested on {rows[0]['tested_on']}; matrix rate {rate / 1e12:.3g} TFLOP/s in {precision_of(recipe, device)}")
    print(table(HEADER, lines(rows, rate)))
    walls = [run["wall_seconds"] for run in rows[0]["runs"]]
    print(f"wall clock of a seed {median(walls):.2f} s (median of {len(walls)}), of this process {time.perf_counter() - BEGIN:.1f} s; {out / 'result.json'}")
    for lost in rows[0]["diverged"]:
        print(f"seed {lost['seed']} diverged in epoch {lost['epoch']}, step {lost['step']}")


if __name__ == "__main__":
    sys.exit(exit_code(main))

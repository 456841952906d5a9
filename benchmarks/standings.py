"""What is shown of the contestants of `time_to_accuracy.py`: intervals, the table's rows, the picture.

A row is {"who", "runs", "diverged", "missing", "process_seconds"}; a run has at least `seconds` (field's clock), `accuracy` (a fraction) and
`wall_seconds`.
"""

import math
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from train.figures import TEST, TRAIN, log_scale, plt, save
from train.interval import Interval, difference, p_at_least

COLOURS = (TEST, TRAIN, "#999933", "#aa3377", "#228833", "#66ccee")
INTERVALS = ("accuracy", "seconds", "wall_seconds")


def figures(row: dict, target: float | list[float] | None) -> dict:
    """The row with an `..._interval` of accuracy and of both clocks, and the p-value that its mean accuracy reaches `target`: small where it does, and
    otherwise without a meaning. Of a target of several accuracies, a peer's, the mean counts, with its own spread, and the row has the `less_target_interval`, too.
    """
    made = {f"{key}_interval": plain(Interval.of([run[key] for run in row["runs"]])) for key in INTERVALS if row["runs"]}
    accuracies = [run["accuracy"] for run in row["runs"]]
    p = p_at_least(accuracies, target) if target and accuracies else math.nan
    if isinstance(target, list):
        made["less_target_interval"] = plain(difference(accuracies, target)) if accuracies else None
        target = mean(target)
    return {**row, **made, "target": target, "p_at_least_target": None if math.isnan(p) else p}


def plain(interval: Interval) -> dict:
    """An interval for JSON, which has no NaN."""
    return {key: None if math.isnan(value) else value for key, value in asdict(interval).items()}


def header(data: str) -> list[str]:
    """The table's columns; `data` is the data set's name, which stands with every accuracy."""
    accuracy = [f"accuracy on {data}", "sd; 95% interval"]
    seconds = ["seconds", "sd; 95% interval", "wall s a run", "process s"]
    return ["who", "runs", *accuracy, "p (>= target)", *seconds, "images/s", "TFLOP/s (of matrix rate)"]


def lines(rows: list[dict], rate: float, data: str) -> list[list[str]]:
    """The table's rows, one a contestant. rate: of the matrix product, FLOP/s."""
    shown = []
    for row in rows:
        n = str(len(row["runs"])) + (f" + {len(row['diverged'])} diverged" if row["diverged"] else "")
        if not row["runs"]:
            cells = [n, row["missing"] or "all diverged"]
            shown.append([row["who"], *cells, *[""] * (len(header(data)) - 1 - len(cells))])
            continue
        accuracy, seconds, wall = (row[f"{key}_interval"] for key in INTERVALS)
        p, flops = row["p_at_least_target"], row.get("flop_per_second")
        images = [run["images_per_second"] for run in row["runs"] if "images_per_second" in run]
        reached = [f"{accuracy['mean']:.4f}", spread(accuracy, 4), "" if p is None else f"{p:.3g}"]
        took = [f"{seconds['mean']:.2f}", spread(seconds, 2), f"{wall['mean']:.2f}", process(row)]
        did = [f"{mean(images):,.0f}" if images else "", f"{flops / 1e12:.3g} ({flops / rate:.1%})" if flops else ""]
        shown.append([row["who"], n, *reached, *took, *did])
    return shown


def process(row: dict) -> str:
    """Seconds of the process, and for how many of the runs they are where earlier calls left the others."""
    if row["process_seconds"] is None:
        return "all kept"
    runs = len(row["runs"]) + len(row["diverged"])
    now = row.get("trained_now", runs)
    return f"{row['process_seconds']:.1f}" + (f" ({now} of {runs} runs)" if now != runs else "")


def spread(interval: dict, digits: int) -> str:
    """Deviation, and the 95% interval; of one run there are none."""
    if interval["deviation"] is None:
        return "one run"
    return f"{interval['deviation']:.{digits}f}; {interval['low']:.{digits}f} to {interval['high']:.{digits}f}"


def remarks(rows: list[dict]) -> list[str]:
    """What must stand beside the table: runs that are in no mean, and contestants that are not all there."""
    said = []
    for row in rows:
        said += [f"{row['who']}: seed {run['seed']} diverged in epoch {run['epoch']}, step {run['step']}" for run in row["diverged"] if "seed" in run]
        said += [f"{row['who']}: run {run['run']} diverged" for run in row["diverged"] if "run" in run]
        said += [f"{row['who']}: {row['missing']}"] if row["missing"] else []
        if apart := row.get("less_target_interval"):
            reach = "one run" if apart["low"] is None else f"95% interval {100 * apart['low']:+.2f} to {100 * apart['high']:+.2f}"
            said.append(f"{row['who']}: {100 * apart['mean']:+.2f} points from the target's mean ({reach})")
    return said


def chart(rows: list[dict], title: str, path: Path) -> None:
    """A dot a run, a cross of the two 95% intervals a contestant, a dashed line at the target; nothing without matplotlib."""
    if plt is None:
        return
    figure, axes = plt.subplots(figsize=(8, 4.8))
    for number, row in enumerate(rows):
        if row["runs"]:
            cross(axes, row, COLOURS[number % len(COLOURS)])
        else:
            axes.plot([], [], " ", label=f"{row['who']}: {row['missing'] or 'all diverged'}")
    if target := rows[0]["target"]:
        axes.axhline(100 * target, color="0.4", lw=1, ls="--", zorder=0, label=f"target {target:.2%}")
    times = [run["seconds"] for row in rows for run in row["runs"]]
    if times and max(times) > 5 * min(times):
        log_scale(axes)
    axes.set(xlabel="seconds (field's clock: training and last test pass)", ylabel="test accuracy (%)", title=title)
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    save(path, figure)


def cross(axes, row: dict, colour: str) -> None:
    """One contestant's dots and cross."""
    accuracy, seconds = row["accuracy_interval"], row["seconds_interval"]
    reach, beside = {}, "one run"
    if seconds["n"] > 1:
        reach = {"xerr": seconds["high"] - seconds["mean"], "yerr": 100 * (accuracy["high"] - accuracy["mean"])}
        ends = f"{100 * accuracy['low']:.2f} to {accuracy['high']:.2%}"
        beside = f"n {accuracy['n']}, sd {100 * accuracy['deviation']:.2f}, 95% interval {ends}"
    label = f"{row['who']}: {accuracy['mean']:.2%} ({beside}) in {seconds['mean']:.3g} s"
    dots = [run["seconds"] for run in row["runs"]], [100 * run["accuracy"] for run in row["runs"]]
    axes.plot(*dots, "o", ms=6, alpha=0.5, mec="none", color=colour, label=label)
    axes.errorbar(seconds["mean"], 100 * accuracy["mean"], **reach, fmt="+", ms=11, mew=1.8, elinewidth=1.8, capsize=4, color=colour)

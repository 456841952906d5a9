"""A run as one HTML page that stands alone: nothing in it is fetched, so that it can be sent and kept.

Shapes: images uint8[N,H,W,C]; K classes.
"""

from html import escape
from pathlib import Path

import numpy as np

from pipelines.files import replacing
from train import result
from train.charts import Line, chart, thinned
from train.command import counted
from train.document import document, picture, table
from train.gallery import Mistake, Sheet, mistakes, sheet
from train.testing import Outcome

NUMBERED = 30  # classes; more of them are a picture, not a table
LAPS = {
    "setup": ("setup", "var(--rest)", "finding and verifying the data, building the net"),
    "compile": ("compile", "var(--part)", "first batches, which build the kernels"),
    "train": ("train", "var(--train)", "the training epochs, waiting for data included"),
    "eval": ("eval", "var(--test)", "test passes"),
    "other": ("other", "var(--rule)", "checkpoints, metrics, printing; without this report"),
}


def write(out: Path, summary: dict, history: list[dict], outcome: Outcome, classes: tuple[str, ...], found: list[Mistake], seen: Sheet) -> None:
    """Write report.html into the run folder, which holds `steps.jsonl` already."""
    title = f"{summary['net']} on {summary['data']['name']}"
    parts = [
        head(title, summary),
        curves(history, result.lines(out, "steps.jsonl")),
        times(summary.get("seconds")),
        confusion(outcome, classes),
        mistakes(outcome, found, summary["recipe"].get("views", 1)),
        sheet(seen),
        repeat(summary),
    ]
    with replacing(out / "report.html") as temporary:
        temporary.write_text(document(title, *parts), encoding="utf-8")


def head(title: str, summary: dict) -> str:
    """The figures that matter, large."""
    seconds = summary.get("seconds") or {}
    figures = [
        (f"{summary['test_accuracy']:.2%}", f"test accuracy, on {tested_on(summary)}"),
        (f"{summary['train_accuracy']:.2%}", "train accuracy, during training, on augmented images"),
        (f"{summary['parameters']:,}", f"parameters, {summary['macs'] / 1e6:.1f}M multiply-adds per image"),
        (f"{summary['images_per_second']:,.0f}", "images/s in training, median epoch"),
        *([(f"{seconds['train']:,.1f} s", f"of training, {seconds['total']:,.1f} s in all")] if seconds else []),
    ]
    tiles = "".join(f"<div class=tile><b>{escape(value)}</b><span>{escape(text)}</span></div>" for value, text in figures)
    facts = f"{counted(summary['epochs'], 'epoch')} through {summary['pipeline']}, {summary['precision']}, seed {summary['seed']}, on {summary['hardware']['device']}"
    return f"<h1>{escape(title)}</h1><p class=soft>{escape(facts)}</p><div class=tiles>{tiles}</div>"


def tested_on(summary: dict) -> str:
    """What the test accuracy is of."""
    where = summary.get("tested_on", "test")
    return f"the test images{where[4:]}" if where.startswith("test") else where


def curves(history: list[dict], steps: list[dict]) -> str:
    """Loss, with that of every step behind it, and accuracy."""
    count = max((line["step"] for line in steps), default=1)
    every = thinned([(line["epoch"] - 1 + line["step"] / count, line["loss"]) for line in steps])

    def line(split: str, key: str) -> Line:
        points = [(h["epoch"], h[f"{split}_{key}"]) for h in history if h[f"{split}_{key}"] is not None]
        return Line(split, split, points)

    loss = chart(
        "Loss",
        [Line("train, every step", "train", every, faint=True), line("train", "loss"), line("test", "loss")],
        "epoch",
        "cross-entropy",
        "{:.3g}".format,
        zero=True,
    )
    accuracy = chart("Accuracy", [line("train", "accuracy"), line("test", "accuracy")], "epoch", "accuracy", lambda share: f"{100 * share:.4g}%")
    names = ["epoch", "lr", "train loss", "train accuracy", "test loss", "test accuracy", "images/s", "seconds"]
    rows = [
        [h["epoch"], f"{h['lr']:.4g}", number(h["train_loss"]), percent(h["train_accuracy"]), number(h["test_loss"]), percent(h["test_accuracy"])]
        + [f"{h['images_per_second']:,.0f}", f"{h['seconds']:.1f}"]
        for h in history
    ]
    return f"<h2>Learning curves</h2><div class=pair>{loss}{accuracy}</div><details><summary>All epochs</summary>{table(names, rows)}</details>"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def spent(seconds: dict) -> dict[str, float]:
    """Seconds of each lap, and of what is left."""
    laps = {name: seconds[name] for name in LAPS if name in seconds}
    return laps | {"other": max(seconds["total"] - sum(laps.values()), 0.0)}


def times(seconds: dict | None) -> str:
    """Where the time went, as a bar; nothing where it is not known yet."""
    if not seconds:
        return ""
    laps = spent(seconds)
    total = sum(laps.values()) or 1.0
    bar = "".join(f'<i style="width:{100 * s / total:.2f}%;background:{LAPS[name][1]}" title="{name} {s:.1f} s"></i>' for name, s in laps.items())
    keys = "".join(
        f'<tr><th class=n><span class=key style="color:{LAPS[name][1]}"></span>{name}</th><td class=n>{s:.2f} s</td><td class=n>{s / total:.1%}</td><td class=soft>{LAPS[name][2]}</td></tr>'
        for name, s in laps.items()
    )
    return f"<h2>Where the time went</h2><div class=bar>{bar}</div><div class=wide><table>{keys}</table></div>"


def confused(outcome: Outcome, classes: tuple[str, ...], most: int = 5) -> list[tuple[str, str, int]]:
    """(true class, predicted class, images) of the pairs that are confused most."""
    pairs = outcome.confusion(len(classes))
    np.fill_diagonal(pairs, 0)
    order = np.argsort(pairs, axis=None, kind="stable")[::-1][:most]
    return [(classes[i], classes[j], int(pairs[i, j])) for i, j in (np.unravel_index(k, pairs.shape) for k in order) if pairs[i, j]]


def confusion(outcome: Outcome, classes: tuple[str, ...]) -> str:
    """The matrix, and in words what it confuses most."""
    counts = outcome.confusion(len(classes))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    items = "".join(f"<li>{escape(true)} classified as {escape(predicted)}: {count:,} images</li>" for true, predicted, count in confused(outcome, classes, 10))
    if len(classes) <= NUMBERED:
        drawn = matrix(shares, counts, classes)
    else:
        shade = np.round(255 * (1 - shares)).astype(np.uint8)[:, :, None]
        drawn = f"<div style='max-width:26rem'>{picture(shade, 'confusion matrix', largest=len(classes))}</div><small>rows: true class, columns: predicted class, in label order</small>"
    return f"<h2>Confusion matrix</h2><div class=pair><div>{drawn}</div><div><p>Most frequent confusions:</p><ul>{items}</ul></div></div>"


def matrix(shares: np.ndarray, counts: np.ndarray, classes: tuple[str, ...]) -> str:
    """Per cent of each true class (row) by predicted class (column)."""
    top = "".join(f"<th><span>{escape(name)}</span></th>" for name in classes)
    rows = []
    for i, name in enumerate(classes):
        cells = []
        for j, share in enumerate(shares[i]):
            depth, ink = (share, "--train") if i == j else (min(2.5 * share, 1.0), "--test")
            text = f"{100 * share:.0f}" if round(100 * share) else ""
            said = f"{name} classified as {classes[j]}: {counts[i, j]:,}" if i != j else f"{name}, correct: {counts[i, j]:,}"
            shade = f"color-mix(in srgb, var({ink}) {100 * depth:.0f}%, var(--card))"
            cells.append(f'<td style="background:{shade}{";color:var(--paper)" if depth > 0.5 else ""}" title="{escape(said)}">{text}</td>')
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    note = "<small>percent of each true class (row) by predicted class (column)</small>"
    return f"<div class=wide><table class=matrix><thead><tr><th></th>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"


def repeat(summary: dict) -> str:
    """Everything that it takes to have this run again."""
    facts = [
        ["commit", summary["commit"] or "unknown"],
        ["seed", summary["seed"]],
        *([name, version] for name, version in summary["versions"].items()),
        *([name, value] for name, value in summary["hardware"].items()),
        ["data", f"{summary['data']['name']}, {summary['data']['encoding']}"],
        *([f"sha256 of {name}", digest] for name, digest in sorted(summary["data"]["sha256"].items())),
    ]
    settings = [[name, str(value)] for name, value in summary["recipe"].items()]
    more = f"<details><summary>All {len(settings)} settings</summary>{table([], settings)}</details>"
    return f"<h2>Reproduce this run</h2><pre>{escape(summary['command'])}</pre>{table([], facts)}{more}"

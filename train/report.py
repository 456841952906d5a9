"""What a person looks at: a page that stands alone, the same as Markdown, and the pictures beside it.

Without matplotlib there is the page alone, and a line on stderr that says so.
"""

import sys
from html import escape
from pathlib import Path

import numpy as np

from pipelines.files import replacing
from pipelines.store import Store
from train import figures, page, result
from train.gallery import explained, legend, sheet_of
from train.testing import Outcome


def write(out: Path, summary: dict, history: list[dict], outcome: Outcome, store: Store, images: np.ndarray) -> None:
    """Write report.md and its pictures, and report.html, into the run folder, which holds its model already.

    images  uint8[N,H,W,C], those that `outcome` is of
    """
    found, seen = explained(outcome, images, result.model(out)), sheet_of(summary, store)
    data, text = (
        summary["data"]["name"],
        markdown(summary, history, outcome, store.classes, legend(outcome, found[: figures.REASONS], summary["recipe"].get("views", 1))),
    )
    if figures.plt is None:
        print("matplotlib is not installed: the report has no pictures", file=sys.stderr)
        text = "\n".join(line for line in text.split("\n") if not line.startswith("!["))
    else:
        figures.save(out / "curves.png", figures.curves(history, f"{summary['net']} on {data}"))
        figures.save(out / "confusion.png", figures.confusion(outcome.confusion(len(store.classes)), store.classes, data))
        for name in ("mistakes.png", "reasons.png"):  # an earlier run's
            (out / name).unlink(missing_ok=True)
        if found:
            figures.save(out / "mistakes.png", figures.mistakes(images, outcome, store.classes, data))
            figures.save(out / "reasons.png", figures.reasons(found))
        figures.save(out / "seen.png", figures.sheet(seen, data))
    with replacing(out / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    page.write(out, summary, history, outcome, store.classes, found, seen)


def remove(out: Path) -> None:
    """Leave no page or picture of an earlier run beside figures of another."""
    for name in ("report.md", "report.html", "curves.png", "confusion.png", "mistakes.png", "reasons.png", "seen.png"):
        (out / name).unlink(missing_ok=True)


def markdown(summary: dict, history: list[dict], outcome: Outcome, classes: tuple[str, ...], mistakes: str) -> str:
    """The run as Markdown. `mistakes` says what the pictures of them show."""
    seconds, data = summary["seconds"], summary["data"]
    confused = [f"- {escape(true)} classified as {escape(predicted)}: {count:,} images" for true, predicted, count in page.confused(outcome, classes)]
    lines = [
        f"# {summary['net']} on {escape(data['name'])}",
        f"**Test accuracy {summary['test_accuracy']:.2%}** on {page.tested_on(summary)}, train accuracy {summary['train_accuracy']:.2%} (during training, "
        f"on augmented images), {summary['parameters']:,} parameters, {summary['macs'] / 1e6:.1f}M multiply-adds per image.",
        f"Pipeline `{summary['pipeline']}`, {summary['images_per_second']:,.0f} images/s in training (median epoch), {summary['precision']}, "
        f"on {summary['hardware']['device']} ({summary['hardware']['threads']} threads).",
        "Interactive version: [report.html](report.html), a single self-contained page.",
        "![curves](curves.png)",
        "\n".join(["| epoch | lr | train loss | train | test | images/s | seconds |", "| --: | --: | --: | --: | --: | --: | --: |", *map(row, history)]),
        "## Where the time went",
        "\n".join(["| | seconds | |", "| --- | --: | --- |", *(f"| {name} | {s:.2f} | {page.LAPS[name][2]} |" for name, s in page.spent(seconds).items())]),
        "## Most frequent confusions",
        "\n".join(confused),
        "![confusion](confusion.png)",
        "## Misclassified images",
        *(["![mistakes](mistakes.png)", mistakes, "![reasons](reasons.png)"] if mistakes else ["None."]),
        "## Training images as the net sees them",
        "![seen](seen.png)",
        "## Reproduce this run",
        f"```\n{summary['command']}\n```",
        f"Commit {summary['commit']}, seed {summary['seed']}, " + ", ".join(f"{k} {v}" for k, v in summary["versions"].items()) + ".",
        "\n".join(
            [f"Data: {escape(data['name'])}, {data['encoding']}, sha256", "", *(f"- {name}: `{digest}`" for name, digest in sorted(data["sha256"].items()))]
        ),
        "All settings: " + ", ".join(f"{name} {value}".rstrip() for name, value in summary["recipe"].items()) + ".",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def row(h: dict) -> str:
    """An epoch's row of the table."""
    tested = "" if h["test_accuracy"] is None else f"{h['test_accuracy']:.2%}"
    figures_of_it = (f"{h['lr']:.4g}", f"{h['train_loss']:.4f}", f"{h['train_accuracy']:.2%}", tested, f"{h['images_per_second']:,.0f}", f"{h['seconds']:.1f}")
    return f"| {h['epoch']} | {' | '.join(figures_of_it)} |"

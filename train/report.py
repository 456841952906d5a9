"""What a person looks at: curves, confusion matrix, wrong predictions, and a page that shows them.

Without matplotlib there is the page alone, and a line on stderr that says so.
"""

from __future__ import annotations  # plt.Figure is not looked up, as plt may be None

import sys
from pathlib import Path

import numpy as np

from pipelines.store import Store, replacing
from train import page
from train.evaluate import Outcome
from train.gallery import wrong_ones

try:
    import matplotlib

    matplotlib.use("Agg")  # no screen is asked for
    import matplotlib.pyplot as plt
except ImportError:  # a borrowed GPU's image may lack it, and a training is worth more than its pictures
    plt = None

TRAIN, TEST = "#4477aa", "#cc3311"  # told apart by colour-blind eyes too (Tol, "Colour schemes", 2021)
GALLERY = 40  # wrong predictions shown


def write(out: Path, summary: dict, history: list[dict], outcome: Outcome, store: Store, images: np.ndarray) -> None:
    """Write curves.png, confusion.png, mistakes.png, report.md and report.html into the run folder.

    images  uint8[N,H,W,C], those that `outcome` is of
    """
    data, text = summary["data"]["name"], markdown(summary, history, outcome, store)
    if plt is None:
        print("matplotlib is not installed: the report has no pictures", file=sys.stderr)
        text = "\n".join(line for line in text.split("\n") if not line.startswith("!["))
    else:
        save(out / "curves.png", curves(history, f"{summary['net']} on {data}"))
        save(out / "confusion.png", confusion(outcome.confusion(len(store.classes)), store.classes, data))
        save(out / "mistakes.png", mistakes(images, outcome, store.classes, data))
    with replacing(out / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    page.write(out, summary, history, outcome, store, images)


def save(path: Path, figure: plt.Figure) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)


def curves(history: list[dict], title: str) -> plt.Figure:
    """Loss and accuracy of both splits against the epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for split, colour in (("train", TRAIN), ("test", TEST)):
        lines = [line for line in history if line[f"{split}_loss"] is not None]  # not every epoch is tested
        epochs, loss, accuracy = ([line[key] for line in lines] for key in ("epoch", f"{split}_loss", f"{split}_accuracy"))
        left.plot(epochs, loss, "o-", ms=3, color=colour)
        right.plot(epochs, [100 * a for a in accuracy], "o-", ms=3, color=colour, label=f"{split}, last {accuracy[-1]:.1%}")
    left.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    return figure


def confusion(table: np.ndarray, classes: tuple[str, ...], data: str) -> plt.Figure:
    """Share of each true class (row) by predicted class (column); numbers where they can be read."""
    count = len(classes)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(max(4.5, 0.62 * count), 16)
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion, % of each true class\n{data}, {table.sum():,} images")
    if count <= 30:
        axes.set_xticks(range(count), classes, rotation=45, ha="right")
        axes.set_yticks(range(count), classes)
        for i, j in np.ndindex(table.shape):
            if shares[i, j] >= 0.005:
                axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=9, color="white" if shares[i, j] > 0.5 else "black")
    return figure


def mistakes(images: np.ndarray, outcome: Outcome, classes: tuple[str, ...], data: str) -> plt.Figure:
    """The first wrong predictions, spread over the test split. images uint8[N,H,W,C]."""
    shown, count = wrong_ones(outcome, GALLERY), int((outcome.predicted != outcome.true).sum())
    columns = 8
    rows = max(1, -(-len(shown) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.75 * rows + 0.6), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, shown):
        axes.imshow(images[i].squeeze(), cmap="gray" if images.shape[-1] == 1 else None, interpolation="nearest")
        predicted, true = classes[outcome.predicted[i]], classes[outcome.true[i]]
        axes.set_title(f"{predicted}\n", fontsize=9, color=TEST, pad=2)
        axes.text(0.5, 1.03, f"is {true}", transform=axes.transAxes, ha="center", va="bottom", fontsize=8, color="0.3")
    figure.suptitle(f"{count:,} of {len(outcome.true):,} wrong: predicted (red) and true class, {data}", y=0.995)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return figure


def percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2%}"


def markdown(summary: dict, history: list[dict], outcome: Outcome, store: Store) -> str:
    """The run as Markdown."""
    lines = [
        f"# {summary['net']} on {summary['data']['name']}",
        "",
        f"**Test accuracy {summary['test_accuracy']:.2%}**, train accuracy {summary['train_accuracy']:.2%} (as it trained, augmentation included), "
        f"{summary['parameters']:,} parameters, {summary['macs'] / 1e6:.1f}M multiply-adds an image.",
        "",
        f"Pipeline `{summary['pipeline']}`, {summary['images_per_second']:,.0f} images/s in training (median epoch), {summary['precision']}, "
        f"on {summary['hardware']['device']} ({summary['hardware']['threads']} threads).",
        "",
        "![curves](curves.png)",
        "",
        "| epoch | lr | train loss | train | test | images/s | seconds |",
        "| --: | --: | --: | --: | --: | --: | --: |",
        *(
            f"| {h['epoch']} | {h['lr']:.4g} | {h['train_loss']:.4f} | {h['train_accuracy']:.2%} | {percent(h['test_accuracy'])} "
            f"| {h['images_per_second']:,.0f} | {h['seconds']:.1f} |"
            for h in history
        ),
        "",
        "## What it confuses",
        "",
        *(f"- {true} taken for {predicted}: {count} images" for true, predicted, count in page.confused(outcome, store.classes)),
        "",
        "![confusion](confusion.png)",
        "",
        "![mistakes](mistakes.png)",
        "",
        "## To repeat it",
        "",
        "```",
        summary["command"],
        "```",
        "",
        f"Commit {summary['commit']}, seed {summary['seed']}, " + ", ".join(f"{k} {v}" for k, v in summary["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)

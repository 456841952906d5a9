"""python -m train compare RUN RUN...: compare runs side by side, as text and, with --html FILE, as an HTML page.

A run of several seeds counts as one: the mean of its seeds, with standard deviation and 95% interval of the accuracy.
"""

import argparse
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from statistics import mean

from nets.__main__ import table as aligned
from pipelines.errors import plain
from pipelines.files import replacing
from train import result
from train.charts import Line, chart
from train.command import parser_of
from train.document import SERIES, document, table
from train.interval import Interval, difference
from train.recipe import Recipe

LEFT_OUT = ("out", "data", "runs", "events", "report")  # settings that say where a run is, not what it is; the data are compared by name and checksum
KINDS = {setting.name: setting.type for setting in fields(Recipe)}
HEAD = ("run", "accuracy", "n", "deviation", "95% interval", "parameters", "images/s", "train s", "total s")


@dataclass(frozen=True)
class Run:
    """A run folder: its summary, and the summary and metrics (a line an epoch) of each of its seeds."""

    name: str
    summary: dict
    seeds: list[dict]
    metrics: list[list[dict]]

    @classmethod
    def read(cls, folder: str | Path, name: str = "") -> "Run":
        places = result.seeds(folder)
        return cls(name or str(Path(folder)), result.summary(folder), [result.summary(p) for p in places], [result.lines(p, "metrics.jsonl") for p in places])

    @property
    def accuracy(self) -> Interval:
        return Interval.of([seed["test_accuracy"] for seed in self.seeds])

    def row(self) -> tuple:
        """The cells under `HEAD`."""
        several, accuracy = len(self.seeds) > 1, self.accuracy
        spread = (f"{accuracy.deviation:.4f}", f"{accuracy.low:.4f} to {accuracy.high:.4f}") if several else ("", "")
        speed = mean(seed["images_per_second"] for seed in self.seeds)
        seconds = (mean(seed["seconds"][lap] for seed in self.seeds) for lap in ("train", "total"))
        return (self.name, f"{accuracy.mean:.4f}", accuracy.n, *spread, self.summary["parameters"], f"{speed:,.0f}", *(f"{s:,.1f}" for s in seconds))

    def settings(self) -> dict[str, str]:
        """Everything that two runs may differ in, but their outcome; what another version does not tell is left out."""
        recipe = {key: as_float(key, value) for key, value in self.summary["recipe"].items() if key not in (*LEFT_OUT, "precision")}
        if len(self.seeds) > 1:
            recipe["seed"] = " ".join(str(seed["recipe"].get("seed")) for seed in self.seeds)
        data, hardware = self.summary["data"], self.summary.get("hardware", {})
        more = {
            "recipe": recipe.pop("name", ""),
            "data": data["name"],
            "sha256 of train.images": str(data.get("sha256", {}).get("train.images", ""))[:12],
            "tested on": self.summary.get("tested_on", "test"),
            "precision": self.summary.get("precision", ""),
            "device": hardware.get("device", ""),
            "threads": hardware.get("threads", ""),
            "commit": self.summary.get("commit") or "",
            **self.summary.get("versions", {}),
        }
        return {key: str(value) for key, value in {**{key: value for key, value in more.items() if value != ""}, **recipe}.items()}


def as_float(key: str, value):
    """A setting's value; a whole number that stands for a float, as Python has it, is one."""
    return float(value) if KINDS.get(key) is float and type(value) is int and abs(value) < 2**53 else value


def differing(runs: list[Run]) -> list[tuple[str, ...]]:
    """(setting, value in each run) of the settings that are not the same in all; "" where a run of another version lacks one."""
    each = [run.settings() for run in runs]
    names = dict.fromkeys(name for settings in each for name in settings)
    rows = [(name, *(settings.get(name) for settings in each)) for name in names]
    return [tuple(cell or "" for cell in row) for row in rows if len(set(row[1:]) - {None}) > 1]


def tested(runs: list[Run]) -> str:
    """What the accuracies are of, in one line: the images of each run, once where they are the same."""
    each = dict.fromkeys(f"{run.summary['data']['name']}, {run.summary.get('tested_on', 'test')}" for run in runs)
    return f"Accuracy on {' and on '.join(each)}; of the last epoch."


def warning(runs: list[Run]) -> str:
    """A line where the accuracies are not of one kind, else ""."""
    kinds = {(run.summary["data"]["name"], str(run.summary["data"].get("sha256", {}).get("test.images")), run.summary.get("tested_on")) for run in runs}
    return "note: these accuracies are not of one kind (images, views, teaching): compare them with care" if len(kinds) > 1 else ""


def lost(run: Run) -> str:
    """A line that counts the seeds that diverged, else ""."""
    count = len(run.summary.get("runs", {}).get("diverged", []))
    return f"note: {run.name}: {count} more seed{'s' * (count > 1)} diverged; the figures are of the others" if count else ""


def apart(runs: list[Run]) -> list[str]:
    """A line for each run after the first, of several seeds both: how far from the first one's mean, by `difference`."""
    said = []
    for run in runs[1:]:
        if min(len(run.seeds), len(runs[0].seeds)) > 1:
            found = difference(*([seed["test_accuracy"] for seed in one.seeds] for one in (run, runs[0])))
            said.append(
                f"{run.name} less {runs[0].name}: {100 * found.mean:+.2f} points (95% interval {100 * found.low:+.2f} to {100 * found.high:+.2f}, Welch's)"
            )
    return said


def text(runs: list[Run]) -> str:
    """The comparison for a terminal."""
    rows = differing(runs)
    found = aligned(("setting", *(run.name for run in runs)), rows, left=len(runs) + 1) if rows else "All settings are the same."
    notes = [note for note in (warning(runs), *map(lost, runs)) if note]
    printed = "\n".join([aligned(HEAD, [run.row() for run in runs]), "", tested(runs), *apart(runs), "", found, *([""] if notes else []), *notes])
    return "\n".join(plain(line).rstrip() for line in printed.splitlines())


def curves(runs: list[Run]) -> str:
    """What all runs did from epoch to epoch, a line a seed."""

    def lines(key: str, seconds: bool) -> list[Line]:
        drawn = []
        for i, run in enumerate(runs):
            for k, history in enumerate(run.metrics):
                spent = [sum(h["seconds"] for h in history[: j + 1]) for j in range(len(history))]
                points = [(s if seconds else h["epoch"], h[key]) for s, h in zip(spent, history) if h[key] is not None]
                drawn.append(Line(run.name if k == 0 else "", SERIES[i % len(SERIES)], points))
        return drawn

    def per_cent(share: float) -> str:
        return f"{100 * share:.4g}%"

    charts = (
        chart("Test accuracy by epoch", lines("test_accuracy", False), "epoch", "test accuracy", per_cent),
        chart("Test accuracy by seconds of training", lines("test_accuracy", True), "seconds of training", "test accuracy", per_cent),
        chart("Training loss by epoch", lines("train_loss", False), "epoch", "cross-entropy", "{:.3g}".format, zero=True),
        chart("Learning rate by epoch", lines("lr", False), "epoch", "learning rate", "{:.3g}".format, zero=True),
    )
    return f"<div class=pair>{''.join(charts)}</div>"


def html(runs: list[Run]) -> str:
    """The comparison as a page that stands alone."""
    rows = differing(runs)
    notes = "".join(f"<p><b>{escape(note)}</b></p>" for note in (warning(runs), *map(lost, runs)) if note)
    found = table(["setting", *(run.name for run in runs)], rows) if rows else "<p>All settings are the same.</p>"
    commands = "".join(f"<pre>{escape(run.summary.get('command', ''))}</pre>" for run in runs)
    parts = [
        f"<h1>{len(runs)} runs side by side</h1><p>{escape(tested(runs))}</p>{notes}",
        table(list(HEAD), [[f"{cell:,}" if isinstance(cell, int) else cell for cell in run.row()] for run in runs]),
        "".join(f"<p>{escape(line)}</p>" for line in apart(runs)),
        f"<h2>Curves</h2>{curves(runs)}<h2>Settings that differ</h2>{found}<h2>Reproduce these runs</h2>{commands}",
    ]
    return document("Runs side by side", *parts)


def parser() -> argparse.ArgumentParser:
    made = parser_of("compare", __doc__)
    made.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    made.add_argument("--html", metavar="FILE", help="also write an HTML page with the curves")
    return made


def names(folders: list[str]) -> list[str]:
    """What to call the runs: the folders' own names, or where two have one name, the paths."""
    short = [Path(folder).resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(Path(folder)) for folder in folders]


def main(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    runs = [Run.read(folder, name) for folder, name in zip(given.runs, names(given.runs))]
    print(text(runs))
    if given.html:
        with replacing(given.html) as temporary:
            temporary.write_text(html(runs), encoding="utf-8")
        print(f"\n{given.html}")

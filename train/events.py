"""python -m train events RUN: convert a run's metrics to TensorBoard event files, for `tensorboard --logdir RUN`.

They are made from metrics.jsonl and steps.jsonl of a finished or running training, in RUN/events (with several seeds,
in that of each). A training with --events writes them itself. Scalars: loss/train, loss/test, accuracy/train,
accuracy/test, lr, images_per_second (by epoch), and loss/step (by step, counted from 1 over all epochs).
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipelines.errors import InputError, NotInstalled
from pipelines.files import replacing
from train import result
from train.command import parser_of

SCALARS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "lr": "lr",
    "images_per_second": "images_per_second",
}
FILES = "events.out.tfevents.*"  # what TensorBoard looks for


def writer():
    """TensorBoard's writer: called with a folder, it is a context. Raises `NotInstalled` without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise NotInstalled('events need TensorBoard: pip install -e ".[events]"') from None
    return SummaryWriter


@contextmanager
def board(place: Path, wanted: bool, goes_on: bool) -> Iterator[Callable[[dict, list[float]], None]]:
    """Give the function that a training tells of each epoch. Events of an earlier training are removed; where this one goes on with it, those of the
    epochs that it has the metrics of are written again: the latest may be lost with the process that ended, or be of epochs that come again."""
    if not wanted:
        yield lambda line, losses: None
        return
    made = writer()
    for earlier in (place / "events").glob(FILES):
        earlier.unlink()
    if goes_on:
        write(place)
    with made(str(place / "events")) as events:
        yield partial(add, events)


def add(events, line: dict, losses: list[float]) -> None:
    """An epoch: its line of metrics, and the loss of each of its steps."""
    for key, name in SCALARS.items():
        if line[key] is not None:
            events.add_scalar(name, line[key], line["epoch"])
    before = (line["epoch"] - 1) * len(losses)  # every epoch has as many steps
    for step, loss in enumerate(losses, start=before + 1):
        events.add_scalar("loss/step", loss, step)
    events.flush()


def write(place: Path) -> Path:
    """Write the events of a single training in place of those that are there; gives their folder."""
    metrics, steps = result.lines(place, "metrics.jsonl"), result.lines(place, "steps.jsonl")
    losses: dict[int, list[float]] = {}
    for line in steps:
        losses.setdefault(line["epoch"], []).append(line["loss"])
    out = place / "events"
    with tempfile.TemporaryDirectory() as temporary:
        with writer()(temporary) as events:
            for line in metrics:
                add(events, line, losses.get(line["epoch"], []))
        (made,) = Path(temporary).iterdir()
        try:
            out.mkdir(exist_ok=True)
            with replacing(out / made.name) as whole:
                whole.write_bytes(made.read_bytes())
            for earlier in set(out.glob(FILES)) - {out / made.name}:
                earlier.unlink()
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror}): free some room or allow it") from None
    return out


def trainings(run: str) -> list[Path]:
    """The folders of single trainings in a run folder, finished or not."""
    found = [place for place in (Path(run), *result.matching(run, "seed-*")) if os.path.exists(place / "metrics.jsonl")]
    if not found:
        raise InputError(f"{run}: no metrics.jsonl in it: name the folder that a training wrote")
    return found


def parser() -> argparse.ArgumentParser:
    made = parser_of("events", __doc__)
    made.add_argument("run", metavar="RUN", help="run folder of a finished or running training")
    return made


def main(arguments: list[str]) -> None:
    run = parser().parse_args(arguments).run
    for place in trainings(run):
        print(write(place))
    print(f"look at it with: tensorboard --logdir {run}")

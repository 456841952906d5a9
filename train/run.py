"""One run: the parts put together, trained, and written down."""

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch

from pipelines import data
from pipelines.errors import InputError
from pipelines.files import held, write_json
from pipelines.store import Store
from train import checkpoint, events, report
from train.assembly import assemble, verified
from train.command import counted
from train.course import Course, follow
from train.failures import explained
from train.loop import Training
from train.machine import commit
from train.ranks import Ranks
from train.recipe import Recipe
from train.saving import CtrlC, Lines, Saver
from train.split import tested_images
from train.state import check_data, go_on
from train.stopwatch import Stopwatch
from train.summary import epoch_line, headline, on_what, summarise
from train.teacher import leak
from train.together import Together

FEW = 200  # steps of a training from which little can be expected


@dataclass
class Kept:
    """What the trainings of one process share, once the first has made it: the verified store, and the trainings whose steps are made once
    by the place that each has among those that go together, and their group. `ranks` is this process among several. several: the folder of a command of more
    trainings than one."""

    store: Store | None = None
    trainings: dict[int, Training] = field(default_factory=dict)
    group: Together | None = None
    ranks: Ranks = Ranks()
    several: Path | None = None

    def earlier(self, recipe: Recipe, slot: int) -> Training | None:
        """The training in that place, if it has a program of the same settings; in a group, whose rates are put together by them, of the same experiment. One of
        others is let go of."""
        training = self.trainings.get(slot)
        of = Recipe.experiment if self.group else Recipe.program
        if training and of(training.recipe) != of(recipe):
            self.trainings.pop(slot)
            self.group = training = None
            gc.collect()  # it is tied to its own programs in a circle, and a GPU's graph of its steps holds gigabytes
        return training

    def locate(self, recipe: Recipe) -> Store:
        """The store that a recipe's `data` means, every byte of it checked: converted by one process of a machine, and the same for all."""
        if self.store is None:
            store = self.ranks.first_of_machine(lambda: verified(data.locate(recipe.data, recipe.size)))
            if self.ranks.same(lambda: store.sha256) != store.sha256:
                raise InputError(f"{store.path}: not the data that the first process has: give all of them the same --data")
            self.store = store
        return self.store


class Run:
    """One seed: set-up at its making, training as a `course`, and all files of the run folder.

    state  a checkpoint's, to go on from
    slot   its place among the `together` trainings that are one program, whose seconds all of them have
    """

    together = 1
    group: CtrlC | None = None  # of those

    def __init__(self, recipe: Recipe, out: Path, device: torch.device, name: str, say, kept: Kept, state: dict | None = None, slot: int = 0):
        self.recipe, self.out, self.name, self.say = recipe, out, name, say
        self.remedy = f"give the same command with --out {kept.several}" if kept.several else f"python -m train --resume {out}"
        self.watch, self.state, self.writes = Stopwatch(device), state, kept.ranks.writes
        self.commit = commit()  # now: a checkout may move on while a long training runs
        with self.watch.lap("setup"):
            self.store = kept.locate(recipe)
            if state:  # before other settings are found not to fit the data
                check_data(state, self.store, out)
            self.training = assemble(recipe, self.store, device, self.watch, kept.earlier(recipe, slot), kept.ranks, resumed=bool(state))
            if self.training.built:
                kept.trainings[slot] = self.training
            if self.writes:
                make_folder(out)
        say(headline(recipe, self.training, self.store, device))
        if (steps := recipe.epochs * len(self.training.train)) < FEW:
            say(f"note: {counted(steps, 'step')} in all {'is' if steps == 1 else 'are'} few: for so few images give more --epochs")
        if recipe.warmup > recipe.epochs:
            say(f"note: the rate still rises when the training ends: --warmup {recipe.warmup:g} for {counted(recipe.epochs, 'epoch')}")
        if recipe.idle:
            say(f"note: without --affine-p no image has the {', '.join(recipe.idle)} that is set")
        if note := leak(recipe):
            say(note)

    def course(self) -> Course:
        """The training's, with the run folder's metrics and checkpoint kept up with it."""
        recipe, training, out = self.recipe, self.training, self.out
        if self.state:
            go_on(training, self.state, self.store, out)
            self.say(f"goes on at epoch {training.progress.epoch + 1}, step {training.progress.step + 1}")
        if not self.writes:
            with explained(recipe, training.device):
                yield from training.course(lambda line, losses: None)
            return
        with held(out):
            yield from self.kept_course()

    def kept_course(self) -> Course:
        """The `course` in the process that writes."""
        recipe, training, out = self.recipe, self.training, self.out
        (out / "summary.json").unlink(missing_ok=True)  # an earlier run's: this one is not finished
        for name in () if self.state else ("checkpoint.pt", "model.safetensors"):  # another one's, which nobody is to go on with or ask
            (out / name).unlink(missing_ok=True)
        metrics, steps = (Lines(out / name, training.progress.epoch) for name in ("metrics.jsonl", "steps.jsonl"))
        board = events.board(out, recipe.events, goes_on=bool(self.state))
        self.saver = Saver(training, self.store, out, self.name, self.say, self.remedy, self.group)
        failures = [explained(recipe, training.device) for _ in range(2)]  # the outer one for what comes up while the inner one's is on its way
        with failures[0], self.saver as saver, board as show, failures[1]:

            def on_epoch(line: dict, losses: list[float]) -> None:
                steps.add([{"epoch": line["epoch"], "step": step + 1, "loss": loss} for step, loss in enumerate(losses)])
                metrics.add([line])
                if training.progress.epoch == line["epoch"]:  # the net may be some epochs further already
                    saver.on_epoch(last=line["epoch"] == recipe.epochs)
                show(line, losses)
                self.say((f"{out.name}: " if self.together > 1 else "") + epoch_line(line, recipe.epochs))

            yield from training.course(on_epoch, saver.on_step)

    def finish(self) -> dict:
        """Write the model, the report and the summary, and give the summary; {} in a process that does not write."""
        if not self.writes:
            return {}
        out, recipe, training, store = self.out, self.recipe, self.training, self.store
        summary = summarise(recipe, training, store, self.name) | {"together": self.together, "commit": self.commit}
        described = {key: json.dumps(getattr(store, key)) for key in ("classes", "mean", "std", "height", "width")}
        identity = {"net": recipe.net, "norm": recipe.norm, **described}
        checkpoint.save_model(out / "model.safetensors", training.finished, identity)
        summary["seconds"] = self.watch.report()  # for the page; the summary's count the page, too
        write_json(out / "summary.json", summary)  # whatever becomes of the pictures
        if recipe.report:
            report.write(out, summary, training.history, training.outcome, store, tested_images(recipe, store))
        else:
            report.remove(out)
        summary["seconds"] = self.watch.report()
        write_json(out / "summary.json", summary)
        self.say(f"{out}: test accuracy {summary['test_accuracy']:.4f}{on_what(summary)}, {summary['seconds']['train']:.1f} s of training")
        return summary


def train_once(recipe: Recipe, out: Path, device: torch.device, name: str, say, kept: Kept, state: dict | None = None) -> dict:
    """The summary of one seed. `state` is a checkpoint's, to go on from."""
    run = Run(recipe, out, device, name, say, kept, state)
    with run.watch.lap("compile"), explained(recipe, device):
        run.training.warm_up()
    follow(run.course(), run.training.step)
    return run.finish()


@contextmanager
def folder(recipe: Recipe, ranks: Ranks) -> Iterator[Path]:
    """Where the run is written: `out`, or a new folder, which is removed again where nothing came into it."""
    out = ranks.same(lambda: Path(recipe.out) if recipe.out else new_folder(f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.net}-{recipe.pipeline}"))
    try:
        yield out
    finally:
        if not (recipe.out or ranks.rank):
            with suppress(OSError):
                out.rmdir()


def new_folder(name: str) -> Path:
    """Make a folder of that name in `runs`, with a number behind it where another command of the same second has the name."""
    runs = Path("runs")
    make_folder(runs)
    out, others = runs / name, count(2)
    while True:
        with suppress(FileExistsError):
            out.mkdir()
            return out
        out = runs / f"{name}-{next(others)}"


def make_folder(out: Path) -> None:
    """Make the run folder, or raise `InputError` where nothing can be written into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}): name another folder with --out") from None

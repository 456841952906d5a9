"""One run: the parts put together, trained, and written down."""

import gc
import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nets
import pipelines
from pipelines import data, stage
from pipelines.errors import InputError, reason
from pipelines.files import replacing
from pipelines.plan import PLAIN
from pipelines.store import Store
from train import checkpoint, events, report, result
from train.course import Course, follow
from train.device import DTYPES, precision_of
from train.failures import explained
from train.flags import named, words
from train.loop import Training
from train.machine import commit, hardware, versions
from train.progressive import side
from train.ranks import Ranks
from train.recipe import Recipe
from train.saving import Lines, Saver
from train.split import split, tested_images
from train.state import go_on
from train.stopwatch import Stopwatch
from train.synced import synced
from train.together import Together

SCHEMA = 1
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "cifar10-jpeg": "CIFAR-10 (JPEG q75)", "svhn": "SVHN", "tiny-imagenet": "Tiny-ImageNet"}
FEW = 200  # steps of a training from which little can be expected
TEST_BATCH = {"cpu": 1000, "cuda": 2500}  # images; no gradient is kept, so it may be larger than a training batch; a GPU wants few launches, and has the memory


@dataclass
class Kept:
    """What the trainings of one process share, once the first has made it: the verified store, and the trainings whose steps are made once
    by the place that each has among those that go together, and their group. `ranks` is this process among several."""

    store: Store | None = None
    trainings: dict[int, Training] = field(default_factory=dict)
    group: Together | None = None
    ranks: Ranks = Ranks()

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

    def __init__(self, recipe: Recipe, out: Path, device: torch.device, name: str, say, kept: Kept, state: dict | None = None, slot: int = 0):
        self.recipe, self.out, self.name, self.say = recipe, out, name, say
        self.watch, self.state, self.writes = Stopwatch(device), state, kept.ranks.writes
        self.commit = commit()  # now: a checkout may move on while a long training runs
        with self.watch.lap("setup"):
            self.store = kept.locate(recipe)
            self.training = assemble(recipe, self.store, device, self.watch, kept.earlier(recipe, slot), kept.ranks)
            if self.training.built:
                kept.trainings[slot] = self.training
            if self.writes:
                make_folder(out)
        say(headline(recipe, self.training, self.store, device))
        if (steps := recipe.epochs * len(self.training.train)) < FEW:
            say(f"note: {steps} steps in all are few: for so few images give more --epochs")

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
        (out / "summary.json").unlink(missing_ok=True)  # an earlier run's: this one is not finished
        metrics, steps = (Lines(out / name, training.progress.epoch) for name in ("metrics.jsonl", "steps.jsonl"))
        board = events.board(out, recipe.events, goes_on=bool(self.state))
        self.saver = Saver(training, self.store, out, self.name, self.say)
        failures = [explained(recipe, training.device) for _ in range(2)]  # the outer one for what comes up while the inner one's is on its way
        with failures[0], self.saver as saver, board as show, failures[1]:

            def on_epoch(line: dict, losses: list[float]) -> None:
                steps.add([{"epoch": line["epoch"], "step": step + 1, "loss": loss} for step, loss in enumerate(losses)])
                metrics.add([line])
                if training.progress.epoch == line["epoch"]:  # the net may be some epochs further already
                    saver.on_epoch(last=line["epoch"] == recipe.epochs)
                show(line, losses)
                self.say(epoch_line(line, recipe.epochs))

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
        notes = [summary["tested_on"]] * (summary["tested_on"] != "test") + ["taught"] * summary["taught"]
        held = f" ({', '.join(notes)})" if notes else ""
        self.say(f"{out}: test accuracy {summary['test_accuracy']:.4f}{held} on {summary['data']['name']}, {summary['seconds']['train']:.1f} s of training")
        return summary


def train_once(recipe: Recipe, out: Path, device: torch.device, name: str, say, kept: Kept, state: dict | None = None) -> dict:
    """The summary of one seed. `state` is a checkpoint's, to go on from."""
    run = Run(recipe, out, device, name, say, kept, state)
    with run.watch.lap("compile"), explained(recipe, device):
        run.training.warm_up()
    follow(run.course(), run.training.step)
    return run.finish()


def known(recipe: Recipe) -> None:
    """Raise `InputError` where there is no net or pipeline of the recipe's name, or the pipeline is not installed."""
    pipelines.load(recipe.pipeline)
    if recipe.net not in nets.names():
        raise InputError(f"net {recipe.net!r}: choose one of {', '.join(nets.names())}")


def verified(store: Store) -> Store:
    """The store, every byte of it checked."""
    store.verify()
    return store


def assemble(recipe: Recipe, store: Store, device: torch.device, watch: Stopwatch, earlier: Training | None = None, ranks: Ranks = Ranks()) -> Training:
    """Net, pipelines and optimiser of a recipe. The seed fixes the weights, whatever the pipeline.

    earlier  a training of another seed, whose recipe has the same `program`: its step is then used again
    ranks    the processes that share the training, of which this one does its part
    """
    if recipe.compiled and not ranks.alone:
        raise InputError("--compiled: several processes share a training eagerly only: add --no-compiled, or deal out whole trainings with --runs")
    if recipe.minutes:
        raise InputError("--minutes: only python -m train fits epochs to a time: give --epochs")
    dtype = DTYPES[precision_of(recipe, device)]
    held, ids = split(recipe, store.labels("train"))
    common = dict(device=device, dtype=dtype, seed=recipe.seed, share=ranks.share)
    loader = pipelines.open(recipe.pipeline, store, "train", batch_size=recipe.batch_size, policy=recipe.policy(), ids=ids, **common)
    loader = stage.stage(loader, recipe.extra(store.mean), store)
    tested = {"split": "test"} if held is None else {"split": "train", "ids": held}
    test = pipelines.open(recipe.pipeline, store, batch_size=ranks.whole(TEST_BATCH[device.type]), policy=PLAIN, **tested, **common)
    torch.manual_seed(recipe.seed)
    options = {} if recipe.norm == "batch" else {"norm": recipe.norm}
    net = nets.load(recipe.net, len(store.classes), **options)
    check_fit(net, recipe, store)
    net = synced(net, ranks)
    if earlier is not None:
        return earlier.restart(recipe, net, loader, test, watch)
    return Training(recipe, net, loader, test, device, watch, teacher(recipe, store), ranks=ranks)


def check_fit(net: nn.Module, recipe: Recipe, store: Store) -> None:
    """Raise `InputError` unless the net takes the store's images, at their size and at the smallest that training shows, and knows its classes."""
    first = side(0, recipe.epochs, recipe.first_side, store.height, recipe.grown)
    for height in {first, store.height}:
        width = round(store.width * height / store.height)
        try:
            with explained(recipe, torch.device("cpu")):  # memory that runs out is no matter of size
                given = nets.output_shape(net, (store.channels, height, width))
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:
            remedy = "choose another net, or larger images with --size or --first-side"
            raise InputError(f"net {recipe.net} cannot take images of {width}x{height} pixels, {store.channels} channels ({reason(error)}): {remedy}") from None
        if given != (len(store.classes),):
            raise InputError(f"net {recipe.net} gives {given} for an image, not a logit for each of {len(store.classes)} classes: mend its build(num_classes)")


def teacher(recipe: Recipe, store: Store) -> nn.Module | None:
    """The net of the run folder that `recipe.teacher` names. Raises `InputError` where it knows other classes or takes other images."""
    if not recipe.teacher:
        return None
    model = result.model(recipe.teacher)
    if (model.classes, model.mean, model.std) != (store.classes, store.mean, store.std):
        raise InputError(f"--teacher {recipe.teacher}: trained on other classes or images than {store.path}: train one on these")
    return model.net


def summarise(recipe: Recipe, training: Training, store: Store, name: str) -> dict:
    """The run as plain values: what `summary.json` holds, but for the seconds."""
    last = training.history[-1]
    shape = (store.channels, store.height, store.width)
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", "-m", "train", *asked(name, recipe)]),
        "hardware": {**hardware(training.device), "processes": training.ranks.count},
        "versions": versions(),
        "data": {"name": dataset_name(store), "encoding": store.encoding, "sha256": store.sha256},
        "net": recipe.net,
        "parameters": nets.parameters(training.net),
        "macs": nets.macs(training.net, shape),
        "pipeline": recipe.pipeline,
        "precision": training.precision,
        "recipe": {"name": name, **asdict(recipe)},
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "train_accuracy": last["train_accuracy"],
        "test_accuracy": last["test_accuracy"],
        "tested_on": tested_on(recipe),
        "taught": bool(recipe.teacher),
        "images_per_second": round(float(np.median([line["images_per_second"] for line in training.history])), 1),
    }


def asked(name: str, recipe: Recipe) -> list[str]:
    """The words of the command line; where that goes on with a run, fits epochs to a time, or is another program's, those that train it again from the start."""
    program, given = Path(sys.argv[0]), sys.argv[1:]
    found = any(word.split("=")[0] in ("--resume", "--minutes") for word in given)
    if "train" in (program.name, program.parent.name) and not found:
        return given
    made = named()
    return words(name, recipe, made) if name in made else min((words(other, recipe, made) for other in made), key=len)


def tested_on(recipe: Recipe) -> str:
    """What the test accuracy is of: images, and their views where there are several. Figures that differ in it are not compared."""
    images = f"{recipe.held_out:,} images held out of train" if recipe.held_out else "test"
    if recipe.views == 1:
        return images
    some = "" if recipe.views_share == 1 else f" of the least confident {recipe.views_share:.0%}"
    return f"{images}, the mean of {recipe.views} views{some}"


def dataset_name(store: Store) -> str:
    """What to write beside an accuracy."""
    return NAMES.get(store.source, store.source)


def headline(recipe: Recipe, training: Training, store: Store, device: torch.device) -> str:
    """What is about to happen, in one line."""
    count = nets.parameters(training.net)
    images = len(training.train.plan.ids)
    return (
        f"{recipe.net}: {count:,} parameters, {images:,} images of {dataset_name(store)} through {recipe.pipeline}, "
        f"{recipe.epochs} epochs of batch {recipe.batch_size}, {training.precision} on {hardware(device)['device']}"
    )


def epoch_line(line: dict, epochs: int) -> str:
    """One epoch for a person to read."""
    tested = "" if line["test_accuracy"] is None else f"test {line['test_accuracy']:6.2%}  "
    return (
        f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}  train {line['train_accuracy']:6.2%}  loss {line['train_loss']:.4f}  "
        f"{tested}{line['images_per_second']:>9,.0f} images/s  {line['seconds']:7.1f} s"
    )


def folder(recipe: Recipe) -> Path:
    """Where the run is written."""
    return Path(recipe.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{recipe.net}-{recipe.pipeline}")


def make_folder(out: Path) -> None:
    """Make the run folder, or raise `InputError` where nothing can be written into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}): name another folder with --out") from None


def write_json(path: Path, values: dict) -> None:
    """Write JSON whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

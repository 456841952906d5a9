"""`--minutes M`: as many epochs as fit into M minutes of training here, by a few timed steps at every size of image that is to come.

The number is found once and kept in the run folder's `budget.json`, so that the same command with the same `--out` goes on with it; `--epochs`
with that number repeats the training.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from math import ceil
from pathlib import Path

from pipelines.errors import InputError
from pipelines.files import write_json
from train import result
from train.assembly import assemble
from train.command import counted
from train.failures import explained
from train.jobs import earlier, interrupted
from train.loop import Training, set_rate
from train.progressive import side, sides
from train.recipe import Recipe
from train.recorded import Batch
from train.rehearsal import phases
from train.resting import at_rest, rest
from train.run import Kept, make_folder
from train.stopwatch import Stopwatch

RESERVE = 0.05  # of the minutes, for what the timed steps did not meet
WARM, FEWEST, MOST = 2, 4, 40  # steps before the clock at a size of image, and on it
SECONDS = 1.0  # on it, where that is neither too few steps nor too many
MANY = 100  # epochs, in which every size of image comes
FILE = "budget.json"


def fitted(recipe: Recipe, out: Path, device, say, kept: Kept) -> Recipe:
    """The recipe with the epochs that its `minutes` hold, which are then 0: those that `out` keeps from an earlier call, or by steps timed here.

    Of several processes that share a training or take turns, the first decides. Raises `InputError` where not even one epoch fits, or `out` has trainings
    of other minutes or settings, to whose budget nothing is done.
    """
    known = kept.ranks.same(lambda: remembered(recipe, out))
    if known:
        say(f"{out / FILE}: {known} epochs, as timed earlier")
        return replace(recipe, epochs=known, minutes=0.0)
    kept.ranks.same(lambda: check_unused(recipe, out))
    training = assemble(replace(recipe, epochs=MANY, minutes=0.0), kept.locate(recipe), device, Stopwatch(device), ranks=kept.ranks)
    with explained(recipe, device):
        seconds = timed(training)
    steps, full = len(training.train), training.train.plan.height
    epochs = kept.ranks.same(lambda: most_epochs(recipe, steps, full, seconds))
    made = replace(recipe, epochs=epochs, minutes=0.0)
    if not kept.ranks.rank:
        make_folder(out)
        by_side = {str(shown): round(spent, 6) for shown, spent in seconds.items()}
        write_json(out / FILE, {"minutes": recipe.minutes, "epochs": epochs, "seconds_of_a_step": by_side, "recipe": settings(recipe)})
        predicted = training_seconds(recipe, epochs, steps, full, seconds)
        say(f"{recipe.minutes:g} minutes hold {counted(epochs, 'epoch')} here, {predicted:.0f} s by the steps timed: --epochs {epochs} repeats the training")
    return made


def timed(training: Training) -> dict[int, float]:
    """Seconds of a step, by the side of its images in pixels. The training is of no use afterwards: its weights have moved."""
    training.warm_up()
    training.prepare()
    for group in training.optimiser.param_groups:
        set_rate(group, 0.0)
    recipe, watch, batches, found = training.recipe, training.watch, endless(training), {}
    trains = dict(reversed(phases(training)))  # at each side, where the most of the net does
    for shown in sides(recipe.first_side, training.train.plan.height, recipe.grown):
        rest(training.net, trains.get(shown, at_rest(training.net)))
        warm = clocked(training, islice(batches, WARM), shown, watch)
        number = training.ranks.same(partial(enough, warm / WARM))
        found[shown] = clocked(training, islice(batches, number), shown, watch) / number
    return found


def enough(seconds: float) -> int:
    """How many steps to time, of about so many seconds each."""
    return MOST if seconds * MOST <= SECONDS else max(ceil(SECONDS / seconds), FEWEST)


def endless(training: Training) -> Iterator[Batch]:
    """Batches of one epoch after another."""
    for epoch in count():
        yield from training.batches(epoch)


def clocked(training: Training, batches: Iterator[Batch], shown: int, watch: Stopwatch) -> float:
    """Seconds of a step by each batch, its loading included."""
    before = watch.seconds["train"]
    with watch.lap("train"):
        for images, targets in batches:
            training.step(*training.shrunk(images, targets, shown))
    return watch.seconds["train"] - before


def most_epochs(recipe: Recipe, steps: int, full: int, seconds: dict[int, float]) -> int:
    """The largest number of epochs, of `steps` each, that fits. Raises `InputError` where none does."""
    limit = (1 - RESERVE) * 60 * recipe.minutes
    most = int(limit / (steps * min(seconds.values()))) + 1
    fitting = bisect_right(range(1, most + 1), limit, key=lambda epochs: training_seconds(recipe, epochs, steps, full, seconds))
    if not fitting:
        needed = training_seconds(recipe, 1, steps, full, seconds) / 60 / (1 - RESERVE)
        raise InputError(f"--minutes {recipe.minutes:g}: an epoch takes {needed:.2g} of them here: give more minutes, or fewer images with --limit")
    return fitting


def training_seconds(recipe: Recipe, epochs: int, steps: int, full: int, seconds: dict[int, float]) -> float:
    """Of so many epochs, whose images grow as the recipe says."""
    return steps * sum(seconds[side(epoch, epochs, recipe.first_side, full, recipe.grown)] for epoch in range(epochs))


def settings(recipe: Recipe) -> dict:
    """What the number of epochs depends on."""
    return {key: value for key, value in recipe.experiment().items() if key not in ("epochs", "minutes")} | {"data": recipe.data}


def check_unused(recipe: Recipe, out: Path) -> None:
    """Raise `InputError` where the folder has a training: it has its epochs already, and no minutes."""
    for place in result.matching(out, "seed-*") if recipe.runs > 1 else [out]:
        earlier(recipe, place), interrupted(recipe, place)


def remembered(recipe: Recipe, out: Path) -> int | None:
    """The epochs that an earlier call found for the same settings and minutes; None where it found none."""
    try:
        found = json.loads((out / FILE).read_text(encoding="utf-8"))
        same = (found["minutes"], found["recipe"]) == (recipe.minutes, settings(recipe))
        return found["epochs"] if same and type(found["epochs"]) is int and found["epochs"] > 0 else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None

"""The training loop: epochs over a pipeline, one line of metrics each.

Shapes: images [B,C,H,W] channels_last, labels int64[B], `Targets` of B images, logits [B,K].
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm

from nets.aside import branch_of, gradients_aside, opened
from pipelines import Pipeline
from pipelines.mixing import Targets, mix
from train.average import Average
from train.compiled import build_step, restore
from train.course import Course, Diverged, Ended, Progress, follow
from train.device import DTYPES, precision_of
from train.objective import cross_entropy, distillation
from train.optim import Plateau, optimiser
from train.progressive import resize, side as side_of
from train.ranks import Ranks
from train.recipe import Recipe
from train.recorded import Batch, Results
from train.rehearsal import rehearse
from train.resting import Resting, at_rest, rest, resting
from train.schedule import schedule
from train.stopwatch import Stopwatch
from train.testing import Outcome, evaluate, fitting

AHEAD = 1.0  # seconds; the epochs of a GPU that begin within them are read together: a look at the losses, and the device waits a millisecond for its next step


@dataclass
class Training:
    """A net on its way through a recipe: `course` goes through one epoch after another and tells `on_epoch` of each."""

    recipe: Recipe
    net: nn.Module
    train: Pipeline
    test: Pipeline
    device: torch.device
    watch: Stopwatch
    teacher: nn.Module | None = None  # whose logits are learnt beside the labels
    history: list[dict] = field(default_factory=list)
    ranks: Ranks = Ranks()  # the processes that train the net together
    built: bool = False  # whether its step is made once, for all sizes of batch that are to come and for all seeds

    def __post_init__(self):
        self.precision = precision_of(self.recipe, self.device)
        self.net.to(self.device, memory_format=torch.channels_last)
        self.optimiser = optimiser(self.net, self.recipe)
        self.average = Average(self.net, self.recipe.ema) if self.recipe.ema else None
        if self.teacher is not None:
            self.teacher.to(self.device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self.mixing = self.recipe.mixing()
        self.schedule = schedule(self.recipe)
        # only fp16 has gradients that vanish below its smallest number
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.outcome: Outcome | None
        self.began = time.perf_counter()
        build_step(self, self.recipe)
        self._begin()

    def _begin(self) -> None:
        """What is new with every recipe."""
        self.plateau, self.outcome, self.progress = Plateau(self.recipe.factor, self.recipe.patience), None, Progress()
        # a plateau's rate follows the losses; processes that share a training have not been tried so
        self.ahead = AHEAD if self.device.type == "cuda" and self.ranks.alone and self.recipe.schedule != "plateau" else 0.0
        self.random = torch.get_rng_state()  # of one of several that go one after another, step by step

    def restart(self, recipe: Recipe, net: nn.Module, train, test, watch: Stopwatch) -> "Training":
        """This training with another seed, or by a recipe of the same `program`: the weights of `net` and new pipelines, in the tensors and programs that are here."""
        self.recipe, self.train, self.test, self.watch, self.history, self.schedule = recipe, train, test, watch, [], schedule(recipe)
        for group, made in zip(self.optimiser.param_groups, optimiser(self.net, recipe).param_groups, strict=True):
            group["initial_lr"] = made["initial_lr"]
        restore(self.net, self.optimiser, net.state_dict())
        if self.average:
            self.average.begin()
        self._begin()
        return self

    def autocast(self):
        """A fresh context in which the forward pass runs in the training's precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    def warm_up(self) -> None:
        """Have every kernel built before the clock of training runs (`rehearsal.py`)."""
        rehearse([self], lambda batches: self.step(*batches[0]))

    def prepare(self) -> None:
        """Let a net that looks at training images before it learns, as `speednet`'s whitening, do so: the first batch. One with another run's weights has."""
        if hasattr(self.net, "prepare") and not self.recipe.weights:
            images, _ = next(iter(self.train.epoch(0)))
            self.net.prepare(self.ranks.whole_batch(images, self.train.plan))
        self.ranks.same_start(self.net)
        if self.average:
            self.average.begin()

    @property
    def finished(self) -> nn.Module:
        """The net that is tested and saved: the running mean of the weights, where there is one."""
        return self.average.net if self.average else self.net

    def run(self, on_epoch: Callable[[dict, list[float]], None], on_step: Callable[[], None] = lambda: None) -> None:
        """Follow the `course` with this training's own steps."""
        follow(self.course(on_epoch, on_step), self.step)

    def course(self, on_epoch: Callable[[dict, list[float]], None], on_step: Callable[[], None] = lambda: None) -> Course[None]:
        """From where `progress` is to the last epoch. `on_epoch(metrics, losses)` gets each epoch's line and the loss
        of every step, of several epochs at once where they are short (`stretch`); `on_step` is called after each step, when the training's
        state may be taken (`state.py`), as it may in `on_epoch` where `progress` is just behind that epoch."""
        if (self.progress.epoch, self.progress.step) == (0, 0):
            with self.watch.lap("train"):
                self.prepare()
        while self.progress.epoch < self.recipe.epochs:
            earlier = self.progress.seconds
            self.watch.seconds["train"] += earlier
            with self.watch.lap("train"):
                before = self.watch.mark()
                ended = yield from self.stretch(on_step)
                read = [each.read(self.recipe) for each in ended]
            self.progress = Progress(ended[-1].epoch + 1)
            for each, (losses, right) in zip(ended, read):
                line = self._line(each, losses, right, earlier + self.watch.between(before, each.mark))
                before, earlier = each.mark, 0.0
                self.plateau.step(line["train_loss"])
                self.history.append(line)
                on_epoch(line, losses)
            if len(ended) > 1:
                on_step()
        if self.outcome is None:  # interrupted behind the last epoch
            self._test(last=True)

    def stretch(self, on_step: Callable[[], None]) -> Course[list[Ended]]:
        """The course of an epoch, or on a GPU of as many short ones as begin within `AHEAD` seconds: what they gave is read when the last is over, so that the
        device never waits for the host between them. While an epoch waits to be read `on_step` is not called, and once when all are."""
        ended: list[Ended] = []
        began = time.perf_counter()
        while True:
            ended.append((yield from self.steps(self.progress.epoch, self.progress.step, on_step if not ended else lambda: None)))
            if time.perf_counter() - began >= self.ahead or self._is_tested(ended[-1].epoch):
                return ended
            self.progress = Progress(ended[-1].epoch + 1)

    def _line(self, ended: Ended, losses: list[float], right: int, seconds: float) -> dict:
        """The metrics of an epoch, its test pass included."""
        tested = self._is_tested(ended.epoch)
        if tested:
            self._test(last=ended.epoch + 1 == self.recipe.epochs)
        return {
            "epoch": ended.epoch + 1,
            "lr": float(ended.rate),
            "train_loss": sum(loss * self.train.plan.size(step) for step, loss in enumerate(losses)) / ended.seen,
            "train_accuracy": right / ended.seen,
            "test_loss": self.outcome.loss if tested and math.isfinite(self.outcome.loss) else None,  # JSON has no infinity
            "test_accuracy": self.outcome.accuracy if tested else None,
            "pipeline": self.recipe.pipeline,  # another may go on with a training
            "images_per_second": round(ended.seen / seconds, 1),
            "seconds": round(seconds, 3),
        }

    def _is_tested(self, epoch: int) -> bool:
        every = self.recipe.eval_every
        return epoch + 1 == self.recipe.epochs or (every > 0 and (epoch + 1) % every == 0)

    def _test(self, last: bool) -> None:
        before = self.watch.seconds["eval"]
        with self.watch.lap("eval"):
            self.outcome = evaluate(self.finished, self.test, self.look, self.recipe.views, self.recipe.views_share, self.ranks)
        if last:
            self.watch.seconds["final_eval"] = self.watch.seconds["eval"] - before
            if math.isnan(self.outcome.loss):  # the last update broke the net: its logits are no numbers, and what it calls the images no accuracy
                raise Diverged(self.recipe.seed, self.recipe.epochs, len(self.train), math.nan, self.recipe.main_rate, tested=True)

    def look(self, images: torch.Tensor, views: int) -> torch.Tensor:
        """Logits, float32[B,K], of a test batch, the mean of so many views; the net is in evaluation mode."""
        with self.autocast():
            return fitting(self.finished, images, views)

    def epoch(self, epoch: int) -> tuple[list[float], int, int]:
        """Train an epoch alone: (loss of each step, right predictions, images seen)."""
        ended = follow(self.steps(epoch), self.step)
        return *ended.read(self.recipe), ended.seen

    def steps(self, epoch: int, start: int = 0, on_step: Callable[[], None] = lambda: None) -> Course[Ended]:
        """The course of an epoch; returns what it gave, without a host sync.

        start  the step to go on from, with `progress` as it was then
        """
        if start == 0:
            self.progress = Progress(epoch, right=torch.zeros((), dtype=torch.int64, device=self.device))
        rest(self.net, resting(self.net, self.recipe, epoch))
        at, steps, self.began = self.progress, len(self.train), time.perf_counter()
        name, hidden = f"epoch {epoch + 1}/{self.recipe.epochs}", True if self.ranks.rank else None  # None: where there is no terminal
        with tqdm(total=len(self.train.plan.ids), initial=at.seen, desc=name, unit=" images", unit_scale=True, disable=hidden, leave=False) as bar:
            for step, (images, targets) in enumerate(self.batches(epoch, start), start):
                images, targets = self.shrunk(images, targets, self.side(epoch))
                self._set_rate(epoch + step / steps)
                self.ranks.begin_step(self.recipe.seed, epoch, step)
                loss, right = yield images, targets
                at.losses.append(loss)
                at.right = at.right + right
                at.seen += self.train.plan.size(step)
                at.step = step + 1
                on_step()
                bar.update(self.train.plan.size(step))
        rate = self.optimiser.param_groups[0]["lr"]
        return Ended(epoch, torch.stack(at.losses), at.right, at.seen, rate.clone() if torch.is_tensor(rate) else rate, self.watch.mark())

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, Targets]]:
        """The pipeline's batches from a step on, mixed where the recipe says so; a last one of which this process has no part is empty."""
        plan = self.train.plan
        yield from self._mixed(epoch, start) if self.mixing else self._plain(epoch, start)
        if plan.steps < len(plan) and start < len(plan):
            images, labels = next(iter(self.train.epoch(0)))
            yield images[:0], Targets(labels[:0])

    def _plain(self, epoch: int, start: int) -> Iterator[tuple[torch.Tensor, Targets]]:
        for images, labels in self.train.epoch(epoch, start):
            yield images, Targets(labels)

    def _mixed(self, epoch: int, start: int) -> Iterator[tuple[torch.Tensor, Targets]]:
        plan, ramp = self.train.plan, self.recipe.mix_ramp * len(self.train)
        for step, ((images, labels), ids) in enumerate(zip(self.train.epoch(epoch, start), plan.batches(epoch, start)), start):
            strength = min(1.0, (epoch * len(self.train) + step) / ramp) if ramp else 1.0
            yield mix(images, labels, ids, self.mixing, plan.seed, epoch, strength)

    def side(self, epoch: int) -> int:
        """Of the training images in an epoch, pixels."""
        return side_of(epoch, self.recipe.epochs, self.recipe.first_side, self.train.plan.height, self.recipe.grown)

    def shrunk(self, images: torch.Tensor, targets: Targets, side: int) -> tuple[torch.Tensor, Targets]:
        """What a step takes of a batch whose images are to have that side, pixels; a teacher sees them as they were, since it knows no others."""
        shown = resize(images, side)
        return shown, targets if self.teacher is None or shown is images else targets._replace(whole=images)

    @property
    def phase(self) -> Resting:
        """What a recorded step must be recorded anew for, beside sizes."""
        return at_rest(self.net)

    def _set_rate(self, progress: float) -> None:
        plateau = self.plateau.value if self.recipe.schedule == "plateau" else 1.0
        for group in self.optimiser.param_groups:
            set_rate(group, group["initial_lr"] * self.schedule(progress) * plateau)

    def step(self, images: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """One update. The detached loss (mean over the batch, float32) and the count of right predictions (int64)."""
        losses, rights = self.work([(images, targets)])
        self.moved()
        return losses[0], rights[0]

    def work(self, batches: list[Batch]) -> Results:
        """What a step does on the device, by its one batch: the net is moved where it lies, and the results are new tensors."""
        ((images, targets),) = batches
        loss, logits = self.forward(images, targets)
        loss = self.ranks.part_of(loss, len(images), self.train.plan, self.progress.step)
        self.backward(loss)
        loss, right = self.ranks.add_up(self.net, loss.detach(), right_of(logits, targets))
        with opened(branch_of(self.device)):
            self.update()
        return loss[None], right[None]

    def forward(self, images: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, logits) of a batch, with their graph."""
        with self.autocast():
            logits = self.net(images)
        return self.loss(logits, images, targets), logits

    def loss(self, logits: torch.Tensor, images: torch.Tensor, targets: Targets) -> torch.Tensor:
        """What the step is to make smaller, a float32 scalar."""
        if not len(images):  # a process without a part of the batch, which has gradients for all that
            return logits.float().sum()
        loss = cross_entropy(logits.float(), targets, self.recipe.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad(), self.autocast():
            taught = self.teacher(images if targets.whole is None else targets.whole)
        return torch.lerp(loss, distillation(logits.float(), taught.float(), self.recipe.temperature), self.recipe.teacher_share)

    def backward(self, loss: torch.Tensor) -> None:
        """Fresh gradients of the scaled loss."""
        self.optimiser.zero_grad(set_to_none=True)
        with gradients_aside(self.net.parameters(), branch_of(self.device)):
            self.scaler.scale(loss).backward()

    def update(self) -> None:
        """Move the weights by their gradients."""
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def moved(self) -> None:
        """What follows a step's update."""
        if self.average:
            self.average.update()


def right_of(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """How many images are predicted right, an int64 scalar."""
    return (logits.detach().argmax(1) == targets.labels).sum()


def set_rate(group: dict, rate: float | torch.Tensor) -> None:
    """Give an optimiser's group a learning rate; a step that is made once keeps it in a tensor."""
    if torch.is_tensor(group["lr"]):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate

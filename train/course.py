"""A course: the batches of a training as a generator, which whoever follows it answers with each step's result; and how far one is.

Shapes: images [B,C,H,W] channels_last, `Targets` of B images.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch

from pipelines.errors import InputError
from pipelines.mixing import Targets
from train.recipe import Recipe, flag

T = TypeVar("T")  # what a course returns
# Gives the images and targets of each step, and takes its loss and count of right predictions: whoever follows it decides how a step is computed.
Course = Generator[tuple[torch.Tensor, Targets], tuple[torch.Tensor, torch.Tensor], T]


def follow(course: Course[T], step: Callable) -> T:
    """Take a course to its end, and give what it returns: every step is `step(images, targets)`, which gives (loss, right).

    What a step raises comes up in the course, whose contexts may have something to save or to say.
    """
    try:
        batch = next(course)
        while True:
            try:
                result = step(*batch)
            except BaseException as error:
                course.throw(error)
                raise
            batch = course.send(result)
    except StopIteration as end:
        return end.value


class Diverged(InputError):
    """The loss is no longer a number: `epoch` and `step` (from 1) are the first where it was not, or behind which that of the test images is none. rate: the
    setting that most weights learn by."""

    def __init__(self, seed: int, epoch: int, step: int, loss: float, rate: str = "lr", tested: bool = False):
        where = f"the test loss behind epoch {epoch}, step {step}" if tested else f"the loss of epoch {epoch}, step {step}"
        super().__init__(f"seed {seed} diverged: {where} is {loss}: try a lower --{flag(rate)}")
        self.epoch, self.step = epoch, step


class Ended(NamedTuple):
    """An epoch that the host is through with, and what the device has of it, maybe not yet."""

    epoch: int  # from 0
    losses: torch.Tensor  # float32[steps]
    right: torch.Tensor | int  # predictions
    seen: int  # images
    rate: torch.Tensor | float  # the learning rate of its last step
    mark: object  # its end, of `Stopwatch.mark`

    def read(self, recipe: Recipe) -> tuple[list[float], int]:
        """(loss of each step, right predictions); one host sync. Raises `Diverged`, which names the recipe's seed."""
        losses = self.losses.tolist()
        for step, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise Diverged(recipe.seed, self.epoch + 1, step + 1, loss, recipe.main_rate)
        return losses, int(self.right)


@dataclass
class Progress:
    """How far a training is: the `epoch` and `step` of its next batch, from 0, and what the epoch's earlier steps gave."""

    epoch: int = 0
    step: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    right: torch.Tensor | int = 0
    seen: int = 0
    seconds: float = 0.0  # of this epoch, spent before an interruption

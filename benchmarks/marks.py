"""Where a round of training steps spends its time, measured on the loop that trains and not on a copy of it.

`Window` stands between a pipeline and `Training.epoch`, `parted` around the three parts of `Training.step`. Both set
marks, and the time between two marks belongs to one part. So the parts of a step add up to the step, by construction.

On the CPU a mark is the clock. On CUDA it is an event on the stream, read when the round is over: the host never
waits for the device inside a round, and "data" is what the device's stream spends between the end of one step and the
first kernel of the next: the loader's own kernels, and idling until the host has a batch.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

import torch

from train.loop import Training

PARTS = ("data", "forward", "backward", "optimiser", "rest")
A_STEP = 6  # marks: behind next(), before and behind forward, behind backward and optimiser, and at the end


class Marks:
    """Moments in order, each with the part of a step that it ends."""

    def __init__(self, device: torch.device):
        self.device, self.parts, self.moments = device, [], []
        self.pool: list[torch.cuda.Event] = []  # used again round after round, as making one costs more than recording it

    def __call__(self, part: str) -> None:
        """The time since the mark before this one went to `part`."""
        self.parts.append(part)
        if self.device.type != "cuda":
            self.moments.append(time.perf_counter())
            return
        if len(self.moments) == len(self.pool):
            self.pool.append(torch.cuda.Event(enable_timing=True))
        event = self.pool[len(self.moments)]
        event.record()
        self.moments.append(event)

    def take(self) -> list[tuple[str, float]]:
        """(part, seconds) between the marks of a round that is over; then none are left."""
        pairs = list(zip(self.moments, self.moments[1:]))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            seconds = [before.elapsed_time(after) / 1000 for before, after in pairs]
        else:
            seconds = [after - before for before, after in pairs]
        taken = list(zip(self.parts[1:], seconds))
        self.parts, self.moments = [], []
        return taken

    def cost(self, steps: int = 1000) -> float:
        """Host seconds a step that marking takes."""
        begin = time.perf_counter()
        for _ in range(steps * A_STEP):
            self("rest")
        seconds = (time.perf_counter() - begin) / steps
        self.take()
        self.pool.clear()
        return seconds


class Window:
    """A pipeline whose batches are marked as they are asked for and let go; itself a `pipelines.Pipeline`.

    first  steps of an epoch that stand apart
    split  mark every part, or only the first counted step's beginning and the last one's end
    """

    def __init__(self, pipeline, marks: Marks, first: int, split: bool):
        self.pipeline, self.plan, self.marks, self.first, self.split = pipeline, pipeline.plan, marks, first, split
        self.waits: list[float] = []  # host seconds of every next()

    def __len__(self) -> int:
        return len(self.pipeline)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The pipeline's epoch. What a loader does behind its last batch is not counted."""
        if self.split:
            self.marks("rest")
        batches = iter(self.pipeline.epoch(epoch, start))
        for step in range(start, len(self)):
            if not self.split and step == start + self.first:
                self.marks("rest")
            asked = time.perf_counter()
            batch = next(batches)
            self.waits.append(time.perf_counter() - asked)
            if self.split:
                self.marks("data")
            yield batch
            if self.split or step == len(self) - 1:
                self.marks("rest")
        for _ in batches:  # lets the pipeline end its epoch
            raise AssertionError("the pipeline has more steps than it says")


@contextmanager
def parted(training: Training, marks: Marks):
    """Within the block, `training.step` marks its forward, backward and optimiser parts."""

    def marked(function, part: str, before: bool):
        def call(*values):
            if before:
                marks("rest")
            result = function(*values)
            marks(part)
            return result

        return call

    # what lies before forward is the loop's own; backward follows it, and the optimiser backward, without anything between
    training.forward = marked(training.forward, "forward", True)
    training.backward = marked(training.backward, "backward", False)
    training.update = marked(training.update, "optimiser", False)
    try:
        yield
    finally:
        del training.forward, training.backward, training.update  # the class's own are left


def plain_round(training: Training, marks: Marks, epoch: int, first: int) -> float:
    """Seconds a counted step of an epoch with nothing marked but its two ends."""
    window = _through(training, Window(training.train, marks, first, split=False), epoch)
    ((_, seconds),) = marks.take()
    return seconds / (len(window) - first)


def split_round(training: Training, marks: Marks, epoch: int) -> tuple[list[dict[str, float]], list[float]]:
    """(seconds by part of every step, host seconds of every wait for a batch) of an epoch."""
    with parted(training, marks):
        window = _through(training, Window(training.train, marks, 0, split=True), epoch)
    taken = marks.take()
    steps = []
    for i in range(0, len(taken), A_STEP):
        step = dict.fromkeys(PARTS, 0.0)
        for part, seconds in taken[i : i + A_STEP]:
            step[part] += seconds
        steps.append(step)
    return steps, window.waits


def _through(training: Training, window: Window, epoch: int) -> Window:
    """Train an epoch through the window, and take it away again."""
    training.train = window
    try:
        training.epoch(epoch)
    finally:
        training.train = window.pipeline
    return window


def mean_parts(steps: list[dict[str, float]]) -> dict[str, float]:
    """Mean seconds by part: means add up to the mean step, and show waits that only some steps have."""
    return {part: mean(step[part] for step in steps) for part in PARTS}

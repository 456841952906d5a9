"""Work that nothing else waits for, beside what something does: in a step that is recorded as a CUDA graph a second branch.

A backward pass goes from the last layer to the first by the gradients of maps alone; what a layer gives to its filters only the optimiser waits for. On one stream
each kernel waits for the last program of the one before it, and the small ones, by which sums of parts are added up, leave a GPU all but idle for as long as they take.
On two streams filters' gradients fill that. Theirs is the one of lower priority (a recording keeps priorities), so that nothing waits for them. So it is with Muon's
products beside the moves of all that has no filters.

Only in a recording: without one a launch costs the host more than it saves, and cuDNN's choice of kernels, which it times, is made in the steps before.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Made = TypeVar("Made")


class Branch:
    """A stream beside the current one, from its first work on until it is joined."""

    def __init__(self, stream: torch.cuda.Stream):
        self.stream = stream
        self.kept: list[torch.Tensor] = []  # what its work reads: the current stream's next tensors must not lie there

    def run(self, work: Callable[[], Made], reads: Iterable[torch.Tensor]) -> Made:
        self.stream.wait_stream(torch.cuda.current_stream())
        self.kept += reads
        with torch.cuda.stream(self.stream):
            return work()

    def join(self) -> None:
        if self.kept:
            torch.cuda.current_stream().wait_stream(self.stream)
        self.kept.clear()


class Open:
    """The branch that there is, for all threads: autograd works in one of its own."""

    branch: Branch | None = None
    made: list[int] = []  # addresses of gradients that were made aside; a copied one's may come twice
    refused = False  # there are to be none


class Copied(RuntimeError):
    """Autograd took a copy of a gradient that was made aside, before it was there: what was recorded must not be used."""


stream_of = cache(torch.cuda.Stream)


def branch_of(device: torch.device) -> Branch | None:
    """One for what is being recorded on the device; None without a recording, and behind `refuse`."""
    if device.type != "cuda" or Open.refused:
        return None
    stream = stream_of(device)  # made before there is a recording
    return Branch(stream) if torch.cuda.is_current_stream_capturing() else None


def beside(work: Callable[[], Made], reads: Iterable[torch.Tensor]) -> Made:
    """What `work` gives, which reads and writes tensors that nothing else does until the branch is joined; without one at once."""
    return work() if Open.branch is None else Open.branch.run(work, reads)


def aside(work: Callable[[], torch.Tensor], *reads: torch.Tensor) -> torch.Tensor:
    """A gradient beside all others: a new tensor that nothing but an optimiser may read."""
    made = beside(work, reads)
    if Open.branch is not None:
        Open.made.append(made.data_ptr())
    return made


def refuse() -> None:
    """Let there be no branch from now on, and say so."""
    Open.refused = True
    warnings.warn("autograd copies gradients here: steps are recorded without a second branch, and take longer", stacklevel=2)


@contextmanager
def opened(branch: Branch | None) -> Iterator[None]:
    """Let work go into a branch; behind it the branch is joined."""
    if branch is None:
        yield
        return
    Open.branch = branch
    try:
        yield
    finally:  # also of what failed: a recording says else that a stream was not joined, in place of what went wrong
        Open.branch = None
        branch.join()


@contextmanager
def gradients_aside(parameters: Iterable[torch.Tensor], branch: Branch | None) -> Iterator[None]:
    """Have a backward pass make gradients of `parameters` in a branch; behind it they are there.

    Raises `Copied` where autograd took a copy of one for the gradient.
    """
    Open.made = []
    with opened(branch):
        yield
    if branch and (lost := Counter(Open.made) - Counter(p.grad.data_ptr() for p in parameters if p.grad is not None)):
        raise Copied(f"{lost.total()} of {len(Open.made)} gradients that were made in a stream of their own were copied before they were there")

"""Gradients of filters beside those of maps: of a backward pass that is recorded as a CUDA graph a second branch.

A backward pass goes from the last layer to the first by the gradients of maps alone; what a layer gives to its filters only the optimiser waits for. On one stream
each kernel waits for the last program of the one before it, and the small ones, by which sums of parts are added up, leave a GPU all but idle for as long as they take.
On two streams filters' gradients fill that. Theirs is the one of lower priority (a recording keeps priorities), so that nothing waits for them.

Only in a recording: without one a launch costs the host more than it saves, and cuDNN's choice of kernels, which it times, is made in the steps before.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

Work = Callable[[], torch.Tensor]


class Branch:
    """A stream beside the current one, from its first work on until it is joined."""

    def __init__(self, stream: torch.cuda.Stream):
        self.stream = stream
        self.kept: list[torch.Tensor] = []  # what its work reads: the current stream's next tensors must not lie there

    def run(self, work: Work, reads: tuple[torch.Tensor, ...]) -> torch.Tensor:
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
    made: set[int] = set()  # addresses of what was made in it


stream_of = cache(torch.cuda.Stream)


def branch_of(device: torch.device) -> Branch | None:
    """One for what is being recorded on the device; None without a recording."""
    if device.type != "cuda":
        return None
    stream = stream_of(device)  # made before there is a recording
    return Branch(stream) if torch.cuda.is_current_stream_capturing() else None


def aside(work: Work, *reads: torch.Tensor) -> torch.Tensor:
    """What `work` gives, a new tensor that nothing but an optimiser may read, from tensors that it `reads`; within `gradients_aside` in its branch."""
    if Open.branch is None:
        return work()
    made = Open.branch.run(work, reads)
    Open.made.add(made.data_ptr())
    return made


@contextmanager
def gradients_aside(parameters: Iterable[torch.Tensor], branch: Branch | None) -> Iterator[None]:
    """Have a backward pass make gradients of `parameters` in a branch; behind it they are there.

    Raises `RuntimeError` where autograd took a copy of one for the gradient, since it was copied before it was there.
    """
    if branch is None:
        yield
        return
    Open.branch, Open.made = branch, set()
    try:
        yield
        branch.join()
    finally:
        Open.branch = None
    if lost := Open.made - {p.grad.data_ptr() for p in parameters if p.grad is not None}:
        raise RuntimeError(f"{len(lost)} of {len(Open.made)} gradients that were made in a stream of their own were copied before they were there")

"""Where a split lies for the GPU, chosen and not assumed: in device memory, or in host memory, copied ahead of its use.

Shapes: images_NHWC uint8, rows_n, ids_n and labels_N int64, state_3 int64 = (seed, epoch, first position).

On the device an epoch's order is made there, on a side stream, while the one before it is used, and the host never
waits. Elsewhere a thread gathers the rows of the next chunk of batches, and copies them on a side stream.
"""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch

from pipelines import kernels_gpu
from pipelines.plan import Plan
from pipelines.transfer import sent

PLACES = ("device", "pinned", "mapped")
ROOM = 0.5  # of the free device memory is the most a split may take: net, activations and batches need the rest, and grow with the card
SAYS = {
    "pinned": "they stay in host memory, copied through pinned buffers",
    "mapped": "and host memory cannot be pinned: they are copied from the memory-mapped file",
}


def places(need: int, free: int) -> tuple[str, ...]:
    """Where `need` bytes of images may lie, best first, with `free` bytes of device memory free."""
    return PLACES if need <= ROOM * free else PLACES[1:]


def settle(candidates: tuple[str, ...], build: Callable):
    """(place, build(place)) for the first of the candidates that has the memory, said once where it is not the device.

    `build` raises torch.OutOfMemoryError where the device lacks memory; pinning fails with any RuntimeError.
    """
    for place in candidates:
        try:
            built = build(place)
        except RuntimeError as error:
            lacks_memory = place == "pinned" or isinstance(error, torch.OutOfMemoryError)
            if not lacks_memory or place == candidates[-1]:
                raise
            continue
        if place != "device":
            warnings.warn(f"resident: the images do not fit in device memory with room to spare: {SAYS[place]}", stacklevel=2)
        return place, built


class Chunk(NamedTuple):
    """What one launch reads, all on the device; arguments as in `kernels_gpu.augment`. `size` images come out of it."""

    images: torch.Tensor
    rows: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    state: torch.Tensor
    size: int


class Lane:
    """A side stream of a CUDA device. Elsewhere, under Triton's interpreter, its work is done at once."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.device = device

    def __enter__(self):
        self.context = torch.cuda.stream(self.stream) if self.stream else nullcontext()
        return self.context.__enter__()

    def __exit__(self, *raised):
        return self.context.__exit__(*raised)

    def mark(self):
        """An event after all that the lane was given so far; None without a stream."""
        return self.stream.record_event() if self.stream else None

    def after_current(self) -> None:
        """What the lane is given from now on waits for what the current stream has been given."""
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def hand_over(self, event, *tensors: torch.Tensor) -> None:
        """The current stream waits for `event`, and may use tensors that the lane made. The host waits for nothing."""
        if self.stream:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in tensors:
                tensor.record_stream(current)


class OnDevice:
    """The plan's samples in device memory, and each epoch's order made there, while the one before it is used."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, plan: Plan, device: torch.device):
        whole = np.array_equal(plan.ids, np.arange(len(labels)))
        self.plan, self.device = plan, device
        self.images = torch.from_numpy(images if whole else images[plan.ids]).to(device, copy=True)
        self.labels = torch.from_numpy(labels if whole else labels[plan.ids]).to(device, copy=True)
        self.ids = None if whole else torch.from_numpy(plan.ids).to(device, copy=True)  # of each row; None: its own number
        self.places = None if plan.share == (0, 1) else torch.from_numpy(plan.places).to(device, copy=True)  # in the order; None: all
        self.unshuffled = None if plan.policy.shuffle else self._ours(torch.arange(len(plan.ids), device=device))
        self.lane, self.ahead = Lane(device), None
        self.lane.after_current()

    def prepare(self, epoch: int) -> None:
        """Make the order of `epoch` on the side stream, unless it is there."""
        if self.unshuffled is not None or (self.ahead and self.ahead[0] == epoch):
            return
        with self.lane:
            state = sent(np.array([self.plan.seed, epoch, 0]), self.device)
            rows = self._ours(kernels_gpu.order(state, len(self.plan.ids)))
            self.ahead = epoch, rows, self._ids(rows), self.lane.mark()

    def order(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, ids) of the epoch, int64[n] each, ready on the current stream."""
        if self.unshuffled is not None:
            return self.unshuffled, self._ids(self.unshuffled)
        self.prepare(epoch)
        _, rows, ids, event = self.ahead
        self.lane.hand_over(event, rows, ids)
        return rows, ids

    def _ours(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.places is None else rows[self.places]

    def _ids(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.ids is None else self.ids[rows]

    def chunks(self, epoch: int, bounds: list[tuple[int, int]]) -> Iterator[Chunk]:
        """A chunk for each (first position, images)."""
        rows, ids = self.order(epoch)
        states = sent(np.array([[self.plan.seed, epoch, first] for first, _ in bounds]), self.device)
        for state, (_, size) in zip(states, bounds):
            yield Chunk(self.images, rows, ids, self.labels, state, size)


class Staged:
    """The images where the store has them; each chunk's are gathered and copied by a thread, one chunk ahead."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, plan: Plan, device: torch.device, most: int, pinned: bool):
        self.images, self.labels, self.plan, self.device = images, labels, plan, device
        shape = min(most, len(plan.places)), *images.shape[1:]
        self.pinned = pinned and device.type == "cuda"
        self.buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned) for _ in range(2)]
        self.copied = [None, None]  # the event after each buffer's last copy
        self.rows = torch.arange(shape[0], device=device)
        self.lane, self.ahead = Lane(device), None

    def prepare(self, epoch: int) -> None:
        """The thread does it, when it has gathered the last chunk."""

    def order(self, epoch: int) -> np.ndarray:
        """int64[n]: the ids of the epoch, kept until another epoch's are asked for."""
        at, order = self.ahead or (None, None)
        if at != epoch:
            order = self.plan.order(epoch)
            self.ahead = epoch, order
        return order

    def chunks(self, epoch: int, bounds: list[tuple[int, int]]) -> Iterator[Chunk]:
        """A chunk for each (first position, images)."""
        order = self.order(epoch)
        with ThreadPoolExecutor(1) as thread:
            jobs = [order[first : first + size] for first, size in bounds]
            waiting = thread.submit(self._stage, 0, jobs[0], epoch)
            for k, ids in enumerate(jobs):
                event, tensors = waiting.result()
                if k + 1 < len(jobs):
                    waiting = thread.submit(self._stage, (k + 1) % 2, jobs[k + 1], epoch)
                else:
                    thread.submit(self.order, epoch + 1)
                self.lane.hand_over(event, *tensors)
                images, device_ids, labels, state = tensors
                yield Chunk(images, self.rows, device_ids, labels, state, len(ids))

    def _stage(self, slot: int, ids: np.ndarray, epoch: int):
        """(event, (images, ids, labels, state)): on the device once the event has passed. Runs in the thread."""
        if self.copied[slot]:
            self.copied[slot].synchronize()  # this thread waits, not the one that trains
        buffer = self.buffers[slot][: len(ids)]
        np.take(self.images, ids, axis=0, out=buffer.numpy(), mode="clip")  # clip: the ids are right, and "raise" would copy twice
        with self.lane:
            images = buffer.to(self.device, non_blocking=True, copy=True)
            small = [sent(array, self.device, self.pinned) for array in (ids, self.labels[ids], np.array([self.plan.seed, epoch, 0]))]
        self.copied[slot] = self.lane.mark()
        return self.copied[slot], (images, *small)

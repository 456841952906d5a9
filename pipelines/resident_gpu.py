"""The GPU half of `resident`: one fused kernel (`kernels_gpu.py`) makes a chunk of many batches in one launch.

Shapes: images_NHWC uint8, chunk [B,H,W,C] of several whole batches, batch [B,C,H,W] in channels_last memory order.

`placement.py` decides where the split lies. JPEGs are decoded once, by Pillow: torchvision's decoder on the GPU (nvJPEG)
gives pixels that differ by a few units, and every pipeline promises the same ones.
"""

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import torch
from tqdm import tqdm

from pipelines import kernels_gpu
from pipelines.placement import PLACES, Chunk, OnDevice, Staged, places, settle
from pipelines.plan import Plan, check_start
from pipelines.store import Store
from pipelines.turns import Turns

CHUNK = 512 * 2**20  # bytes of batches a launch makes: CIFAR's whole epoch in half precision; from some 16 MiB on a launch costs nothing
SHARE = 16  # a chunk is at most this fraction of the free memory, because a caller may hold the last while the next is made
STAGE = 32 * 2**20  # bytes of pixels that are gathered and copied at a time: over 1 ms of PCIe, so that its start costs little


def steps_at_once(batch_bytes: int, limit: int) -> int:
    """Whole batches a chunk: as many as `limit` bytes hold, at least one."""
    return max(1, limit // batch_bytes)


class ResidentGPU(Turns):
    """See `pipelines.Pipeline`.

    `place` is where the images lie, one of `placement.PLACES`.
    The batches of a chunk are views of one tensor: a caller who keeps one keeps the memory of all.
    """

    def __init__(self, store: Store, split: str, plan: Plan, device: torch.device, dtype: torch.dtype, free: int | None = None):
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.plan, self.device, self.dtype = plan, device, dtype
        self.colours = kernels_gpu.Colours.of(store)
        self.images = store.images(split, partial(tqdm, desc=f"decoding {split}", unit=" images", disable=None))
        self.labels = store.labels(split)
        free = torch.cuda.mem_get_info(device)[0] if free is None else free
        batch = plan.part * self.images[0].size  # values
        self.steps = steps_at_once(batch * dtype.itemsize, min(CHUNK, free // SHARE))
        self.staged = min(self.steps, steps_at_once(batch, STAGE))
        with kernels_gpu.on(device):
            self.place, self.source = settle(places(len(plan.ids) * self.images[0].size, free), self._source)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # all is there, whichever stream the batches are asked for on

    def _source(self, place: str) -> OnDevice | Staged:
        if place == "device":
            return OnDevice(self.images, self.labels, self.plan, self.device)
        source = Staged(self.images, self.labels, self.plan, self.device, self.staged * self.plan.part, place == "pinned")
        self.steps = self.staged
        return source

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        check_start(epoch, start)
        step = start
        while step < self.plan.steps:
            try:
                for batch in self._batches(epoch, step):
                    step += 1
                    yield batch
                    del batch  # or its chunk would outlive the caller's use of it
            except torch.OutOfMemoryError:
                if self.steps == 1 and self.place != "device":
                    raise
            if step < self.plan.steps:  # after the handler, whose traceback keeps tensors alive
                self._make_room()

    def _batches(self, epoch: int, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches from `step` on; raises torch.OutOfMemoryError where a chunk finds no memory."""
        with closing(self.source.chunks(epoch, self._bounds(step))) as chunks:
            for chunk in chunks:
                images, classes = self._made(chunk)
                batches = zip(images.split(self.plan.part), classes.split(self.plan.part))
                yield next(batches)
                self.source.prepare(epoch + 1)  # now that the device has something to do
                yield from batches
                del images, classes, batches

    def _bounds(self, step: int) -> list[tuple[int, int]]:
        """(first position, images) of each chunk from `step` on."""
        end = min(len(self.plan.places), len(self) * self.plan.part)
        size = self.steps * self.plan.part
        return [(first, min(size, end - first)) for first in range(step * self.plan.part, end, size)]

    def _made(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        """(images [B,C,H,W] in channels_last memory, labels int64[B]) of a chunk, in fresh memory."""
        out = torch.empty((chunk.size, *self.images.shape[1:]), dtype=self.dtype, device=self.device)
        classes = torch.empty(chunk.size, dtype=torch.int64, device=self.device)
        kernels_gpu.augment(*chunk[:5], out, classes, self.plan.policy, self.colours)
        return out.permute(0, 3, 1, 2), classes

    def _make_room(self) -> None:
        """After the device ran out of memory: batch by batch from here on, and if that is not enough, the next place."""
        if self.steps > 1:
            self.steps = self.staged = 1
        else:
            self.source = None
            self.place, self.source = settle(PLACES[1:], self._source)

"""Tenfold's own pipeline: the whole split in memory, and one fused pass for each batch.

    from pipelines import resident
    for images, labels in resident.open("cifar10.safetensors", device="cuda"): ...

On the CPU the pass is compiled by Numba (`kernels_cpu.py`), on a CUDA device by Triton (`resident_gpu.py`). Any other
device, or CUDA without Triton, gets what the CPU made.

Shapes: images_NHWC uint8, ids_B int64, batch [B,C,H,W] in channels_last memory order.
"""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipelines import Pipeline
from pipelines.buffers import Buffers
from pipelines.kernels_cpu import Pass
from pipelines.plan import Plan, Policy
from pipelines.store import Store, read
from pipelines.transfer import wanted
from pipelines.turns import Turns


class Resident(Turns):
    """See `pipelines.Pipeline`."""

    def __init__(self, store: Store, split: str, plan: Plan, device: torch.device, dtype: torch.dtype):
        self.plan, self.device = plan, device
        progress = partial(tqdm, desc=f"decode {split}", unit=" images", disable=None, leave=False)
        self.images, self.labels = store.images(split, progress), store.labels(split)
        self.fused = Pass(store, plan, dtype)
        self.buffers = Buffers(self.images.shape[1:], dtype)

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for ids in self.plan.batches(epoch, start):
            out = self.buffers.take(len(ids))
            self.fused(self.images, ids, ids, out, epoch)
            yield out.permute(0, 3, 1, 2).to(self.device), torch.from_numpy(self.labels[ids]).to(self.device)
            del out  # or this frame would hold the batch while the next is made


def open(
    store: str | Path | Store,
    split: str = "train",
    *,
    batch_size: int = 512,
    policy: Policy | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    ids: np.ndarray | None = None,
    drop_last: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Pipeline:
    """Open the resident pipeline on a store: its path, or an open one.

    split       "train" or "test"
    batch_size  images a batch; the last batch of an epoch has what is left, or is left out with `drop_last`
    policy      what may happen to an image (`plan.Policy`); without one, train gets a random flip, a shift of up to 4 pixels
                and a cut square of 8, and test is left as it is, in the store's order
    seed        integer in [0, 2**32); the same seed gives the same batches, on every device and in every pipeline
    device      where the batches are wanted
    dtype       torch.float32, torch.float16 or torch.bfloat16
    ids         int64[n], the samples to use, as positions in the split; all of them without it
    share       (rank, ranks): the rank-th part of each batch, for one of several processes that train together

    Batches are images [B,C,H,W] of `dtype`, channels_last, (value - mean) / std of the train split, and labels int64[B].
    Raises `InputError`, in one line, for a file that is no store and for settings that cannot be.
    """
    store, device = read(store), wanted("resident", device, dtype)
    plan = Plan.of(store, split, policy, seed, batch_size, ids, drop_last, share)
    if device.type == "cuda" and find_spec("triton"):
        from pipelines.resident_gpu import ResidentGPU  # here, because importing Triton takes a second, and not every machine has it

        return ResidentGPU(store, split, plan, device, dtype)
    return Resident(store, split, plan, device, dtype)

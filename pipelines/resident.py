"""Tenfold's own pipeline: the whole split in device memory, and one fused pass for each batch.

On the CPU the pass is compiled by Numba (`kernels_cpu.py`); on a GPU it is a gather by torch operators.

    from pipelines import resident
    for images, labels in resident.open("cifar10.safetensors", device="cuda").epoch(0): ...

Shapes: images_NHWC uint8, ids_B, batch [B,C,H,W] in channels_last memory order.
"""

from collections.abc import Iterator

import numpy as np
import torch

from pipelines import kernels_cpu
from pipelines.plan import FLIPS, PADDINGS, Augmentation, Plan, Policy
from pipelines.reference import mean_pixel, table
from pipelines.store import Store, read


class Resident:
    """See `pipelines.Pipeline`."""

    def __init__(self, store: Store, split: str, plan: Plan, device: torch.device, dtype: torch.dtype):
        self.plan, self.device, self.dtype = plan, device, dtype
        images = torch.from_numpy(store.images(split))
        self.images = images.to(device)
        self.labels = torch.from_numpy(store.labels(split)).to(device)
        self.table = table(store, dtype).to(device)
        fill = mean_pixel(store)
        self.colours = kernels_cpu.colours(self.table.cpu(), fill, plan.policy.padding)
        self.fill = torch.from_numpy(fill).to(device)

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        make = self._compiled if self.device.type == "cpu" else self._gathered
        for ids in self.plan.batches(epoch, start):
            labels = self.labels[torch.from_numpy(ids).to(self.device)]
            yield make(epoch, ids).permute(0, 3, 1, 2), labels

    def _compiled(self, epoch: int, ids: np.ndarray) -> torch.Tensor:
        """[B,H,W,C]: fresh memory each time, so that the caller's batches stay as they are."""
        policy = self.plan.policy
        out = torch.empty((len(ids), *self.images.shape[1:]), dtype=self.dtype)
        kernels_cpu.augment_batch(
            self.images.numpy(),
            ids,
            kernels_cpu.bits(out),
            kernels_cpu.bits(self.table),
            kernels_cpu.bits(self.colours),
            self.plan.seed,
            epoch,
            FLIPS.index(policy.flip),
            PADDINGS.index(policy.padding),
            policy.translate,
            policy.cutout,
        )
        return out

    def _gathered(self, epoch: int, ids: np.ndarray) -> torch.Tensor:
        """[B,H,W,C] by torch operators, on any device."""
        choices = Augmentation(*(torch.from_numpy(c).to(self.device) for c in self.plan.augmentation(epoch, ids)))
        pixels = gather(self.images, torch.from_numpy(ids).to(self.device), self.plan.policy, choices, self.fill)
        return self.table[pixels.long(), torch.arange(pixels.shape[-1], device=self.device)]


def gather(images_NHWC: torch.Tensor, ids_B: torch.Tensor, policy: Policy, choices: Augmentation, fill_C: torch.Tensor) -> torch.Tensor:
    """uint8[B,H,W,C]: `reference.augment` of a batch, as one gather; all tensors on one device."""
    _, height, width, _ = images_NHWC.shape
    rows, columns = (torch.arange(n, device=images_NHWC.device) for n in (height, width))
    x = torch.where(choices.flip[:, None], columns.flip(0), columns)
    y, x = rows + choices.dy[:, None], x + choices.dx[:, None]
    outside = ((y < 0) | (y >= height))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
    y, x = (_mirrored(i, n) for i, n in ((y, height), (x, width)))
    out = images_NHWC[ids_B[:, None, None], y[:, :, None], x[:, None, :]]
    if policy.padding != "reflect":
        out = torch.where(outside[..., None], fill_C if policy.padding == "mean" else torch.zeros_like(fill_C), out)
    down, across = rows - choices.cut_y[:, None], columns - choices.cut_x[:, None]
    cut = ((down >= 0) & (down < policy.cutout))[:, :, None] & ((across >= 0) & (across < policy.cutout))[:, None, :]
    return torch.where(cut[..., None], fill_C, out)


def _mirrored(i: torch.Tensor, n: int) -> torch.Tensor:
    """Indices in (-n, 2n - 1) reflected at the borders, which are not repeated."""
    i = i.abs()
    return torch.where(i < n, i, 2 * (n - 1) - i)


def open(store, split="train", *, batch_size=512, policy=None, seed=0, device="cpu", dtype=torch.float32, ids=None, drop_last=False):
    """Open the resident pipeline; arguments as in `pipelines.open`."""
    store = read(store)
    plan = Plan.of(store, split, policy, seed, batch_size, ids, drop_last)
    return Resident(store, split, plan, torch.device(device), dtype)

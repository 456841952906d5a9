"""The oracle: the plan applied one image at a time, with nothing but NumPy. Slow and obviously right.

Shapes: image_HWC uint8, images_BHWC uint8, batch [B,C,H,W] in channels_last memory order.
"""

from typing import Protocol

import numpy as np
import torch

from pipelines.plan import Plan, Policy
from pipelines.store import Store, read
from pipelines.transfer import wanted
from pipelines.turns import Turns

PAD_MODES = {"zero": "constant", "mean": "constant", "reflect": "reflect"}


class Coloured(Protocol):
    """What knows its images' colours, as a store does: mean and std, fractions of 1, a value a channel."""

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...


def mean_pixel(store: Coloured) -> np.ndarray:
    """uint8[C]: the train split's mean colour, what cutout and mean padding fill in."""
    return np.rint(np.array(store.mean) * 255).astype(np.uint8)


def scaling(store: Coloured) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std): float32[C] each, in pixel values; what normalisation subtracts, and divides by."""
    mean, std = ((255 * np.array(values)).astype(np.float32) for values in (store.mean, store.std))
    return mean, std


def table(store: Coloured, dtype: torch.dtype) -> torch.Tensor:
    """[256, C] of `dtype`: the normalised value of every pixel value v.

    In float32 it is (v - mean) * (1 / std), rounded at each of its three operations, then rounded to `dtype`.
    The order matters to the last bit: it is the one that DALI computes, and so all pipelines agree exactly.
    """
    mean, std = scaling(store)
    values = (np.arange(256, dtype=np.float32)[:, None] - mean) * (np.float32(1) / std)
    return torch.from_numpy(values).to(dtype)


def augment(image: np.ndarray, policy: Policy, fill: np.ndarray, flip, dy, dx, cut_y, cut_x) -> np.ndarray:
    """uint8[H,W,C] from uint8[H,W,C]: shift, then flip, then cutout. `fill` is uint8[C], the mean colour."""
    height, width, channels = image.shape
    reach = policy.translate
    planes = []
    for c in range(channels):
        value = {"constant_values": int(fill[c])} if policy.padding == "mean" else {}
        planes.append(np.pad(image[:, :, c], reach, mode=PAD_MODES[policy.padding], **value))  # type: ignore[call-overload]
    padded = np.stack(planes, axis=-1)
    out = padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width].copy()
    if flip:
        out = out[:, ::-1].copy()
    out[cut_y : cut_y + policy.cutout, cut_x : cut_x + policy.cutout] = fill
    return out


def pixels(store: Store, plan: Plan, split: str, epoch: int, ids: np.ndarray) -> np.ndarray:
    """uint8[B,H,W,C]: samples `ids` as the plan treats them in `epoch`, before normalisation."""
    images, fill = store.images(split), mean_pixel(store)
    rows = zip(ids, *plan.augmentation(epoch, ids))
    return np.stack([augment(images[i], plan.policy, fill, *choices) for i, *choices in rows])


class Reference(Turns):
    """The contract, in the plainest way; see `pipelines.Pipeline`."""

    def __init__(self, store: Store, split: str, plan: Plan, device: torch.device, dtype: torch.dtype):
        self.store, self.split, self.plan = store, split, plan
        self.device, self.dtype = device, dtype

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0):
        lookup, channels = table(self.store, self.dtype), torch.arange(self.store.channels)
        labels = self.store.labels(self.split)
        for ids in self.plan.batches(epoch, start):
            batch = torch.from_numpy(pixels(self.store, self.plan, self.split, epoch, ids).astype(np.int64))
            images = lookup[batch, channels].permute(0, 3, 1, 2)
            yield images.to(self.device), torch.from_numpy(labels[ids]).to(self.device)


def open(store, split="train", *, batch_size=512, policy=None, seed=0, device="cpu", dtype=torch.float32, ids=None, drop_last=False, share=(0, 1)):
    """Open the reference; arguments as in `pipelines.open`."""
    store, device = read(store), wanted("reference", device, dtype)
    plan = Plan.of(store, split, policy, seed, batch_size, ids, drop_last, share)
    return Reference(store, split, plan, device, dtype)

"""Mixup and CutMix behind any pipeline: an image takes a share of its partner, and of its partner's label.

The partner of a batch's image 2k is 2k + 1, and the other way round; the order is a permutation, so partners are random, and
whoever takes an even part of a batch finds them in it. All choices are the plan's: they are the same behind every pipeline.

Shapes: images_BCHW normalised, channels_last; labels_B int64; share_B float32 in [0, 1].
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipelines import plan
from pipelines.errors import InputError
from pipelines.plan import hash32, unit
from pipelines.transfer import sent


class Targets(NamedTuple):
    """What a batch is to be: labels int64[B]; where images were mixed, `partners` int64[B] with the weight `share` float32[B]; `whole`, the images
    [B,C,H,W] that a teacher is to see, where the net's own are shrunk."""

    labels: torch.Tensor
    partners: torch.Tensor | None = None
    share: torch.Tensor | None = None
    whole: torch.Tensor | None = None

    def first(self, count: int) -> "Targets":
        """Those of the first `count` images."""
        return Targets(self.labels[:count], *(None if values is None else values[:count] for values in self[1:]))


@dataclass(frozen=True)
class Mixing:
    """How much may be mixed, at full strength; `strength` in [0, 1] scales both.

    mixup   largest share of the partner (Zhang et al. 2018, arXiv:1710.09412), drawn evenly from [0, mixup]; at most 0.5,
            as the rest is the partner's own draw
    cutmix  probability of a rectangle of the partner instead (Yun et al. 2019, arXiv:1905.04899), its area an even draw
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        if not 0 <= self.mixup <= 0.5 or not 0 <= self.cutmix <= 1:
            raise InputError("mixup takes a share from 0 to 0.5, and cutmix a probability from 0 to 1")

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix)


def mix(images_BCHW: torch.Tensor, labels_B: torch.Tensor, ids: np.ndarray, mixing: Mixing, seed: int, epoch: int, strength: float = 1.0):
    """(images, `Targets`) of a batch whose samples are `ids` (int[B]); dtype, device and memory order are kept."""

    def draw(stream: int) -> np.ndarray:
        return unit(hash32(seed, epoch, stream, ids))

    partners = partner(len(ids))
    share = mixing.mixup * strength * draw(plan.MIXUP)
    device, others = images_BCHW.device, sent(partners, images_BCHW.device)
    theirs = images_BCHW[others]
    weights = _column(share.astype(np.float32), device).to(images_BCHW.dtype)
    mixed = torch.lerp(images_BCHW, theirs, weights) if mixing.mixup else images_BCHW
    if mixing.cutmix:
        chosen = draw(plan.CUTMIX) < mixing.cutmix * strength
        inside = rectangles(draw(plan.PATCH_AREA), draw(plan.PATCH_Y), draw(plan.PATCH_X), *images_BCHW.shape[2:])
        inside &= chosen[:, None, None]
        mixed = torch.where(sent(inside[:, None], device), theirs, torch.where(_column(chosen, device), images_BCHW, mixed))
        share = np.where(chosen, inside.mean((1, 2)), share)
    mixed = mixed.contiguous(memory_format=torch.channels_last)
    return mixed, Targets(labels_B, labels_B[others], sent(share.astype(np.float32), device))


def partner(count: int) -> np.ndarray:
    """int64[count]: 1, 0, 3, 2, ...; a last one alone is its own."""
    others = np.arange(count) ^ 1
    return np.where(others < count, others, np.arange(count))


def rectangles(area_B: np.ndarray, y_B: np.ndarray, x_B: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool[B,H,W]: rectangles in the images' proportions about evenly drawn middles, cut at the border; all draws in [0, 1)."""
    inside = []
    for middle, length in ((y_B, height), (x_B, width)):
        reach = np.sqrt(area_B)[:, None] * length / 2
        distance = np.abs(np.arange(length) + 0.5 - middle[:, None] * length)
        inside.append(distance < reach)
    return inside[0][:, :, None] & inside[1][:, None, :]


def _column(values_B: np.ndarray, device: torch.device) -> torch.Tensor:
    return sent(values_B, device)[:, None, None, None]

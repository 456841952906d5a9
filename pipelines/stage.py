"""The batch stage: shift-scale-rotate, changes of colour, square cutout and random grey, behind any pipeline, on its device.

These are what recipes use beyond a pipeline's own policy. They work on normalised batches and draw from the plan, so that
they are the same behind every pipeline.

Shapes: images_BCHW normalised, channels_last; choices_B.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipelines import colour, plan
from pipelines.errors import InputError
from pipelines.plan import Plan, below, hash32, unit
from pipelines.transfer import sent
from pipelines.turns import Turns

COLOURS = {"brightness": plan.BRIGHTNESS, "contrast": plan.CONTRAST, "saturation": plan.SATURATION, "sharpness": plan.SHARPNESS}


@dataclass(frozen=True)
class Extra:
    """What the batch stage may do, in this order; each is drawn for each image on its own.

    affine_p   probability of shift, scale and rotation together (as Albumentations' ShiftScaleRotate: bilinear,
               borders reflected without repeating the edge)
    shift      largest shift along each axis, fraction of the side
    scale      largest change of size, fraction
    rotate     largest rotation either way, degrees
    erase_p    probability of the square
    erase      side of a square wholly inside the image, pixels
    erase_fill normalised value that the square is set to, a value a channel; 0 is the mean colour
    grey_p     probability of a grey image (ITU-R BT.601 luma of the pixels before normalisation)
    brightness, contrast, saturation, sharpness
               largest change of each, fraction (`colour.py`); the factor is drawn evenly from [1 - change, 1 + change], and
               they come in this order, before the square
    """

    affine_p: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0
    erase_p: float = 0.0
    erase: int = 0
    erase_fill: tuple[float, ...] = (0.0, 0.0, 0.0)
    grey_p: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness: float = 0.0

    def __bool__(self) -> bool:
        return any((self.affine_p, self.erase_p and self.erase, self.grey_p, *self.colours.values()))

    def fits(self, height: int, width: int) -> None:
        """Raise `InputError` where an image of this size cannot be treated so."""
        if self.erase > min(height, width):
            raise InputError(f"erase {self.erase} is larger than the {height}x{width} images")

    @property
    def colours(self) -> dict[str, float]:
        """The changes of colour that there are: name in `colour.py` and largest change."""
        return {name: change for name in COLOURS if (change := getattr(self, name))}


class Stage(Turns):
    """A pipeline with `Extra` behind it; itself a `pipelines.Pipeline`.

    mean, std  the store's, fractions of 1: grey needs pixels again
    """

    def __init__(self, pipeline, extra: Extra, mean: tuple[float, ...], std: tuple[float, ...]):
        self.pipeline, self.plan, self.extra = pipeline, pipeline.plan, extra
        self.scaling = torch.tensor([mean, std])[..., None, None]
        extra.fits(self.plan.height, self.plan.width)
        if extra.erase_p and extra.erase and len(extra.erase_fill) != len(mean):
            raise InputError(f"erase_fill has {len(extra.erase_fill)} values, the images {len(mean)} channels: give a value a channel")
        if (extra.grey_p or extra.contrast or extra.saturation) and len(mean) != 3:
            raise InputError(f"grey, contrast and saturation need three channels, the images have {len(mean)}")

    def __len__(self) -> int:
        return len(self.pipeline)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As the pipeline's, with the batch stage applied."""
        for ids, (images, labels) in zip(self.plan.batches(epoch, start), self.pipeline.epoch(epoch, start)):
            yield self.apply(images, epoch, ids), labels

    def apply(self, images_BCHW: torch.Tensor, epoch: int, ids: np.ndarray) -> torch.Tensor:
        """The batch of samples `ids` in `epoch`, treated; same shape, dtype and memory format."""
        extra, images = self.extra, images_BCHW
        if extra.affine_p:
            images = self._where(affine_mask(self.plan, extra, epoch, ids), self._affine(images, epoch, ids), images)
        if extra.colours:
            images = self._colours(images, epoch, ids)
        if extra.erase_p and extra.erase:
            images = torch.where(self._square(epoch, ids, images.device), self._fill(images), images)
        if extra.grey_p:
            images = self._where(self._draw(plan.GREY, epoch, ids) < extra.grey_p, self._grey(images), images)
        return images.contiguous(memory_format=torch.channels_last)

    def _draw(self, stream: int, epoch: int, ids: np.ndarray) -> np.ndarray:
        return unit(hash32(self.plan.seed, epoch, stream, ids))

    @staticmethod
    def _where(chosen_B: np.ndarray, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
        return torch.where(sent(chosen_B, no.device)[:, None, None, None], yes, no)

    def _affine(self, images: torch.Tensor, epoch: int, ids: np.ndarray) -> torch.Tensor:
        """Each image turned about its centre, resized and shifted; sampled in float32."""
        thetas = sent(thetas_B23(self.plan, self.extra, epoch, ids), images.device)
        grid = F.affine_grid(thetas, list(images.shape), align_corners=True)
        turned = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=True)
        return turned.to(images.dtype)

    def _square(self, epoch: int, ids: np.ndarray, device: torch.device) -> torch.Tensor:
        """bool[B,1,H,W]: the erased square of the images that have one."""
        size, side = (self.plan.height, self.plan.width), self.extra.erase
        chosen = self._draw(plan.ERASE, epoch, ids) < self.extra.erase_p
        inside = []
        for stream, length in zip((plan.ERASE_Y, plan.ERASE_X), size):
            first = below(length - side + 1, hash32(self.plan.seed, epoch, stream, ids))[:, None]
            inside.append((np.arange(length) >= first) & (np.arange(length) < first + side))
        mask = chosen[:, None, None] & inside[0][:, :, None] & inside[1][:, None, :]
        return sent(mask[:, None], device)

    def _fill(self, images: torch.Tensor) -> torch.Tensor:
        return sent(np.array(self.extra.erase_fill, np.float32), images.device).to(images.dtype)[:, None, None]

    def _grey(self, images: torch.Tensor) -> torch.Tensor:
        return self._normalised(colour.luma(self._pixels(images)), images.dtype)

    def _colours(self, images: torch.Tensor, epoch: int, ids: np.ndarray) -> torch.Tensor:
        pixels = self._pixels(images)
        for name, change in self.extra.colours.items():
            factors = 1 + change * (2 * self._draw(COLOURS[name], epoch, ids) - 1)
            pixels = getattr(colour, name)(pixels, sent(factors, images.device))
        return self._normalised(pixels, images.dtype)

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        """float32 in [0, 1] again."""
        mean, std = self._scaling(images.device)
        return images.float() * std + mean

    def _normalised(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        mean, std = self._scaling(pixels.device)
        return ((pixels - mean) / std).to(dtype)

    def _scaling(self, device: torch.device) -> torch.Tensor:
        """float32[2,C,1,1]: mean and std there; copied once."""
        self.scaling = self.scaling.to(device)
        return self.scaling


def affine_mask(made: Plan, extra: Extra, epoch: int, ids: np.ndarray) -> np.ndarray:
    """bool[B]: which images are turned, resized and shifted."""
    return unit(hash32(made.seed, epoch, plan.AFFINE, ids)) < extra.affine_p


def thetas_B23(made: Plan, extra: Extra, epoch: int, ids: np.ndarray) -> np.ndarray:
    """float32[B,2,3]: output to input coordinates in [-1, 1], as `affine_grid` takes them."""

    def between(stream, reach):
        return (2 * unit(hash32(made.seed, epoch, stream, ids)).astype(np.float64) - 1) * reach

    angle = between(plan.ANGLE, extra.rotate) * math.pi / 180
    zoom = 1 + between(plan.SCALE, extra.scale)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    # a step of 1 in these coordinates is half the distance between the outermost pixels' centres
    half_y, half_x = max(made.height - 1, 1) / 2, max(made.width - 1, 1) / 2
    ratio = half_y / half_x
    shift_x = between(plan.SHIFT_X, extra.shift) * made.width / half_x
    shift_y = between(plan.SHIFT_Y, extra.shift) * made.height / half_y
    rows = [[cos, sin * ratio, -shift_x], [-sin / ratio, cos, -shift_y]]
    return np.stack([np.stack(row, -1) for row in rows], -2).astype(np.float32)


def stage(pipeline, extra: Extra | None, store):
    """The pipeline with `extra` behind it, or the pipeline itself where there is nothing to do."""
    return Stage(pipeline, extra, store.mean, store.std) if extra else pipeline

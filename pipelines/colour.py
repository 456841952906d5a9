"""Changes of brightness, contrast, saturation and sharpness, a factor an image; 1 leaves it as it is.

What each means is torchvision's (`adjust_brightness` and its like) and Pillow's (`ImageEnhance`): a blend of the image with black,
with its mean grey, with its own grey, with a smoothed copy. Shapes: images_BCHW float32 pixels in [0, 1]; factors_B float32.
"""

from functools import cache

import torch
import torch.nn.functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luma(images_BCHW: torch.Tensor) -> torch.Tensor:
    """[B,1,H,W]: the grey that an image of three channels has."""
    return (images_BCHW * _luma(images_BCHW.device)).sum(1, keepdim=True)


@cache
def _luma(device: torch.device) -> torch.Tensor:
    return torch.tensor(LUMA, device=device)[:, None, None]


def blend(other: torch.Tensor | float, images_BCHW: torch.Tensor, factors_B: torch.Tensor) -> torch.Tensor:
    """other + factor * (image - other), in [0, 1]."""
    return (other + factors_B[:, None, None, None] * (images_BCHW - other)).clamp(0, 1)


def brightness(images_BCHW: torch.Tensor, factors_B: torch.Tensor) -> torch.Tensor:
    return blend(0.0, images_BCHW, factors_B)


def contrast(images_BCHW: torch.Tensor, factors_B: torch.Tensor) -> torch.Tensor:
    return blend(luma(images_BCHW).mean((2, 3), keepdim=True), images_BCHW, factors_B)


def saturation(images_BCHW: torch.Tensor, factors_B: torch.Tensor) -> torch.Tensor:
    return blend(luma(images_BCHW), images_BCHW, factors_B)


def sharpness(images_BCHW: torch.Tensor, factors_B: torch.Tensor) -> torch.Tensor:
    """The border, which has no whole neighbourhood, stays as it is."""
    return blend(smoothed(images_BCHW), images_BCHW, factors_B)


def smoothed(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Pillow's SMOOTH filter, 3x3: the middle counts five times. Images that are all border come back as they are."""
    if min(images_BCHW.shape[2:]) < 3:
        return images_BCHW
    channels = images_BCHW.shape[1]
    kernel = torch.ones(channels, 1, 3, 3, device=images_BCHW.device)
    kernel[:, :, 1, 1] = 5
    inner = F.conv2d(images_BCHW, kernel / 13, groups=channels)
    out = images_BCHW.clone()
    out[:, :, 1:-1, 1:-1] = inner
    return out

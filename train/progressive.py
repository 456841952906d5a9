"""Progressive resolution: small images at first, the store's own at last (Howard 2018, fast.ai's DAWNBench entry).

A convolution's cost falls with the square of the side, and what an epoch teaches at first falls less.
"""

import torch
import torch.nn.functional as F

STEP = 4  # pixels; sides that a stride-2 stem and two pools divide


def side(epoch: int, epochs: int, first: int, full: int, grown: float) -> int:
    """The side in `epoch` (from 0), pixels: `first` at the start, in multiples of 4 up to `full`, kept from the share
    `grown` of the epochs on. `first` 0, or not below `full`, means always full."""
    until = grown * epochs
    growing = sides(first, full, grown)[:-1]
    return growing[int(epoch / until * len(growing))] if growing and epoch < until else full


def sides(first: int, full: int, grown: float) -> list[int]:
    """The sides that a training has, pixels, the smallest first; a short one may leave some out."""
    return [*range(first, full, STEP), full] if 0 < first < full and grown > 0 else [full]


def resize(images_NCHW: torch.Tensor, side: int) -> torch.Tensor:
    """The images at `side` pixels of height, antialiased, in their own shape; the same tensor where that is their size
    already. dtype and memory format are kept; the arithmetic is float32."""
    height, width = images_NCHW.shape[-2:]
    if height == side:
        return images_NCHW
    small = F.interpolate(images_NCHW.float(), size=(side, round(width * side / height)), mode="bilinear", antialias=True, align_corners=False)
    return small.to(images_NCHW.dtype, memory_format=torch.channels_last)

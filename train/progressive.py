"""Progressive resolution: small images at first, the store's own at last (Howard 2018, fast.ai's DAWNBench entry).

A convolution's cost falls with the square of the side, and what an epoch teaches at first falls less.
"""

from functools import cache

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
    already. dtype and memory format are kept; the arithmetic is float32, on a GPU that of the images, whose sums are float32.

    What torch's `interpolate` gives, as two products of matrices, over the rows and over the columns: three to four times as fast on a processor.
    """
    count, channels, height, width = images_NCHW.shape
    if height == side:
        return images_NCHW
    wide = round(width * side / height)
    kind = images_NCHW.dtype if images_NCHW.is_cuda else torch.float32  # there two launches instead of six, and a quarter of the bytes
    down, across = weights(side, height, 1, kind, images_NCHW.device), weights(wide, width, channels, kind, images_NCHW.device)
    rows = down @ images_NCHW.permute(0, 2, 3, 1).reshape(count, height, width * channels).to(kind)
    small_NHWC = (rows @ across.T).view(count, side, wide, channels)
    return small_NHWC.permute(0, 3, 1, 2).to(images_NCHW.dtype, memory_format=torch.channels_last)


@cache
def weights(small: int, full: int, channels: int, kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """kind[small * channels, full * channels]: the share that each pixel of a line has in each of a shorter one, of as many channels as lie side by side."""
    line = F.interpolate(torch.eye(full)[None, None], size=(small, full), mode="bilinear", antialias=True, align_corners=False)[0, 0]
    return torch.kron(line.contiguous(), torch.eye(channels)).to(device, kind)

"""The two ways the speed records load: a whole epoch is made on the device, then handed out in batches.

Written anew from what those scripts do, for any dtype; both cut a square too, so that all rows do the same work.
Shapes: source uint8[N,H,W,C], padded by PAD pixels on every side; an epoch [N,C,H,W] in channels_last memory order.
"""

import torch
from torch.nn import functional as F

from benchmarks.peers import CUTOUT, TRANSLATE, Task


class WholeEpoch:
    """What both share. `make` gives all images of an epoch; they begin an epoch from nothing, so none is made in part."""

    whole = True

    def __init__(self, task: Task):
        self.task, self.device = task, task.device
        self.labels = torch.from_numpy(task.labels()).to(self.device)
        self.mean, self.std = (torch.tensor(v, device=self.device) for v in (task.mean, task.std))
        planes = torch.from_numpy(task.images()).to(self.device).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
        self.count, _, self.height, self.width = planes.shape
        self.pad(planes)

    def __len__(self) -> int:
        return self.task.steps

    def draws(self, high: int) -> torch.Tensor:
        """int64[N] in [0, high)."""
        return torch.randint(high, (self.count,), device=self.device)

    def choices(self) -> tuple[torch.Tensor, ...]:
        """(order, y, x, flip, cut_y, cut_x): int64[N] each and flip bool[N]; y and x are a window's corner in a padded image."""
        reach, corners = 2 * TRANSLATE + 1, (self.height - CUTOUT + 1, self.width - CUTOUT + 1)
        order = torch.randperm(self.count, device=self.device)
        return order, self.draws(reach), self.draws(reach), self.draws(2) == 1, *(self.draws(n) for n in corners)


class Masks(WholeEpoch):
    """Padded normalised images; one indexed copy, by a boolean mask, for each of the shifts, first down and then across."""

    def pad(self, planes: torch.Tensor) -> None:
        values = (planes.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        padded = F.pad(values.to(self.task.dtype), [TRANSLATE] * 4, mode="reflect")
        self.padded = padded.contiguous(memory_format=torch.channels_last)

    def empty(self, height: int, width: int) -> torch.Tensor:
        shape = self.count, self.padded.shape[1], height, width
        return torch.empty(shape, dtype=self.task.dtype, device=self.device, memory_format=torch.channels_last)

    def epoch(self, number: int, start: int = 0):
        order, y, x, flip, cut_y, cut_x = self.choices()
        strips, images = self.empty(self.height, self.padded.shape[3]), self.empty(self.height, self.width)
        for shift in range(2 * TRANSLATE + 1):
            here = y == shift
            strips[here] = self.padded[here, :, shift : shift + self.height]
        for shift in range(2 * TRANSLATE + 1):
            here = x == shift
            images[here] = strips[here, :, :, shift : shift + self.width]
        images[flip] = images[flip].flip(-1)
        images.masked_fill_(square(cut_y, cut_x, self.height, self.width)[:, None], 0)
        for ids in order[start * self.task.batch_size :].split(self.task.batch_size):
            yield images[ids], self.labels[ids]


class Gather(WholeEpoch):
    """Padded uint8 images; one gather that torch.compile fuses with the flip, the square, the normalisation and the shuffle."""

    def pad(self, planes: torch.Tensor) -> None:
        padded = F.pad(planes.float(), [TRANSLATE] * 4, mode="reflect").to(torch.uint8)  # torch reflects no integers on a CPU
        self.padded = padded.permute(0, 2, 3, 1).contiguous()
        self.make = torch.compile(gather, dynamic=False)

    def epoch(self, number: int, start: int = 0):
        choices = self.choices()
        images = self.make(self.padded, *choices, 1 / (255 * self.std), -self.mean / self.std, self.task.dtype, self.height, self.width)
        labels, size = self.labels[choices[0]], self.task.batch_size
        for step in range(start, len(self)):
            batch = slice(step * size, (step + 1) * size)
            yield images[batch].permute(0, 3, 1, 2), labels[batch]


def square(cut_y: torch.Tensor, cut_x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """bool[N,H,W]: the square to cut of each image, from its top left corner (int64[N] each)."""
    down = torch.arange(height, device=cut_y.device) - cut_y[:, None]
    across = torch.arange(width, device=cut_x.device) - cut_x[:, None]
    return ((down >= 0) & (down < CUTOUT))[:, :, None] & ((across >= 0) & (across < CUTOUT))[:, None, :]


def gather(padded, order, y, x, flip, cut_y, cut_x, scale_C, shift_C, dtype, height: int, width: int) -> torch.Tensor:
    """`dtype`[N,H,W,C]: the whole epoch in its order, value * scale + shift, from padded uint8[N,H+2P,W+2P,C]."""
    rows, columns = torch.arange(height, device=padded.device), torch.arange(width, device=padded.device)
    y = y[:, None] + rows
    x = x[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    pixels = padded[order[:, None, None], y[:, :, None], x[:, None, :]]
    values = pixels.float() * scale_C + shift_C
    return torch.where(square(cut_y, cut_x, height, width)[..., None], 0.0, values).to(dtype)

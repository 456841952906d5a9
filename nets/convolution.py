"""Convolutions as a processor does them best: by Winograd's (`winograd_cpu.py`), and small maps in bf16 with AMX.

Of the latter the gradient of the filters is one product of matrices. oneDNN's own takes six to twelve times as long as the same convolution's forward pass where 128
channels meet on a map of 2x2 or 4x4 (torch 2.11, 256 images, two threads): its matrix unit wants long rows. Each pixel's patch copied out, as one row, and multiplied with the gradient takes a seventh of that time at 2x2, a quarter at 4x4
and two thirds at 8x8; of larger maps the copies are too large (`benchmarks/LOG.md`).

Shapes: images_NCHW and gradient_NchW in channels_last memory order; a filter [out, in, height, width].
"""

import torch
from torch import nn
from torch.nn import functional as F

from nets import winograd_cpu
from nets.native import AMX

PIXELS = 64  # of the largest map, 8x8
CHANNELS = 64  # at least, on both sides: `level1` with its 16 and 32 was 5% slower
BYTES = 32 * 2**20  # of copies at a time


class Conv2d(nn.Conv2d):
    """torch's, and the same values but for rounding; by `winograd_cpu.py` where that takes it, in training bf16 with AMX with gradients by `ByPatches`."""

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        if winograd_cpu.takes(self, images_NCHW):
            return winograd_cpu.convolve(images_NCHW.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") else images_NCHW, self.weight)
        return by_patches(images_NCHW, self.weight, int(self.padding[0])) if self.suits(images_NCHW) else super().forward(images_NCHW)

    def suits(self, images_NCHW: torch.Tensor) -> bool:
        """Whether its gradient is had faster by patches: of stride one, neither grouped nor with a bias, and not for a compiler, which fuses what is around a convolution."""
        if not AMX or images_NCHW.device.type != "cpu" or images_NCHW.shape[2:].numel() > PIXELS or torch.compiler.is_compiling():
            return False
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        wide = min(self.in_channels, self.out_channels) >= CHANNELS
        plain = self.bias is None and self.kernel_size != (1, 1) and self.groups == 1 and self.stride == self.dilation == (1, 1) and len(set(self.padding)) == 1
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        return wide and plain and learns and len(images_NCHW) > 0 and (half or images_NCHW.dtype == self.weight.dtype == torch.bfloat16)


def by_patches(images_NCHW: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
    """The convolution in bf16."""
    return ByPatches.apply(images_NCHW.to(torch.bfloat16), weight.to(torch.bfloat16), padding)


class ByPatches(torch.autograd.Function):
    """conv2d of stride one, whose gradient of the filters is a product of matrices."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images_NCHW: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        return F.conv2d(images_NCHW, weight, padding=padding)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        images, weight, ctx.padding = inputs
        ctx.save_for_backward(images, weight)

    @staticmethod
    def backward(ctx, gradient_NChw: torch.Tensor):
        images, weight = ctx.saved_tensors
        of_images = None
        if ctx.needs_input_grad[0]:
            settings = None, (1, 1), (ctx.padding,) * 2, (1, 1), False, (0, 0), 1, (True, False, False)
            of_images = torch.ops.aten.convolution_backward(gradient_NChw, images, weight, *settings)[0]
        return of_images, of_filters(images, gradient_NChw, weight.shape, ctx.padding), None


def of_filters(images_NCHW: torch.Tensor, gradient_NChw: torch.Tensor, shape: torch.Size, padding: int) -> torch.Tensor:
    """The gradient of filters of a shape [out, in, height, width], in the images' dtype."""
    outputs, inputs, height, width = shape
    row = gradient_NChw[0, 0].numel() * inputs * height * width * images_NCHW.itemsize
    parts = zip(images_NCHW.split(max(1, BYTES // row)), gradient_NChw.split(max(1, BYTES // row)))
    products = [some.permute(0, 2, 3, 1).reshape(-1, outputs).T @ patches(images, height, width, padding) for images, some in parts]
    total = products[0] if len(products) == 1 else torch.stack(products).sum(0, dtype=torch.float32).to(images_NCHW.dtype)
    return total.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def patches(images_NCHW: torch.Tensor, height: int, width: int, padding: int) -> torch.Tensor:
    """[N * h * w, height * width * C]: each output pixel's patch, in the order of a channels_last filter."""
    padded = F.pad(images_NCHW.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    return padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3).reshape(-1, height * width * images_NCHW.shape[1])

"""The blocks that nets are made of: norms, and convolution + norm + ReLU.

Shapes: images_NCHW, and every feature map in between, in channels_last memory order where the images are.
"""

import torch
from torch import nn
from torch.nn import functional as F

from nets import normed_cpu
from nets.convolution import Conv2d

NORMS = ("batch", "ghost", "group", "layer", "channel")


class GhostBatchNorm(nn.BatchNorm2d):
    """Batch norm over virtual batches of at most `ghost` images (Hoffer et al. 2017, arXiv:1705.08741).

    A small batch's noise in the statistics regularises; this keeps it at any batch size. A batch is cut
    into as few parts as fit, of even size (70 images at 32: 24, 23, 23), so that a last batch which does
    not divide leaves no part of one or two images, whose statistics would be worthless. Each part moves
    the running statistics once, as in the paper; evaluation uses those, and is plain batch norm.
    """

    def __init__(self, channels: int, ghost: int = 32):
        if ghost < 1:
            raise ValueError(f"ghost {ghost}: a virtual batch needs at least one image")
        super().__init__(channels)
        self.ghost = ghost

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        if not self.training:  # before the count is looked at: an exported program takes any
            return super().forward(images_NCHW)
        parts = -(-len(images_NCHW) // self.ghost)
        if parts <= 1:
            return super().forward(images_NCHW)
        # Parts of a channels_last batch are channels_last, and so is their concatenation.
        return torch.cat([nn.BatchNorm2d.forward(self, part) for part in images_NCHW.tensor_split(parts)])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost={self.ghost}"


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel: 2 * channels parameters. Of a channels_last map it reads whole runs of memory."""

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        pixels_NHWC = images_NCHW.permute(0, 2, 3, 1)
        normed_NHWC = self.written_out(pixels_NHWC) if torch.compiler.is_dynamo_compiling() else super().forward(pixels_NHWC)
        return normed_NHWC.permute(0, 3, 1, 2)

    def written_out(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """The same of sums, for a compiler: of layer norm itself torch makes a running mean and variance, which a processor takes up to four times as long for."""
        pixels = pixels_NHWC.float()
        centred = pixels - pixels.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(pixels_NHWC.dtype)


def norm(kind: str, channels: int, groups: int = 8, ghost: int = 32) -> nn.Module:
    """A norm with 2 * channels trainable parameters, whatever its kind: parameter counts never depend on it.

    batch    over the batch and the pixels, channel by channel
    ghost    the same, over virtual batches of `ghost` images
    group    over the pixels and channels / groups channels of one image; `groups` must divide the channels
    layer    over all of one image: group norm with one group
    channel  over the channels of one pixel
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "ghost":
        return GhostBatchNorm(channels, ghost)
    if kind == "group":
        return nn.GroupNorm(groups, channels)
    if kind == "layer":
        return nn.GroupNorm(1, channels)
    if kind == "channel":
        return ChannelNorm(channels)
    raise ValueError(f"norm {kind!r}: choose one of {', '.join(NORMS)}")


class Block(nn.Sequential):
    """Convolution, norm and, where there is one, activation. On a processor the latter, and a 2x2 max-pool or a shortcut behind them, may be one operator (`normed_cpu.py`)."""

    def forward(self, images_NCHW: torch.Tensor, shortcut: torch.Tensor | None = None, pool: nn.Module | None = None) -> torch.Tensor:
        """With a shortcut added, or a 2x2 max-pool behind."""
        convolution, norm, *activations = self
        out, activation = convolution(images_NCHW), next(iter(activations), None)
        if normed_cpu.takes(norm, activation, out) and self.fits(out, shortcut, pool):
            return normed_cpu.normed(norm, activation, out, shortcut, pool is not None)
        out = norm(out) if activation is None else activation(norm(out))
        out = out if pool is None else pool(out)
        return out if shortcut is None else shortcut + out

    @staticmethod
    def fits(out_NCHW: torch.Tensor, shortcut: torch.Tensor | None, pool: nn.Module | None) -> bool:
        """Whether a shortcut is of the same shape, and a pool has a pixel left; of others torch says what is wrong."""
        return (shortcut is None or shortcut.shape == out_NCHW.shape) and (pool is None or min(out_NCHW.shape[2:]) > 1)


def block(
    inputs: int, outputs: int, norm_kind: str = "batch", dropout: float = 0.0, *, kernel: int = 3, stride: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, norm, activation and, above zero, Dropout2d; `kernel` is odd, and stride 1 keeps height and width."""
    # The norm's own bias makes one in the convolution useless.
    convolution = Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    layers = [convolution, norm(norm_kind, outputs), activation(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout2d(dropout)) if dropout else Block(*layers)


def point(inputs: int, outputs: int, norm_kind: str = "batch", dropout: float = 0.0) -> nn.Sequential:
    """The block with a 1x1 kernel: it mixes channels and sees one pixel."""
    return block(inputs, outputs, norm_kind, dropout, kernel=1)


def half(inputs: int, outputs: int, norm_kind: str = "batch", dropout: float = 0.0) -> nn.Sequential:
    """The block with stride 2: it halves height and width, rounding up."""
    return block(inputs, outputs, norm_kind, dropout, stride=2)


class Stage(nn.Sequential):
    """Modules one behind the other, of which a block and a 2x2 max-pool behind it may be one operator on a processor."""

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        modules = list(self)
        while modules:
            module = modules.pop(0)
            pools = modules and halves(modules[0]) and isinstance(module, Block)
            images_NCHW = module(images_NCHW, pool=modules.pop(0)) if pools else module(images_NCHW)
        return images_NCHW


def halves(module: nn.Module) -> bool:
    """Whether it is a 2x2 max-pool."""
    return isinstance(module, nn.MaxPool2d) and (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode) == (2, 2, 0, 1, False)


class Residual(nn.Module):
    """x + body(x), for a body that keeps the shape."""

    def __init__(self, *body: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        *before, last = self.body
        if not isinstance(last, Block):
            return images_NCHW + self.body(images_NCHW)
        out = images_NCHW
        for module in before:
            out = module(out)
        return last(out, images_NCHW)


def global_max(images_NCHW: torch.Tensor) -> torch.Tensor:
    """The maximum of every channel, [N,C]; its gradient goes to the first pixel that has it.

    Not AdaptiveMaxPool2d, whose gradient is not deterministic on a GPU. Not amax: compiled in half precision, its gradient looks for the maximum, which
    was rounded, among values computed again that were not, finds it nowhere, and is 0 / 0.
    """
    return F.max_pool2d(images_NCHW, images_NCHW.shape[-2:]).flatten(1)


class GlobalMean(nn.AdaptiveAvgPool2d):
    """The mean of every channel, [N,C,1,1]. torch's own pool is taken apart net by net where several go together (`torch.func.vmap`); a mean is not."""

    def __init__(self):
        super().__init__(1)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return images_NCHW.mean((2, 3), keepdim=True)


class MaxHead(nn.Module):
    """Global max-pool, linear without bias, logits times `scale`: logits_NK from images_NCHW of any size.

    The maximum over the pixels is far from zero, so unscaled logits would start a net sure of itself.
    """

    def __init__(self, channels: int, num_classes: int, scale: float = 0.125):
        super().__init__()
        self.linear = nn.Linear(channels, num_classes, bias=False)
        self.scale = scale

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.linear(global_max(images_NCHW)) * self.scale

"""Speednet: the net of the speed records' kind, for a GPU. 1,971,352 trainable parameters at ten classes.

whitening 2x2 conv to 24 (frozen, bias trained) · SiLU · [c64 M · c64] · [c256 M · c256] · [c256 M · c256] · 3x3 max-pool · linear

The shape is that of airbench94 (Jordan 2024, arXiv:2404.00498): patch whitening, identity starts, batch norm without
scale, logits kept small. c is a 3x3 convolution, batch norm and SiLU; in the first of each pair the pool stands before the norm.
"""

from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn

from nets.convolution import Conv2d
from nets.layers import global_max, norm as norm_of

if torch.cuda.is_available() and find_spec("triton"):
    from nets import fused
else:
    fused = None  # type: ignore[assignment]

BLOCK = 32  # channels: for a map of 24 cuDNN had but kernels for the chip before Hopper, at a sixth of the wide convolutions' rate (`benchmarks/LOG.md`)


class Whitening(nn.Conv2d):
    """A frozen convolution to the eigenvectors of the training patches, scaled to unit variance, and their negatives.

    `fit` sets it; before that it is a random projection. Only the bias trains. Of the eigenvectors those of most variance are `kept`; 0 for all.
    """

    def __init__(self, channels: int = 3, kernel: int = 2, kept: int = 0):
        self.kept = kept or channels * kernel**2
        super().__init__(channels, 2 * self.kept, kernel)
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # there is one

    @torch.no_grad()
    def fit(self, images_NCHW: torch.Tensor, eps: float = 5e-4) -> None:
        """Set the filters from normalised images; `eps` keeps directions of almost no variance from blowing up."""
        k, channels = self.kernel_size[0], self.in_channels
        patches = images_NCHW.float().unfold(2, k, 1).unfold(3, k, 1).permute(0, 2, 3, 1, 4, 5).reshape(len(images_NCHW), -1, channels * k * k)
        # image by image: of a product of two million rows to twelve by twelve a GPU makes little; and a processor has the eigenvectors before a GPU has begun
        covariance = (patches.mT @ patches).sum(0).cpu() / patches[..., 0].numel()
        values, vectors = (part.to(images_NCHW.device) for part in torch.linalg.eigh(covariance))
        filters = (vectors / torch.sqrt(values + eps)).T.flip(0).reshape(-1, channels, k, k)[: self.kept]
        self.weight.copy_(torch.cat([filters, -filters]))


def unscaled(kind: str, channels: int) -> nn.Module:
    """A norm whose scale stays at one, since the next layer can learn it; batch norm's statistics follow fast."""
    made = norm_of(kind, channels)
    made.weight.requires_grad_(False)
    if kind in ("batch", "ghost"):
        made.momentum = 0.4
    return made


class Seen(NamedTuple):
    """What a norm is to follow: stats float32[2,C], mean and variance of so many rows."""

    norm: Any
    stats: torch.Tensor
    rows: int


class Filled(Conv2d):
    """A convolution that takes images with more channels than it has, which are zero, and has zeros for them."""

    def forward(self, images_NCHW: torch.Tensor, edged: bool = False, half: torch.Tensor | None = None) -> torch.Tensor:
        """edged: whether the images have their padding above and to the left (`fused.py`); what comes out is without its last lines, then.
        half: the filters as `fused.halves` gives them for these images, for gradients by `fused.convolve`."""
        if half is not None:
            return fused.convolve(images_NCHW.to(half.dtype), self.weight, half, 0 if edged else self.padding[0])
        more = images_NCHW.shape[1] - self.in_channels
        if not (more or edged):
            return super().forward(images_NCHW)
        weight = nn.functional.pad(self.weight, (0, 0, 0, 0, 0, more)) if more else self.weight
        return nn.functional.conv2d(images_NCHW, weight, self.bias, self.stride, 0 if edged else self.padding)


class Group(nn.Sequential):
    """Widen, pool, refine: [N,inputs,H,W] → [N,outputs,H/2,W/2]. In training on CUDA by the kernels of `fused.py`."""

    def __init__(self, inputs: int, outputs: int, norm: str, dropout: float):
        first, second = (Filled(i, outputs, 3, padding=1, bias=False) for i in (inputs, outputs))
        for convolution in (first, second):
            nn.init.dirac_(convolution.weight.data[: convolution.in_channels])
        drop = [nn.Dropout2d(dropout)] if dropout else []
        super().__init__(first, nn.MaxPool2d(2), unscaled(norm, outputs), nn.SiLU(), *drop, second, unscaled(norm, outputs), nn.SiLU(), *drop)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        if not self.fusible(images_NCHW):
            return super().forward(images_NCHW)
        if self.training:
            out, _, seen = self.trained(images_NCHW)
            follow(seen, apart=True)
            return out
        modules: tuple[Any, ...] = tuple(self)
        first, _, norm, _, second, last, _ = modules
        out = tested(first(images_NCHW), norm, True)
        return tested(second(out), last, False)

    def trained(
        self, images_NCHW: torch.Tensor, edged: bool = False, inner: bool = False, halves: Sequence[torch.Tensor | None] = (None, None)
    ) -> tuple[torch.Tensor, bool, list[Seen]]:
        """(what `forward` gives in training, whether it is edged (`fused.py`), what the norms are to follow).

        edged   whether the images are
        inner   whether another group takes what comes out: edged, where its pool cuts off a line
        halves  of the two convolutions' filters, as `Filled` takes them
        """
        modules: tuple[Any, ...] = tuple(self)
        first, _, norm, _, second, last, _ = modules
        pooled, of_pooled, *_ = fused.pool_norm_silu(first(images_NCHW, edged, halves[0]), norm.bias, norm.eps)
        rows, edge = pooled[:, 0].numel(), inner and cut(*pooled.shape[2:])
        out, of_last = fused.norm_silu(second(pooled, half=halves[1]), last.bias, last.eps, edge)
        return out, edge, [Seen(norm, of_pooled, rows), Seen(last, of_last, rows)]

    def fusible(self, images_NCHW: torch.Tensor) -> bool:
        """Whether the kernels can do it: they know plain batch norm, of more than one value, and no dropout."""
        plain = [type(module) for module in self] == [Filled, nn.MaxPool2d, nn.BatchNorm2d, nn.SiLU, Filled, nn.BatchNorm2d, nn.SiLU]
        count, _, height, width = images_NCHW.shape
        known = plain and (self.training or untaught())
        return fused is not None and images_NCHW.is_cuda and known and count * (height // 2) * (width // 2) > 1


def untaught() -> bool:
    """Whether this is a plain test pass: the kernels for it have no gradients, and are no part of an exported program."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def tested(images_NCHW: torch.Tensor, norm: Any, pooled: bool) -> torch.Tensor:
    """What a group does behind a convolution, with the norm's running statistics."""
    images = images_NCHW.contiguous(memory_format=torch.channels_last)
    return fused.applied(images, norm.bias, torch.stack([norm.running_mean, norm.running_var]), norm.eps, pooled)


def cut(height: int, width: int) -> bool:
    """Whether a 2x2 pool cuts off a line in both directions."""
    return height % 2 == width % 2 == 1


@torch.no_grad()
def follow(seen: list[Seen], apart: bool) -> None:
    """Move norms' running statistics by those of a batch, as nn.BatchNorm2d does: all in a few launches, or `apart`, as vmap needs it, which knows no lists."""
    norms, stats = [one.norm for one in seen], [one.stats for one in seen]
    scales = [one.norm.momentum * one.rows / (one.rows - 1) for one in seen]  # a variance of one row less
    if apart:
        for norm, (mean, variance), scale in zip(norms, stats, scales):
            norm.running_mean.mul_(1 - norm.momentum).add_(mean, alpha=norm.momentum)  # nor lerp_
            norm.running_var.mul_(1 - norm.momentum).add_(variance, alpha=scale)
            norm.num_batches_tracked.add_(1)
        return
    means, variances, momenta = [norm.running_mean for norm in norms], [norm.running_var for norm in norms], [norm.momentum for norm in norms]
    torch._foreach_mul_(means + variances, 2 * [1 - momentum for momentum in momenta])
    torch._foreach_add_(means + variances, torch._foreach_mul([one[0] for one in stats] + [one[1] for one in stats], momenta + scales))
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)


class Speednet(nn.Module):
    settled = False  # whether the whitening's bias rests: it matters in the first epochs, and its gradient costs a tenth of a step
    frozen = False  # whether the first group rests, too, whose gradients cost a fifth of one
    aside = True  # gradients of its filters are made aside (`aside.py`)
    several = False  # whether it is one of several nets that are one program

    def __init__(self, num_classes: int, widths: tuple[int, ...], norm: str, dropout: float, kernel: int, kept: int):
        super().__init__()
        self.whitening = Whitening(kernel=kernel, kept=kept)
        pairs = zip((self.whitening.out_channels, *widths), widths)
        self.groups = nn.Sequential(OrderedDict((f"group{i + 1}", Group(*pair, norm, dropout)) for i, pair in enumerate(pairs)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()
        self.scale = 1 / widths[-1]

    def prepare(self, images_NCHW: torch.Tensor) -> None:
        """Fit the whitening to some thousand normalised training images, on their device."""
        self.whitening.fit(images_NCHW)

    def spare(self, images_NCHW: torch.Tensor) -> int:
        """How many channels of zeros the whitened map has behind its own, for the convolution that takes it."""
        return -self.whitening.out_channels % BLOCK if fused is not None and images_NCHW.is_cuda else 0

    def halves(self, images_NCHW: torch.Tensor) -> list[torch.Tensor | None]:
        """Of the groups' filters, as `Filled` takes them for a whitened map in the dtype of convolutions here; of one of several nets none, since what makes them knows no other."""
        filters: list[torch.Tensor] = [module.weight for group in self.groups for module in group if isinstance(module, Filled)]  # type: ignore[attr-defined]
        if self.several:
            return [None] * len(filters)
        inputs = [images_NCHW.shape[1], *(f.shape[1] for f in filters[1:])]
        kind = images_NCHW.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images_NCHW.dtype
        return list(fused.halves([f.detach() for f in filters], inputs, dtype))

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        resting = self.settled if self.training else untaught()
        weight, bias = self.whitening.weight, self.whitening.bias.detach() if resting else self.whitening.bias
        if more := self.spare(images_NCHW):
            weight, bias = nn.functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, more)), nn.functional.pad(bias, (0, more))  # type: ignore[arg-type]  # there is one
        # of one image a group may leave a single value, which has no variance
        trains = self.training and len(images_NCHW) > 1 and self.groups[0].fusible(images_NCHW)
        edged = trains and cut(*(side - self.whitening.kernel_size[0] + 1 for side in images_NCHW.shape[2:]))
        if resting and fused is not None and images_NCHW.is_cuda:
            images = fused.white(images_NCHW, weight, bias, edged)
        else:
            images = nn.functional.silu(nn.functional.conv2d(images_NCHW, weight, bias))
            images = nn.functional.pad(images, (1, 0, 1, 0)) if edged else images
        halves = self.halves(images) if trains else []
        seen: list[Seen] = []
        for i, group in enumerate(self.groups):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.training and self.frozen and not i)):
                if trains:
                    images, edged, found = group.trained(images, edged, i + 1 < len(self.groups), halves[2 * i : 2 * i + 2])
                    seen += found
                else:
                    images = group(images)
        if seen:
            follow(seen, apart=self.several)
        # over all that is left: 3x3 at 32 pixels, as the record's pool, and any size beside
        return self.head(global_max(images)) * self.scale


def build(
    num_classes: int = 10, norm: str = "batch", dropout: float = 0.0, widths: tuple[int, ...] = (64, 256, 256), kernel: int = 2, kept: int = 0
) -> nn.Module:
    """kernel, kept  of the whitening: its side, and how many eigenvectors"""
    return Speednet(num_classes, widths, norm, dropout, kernel, kept)

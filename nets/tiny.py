"""The family of tiny nets: the most accuracy that we get from a budget of trainable parameters, norms and biases counted.

3x3 conv, norm · stage · down · stage · down · stage · norm · global average pool · linear

A stage is blocks of one width: depthwise 3x3, layer norm over channels, 1x1 to twice the channels, gate, 1x1 back, beside a shortcut, times a learned
scale for each channel that starts small. `down` is a 4x4 convolution of stride 2 in as many groups as the widths allow, and a norm:
the even kernel covers the halved grid evenly, and groups make it cheap. `tiny10k.py` to `tiny300k.py` name those that were chosen for a budget; any other is a name, too:
`tiny_16-24-40_2-3-2_2` has the widths 16, 24 and 40, and 2, 3 and 2 blocks that use their filters twice.
Most of a block's parameters are its 1x1 filters; it may use them more than once, each time with a depthwise filter, a norm and a scale of their own. So may a stage,
at more than one size of the map: `tiny_16-48x2_2-2_2` has 16 channels, and then 48 at two sizes by the same 1x1 filters.

From: depthwise and pointwise convolutions (Chollet 2017, arXiv:1610.02357), gated linear units with SiLU (Shazeer 2020,
arXiv:2002.05202), scaled residuals (Touvron et al. 2021, arXiv:2103.17239), filters used again (ThriftyNet, Coiffier et al. 2020, arXiv:2007.10106), and
the anchor (`tiniest.py`).
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from math import gcd
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nets import gated_cpu, grouped_cpu, layers
from nets.layers import ChannelNorm, GlobalMean, norm as norm_of
from nets.native import exporting, known_to

if torch.cuda.is_available() and find_spec("triton"):
    from nets import gated
else:
    gated = None  # type: ignore[assignment]


class Look(nn.Module):
    """What each use of a block's 1x1 filters has of its own: a depthwise 3x3, a norm and a scale, 12 * channels parameters."""

    def __init__(self, channels: int, norm: str, scale: float):
        super().__init__()
        self.look = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        # of a pixel's channels, not of the batch: a product of two channels has outliers, by which a batch's statistics would shrink all other images
        self.norm = norm_of("channel" if norm == "batch" else norm, channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), scale))


class Block(Look):
    """x + scale * narrow(silu(gate) * value), `times` times at each of `sizes` sizes of the map with the same 1x1 filters, each with a look of its own;
    3 * channels**2 + 12 * times * sizes * channels parameters. Keeps the shape. By one operator on CUDA (`gated.py`) and on a processor (`gated_cpu.py`)."""

    def __init__(self, channels: int, norm: str, dropout: float, scale: float = 0.1, times: int = 1, sizes: int = 1):
        super().__init__(channels, norm, scale)
        self.times = times
        self.dropout = nn.Dropout2d(dropout)
        self.widen, self.narrow = nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.Conv2d(channels, channels, 1, bias=False)
        self.more = nn.ModuleList(Look(channels, norm, scale) for _ in range(times * sizes - 1))

    def forward(self, images_NCHW: torch.Tensor, size: int = 0) -> torch.Tensor:
        """At the size of that number, the first of which is 0."""
        use = self.native if self.nativable(images_NCHW) else self.fused if self.fusible(images_NCHW) else self.plain
        for own in (self, *self.more)[size * self.times : (size + 1) * self.times]:
            images_NCHW = use(images_NCHW, own)
        return images_NCHW

    def plain(self, images_NCHW: torch.Tensor, own: Any) -> torch.Tensor:
        """One use, with the `Look` that it has of its own."""
        # 1x1 convolutions as products of matrices, as pixels lie in memory: of several nets at once that is a batched product, not grouped convolutions
        looked_NHWC = own.norm(own.look(images_NCHW)).permute(0, 2, 3, 1)
        gate, value = F.linear(looked_NHWC, self.widen.weight.flatten(1)).chunk(2, -1)
        # the scale in the filter, not on the image: one pass less over memory, and under autocast a sum in half precision
        # a copy of the gate: a slice's few channels a pixel leave SiLU's vectors half empty on a processor; a compiler has no copy of it
        narrowed_NHWC = F.linear(F.silu(gate.contiguous()) * value, self.narrow.weight.flatten(1) * own.scale.flatten(1))
        return images_NCHW + self.dropout(narrowed_NHWC.permute(0, 3, 1, 2))

    def fusible(self, images_NCHW: torch.Tensor) -> bool:
        """Whether the kernels can do it: they know half precision, a norm over each pixel's channels, no dropout, and not too many channels. An exported program
        is for any machine."""
        if gated is None or not images_NCHW.is_cuda or images_NCHW.dtype.itemsize != 2 or exporting():
            return False
        return self.blends(images_NCHW) and images_NCHW.shape[1] <= gated.MOST

    def fused(self, images_NCHW: torch.Tensor, own: Any) -> torch.Tensor:
        """The same by one operator."""
        return gated.gated_block(images_NCHW, *(p[None] for p in self.matrices(own)), own.norm.eps)[0]

    def nativable(self, images_NCHW: torch.Tensor) -> bool:
        """Whether a processor's operator can do it, for which channels go by eights."""
        return known_to(gated_cpu.NAME, images_NCHW, half=True) and self.blends(images_NCHW) and images_NCHW.shape[1] % 8 == 0

    def blends(self, images_NCHW: torch.Tensor) -> bool:
        """Whether it is what the operators do, of images of its own channels and at least one pixel: of others torch says that they do not fit."""
        fits = images_NCHW.shape[1] == self.look.in_channels and images_NCHW.shape[2] * images_NCHW.shape[3] > 0
        return fits and type(self.norm) is ChannelNorm and not (self.training and self.dropout.p)

    def native(self, images_NCHW: torch.Tensor, own: Any) -> torch.Tensor:
        """The same by one operator, which gives planes; in float32, but for its products, where autocast would have less, which takes a processor longer."""
        return gated_cpu.block(images_NCHW.float(), *self.matrices(own), own.norm.eps, gated_cpu.halves())

    def matrices(self, own: Any) -> tuple[torch.Tensor, ...]:
        """The parameters of one use as the operators take them."""
        # as they lie in memory: so do their gradients, then, and an optimiser's operations on lists are one launch
        widen, narrow = (filters.weight.permute(0, 2, 3, 1).flatten(1) for filters in (self.widen, self.narrow))
        return own.look.weight.flatten(1), own.norm.weight, own.norm.bias, widen, narrow, own.scale.flatten()


class Grouped(nn.Conv2d):
    """A 4x4 convolution of stride 2 in as many groups as the channels allow.

    On a processor by an operator of its own (`grouped_cpu.py`), on a GPU, and without that operator in half precision, as one of all channels whose filters have zeros for the
    other groups'. The products with zeros are little to a matrix unit. For groups of two or three channels oneDNN has no fast kernels in half precision (161 ms for
    40), and cuDNN none of this layout, by reading: changes of layout were a fifth of a compiled step of `tiny83k` (`benchmarks/LOG.md`).
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 4, stride=2, padding=1, groups=gcd(inputs, outputs), bias=False)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        if self.nativable(images_NCHW):
            return grouped_cpu.convolve(images_NCHW.float(), self.weight)
        if not self.dense(images_NCHW):
            return super().forward(images_NCHW)
        parts = self.weight.permute(0, 2, 3, 1).unflatten(0, (self.groups, -1))  # [groups, outputs, height, width, inputs], of one group each
        own = torch.eye(self.groups, device=parts.device, dtype=parts.dtype)[:, None, None, None, :, None]
        whole_OHWI = (parts[:, :, :, :, None] * own).flatten(4, 5).flatten(0, 1)
        return F.conv2d(images_NCHW, whole_OHWI.permute(0, 3, 1, 2), None, self.stride, self.padding)

    def nativable(self, images_NCHW: torch.Tensor) -> bool:
        """Whether a processor's operator can do it: of planes, as the blocks' own gives them, and whole windows."""
        if not known_to(grouped_cpu.NAME, images_NCHW, half=True):
            return False
        return images_NCHW.shape[1] == self.in_channels and images_NCHW.is_contiguous() and images_NCHW.shape[2] % 2 == images_NCHW.shape[3] % 2 == 0

    def dense(self, images_NCHW: torch.Tensor) -> bool:
        """Whether zeros are the faster way here."""
        return images_NCHW.is_cuda or torch.is_autocast_enabled("cpu") or images_NCHW.dtype.itemsize == 2


def down(inputs: int, outputs: int, norm: str) -> nn.Module:
    """[N,inputs,H,W] → [N,outputs,H/2,W/2]."""
    return nn.Sequential(Grouped(inputs, outputs), norm_of(norm, outputs))


class Stage(nn.Sequential):
    """Blocks of one width, [N,C,H,W] → [N,C,h,w]: `sizes` times over with the same 1x1 filters, each time but the first behind a `down`, so that H is h * 2**(sizes - 1)."""

    def __init__(self, channels: int, blocks: int, times: int, sizes: int, norm: str, dropout: float):
        super().__init__(*(Block(channels, norm, dropout, times=times, sizes=sizes) for _ in range(blocks)))
        self.downs = nn.ModuleList(down(channels, channels, norm) for _ in range(sizes - 1))

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        for size in range(len(self.downs) + 1):
            if size:
                images_NCHW = self.downs[size - 1](images_NCHW)
            for block in list(self)[:-1]:
                images_NCHW = block(images_NCHW, size)
        return images_NCHW


def tiny(
    num_classes: int,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    times: int = 1,
    sizes: tuple[int, ...] | None = None,
    norm: str = "batch",
    dropout: float = 0.0,
) -> nn.Module:
    """A member. widths: channels of each stage, in multiples of eight (for group norm); blocks: of each stage; times: how often each block's 1x1 filters are used at one
    size of the map; sizes: at how many sizes those of each stage are, one unless said."""
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=layers.Block(nn.Conv2d(3, widths[0], 3, padding=1, bias=False), norm_of(norm, widths[0])))
    for i, (width, count, each) in enumerate(zip(widths, blocks, sizes or (1,) * len(widths))):
        if i:
            stages[f"down{i}"] = down(widths[i - 1], width, norm)
        stages[f"stage{i + 1}"] = Stage(width, count, times, each, norm, dropout)
    stages["head"] = nn.Sequential(norm_of(norm, widths[-1]), GlobalMean(), nn.Flatten(), nn.Linear(widths[-1], num_classes))
    return nn.Sequential(stages)


def member(numbers: str) -> Callable[..., nn.Module]:
    """`build` of the member that WIDTHS_BLOCKS or WIDTHS_BLOCKS_TIMES names, such as 16-24-40_2-3-2_2 or 16-48x2_2-2_2. Raises `ValueError` where they are no net's."""
    found = re.fullmatch(r"(\d{1,4}(?:x\d)?(?:-\d{1,4}(?:x\d)?)*)_(\d{1,2}(?:-\d{1,2})*)(?:_(\d{1,2}))?", numbers, re.ASCII)
    if not found:
        raise ValueError(
            "name a tiny net as tiny_WIDTHS_BLOCKS, such as tiny_24-40-48_2-3-3, or with how often each filter is used, tiny_16-24-40_2-3-2_2, "
            "and at how many sizes, tiny_16-48x2_2-2_2"
        )
    stages = [width.partition("x") for width in found[1].split("-")]
    widths, sizes = tuple(int(width) for width, _, _ in stages), tuple(int(each or 1) for _, _, each in stages)
    blocks, times = tuple(map(int, found[2].split("-"))), int(found[3] or 1)
    if len(widths) != len(blocks) or sum(sizes) > 5:
        raise ValueError(
            f"{len(widths)} widths for {len(blocks)} stages of blocks, at {sum(sizes)} sizes: give as many widths as stages, at most 5 sizes, since each halves the image"
        )
    if any(width % 8 or not width for width in widths) or times < 1 or 0 in sizes:
        raise ValueError("widths are multiples of eight, and filters are used once or more often")
    return partial(tiny, widths=widths, blocks=blocks, times=times, sizes=sizes)

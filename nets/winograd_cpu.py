"""3x3 convolutions on a processor with less than half of their arithmetic: an operator of torch on C (`winograd_cpu.c`; `native.py`).

A square of 4x4 pixels takes 144 products for each pair of channels. Winograd's minimal filtering F(4x4, 3x3) takes 36 and some sums, of the images, of the filters and of
what comes out. It rounds more: the largest error is some 1e-5 of the largest value, where a sum of all products has 1e-6.

From: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015, arXiv:1509.09308); the gradient of filters is the same map turned round.

Shapes: images_NIHW float32, in channels_last memory order; weight_OI33; out_NOHW; I and O multiples of sixteen.
"""

import torch
from torch import Tensor, nn

from nets.native import each_net, known_to, library, map_of, ordered, parts, shared

NAME = "winograd_cpu"
LEAST = 16  # channels that a vector of 512 bits holds
APART = 16  # floats between places, as in C
SQUARES = 64  # of all images: for fewer the filters' places are not worth making


def takes(convolution: nn.Conv2d, images_NIHW: Tensor) -> bool:
    """Whether the operator can do it, and gains by it."""
    plain = convolution.kernel_size == (3, 3) and convolution.padding == convolution.stride == convolution.dilation == (1, 1) and convolution.groups == 1
    if not plain or convolution.bias is not None or convolution.padding_mode != "zeros" or convolution.weight.dtype != torch.float32:
        return False
    if not known_to(NAME, images_NIHW):  # before the count is looked at: an exported program takes any
        return False
    count, _, height, width = images_NIHW.shape
    fits = convolution.in_channels % LEAST == convolution.out_channels % LEAST == 0
    return fits and min(height, width) > 1 and count * squares(height, width, best(height, width)) >= SQUARES


def squares(height: int, width: int, side: int) -> int:
    """Of a side that cover a map."""
    return -(-height // side) * -(-width // side)


def best(height: int, width: int) -> int:
    """The side of squares by which a map takes the fewest products: a square may lie partly outside of it."""
    return min((4, 3, 2), key=lambda side: squares(height, width, side) * (side + 2) ** 2)


def places_of(weight: Tensor, back: bool, side: int) -> Tensor:
    """The filters' places, as `winograd_cpu.c` has them; for the way back those of the filters that the gradient passes."""
    rows = (weight.permute(0, 2, 3, 1) if back else weight.permute(1, 2, 3, 0)).contiguous()  # [inputs, 3, 3, outputs]
    inputs, outputs, panel = len(rows), rows.shape[-1], library(NAME).panel_columns()
    places = rows.new_empty((side + 2) ** 2 * (inputs * -(-outputs // panel) * panel + APART))
    shared(library(NAME).all_filters, [rows, places.as_strided((inputs,), (panel,))], [], [], inputs, outputs, back, side)
    return places


@torch.library.custom_op("tenfold::winograd_cpu", mutates_args=())
def convolved(images_NIHW: Tensor, weight_OI33: Tensor, back: bool = False) -> Tensor:
    """The convolution; `back`: of a gradient [N,O,H,W] that of the images [N,I,H,W]."""
    images, outputs, side = ordered(images_NIHW), weight_OI33.shape[1 if back else 0], best(*images_NIHW.shape[2:])
    out = like(images, outputs)
    shared(library(NAME).all_forward, [images, out], [], [places_of(weight_OI33, back, side)], images.shape[1], outputs, *images.shape[2:], side)
    return out


def like(images: Tensor, channels: int) -> Tensor:
    return map_of((len(images), channels, *images.shape[2:]), images)


@convolved.register_fake
def _(images, weight, back=False):
    return like(images, weight.shape[1 if back else 0])


@torch.library.custom_op("tenfold::winograd_cpu_filters", mutates_args=())
def of_filters(gradient_NOHW: Tensor, images_NIHW: Tensor, weight_OI33: Tensor) -> Tensor:
    """The gradient of the weight, which lies as that does."""
    gradient, images = ordered(gradient_NOHW), ordered(images_NIHW)
    outputs, inputs = weight_OI33.shape[:2]
    sums = images.new_empty((parts(len(images)), 3, 3, inputs, outputs))
    shared(library(NAME).all_backward, [images, gradient], [sums], [], inputs, outputs, *images.shape[2:], best(*images.shape[2:]))
    return torch.empty_like(weight_OI33).copy_(sums.sum(0).permute(3, 2, 0, 1))


@of_filters.register_fake
def _(gradient, images, weight):
    return torch.empty_like(weight)


def keep(ctx, inputs, output) -> None:
    images, weight, ctx.back = inputs
    ctx.save_for_backward(images, weight)


def go_back(ctx, gradient: Tensor):
    images, weight = ctx.saved_tensors
    if ctx.back:
        raise RuntimeError("this convolution has no gradient of a gradient: take float64, or CC=none in the environment for torch's own")
    asked = ctx.needs_input_grad
    return convolved(gradient, weight, True) if asked[0] else None, of_filters(gradient, images, weight) if asked[1] else None, None


convolved.register_autograd(go_back, setup_context=keep)

for operator in (convolved, of_filters):
    operator.register_vmap(each_net(operator))

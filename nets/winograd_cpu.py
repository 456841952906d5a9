"""3x3 convolutions on a processor with less than half of their arithmetic: an operator of torch on C (`winograd_cpu.c`; `native.py`).

A square of 4x4 pixels takes 144 products for each pair of channels. Winograd's minimal filtering F(4x4, 3x3) takes 36 and some sums, of the images, of the filters and of
what comes out. Both gradients are the same maps turned round, and share what is made of the gradient that comes. It rounds
more: an error is some 8e-7 of the values' standard deviation, where a sum of all products has 2e-7, and in bfloat16 1.2e-2 for 2.4e-3 (`benchmarks/LOG.md`).

In bfloat16, as autocast has it, where a processor multiplies pairs of them and has no matrix unit (AMD's since Zen 4; of Intel's those without AMX): images, gradients and what
Winograd's maps make of them are rounded to it, sums and the weight's gradient are float32.

From: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015, arXiv:1509.09308).

Shapes: images_NIHW float32 or bfloat16, in channels_last memory order; weight_OI33 float32; out_NOHW as the images; I and O multiples of sixteen.
"""

import torch
from torch import Tensor, nn

from nets.native import AMX, custom_op, each_net, eager, fast_halves, known_to, library, map_of, ordered, parts, shared

NAME = "winograd_cpu"
LEAST = 16  # channels that a vector of 512 bits holds
APART = 16  # floats between places, as in C
SQUARES = 64  # of all images: for fewer the filters' places are not worth making


def takes(convolution: nn.Conv2d, images_NIHW: Tensor) -> bool:
    """Whether the operator can do it, and gains by it."""
    plain = convolution.kernel_size == (3, 3) and convolution.padding == convolution.stride == convolution.dilation == (1, 1) and convolution.groups == 1
    if not plain or convolution.bias is not None or convolution.padding_mode != "zeros" or convolution.weight.dtype != torch.float32:
        return False
    if not known_to(NAME, images_NIHW, half=fast_halves(NAME) and not AMX):  # before the count is looked at: an exported program takes any
        return False
    count, inputs, height, width = images_NIHW.shape
    fits = inputs == convolution.in_channels and inputs % LEAST == convolution.out_channels % LEAST == 0  # of others torch says that they do not
    return fits and min(height, width) > 1 and count * squares(height, width, best(height, width)) >= SQUARES


def squares(height: int, width: int, side: int) -> int:
    """Of a side that cover a map."""
    return -(-height // side) * -(-width // side)


def best(height: int, width: int) -> int:
    """The side of squares by which a map takes the fewest products: a square may lie partly outside of it."""
    return min((4, 3, 2), key=lambda side: squares(height, width, side) * (side + 2) ** 2)


def places_of(rows_K33N: Tensor, side: int, half: bool) -> Tensor:
    """The places of filters whose products are summed over K, as `winograd_cpu.c` has them, in float32 or, where `half`, pairs of bfloat16."""
    rows, panel = rows_K33N.contiguous(), library(NAME).panel_columns()
    (inputs, outputs), words = (len(rows), rows.shape[-1]), 1 + half
    places = rows.new_empty((side + 2) ** 2 * (inputs // words * -(-outputs // panel) * panel + APART))
    by_input = places.view(torch.bfloat16 if half else torch.float32).as_strided((inputs,), (panel,))
    shared(library(NAME).all_filters, [rows, by_input], [], [], inputs, outputs, side, half)
    return places


@custom_op("tenfold::winograd_cpu_forward")
def convolved(images_NIHW: Tensor, weight_OI33: Tensor) -> Tensor:
    """The convolution."""
    images, half, side = ordered(images_NIHW), images_NIHW.itemsize == 2, best(*images_NIHW.shape[2:])
    out, places = like(images, len(weight_OI33)), places_of(weight_OI33.permute(1, 2, 3, 0), side, half)
    shared(library(NAME).all_forward, [images, out], [], [places], *channels(weight_OI33), *images.shape[2:], side, half)
    return out


def channels(weight_OI33: Tensor) -> tuple[int, int]:
    """Inputs and outputs, as C takes them."""
    return weight_OI33.shape[1], weight_OI33.shape[0]


def like(images: Tensor, channels: int) -> Tensor:
    return map_of((len(images), channels, *images.shape[2:]), images)


@convolved.register_fake
def _(images, weight):
    return like(images, len(weight))


@custom_op("tenfold::winograd_cpu_backward")
def gradients(gradient_NOHW: Tensor, images_NIHW: Tensor, weight_OI33: Tensor, of_images: bool, of_weight: bool) -> tuple[Tensor, Tensor]:
    """Those of the images and of the weight, which lies as that does; empty where it is not asked for."""
    images, half, side = ordered(images_NIHW), images_NIHW.itemsize == 2, best(*images_NIHW.shape[2:])
    gradient = ordered(gradient_NOHW).to(images.dtype)
    filters_O33I = weight_OI33.permute(0, 2, 3, 1)
    out, places = (torch.empty_like(images), places_of(filters_O33I, side, half)) if of_images else (None, None)
    sums = weight_OI33.new_empty((parts(len(images)), *filters_O33I.shape)) if of_weight else None
    shared(library(NAME).all_backward, [images, gradient, out], [sums], [places], *channels(weight_OI33), *images.shape[2:], side, half)
    learnt = torch.empty_like(weight_OI33) if of_weight else weight_OI33.new_empty(0)
    if sums is not None:
        torch.sum(sums, 0, out=learnt.permute(0, 2, 3, 1))
    return images.new_empty(0) if out is None else out, learnt


@gradients.register_fake
def _(gradient, images, weight, of_images, of_weight):
    return like(images, images.shape[1]) if of_images else images.new_empty(0), torch.empty_like(weight) if of_weight else weight.new_empty(0)


def keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def go_back(ctx, gradient: Tensor):
    images, weight = ctx.saved_tensors
    asked = ctx.needs_input_grad
    return tuple(given if wanted else None for given, wanted in zip(both_gradients(gradient, images, weight, *asked), asked))


def no_further(*_):
    raise RuntimeError("this convolution has no gradient of a gradient: take float64, or CC=none in the environment for torch's own")


convolved.register_autograd(go_back, setup_context=keep)
gradients.register_autograd(no_further)

for operator in (convolved, gradients):
    operator.register_vmap(each_net(operator))

convolve, both_gradients = eager(convolved, keep, go_back), eager(gradients)

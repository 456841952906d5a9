"""The convolution between two stages of a tiny net (`tiny.py`) on a processor: an operator of torch on C (`grouped_cpu.c`; `native.py`).

For groups of one to five channels torch's own takes 1.5 to 3 times as long (`benchmarks/LOG.md`).

Shapes: images_NIHW float32, H and W even; weight_OG44, G = I / groups; out_NOHW of half the height and width, planes.
"""

import torch
from torch import Tensor

from nets.native import custom_op, each_net, eager, library, parts, shared

NAME = "grouped_cpu"


def sizes(images: Tensor, weight: Tensor) -> tuple[int, ...]:
    """(inputs, outputs, groups, height, width)"""
    return images.shape[1], weight.shape[0], images.shape[1] // weight.shape[1], images.shape[2], images.shape[3]


@custom_op("tenfold::grouped_cpu")
def grouped(images_NIHW: Tensor, weight_OG44: Tensor) -> Tensor:
    """The convolution of stride 2 and padding 1."""
    images, weight = images_NIHW.contiguous(), weight_OG44.contiguous()
    out = images.new_empty(shape(images, weight))
    shared(library(NAME).all_forward, [images, out], [], [weight], *sizes(images, weight))
    return out


def shape(images: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Of the output."""
    return images.shape[0], weight.shape[0], images.shape[2] // 2, images.shape[3] // 2


@grouped.register_fake
def _(images, weight):
    return images.new_empty(shape(images, weight))


@custom_op("tenfold::grouped_cpu_backward")
def grouped_backward(gradient_NOHW: Tensor, images_NIHW: Tensor, weight_OG44: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the images, planes, and of the weight, which lies as that does."""
    gradient, images, weight = gradient_NOHW.contiguous(), images_NIHW.contiguous(), weight_OG44.contiguous()
    of_images, sums = torch.empty_like(images), weight.new_empty((parts(len(images)), *weight.shape))
    shared(library(NAME).all_backward, [images, gradient, of_images], [sums], [weight], *sizes(images, weight))
    return of_images, torch.empty_like(weight_OG44).copy_(sums.sum(0))


@grouped_backward.register_fake
def _(gradient, images, weight):
    return images.new_empty(images.shape), torch.empty_like(weight)


def keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def go_back(ctx, gradient: Tensor):
    return both_gradients(gradient, *ctx.saved_tensors)


grouped.register_autograd(go_back, setup_context=keep)

for operator in (grouped, grouped_backward):
    operator.register_vmap(each_net(operator))

convolve, both_gradients = eager(grouped, keep, go_back), eager(grouped_backward)

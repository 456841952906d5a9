"""A tiny net's block (`tiny.py`) on a GPU: an operator of torch on Triton kernels (`gated_kernels.py`) that read and write its map as seldom as can be.

By torch.compile a block's forward and backward pass touch memory some 45 times for each value of its map; here 2 and 7 times. On an H200 a compiled step of `tiny83k`
took 2.65 ms where its bytes, so, take 0.15 (`benchmarks/LOG.md`, by reckoning).

Shapes: images_NCHW in channels_last memory order, with the channels of G nets side by side (one, but where `torch.func.vmap` has several), C of each; look_G9C,
widen_GHC and bias_GH with gates before values, H = 2C, narrow_GCC; all but the images float32.
"""

import torch

from nets.gated_kernels import MOST, backward, forward
from nets.kernels import like

__all__ = ["MOST", "gated_block"]


@torch.library.custom_op("tenfold::gated_block", mutates_args=())
def gated_block(
    images_NCHW: torch.Tensor,
    look_G9C: torch.Tensor,
    widen_GHC: torch.Tensor,
    bias_GH: torch.Tensor,
    narrow_GCC: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """images + narrow · (silu(gate) * value), of gate and value = widen · n + bias and n = depthwise convolution of the images by look, of mean 0 and variance 1
    over each pixel's channels; in the images' dtype, summed in float32."""
    parameters = look_G9C, widen_GHC, bias_GH, narrow_GCC
    return forward(images_NCHW, tuple(p.contiguous() for p in parameters), eps)


@gated_block.register_fake
def _(images, *_):
    return like(images, *images.shape)


@torch.library.custom_op("tenfold::gated_block_backward", mutates_args=())
def gated_block_backward(
    gradient: torch.Tensor,
    images_NCHW: torch.Tensor,
    look_G9C: torch.Tensor,
    widen_GHC: torch.Tensor,
    bias_GH: torch.Tensor,
    narrow_GCC: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of the images, float32[G,3C+11,C] with those of widen, narrow, bias and look)."""
    parameters = look_G9C, widen_GHC, bias_GH, narrow_GCC
    return backward(gradient, images_NCHW, tuple(p.contiguous() for p in parameters), eps)


@gated_block_backward.register_fake
def _(gradient, images, look, *others):
    nets, _, channels = look.shape
    return like(images, *images.shape), images.new_empty((nets, 3 * channels + 11, channels), dtype=torch.float32)


def keep(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def go_back(ctx, gradient: torch.Tensor):
    images, *parameters = ctx.saved_tensors
    of_images, of_parameters = gated_block_backward(gradient, images, *parameters, ctx.eps)
    channels = of_parameters.shape[-1]
    widen, narrow, bias, look = of_parameters.split([2 * channels, channels, 2, 9], -2)
    return of_images, look, widen, bias.flatten(-2), narrow, None


gated_block.register_autograd(go_back, setup_context=keep)


@gated_block.register_vmap
def _(info, in_dims, images, *others):
    """The nets' channels side by side, and their parameters one behind the other."""
    *parameters, eps = others

    def merged(value, dim, side):
        value = value.movedim(dim, side) if dim is not None else value.unsqueeze(side).expand(*value.shape[:side], info.batch_size, *value.shape[side:])
        return value.flatten(side, side + 1)

    out = gated_block(merged(images, in_dims[0], 1), *(merged(p, dim, 0) for p, dim in zip(parameters, in_dims[1:])), eps)
    return out.unflatten(1, (info.batch_size, -1)), 1

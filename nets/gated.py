"""A tiny net's block (`tiny.py`) on a GPU: an operator of torch on Triton kernels (`gated_kernels.py`) that read and write its map as seldom as can be.

By torch.compile a block's forward and backward pass touch memory some 45 times for each value of its map; here 3 and 7 times. On an H200 a compiled step of `tiny83k`
took 1.48 ms so, and 1.95 by torch's own kernels; of that the blocks took 1.0, and their bytes 0.14 (`benchmarks/records/2026-11-27_h200`; since then the kernels have changed).

Shapes: images_NCHW in channels_last memory order, with the channels of G nets side by side (one, but where `torch.func.vmap` has several), C of each; the parameters,
float32, look_GC9, gain_GC, shift_GC, widen_GHC with gates before values, H = 2C, narrow_GCC, scale_GC. The kernels keep for the way back what they made of them,
vectors float32[G,11,C] and matrices [G,3C,C], and looked_NCHW, the depthwise convolution.
"""

import torch
from torch import Tensor

from nets.gated_kernels import MOST, backward, forward, prepared
from nets.kernels import like

__all__ = ["MOST", "gated_block"]


@torch.library.custom_op("tenfold::gated_block", mutates_args=())
def gated_block(
    images_NCHW: Tensor, look_GC9: Tensor, gain_GC: Tensor, shift_GC: Tensor, widen_GHC: Tensor, narrow_GCC: Tensor, scale_GC: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(images + scale * narrow · (silu(gate) * value), the depthwise convolution, vectors, matrices), of gate and value = widen · layer norm of the depthwise
    convolution; in the images' dtype, summed in float32."""
    return forward(images_NCHW, dense(look_GC9, gain_GC, shift_GC, widen_GHC, narrow_GCC, scale_GC), eps)  # type: ignore[return-value]  # four of them


@gated_block.register_fake
def _(images, look, *_):
    return like(images, *images.shape), like(images, *images.shape), *prepared(images, *look.shape[:2])


@torch.library.custom_op("tenfold::gated_block_backward", mutates_args=())
def gated_block_backward(
    gradient: Tensor,
    images_NCHW: Tensor,
    looked_NCHW: Tensor,
    vectors: Tensor,
    matrices: Tensor,
    look_GC9: Tensor,
    gain_GC: Tensor,
    shift_GC: Tensor,
    widen_GHC: Tensor,
    narrow_GCC: Tensor,
    scale_GC: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the images and the parameters."""
    return backward(gradient, images_NCHW, looked_NCHW, vectors, matrices, dense(look_GC9, gain_GC, shift_GC, widen_GHC, narrow_GCC, scale_GC), eps)  # type: ignore[return-value]  # seven of them


@gated_block_backward.register_fake
def _(gradient, images, looked, vectors, matrices, *parameters_and_eps):
    return like(images, *images.shape), *(p.new_empty(p.shape) for p in parameters_and_eps[:-1])


def dense(*parameters: Tensor) -> tuple[Tensor, ...]:
    return tuple(p.contiguous() for p in parameters)


def keep(ctx, inputs, output) -> None:
    images, *parameters, ctx.eps = inputs
    ctx.set_materialize_grads(False)  # only `out` has a gradient
    ctx.save_for_backward(images, *output[1:], *parameters)


def go_back(ctx, gradient: Tensor, *_):
    return *gated_block_backward(gradient, *ctx.saved_tensors, ctx.eps), None


gated_block.register_autograd(go_back, setup_context=keep)


@gated_block.register_vmap
def _(info, in_dims, images, *others):
    """The nets' channels side by side, and their parameters one behind the other."""
    *parameters, eps = others

    def merged(value, dim, side):
        value = value.movedim(dim, side) if dim is not None else value.unsqueeze(side).expand(*value.shape[:side], info.batch_size, *value.shape[side:])
        return value.flatten(side, side + 1)

    made = gated_block(merged(images, in_dims[0], 1), *(merged(p, dim, 0) for p, dim in zip(parameters, in_dims[1:])), eps)
    sides = 1, 1, 0, 0
    return tuple(each.unflatten(side, (info.batch_size, -1)) for each, side in zip(made, sides)), sides

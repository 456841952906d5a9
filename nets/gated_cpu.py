"""A tiny net's block (`tiny.py`) on a processor: an operator of torch on C (`gated_cpu.c`; `native.py`).

By torch.compile a block reads and writes its map some 45 times on the way forward and back; here the maps of a few images stay in the cache, and what the way back
needs is worked out again. `benchmarks/LOG.md` has what that gives.

In `half`, as autocast has it where a processor multiplies pairs of bfloat16 and has no matrix unit, the terms of products are rounded to bfloat16; all else stays float32.

Shapes: images_NCHW float32, in either order of memory; the block gives planes. look_C9, gain_C, shift_C, widen_HC with gates before values, H = 2C, narrow_CC,
scale_C; C a multiple of eight.
"""

import torch
from torch import Tensor

from nets.native import AMX, custom_op, each_net, eager, fast_halves, library, parts, shared

NAME = "gated_cpu"


def order(tensor: Tensor) -> torch.memory_format:
    """In which of two orders of memory a map lies; anything else becomes the first."""
    last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def dense(map_NCHW: Tensor) -> tuple[Tensor, bool]:
    """(the map in one of the two orders, whether its channels are last)."""
    memory = order(map_NCHW)
    return map_NCHW.contiguous(memory_format=memory), memory == torch.channels_last


def halves() -> bool:
    """Whether products are to be of bfloat16, and gain by it."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16 and not AMX and fast_halves(NAME)


def rows(matrix_IO: Tensor, half: bool) -> Tensor:
    """As C has it: I rows of O floats or, where `half`, I / 2 rows of O pairs of bfloat16, which look like floats here."""
    if not half:
        return matrix_IO.contiguous()
    return matrix_IO.bfloat16().unflatten(0, (-1, 2)).transpose(1, 2).contiguous().view(torch.float32).squeeze(-1)


def folded(gain_C: Tensor, shift_C: Tensor, widen_HC: Tensor, narrow_CC: Tensor, scale_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(widen with the norm's gain in it, what the norm's shift adds behind it, narrow with the scale in it)."""
    return widen_HC * gain_C, (widen_HC * shift_C).sum(1), narrow_CC * scale_C[:, None]  # autocast would have a product of matrices in half precision


@custom_op("tenfold::gated_block_cpu")
def gated_block(
    images_NCHW: Tensor, look_C9: Tensor, gain_C: Tensor, shift_C: Tensor, widen_HC: Tensor, narrow_CC: Tensor, scale_C: Tensor, eps: float, half: bool
) -> Tensor:
    """images + scale * narrow · (silu(gate) * value), of gate and value = widen · layer norm of the depthwise convolution; float32, planes."""
    (images, images_last), look = dense(images_NCHW), look_C9.contiguous()
    widen, bias, narrow = folded(gain_C, shift_C, widen_HC, narrow_CC, scale_C)
    out = images.new_empty(images.shape)
    shared(
        library(NAME).gated_forward,
        [images, out],
        [],
        [look, rows(widen.t(), half), bias, rows(narrow.t(), half), torch.tensor(eps)],
        images_last,
        *images.shape[1:],
        half,
    )
    return out


@gated_block.register_fake
def _(images, *others):
    return images.new_empty(images.shape)


@custom_op("tenfold::gated_block_cpu_backward")
def gated_block_backward(
    gradient: Tensor,
    images_NCHW: Tensor,
    look_C9: Tensor,
    gain_C: Tensor,
    shift_C: Tensor,
    widen_HC: Tensor,
    narrow_CC: Tensor,
    scale_C: Tensor,
    eps: float,
    half: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the images, which lies as they do, and of the parameters."""
    (images, images_last), (gradient, gradient_last), look = dense(images_NCHW), dense(gradient), look_C9.contiguous()
    widen, bias, narrow = folded(gain_C, shift_C, widen_HC, narrow_CC, scale_C)
    out = torch.empty_like(images)
    count, channels = images.shape[:2]
    sums = [images.new_empty((parts(count), *shape)) for shape in ((channels, 9), (2 * channels, channels), (2 * channels,), (channels, channels))]
    given = [look, rows(widen.t(), half), bias, rows(widen, half), rows(narrow, half), torch.tensor(eps)]
    shared(library(NAME).gated_backward, [images, gradient, out], sums, given, images_last, gradient_last, *images.shape[1:], half)
    of_look, of_widen, of_bias, of_narrow = (each.sum(0) for each in sums)
    return (
        out,
        of_look,
        (widen_HC * of_widen).sum(0),
        (widen_HC * of_bias[:, None]).sum(0),
        of_widen * gain_C + of_bias[:, None] * shift_C,
        of_narrow * scale_C[:, None],
        (of_narrow * narrow_CC).sum(1),
    )


@gated_block_backward.register_fake
def _(gradient, images, *others):
    return torch.empty_like(images, memory_format=order(images)), *(p.new_empty(p.shape) for p in others[:-2])


def keep(ctx, inputs, output) -> None:
    *tensors, ctx.eps, ctx.half = inputs
    ctx.save_for_backward(*tensors)


def go_back(ctx, gradient: Tensor):
    return *back_through(gradient, *ctx.saved_tensors, ctx.eps, ctx.half), None, None


gated_block.register_autograd(go_back, setup_context=keep)


for operator in (gated_block, gated_block_backward):
    operator.register_vmap(each_net(operator))

block, back_through = eager(gated_block, keep, go_back), eager(gated_block_backward)

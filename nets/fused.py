"""What speednet does between its convolutions, on a GPU: operators of torch on Triton kernels (`kernels.py`) that touch a map as seldom as can be.

Batch norm without scale and SiLU, with or without a 2x2 max-pool before them, and the whitening with its SiLU. torch.compile takes two to five times the time that
the bytes of these need: it reads a map once more for the statistics, and its backward pass of a pool works out the norm's gradient anew for each of a window's
four pixels (`benchmarks/LOG.md`). Here, for a map x and its pooled map p, a quarter of it,

    forward   x → p, places and sums · p → out
    backward  p and the gradient → sums · p, the gradient and places → that of x

A pool cuts off the last line of a map with an odd side, and the convolution in front of it need not work that out: a ninth of its arithmetic at 16 pixels and
more (7x7 to 3x3: a quarter). So where a map goes to such a convolution it is given an edge, the line of zeros above and to the left that a padding of one would
be, and is convolved without padding.

Shapes: images_NCHW in channels_last memory order; edged_NCHW with a line more above and to the left; stats float32[2,C], mean and variance (over all rows, not one less); pooled_NChw with h = H // 2 and w = W // 2;
place_NChw uint8, which of a window's four pixels, row by row.
"""

import torch
from torch.nn import functional as F

from nets.aside import aside
from nets.kernels import applied, gone_back, like, ordered, pool_kernel, sum_kernel, summed, whitened


@torch.library.custom_op("tenfold::norm_silu", mutates_args=())
def norm_silu(images_NCHW: torch.Tensor, bias_C: torch.Tensor, eps: float, edge: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(SiLU(batch norm of the images + bias), edged where it is wanted, stats)."""
    images = ordered(images_NCHW)
    stats = summed(sum_kernel, (images,), (), images[:, 0].numel(), images.shape[1], True)[:2]
    return applied(images, bias_C, stats, eps, edge=edge), stats


@norm_silu.register_fake
def _(images_NCHW, bias_C, eps, edge=False):
    count, channels, height, width = images_NCHW.shape
    return like(images_NCHW, count, channels, height + int(edge), width + int(edge)), images_NCHW.new_empty((2, channels), dtype=torch.float32)


@torch.library.custom_op("tenfold::norm_silu_backward", mutates_args=())
def norm_silu_backward(
    gradient: torch.Tensor, images_NCHW: torch.Tensor, bias_C: torch.Tensor, stats: torch.Tensor, eps: float, edge: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    images = ordered(images_NCHW)
    return gone_back(images, gradient, None, bias_C, stats, eps, torch.empty_like(images), edge)


@norm_silu_backward.register_fake
def _(gradient, images_NCHW, bias_C, stats, eps, edge=False):
    return like(images_NCHW, *images_NCHW.shape), torch.empty_like(stats[0])


@torch.library.custom_op("tenfold::pool_norm_silu", mutates_args=())
def pool_norm_silu(images_NCHW: torch.Tensor, bias_C: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(SiLU(batch norm of the pooled images + bias), stats, pooled, place)."""
    images = ordered(images_NCHW)
    count, channels, height, width = images.shape
    size = count, channels, height // 2, width // 2
    pooled, place = like(images, *size), like(images, *size, dtype=torch.uint8)
    stats = summed(pool_kernel, (images, pooled, place), (height, width), pooled[:, 0].numel(), channels, True)[:2]
    return applied(pooled, bias_C, stats, eps), stats, pooled, place


@pool_norm_silu.register_fake
def _(images_NCHW, bias_C, eps):
    count, channels, height, width = images_NCHW.shape
    size = count, channels, height // 2, width // 2
    stats = images_NCHW.new_empty((2, channels), dtype=torch.float32)
    return like(images_NCHW, *size), stats, like(images_NCHW, *size), like(images_NCHW, *size, dtype=torch.uint8)


@torch.library.custom_op("tenfold::pool_norm_silu_backward", mutates_args=())
def pool_norm_silu_backward(
    gradient: torch.Tensor, pooled: torch.Tensor, place: torch.Tensor, bias_C: torch.Tensor, stats: torch.Tensor, eps: float, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    pooled, place = ordered(pooled), ordered(place)
    return gone_back(pooled, gradient, place, bias_C, stats, eps, like(pooled, *pooled.shape[:2], height, width))


@pool_norm_silu_backward.register_fake
def _(gradient, pooled, place, bias_C, stats, eps, height, width):
    return like(pooled, *pooled.shape[:2], height, width), torch.empty_like(stats[0])


@torch.library.custom_op("tenfold::white", mutates_args=())
def white(images_NCHW: torch.Tensor, weight: torch.Tensor, bias_C: torch.Tensor, edge: bool = False) -> torch.Tensor:
    """SiLU(conv2d(images, weight, bias)), edged where it is wanted, in the images' dtype; without gradients, for a whitening that rests."""
    return whitened(ordered(images_NCHW), weight, bias_C, edge)


@white.register_fake
def _(images_NCHW, weight, bias_C, edge=False):
    count, _, height, length = images_NCHW.shape
    return like(images_NCHW, count, len(weight), height - weight.shape[2] + 1 + int(edge), length - weight.shape[3] + 1 + int(edge))


@white.register_vmap
def _(info, in_dims, images, weight, bias, edge=False):
    """Net by net: each has filters of its own."""
    each = [[t if dim is None else t.select(dim, i) for t, dim in zip((images, weight, bias), in_dims)] for i in range(info.batch_size)]
    return torch.stack([white(*given, edge) for given in each]), 0


@torch.library.custom_op("tenfold::halves", mutates_args=())
def halves(filters: list[torch.Tensor], inputs: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Filters in another dtype, in a launch or two; of so many inputs each, with zeros for those that it has not."""
    made = [like(f, len(f), count, *f.shape[2:], dtype=dtype) for f, count in zip(filters, inputs)]
    whole = [(half, f) for half, f in zip(made, filters) if half.shape == f.shape]
    for half, f in zip(made, filters):
        if half.shape != f.shape:
            half.zero_()[:, : f.shape[1]].copy_(f)
    if whole:
        torch._foreach_copy_([half for half, _ in whole], [f for _, f in whole])
    return made


@halves.register_fake
def _(filters, inputs, dtype):
    return [like(f, len(f), count, *f.shape[2:], dtype=dtype) for f, count in zip(filters, inputs)]


@torch.library.custom_op("tenfold::convolve", mutates_args=())
def convolve(images_NCHW: torch.Tensor, filters: torch.Tensor, half: torch.Tensor, padding: int) -> torch.Tensor:
    """conv2d(images, half): half is what `halves` made of the filters, in the images' dtype, and theirs is the gradient (`aside.py`)."""
    return ordered(F.conv2d(ordered(images_NCHW), half, padding=padding))


@convolve.register_fake
def _(images_NCHW, filters, half, padding):
    count, _, *size = images_NCHW.shape
    return like(images_NCHW, count, len(half), *(side + 2 * padding - kernel + 1 for side, kernel in zip(size, half.shape[2:])))


@torch.library.custom_op("tenfold::convolve_backward", mutates_args=())
def convolve_backward(
    gradient: torch.Tensor, images_NCHW: torch.Tensor, filters: torch.Tensor, half: torch.Tensor, padding: int, back: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of the images, and nothing where it is not to go `back` there; of the filters, in their dtype)."""
    given = ordered(gradient), ordered(images_NCHW), half
    settings = None, (1, 1), (padding, padding), (1, 1), False, (0, 0), 1

    def of_filters() -> torch.Tensor:
        made = torch.ops.aten.convolution_backward(*given, *settings, (False, True, False))[1]
        return like(filters, *filters.shape).copy_(made[:, : filters.shape[1]])

    apart = aside(of_filters, *given)
    return torch.ops.aten.convolution_backward(*given, *settings, (True, False, False))[0] if back else gradient.new_empty(0), apart


@convolve_backward.register_fake
def _(gradient, images_NCHW, filters, half, padding, back):
    return like(images_NCHW, *images_NCHW.shape) if back else gradient.new_empty(0), like(filters, *filters.shape)


def keep_convolved(ctx, inputs, output) -> None:
    *tensors, ctx.padding = inputs
    ctx.save_for_backward(*tensors)


def backward_convolved(ctx, gradient: torch.Tensor):
    back = ctx.needs_input_grad[0]
    of_images, of_filters = convolve_backward(gradient, *ctx.saved_tensors, ctx.padding, back)
    return of_images if back else None, of_filters, None, None


convolve.register_autograd(backward_convolved, setup_context=keep_convolved)


def keep(ctx, inputs, output) -> None:
    images, bias, ctx.eps, ctx.edge = inputs
    ctx.set_materialize_grads(False)  # only `out` has a gradient
    ctx.save_for_backward(images, bias, output[1])


def backward(ctx, gradient: torch.Tensor, *_):
    images, bias, stats = ctx.saved_tensors
    return *norm_silu_backward(gradient, images, bias, stats, ctx.eps, ctx.edge), None, None


def keep_pooled(ctx, inputs, output) -> None:
    images, bias, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.size = images.shape[2:]
    ctx.save_for_backward(bias, *output[1:])


def backward_pooled(ctx, gradient: torch.Tensor, *_):
    bias, stats, pooled, place = ctx.saved_tensors
    return *pool_norm_silu_backward(gradient, pooled, place, bias, stats, ctx.eps, *ctx.size), None


norm_silu.register_autograd(backward, setup_context=keep)
pool_norm_silu.register_autograd(backward_pooled, setup_context=keep_pooled)


def each_net(operator):
    """A rule for `torch.func.vmap`: the nets' channels side by side, since no channel knows of another."""

    def rule(info, in_dims, *given):
        def merged(value, dim):
            if not torch.is_tensor(value):
                return value
            side = 0 if value.ndim - (dim is not None) == 1 else 1  # where channels lie: of a bias, of anything else
            value = value.movedim(dim, side) if dim is not None else value.unsqueeze(side).expand(*value.shape[:side], info.batch_size, *value.shape[side:])
            return value.flatten(side, side + 1)

        results = operator(*map(merged, given, in_dims))
        sides = [0 if value.ndim == 1 else 1 for value in results]
        parted = tuple(value.unflatten(side, (info.batch_size, -1)) for value, side in zip(results, sides))
        return parted, tuple(sides)

    return rule


for operator in (norm_silu, norm_silu_backward, pool_norm_silu, pool_norm_silu_backward):
    operator.register_vmap(each_net(operator))

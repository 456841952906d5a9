"""Max-pooling of 2x2 windows for training on a GPU, in Triton.

torch.compile makes one kernel of the pool's backward pass and the batch norm's behind it, which works out the norm's gradient anew for each
of a window's four pixels: on an H100 it took 507 us of a 6.2 ms step where its bytes need some 110. Here the pool is an operator of its
own, in memory order N,H,W,C, that reads and writes each value once.

Shapes: images_NCHW in channels_last memory order, pooled_NChw with h = H // 2 and w = W // 2, place_NChw uint8, which of a window's four pixels (row by row).
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

TILE = 2048  # values of a program: some 16 a thread, so that loads are 16 bytes wide in half precision


@triton.jit
def pool_kernel(images, pooled, place, count, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr):
    """`count` windows, PIXELS a program, WIDTH channels (a power of two, at least C) each."""
    window = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = (window < count) & (channel < C)
    h: tl.constexpr = H // 2
    w: tl.constexpr = W // 2
    first = ((window // (h * w)).to(tl.int64) * H + 2 * (window // w % h)) * W + 2 * (window % w)
    corner = images + first * C + channel
    best = tl.load(corner, mask=inside, other=0.0)
    chosen = tl.zeros([PIXELS, WIDTH], tl.uint8)
    for k in tl.static_range(1, 4):
        value = tl.load(corner + (k // 2 * W + k % 2) * C, mask=inside, other=0.0)
        better = (value > best) | (value != value)  # as torch's: the first of equal ones, and no number where there is one
        best = tl.where(better, value, best)
        chosen = tl.where(better, k, chosen).to(tl.uint8)
    at = window.to(tl.int64) * C + channel
    tl.store(pooled + at, best, mask=inside)
    tl.store(place + at, chosen, mask=inside)


@triton.jit
def unpool_kernel(gradient, place, out, count, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr):
    """The same of the gradient; `count` windows of ceil(H / 2) x ceil(W / 2) an image, the last row and column of an odd side among them."""
    window = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = (window < count) & (channel < C)
    h: tl.constexpr = (H + 1) // 2
    w: tl.constexpr = (W + 1) // 2
    image, y, x = (window // (h * w)).to(tl.int64), window // w % h, window % w
    whole = inside & (y < H // 2) & (x < W // 2)
    at = ((image * (H // 2) + y) * (W // 2) + x) * C + channel
    value = tl.load(gradient + at, mask=whole, other=0.0)
    chosen = tl.load(place + at, mask=whole, other=4)
    corner = out + ((image * H + 2 * y) * W + 2 * x) * C + channel
    for k in tl.static_range(4):
        there = inside & (2 * y + k // 2 < H) & (2 * x + k % 2 < W)
        tl.store(corner + (k // 2 * W + k % 2) * C, tl.where(chosen == k, value, 0.0).to(value.dtype), mask=there)


def launch(kernel, tensors: tuple[torch.Tensor, ...], windows: int, shape: torch.Size) -> None:
    """Run a kernel over `windows` windows of images of `shape`, [N,C,H,W]."""
    _, channels, height, width = shape
    wide = triton.next_power_of_2(channels)
    pixels = max(1, TILE // wide)
    kernel[(triton.cdiv(windows, pixels),)](*tensors, windows, height, width, channels, pixels, wide)


@torch.library.custom_op("tenfold::max_pool", mutates_args=())
def max_pool(images_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(pooled, place); what `torch.nn.functional.max_pool2d(images, 2)` gives, and its gradient, to the bit."""
    images = images_NCHW.contiguous(memory_format=torch.channels_last)
    pooled, place = empty(images)
    launch(pool_kernel, (images, pooled, place), pooled[:, 0].numel(), images.shape)
    return pooled, place


@max_pool.register_fake
def empty(images_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count, channels, height, width = images_NCHW.shape
    pooled, place = (
        torch.empty((count, channels, height // 2, width // 2), dtype=dtype, device=images_NCHW.device, memory_format=torch.channels_last)
        for dtype in (images_NCHW.dtype, torch.uint8)
    )
    return pooled, place


@torch.library.custom_op("tenfold::max_unpool", mutates_args=())
def max_unpool(gradient_NChw: torch.Tensor, place_NChw: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[N,C,H,W]: each gradient at its window's place, zero elsewhere."""
    gradient, place = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (gradient_NChw, place_NChw))
    out = wide_empty(gradient, place, height, width)
    launch(unpool_kernel, (gradient, place, out), len(out) * -(-height // 2) * -(-width // 2), out.shape)
    return out


@max_unpool.register_fake
def wide_empty(gradient_NChw: torch.Tensor, place_NChw: torch.Tensor, height: int, width: int) -> torch.Tensor:
    shape = (*gradient_NChw.shape[:2], height, width)
    return torch.empty(shape, dtype=gradient_NChw.dtype, device=gradient_NChw.device, memory_format=torch.channels_last)


def keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1])
    ctx.size = inputs[0].shape[2:]


def backward(ctx, gradient: torch.Tensor, _) -> torch.Tensor:
    return max_unpool(gradient, ctx.saved_tensors[0], *ctx.size)


max_pool.register_autograd(backward, setup_context=keep)


class MaxPool(torch.nn.MaxPool2d):
    """nn.MaxPool2d(2), by this module's kernels where it trains on CUDA."""

    def __init__(self):
        super().__init__(2)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        if self.training and images_NCHW.is_cuda:
            return max_pool(images_NCHW)[0]
        return F.max_pool2d(images_NCHW, 2)

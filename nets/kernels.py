"""The kernels of `fused.py`, in Triton, and what launches them.

A program works on a tile of rows times all channels, so that it loads and stores whole stretches of memory. Sums are of parts of the rows, one a program, in
float32, and added up in a fixed order: the same bits every time.

Shapes: images_NCHW in channels_last memory order, as a matrix [rows, C]; a pooled map has h = H // 2 and w = W // 2; place uint8, which of a window's four
pixels, row by row; stats float32[2,C], mean and variance (over all rows, not one less); part float32[P,2,C]. An edged map has a line of zeros above and one to
the left of its own (`fused.py` says what for).
"""

import torch
import triton
import triton.language as tl

TILE, WARPS = 2048, 8  # values that a program works on at a time: 8 a thread, 16 bytes in half precision, few registers, so that several programs find room
PROGRAMS = 396  # of those that sum: three for each multiprocessor of an H100, as many as find room at once
AHEAD = tl.constexpr(4)  # of those that sum: three tiles are on their way to shared memory while one is worked on; a compiler left alone waits for each
FEW = 4  # channels that a program adds up the parts of: all its loads are on their way at once


@triton.jit
def sigmoid(z):
    """Of float32, by five instructions: a division takes twice as many. Below -44 the square is infinite, and what comes out 0."""
    more = 1 + tl.exp2(z * -1.4426950408889634)
    return tl.rsqrt(more * more)


@triton.jit
def silu_gradient(z, gradient):
    """The gradient of z where `gradient` is that of z * sigmoid(z)."""
    share = sigmoid(z)
    return gradient.to(tl.float32) * (share * (z * (1 - share) + 1))


@triton.jit
def columns(stats, bias, eps, channel, C: tl.constexpr):
    """(1 / deviation, -mean / deviation, that with the bias) of channels, float32: of a value x the first times x and the second is the normalised one, and with
    the third for the second what SiLU is given."""
    there = channel < C
    mean = tl.load(stats + channel, mask=there, other=0.0)
    variance = tl.load(stats + C + channel, mask=there, other=1.0)
    scale = tl.rsqrt(variance + eps)
    return scale, -mean * scale, tl.load(bias + channel, mask=there, other=0.0).to(tl.float32) - mean * scale


@triton.jit
def largest(images, window, channel, inside, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """(value, which pixel) of windows, float32 and uint8."""
    h: tl.constexpr = H // 2
    w: tl.constexpr = W // 2
    first = ((window // (h * w)).to(tl.int64) * H + 2 * (window // w % h)) * W + 2 * (window % w)
    corner = images + first * C + channel
    best = tl.load(corner, mask=inside, other=0.0).to(tl.float32)
    chosen = tl.zeros(best.shape, tl.uint8)
    for k in tl.static_range(1, 4):
        value = tl.load(corner + (k // 2 * W + k % 2) * C, mask=inside, other=0.0).to(tl.float32)
        better = (value > best) | (value != value)  # as torch's: the first of equal ones, and no number where there is one
        best = tl.where(better, value, best)
        chosen = tl.where(better, k, chosen).to(tl.uint8)
    return best, chosen


@triton.jit
def keep_sums(part, first, second, C: tl.constexpr, WIDTH: tl.constexpr):
    """Write the sums over the rows of two tiles to this program's part."""
    channel = tl.arange(0, WIDTH)
    own = part + tl.program_id(0) * 2 * C + channel
    tl.store(own, tl.sum(first, 0), mask=channel < C)
    tl.store(own + C, tl.sum(second, 0), mask=channel < C)


@triton.jit
def pool_kernel(images, pooled, place, part, count, tiles, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Pool `count` windows, `tiles` of ROWS windows a program, and sum what comes out and its squares."""
    channel = tl.arange(0, WIDTH)[None, :]
    total, squares = tl.zeros([ROWS, WIDTH], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    for tile in tl.range(tiles, num_stages=AHEAD):
        window = (tl.program_id(0) * tiles + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (window < count) & (channel < C)
        best, chosen = largest(images, window, channel, inside, H, W, C)
        at = window.to(tl.int64) * C + channel
        tl.store(pooled + at, best.to(pooled.dtype.element_ty), mask=inside)
        tl.store(place + at, chosen, mask=inside)
        total += best
        squares += best * best
    keep_sums(part, total, squares, C, WIDTH)


@triton.jit
def sum_kernel(images, part, count, tiles, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum `count` rows and their squares."""
    channel = tl.arange(0, WIDTH)[None, :]
    total, squares = tl.zeros([ROWS, WIDTH], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    for tile in tl.range(tiles, num_stages=AHEAD):
        row = (tl.program_id(0) * tiles + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        value = tl.load(images + row.to(tl.int64) * C + channel, mask=(row < count) & (channel < C), other=0.0).to(tl.float32)
        total += value
        squares += value * value
    keep_sums(part, total, squares, C, WIDTH)


@triton.jit
def within(row, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Where rows of [N,H,W,C] begin in an edged map."""
    return ((row // (H * W)).to(tl.int64) * (H + 1) * (W + 1) + (row // W % H + 1) * (W + 1) + row % W + 1) * C


@triton.jit
def finish_kernel(part, out, parts, count, C: tl.constexpr, SQUARES: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """out float32[3,C]: means over `count` rows of what `parts` programs summed, with SQUARES the second a variance, from means of squares; and the first sums."""
    channel = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    first, second = tl.zeros([PARTS, WIDTH], tl.float32), tl.zeros([PARTS, WIDTH], tl.float32)
    for begin in range(0, parts, PARTS):
        row = begin + tl.arange(0, PARTS)[:, None]
        inside = (row < parts) & (channel < C)[None, :]
        at = part + row * 2 * C + channel[None, :]
        first += tl.load(at, mask=inside, other=0.0)
        second += tl.load(at + C, mask=inside, other=0.0)
    sums = tl.sum(first, 0)
    mean, other = sums / count, tl.sum(second, 0) / count
    if SQUARES:
        other = tl.maximum(other - mean * mean, 0.0)
    tl.store(out + channel, mean, mask=channel < C)
    tl.store(out + C + channel, other, mask=channel < C)
    tl.store(out + 2 * C + channel, sums, mask=channel < C)


@triton.jit
def apply_kernel(
    images, stats, bias, out, eps, count,
    POOLED: tl.constexpr, EDGE: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """SiLU of the norm of `count` rows, with POOLED of as many windows of [N,H,W,C]; with EDGE `count` rows of the edged map of those that [N,H,W,C] has."""
    channel = tl.arange(0, WIDTH)[None, :]
    scale, _, start = columns(stats, bias, eps, channel, C)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (row < count) & (channel < C)
    at = row.to(tl.int64) * C + channel
    known = inside
    if POOLED:
        x, _ = largest(images, row, channel, inside, H, W, C)
    elif EDGE:
        y, across = row // (W + 1) % (H + 1), row % (W + 1)
        known = inside & (y > 0) & (across > 0)
        image = (row // ((H + 1) * (W + 1))).to(tl.int64)
        x = tl.load(images + ((image * H + y - 1) * W + across - 1) * C + channel, mask=known, other=0.0)
    else:
        x = tl.load(images + at, mask=inside, other=0.0)
    z = x.to(tl.float32) * scale + start
    tl.store(out + at, tl.where(known, z * sigmoid(z), 0.0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def back_sum_kernel(
    images, gradient, stats, bias, eps, part, count, tiles,
    EDGE: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sum the gradients behind the norm, and their products with the normalised values. With EDGE the gradient is that of an edged map of [N,H,W,C]."""
    channel = tl.arange(0, WIDTH)[None, :]
    scale, centre, start = columns(stats, bias, eps, channel, C)
    total, products = tl.zeros([ROWS, WIDTH], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    for tile in tl.range(tiles, num_stages=AHEAD):
        row = (tl.program_id(0) * tiles + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < count) & (channel < C)
        first = row.to(tl.int64) * C
        there = within(row, C, H, W) if EDGE else first
        x = tl.load(images + first + channel, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(gradient + there + channel, mask=inside, other=0.0)
        behind = silu_gradient(x * scale + start, given)
        total += behind
        products += behind * (x * scale + centre)
    keep_sums(part, total, products, C, WIDTH)


@triton.jit
def back_kernel(
    images, gradient, place, stats, bias, means, out, eps, count,
    POOLED: tl.constexpr, EDGE: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient before the norm; with POOLED that before the pool, [N,H,W,C], whose windows are counted with those that an odd side cuts off. With EDGE what is
    given is that of an edged map of [N,H,W,C]."""
    channel = tl.arange(0, WIDTH)[None, :]
    scale, centre, start = columns(stats, bias, eps, channel, C)
    mean_of_gradients = tl.load(means + channel, mask=channel < C, other=0.0)
    mean_of_products = tl.load(means + C + channel, mask=channel < C, other=0.0)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (row < count) & (channel < C)
    if POOLED:
        h: tl.constexpr = (H + 1) // 2
        w: tl.constexpr = (W + 1) // 2
        image, y, x = (row // (h * w)).to(tl.int64), row // w % h, row % w
        whole = inside & (y < H // 2) & (x < W // 2)
        at = ((image * (H // 2) + y) * (W // 2) + x) * C + channel
    else:
        whole = inside
        at = row.to(tl.int64) * C + channel
    there = within(row, C, H, W) + channel if EDGE else at
    value, given = tl.load(images + at, mask=whole, other=0.0).to(tl.float32), tl.load(gradient + there, mask=whole, other=0.0)
    behind = silu_gradient(value * scale + start, given)
    slope = scale * mean_of_products  # scale * (behind - mean of gradients - normalised * mean of products), with what is the same for all rows put together
    before = (scale * behind - (value * (scale * slope) + (scale * mean_of_gradients + centre * slope))).to(out.dtype.element_ty)
    if POOLED:
        chosen = tl.load(place + at, mask=whole, other=4)
        corner = out + ((image * H + 2 * y) * W + 2 * x) * C + channel
        for k in tl.static_range(4):
            there = inside & (2 * y + k // 2 < H) & (2 * x + k % 2 < W)
            tl.store(corner + (k // 2 * W + k % 2) * C, tl.where(chosen == k, before, 0.0).to(out.dtype.element_ty), mask=there)
    else:
        tl.store(out + at, before, mask=whole)


@triton.jit
def white_kernel(
    images, filters, bias, out,
    HEIGHT: tl.constexpr, LENGTH: tl.constexpr, COLOURS: tl.constexpr, SIDE: tl.constexpr, C: tl.constexpr, EDGE: tl.constexpr,
    LINES: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """SiLU of a convolution of few colours, no padding: LINES lines of an image, by a product of matrices, patches and filters in the images' dtype.
    filters [SIDE * SIDE * COLOURS, C], in the order of memory; LINES, WIDE, a line's pixels, DEPTH, a filter's values, and WIDTH are powers of two that hold them:
    where a pixel lies then takes shifts, not divisions, which were half of all instructions. With EDGE, 0 or 1, `out` is edged."""
    channel, value = tl.arange(0, WIDTH)[None, :], tl.arange(0, DEPTH)
    known, there = channel < C, value < SIDE * SIDE * COLOURS
    h: tl.constexpr = HEIGHT - SIDE + 1 + EDGE
    w: tl.constexpr = LENGTH - SIDE + 1 + EDGE
    blocks: tl.constexpr = (h + LINES - 1) // LINES
    image, spot = (tl.program_id(0) // blocks).to(tl.int64), tl.arange(0, LINES * WIDE)[:, None]
    y, x = tl.program_id(0) % blocks * LINES + spot // WIDE, spot % WIDE
    inside = (y < h) & (x < w)
    known_there = inside & (y >= EDGE) & (x >= EDGE)
    corner = images + image * HEIGHT * LENGTH * COLOURS + ((y - EDGE) * LENGTH + x - EDGE) * COLOURS
    aside = value // (SIDE * COLOURS) * LENGTH * COLOURS + value % (SIDE * COLOURS)
    patches = tl.load(corner + aside[None, :], mask=known_there & there[None, :], other=0.0)
    kernel = tl.load(filters + value[:, None] * C + channel, mask=there[:, None] & known, other=0.0)
    z = tl.dot(patches, kernel, input_precision="ieee") + tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    active = tl.where(known_there, z * sigmoid(z), 0.0)
    tl.store(out + image * h * w * C + (y * w + x) * C + channel, active.to(out.dtype.element_ty), mask=inside & known)


def wide(channels: int, values: int = TILE) -> tuple[int, int]:
    """(ROWS, WIDTH) of a tile."""
    width = triton.next_power_of_2(channels)
    return max(1, values // width), width


def like(images: torch.Tensor, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An empty map in channels_last order."""
    return torch.empty(size, dtype=dtype or images.dtype, device=images.device, memory_format=torch.channels_last)


def ordered(images: torch.Tensor) -> torch.Tensor:
    """The map in channels_last order."""
    return images.contiguous(memory_format=torch.channels_last)


def summed(kernel, tensors: tuple, last: tuple, rows: int, channels: int, squares: bool) -> torch.Tensor:
    """float32[3,C]: what `kernel`, which sums over parts of the rows, gives on the mean, and the first sums. last: its arguments behind `tiles`, but for the tile's
    size."""
    tall, width = wide(channels)
    tiles = triton.cdiv(triton.cdiv(rows, tall), PROGRAMS)
    programs = triton.cdiv(triton.cdiv(rows, tall), tiles)
    part = torch.empty((programs, 2, channels), device=tensors[0].device)
    out = torch.empty((3, channels), device=tensors[0].device)
    kernel[(programs,)](*tensors, part, rows, tiles, *last, channels, tall, width, num_warps=WARPS)
    finish_kernel[(triton.cdiv(channels, FEW),)](part, out, programs, rows, channels, squares, triton.next_power_of_2(PROGRAMS), FEW, num_warps=WARPS)
    return out


def applied(images: torch.Tensor, bias: torch.Tensor, stats: torch.Tensor, eps: float, pooled: bool = False, edge: bool = False) -> torch.Tensor:
    """SiLU(norm of the images, or of the pooled images, + bias), with statistics that are known, as in a test pass; `edge`d where it is wanted."""
    count, channels, height, width = images.shape
    out = like(images, count, channels, height // 2, width // 2) if pooled else like(images, count, channels, height + edge, width + edge)
    rows, (tall, wideness) = out[:, 0].numel(), wide(channels, 2 * TILE)
    apply_kernel[(triton.cdiv(rows, tall),)](images, stats, bias, out, eps, rows, pooled, edge, height, width, channels, tall, wideness, num_warps=WARPS)
    return out


def gone_back(
    images: torch.Tensor,
    gradient: torch.Tensor,
    place: torch.Tensor | None,
    bias: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    edge: bool = False,
):
    """(gradient of `out`'s map, written there, and of the bias). The gradient that is given is that of an edged map, with `edge`."""
    rows, channels = images[:, 0].numel(), images.shape[1]
    gradient, size = ordered(gradient), images.shape[2:]
    means = summed(back_sum_kernel, (images, gradient, stats, bias, eps), (edge, *size), rows, channels, False)
    tall, width = wide(channels)
    height, wideness = out.shape[2:]
    count = rows if place is None else len(out) * -(-height // 2) * -(-wideness // 2)
    tensors = images, gradient, images if place is None else place, stats, bias, means, out
    back_kernel[(triton.cdiv(count, tall),)](*tensors, eps, count, place is not None, edge, height, wideness, channels, tall, width, num_warps=WARPS)
    return out, means[2]


def whitened(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, edge: bool = False) -> torch.Tensor:
    """SiLU of the convolution with `weight`, [C, colours, side, side], and bias; `edge`d where it is wanted."""
    channels, colours, side, _ = weight.shape
    height, length = images.shape[2:]
    high, long = height - side + 1 + edge, length - side + 1 + edge
    out = like(images, len(images), channels, high, long)
    filters = weight.to(images.dtype).permute(2, 3, 1, 0).reshape(-1, channels).contiguous()
    depth, width = (max(16, triton.next_power_of_2(n)) for n in filters.shape)  # a matrix unit's least
    line = triton.next_power_of_2(long)
    lines = max(1, 4 * TILE // (width * line), 16 // line)
    programs = len(images) * triton.cdiv(high, lines)
    white_kernel[(programs,)](images, filters, bias, out, height, length, colours, side, channels, int(edge), lines, line, depth, width, num_warps=WARPS)
    return out

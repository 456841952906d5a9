"""The kernels of `gated.py`, in Triton, and what launches them: a tiny net's block, forward in one kernel and backward in two.

A program works on tiles of pixels times all channels of a net, one after another, with the block's filters at hand. What lies between the map that comes and the one that
goes stays in registers, and is worked out again on the way back; a pixel's neighbours are loaded as often as they are looked at, from the nearest cache. Sums over pixels
are of parts, one a program, in float32, and added up in a fixed order: the same bits every time.

Shapes: images_NCHW in channels_last memory order, with the channels of G nets side by side, C of each; filters float32[G,9,C], widen [G,2C,C] and bias [G,2C]
with gates before values, narrow [G,C,C].
"""

import torch
import triton
import triton.language as tl

from nets.kernels import ordered, sigmoid

PROGRAMS = 264  # at most, of those that sum: two for each multiprocessor of an H100, as many as find room; of others twice as many
LEAST = tl.constexpr(16)  # of a side of a product of matrices
MOST = 64  # channels, whose filters' sums lie in registers
PIXELS, WARPS = 64, 4  # of a tile with products of matrices: the rows that Hopper's unit takes from so many warps
LOOK_VALUES, LOOK_WARPS = 2048, 8  # of one without


@triton.jit
def places(tile, count, H: tl.constexpr, W: tl.constexpr, P: tl.constexpr):
    """(inside, y, x) of a tile's pixels, [P,1]."""
    pixel = tile * P + tl.arange(0, P)[:, None]
    return pixel < count, pixel // W % H, pixel % W


@triton.jit
def moved(first, spot, known, y, x, down: tl.constexpr, right: tl.constexpr, H: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr):
    """A tile's pixels' neighbours, float32; nothing beyond the edges. known: of which there are any."""
    there = known & (y + down >= 0) & (y + down < H) & (x + right >= 0) & (x + right < W)
    return tl.load(first + spot + (down * W + right) * STRIDE, mask=there, other=0.0).to(tl.float32)


@triton.jit
def looked_at(first, filters, spot, known, y, x, channel, H: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr, C: tl.constexpr):
    """The depthwise convolution of a tile, float32."""
    total = tl.zeros(known.shape, tl.float32)
    for k in tl.static_range(9):
        weight = tl.load(filters + k * C + channel, mask=channel < C, other=0.0)
        total += weight * moved(first, spot, known, y, x, k // 3 - 1, k % 3 - 1, H, W, STRIDE)
    return total


@triton.jit
def normalised(looked, channel, eps, C: tl.constexpr):
    """(values of mean 0 and variance 1 over a pixel's channels, 1 / deviation)."""
    centred = tl.where(channel < C, looked - tl.sum(looked, 1, keep_dims=True) / C, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / C + eps)
    return centred * scale, scale


@triton.jit
def square(matrix, C: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr):
    """A matrix [C,C], filled up with zeros."""
    row, column = tl.arange(0, WIDTH)[:, None], tl.arange(0, WIDTH)[None, :]
    return tl.load(matrix + row * C + column, mask=(row < C) & (column < C), other=0.0).to(KIND)


@triton.jit
def product(a, b):
    """In the operands' dtype, summed in float32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def halves(widen, bias, channel, C: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr):
    """(filters of the gates, of the values, biases of the gates, of the values)."""
    ours = channel < C
    biases = tl.load(bias + channel, mask=ours, other=0.0), tl.load(bias + C + channel, mask=ours, other=0.0)
    return square(widen, C, WIDTH, KIND), square(widen + C * C, C, WIDTH, KIND), biases[0], biases[1]


@triton.jit
def block_kernel(
    images, filters, widen, bias, narrow, out, eps, count, tiles,
    H: tl.constexpr, W: tl.constexpr, NETS: tl.constexpr, C: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """images + narrow(silu(gate) * value) of `count` pixels, `tiles` of P a program."""
    net = tl.program_id(1)
    kind: tl.constexpr = images.dtype.element_ty
    stride: tl.constexpr = NETS * C
    channel = tl.arange(0, WIDTH)[None, :]
    to_gate, to_value, gate_bias, value_bias = halves(widen + net * 2 * C * C, bias + net * 2 * C, channel, C, WIDTH, kind)
    back = square(narrow + net * C * C, C, WIDTH, kind)
    spot = tl.arange(0, P)[:, None] * stride + channel
    for i in range(tiles):
        tile = i * tl.num_programs(0) + tl.program_id(0)
        first = tile.to(tl.int64) * (P * stride) + net * C
        inside, y, x = places(tile, count, H, W, P)
        known = inside & (channel < C)
        looked = looked_at(images + first, filters + net * 9 * C, spot, known, y, x, channel, H, W, stride, C)
        seen = normalised(looked, channel, eps, C)[0].to(kind)
        gate = product(seen, tl.trans(to_gate)) + gate_bias
        hidden = (gate * sigmoid(gate) * (product(seen, tl.trans(to_value)) + value_bias)).to(kind)
        whole = tl.load(images + first + spot, mask=known, other=0.0).to(tl.float32) + product(hidden, tl.trans(back))
        tl.store(out + first + spot, whole.to(kind), mask=known)


@triton.jit
def back_kernel(
    images, gradient, filters, widen, bias, narrow, out, part, eps, count, tiles,
    H: tl.constexpr, W: tl.constexpr, NETS: tl.constexpr, C: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out: the gradient behind the depthwise convolution. part [programs, NETS, 3C+11, C]: of the gradients of widen, narrow and bias, in its first rows."""
    net = tl.program_id(1)
    kind: tl.constexpr = images.dtype.element_ty
    stride: tl.constexpr = NETS * C
    channel = tl.arange(0, WIDTH)[None, :]
    to_gate, to_value, gate_bias, value_bias = halves(widen + net * 2 * C * C, bias + net * 2 * C, channel, C, WIDTH, kind)
    back = square(narrow + net * C * C, C, WIDTH, kind)
    of_gate, of_value, of_back = tl.zeros([WIDTH, WIDTH], tl.float32), tl.zeros([WIDTH, WIDTH], tl.float32), tl.zeros([WIDTH, WIDTH], tl.float32)
    ones = tl.full([P, LEAST], 1.0, kind)  # sums over a tile's pixels are products of matrices, too: in registers they would take as many as the tile
    of_gate_bias, of_value_bias = tl.zeros([WIDTH, LEAST], tl.float32), tl.zeros([WIDTH, LEAST], tl.float32)
    spot = tl.arange(0, P)[:, None] * stride + channel
    for i in range(tiles):
        tile = i * tl.num_programs(0) + tl.program_id(0)
        first = tile.to(tl.int64) * (P * stride) + net * C
        inside, y, x = places(tile, count, H, W, P)
        known = inside & (channel < C)
        given = tl.load(gradient + first + spot, mask=known, other=0.0)
        looked = looked_at(images + first, filters + net * 9 * C, spot, known, y, x, channel, H, W, stride, C)
        values, scale = normalised(looked, channel, eps, C)
        seen = values.to(kind)
        gate, value = product(seen, tl.trans(to_gate)) + gate_bias, product(seen, tl.trans(to_value)) + value_bias
        share = sigmoid(gate)
        active = gate * share
        of_back += product(tl.trans(given), (active * value).to(kind))
        before = product(given, back)
        by_gate = (before * value * (share * (gate * (1 - share) + 1))).to(kind)
        by_value = (before * active).to(kind)
        of_gate += product(tl.trans(by_gate), seen)
        of_value += product(tl.trans(by_value), seen)
        of_gate_bias += product(tl.trans(by_gate), ones)
        of_value_bias += product(tl.trans(by_value), ones)
        behind = product(by_gate, to_gate) + product(by_value, to_value)
        centre = tl.sum(behind, 1, keep_dims=True) / C
        slope = tl.sum(behind * values, 1, keep_dims=True) / C
        tl.store(out + first + spot, (scale * (behind - centre - values * slope)).to(kind), mask=known)
    row, column = tl.arange(0, WIDTH)[:, None], tl.arange(0, WIDTH)[None, :]
    whole = (row < C) & (column < C)
    own = part + (tl.program_id(0) * NETS + net) * (3 * C + 11) * C
    tl.store(own + row * C + column, of_gate, mask=whole)
    tl.store(own + C * C + row * C + column, of_value, mask=whole)
    tl.store(own + 2 * C * C + row * C + column, of_back, mask=whole)
    one = tl.arange(0, LEAST)[None, :]  # all columns are the same
    tl.store(own + 3 * C * C + row + one, of_gate_bias, mask=(row < C) & (one == 0))
    tl.store(own + 3 * C * C + C + row + one, of_value_bias, mask=(row < C) & (one == 0))


@triton.jit
def look_kernel(
    images, gradient, behind, filters, out, part, count, tiles,
    H: tl.constexpr, W: tl.constexpr, NETS: tl.constexpr, C: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out: the gradient of the images, from that of what came out and that `behind` the depthwise convolution. part [programs, NETS, 3C+11, C]: of its filters', in its last rows."""
    net = tl.program_id(1)
    stride: tl.constexpr = NETS * C
    channel = tl.arange(0, WIDTH)[None, :]
    spot = tl.arange(0, P)[:, None] * stride + channel
    a = tl.zeros([P, WIDTH], tl.float32)
    sums = (a, a, a, a, a, a, a, a, a)
    for i in range(tiles):
        tile = i * tl.num_programs(0) + tl.program_id(0)
        first = tile.to(tl.int64) * (P * stride) + net * C
        inside, y, x = places(tile, count, H, W, P)
        known = inside & (channel < C)
        image = tl.load(images + first + spot, mask=known, other=0.0).to(tl.float32)
        total = tl.load(gradient + first + spot, mask=known, other=0.0).to(tl.float32)
        added = ()
        for k in tl.static_range(9):  # what a pixel has from the outputs whose k-th neighbour it is
            from_there = moved(behind + first, spot, known, y, x, 1 - k // 3, 1 - k % 3, H, W, stride)
            total += tl.load(filters + (net * 9 + k) * C + channel, mask=channel < C, other=0.0) * from_there
            added = added + (sums[k] + image * from_there,)
        sums = added
        tl.store(out + first + spot, total.to(out.dtype.element_ty), mask=known)
    own = part + (tl.program_id(0) * NETS + net) * (3 * C + 11) * C + (3 * C + 2) * C
    for k in tl.static_range(9):
        tl.store(own + k * C + channel, tl.sum(sums[k], 0)[None, :], mask=channel < C)


def launch(kernel, images: torch.Tensor, tensors: tuple, numbers: tuple, nets: int, pixels: int, warps: int, programs: int) -> None:
    """Have `programs` a net go over all pixels, so many a tile."""
    count, channels, height, length = images.shape
    total = count * height * length
    shape = height, length, nets, channels // nets, pixels, width_of(channels // nets)
    # no stages: loads that wait in shared memory would leave room for a single program
    kernel[(programs, nets)](*tensors, *numbers, total, triton.cdiv(triton.cdiv(total, pixels), programs), *shape, num_warps=warps, num_stages=1)


def width_of(channels: int) -> int:
    return triton.next_power_of_2(max(LEAST.value, channels))


def programs_of(images: torch.Tensor, nets: int, most: int = PROGRAMS) -> int:
    """How many a net: no more than there are tiles."""
    return max(1, min(most // nets, triton.cdiv(images[:, 0].numel(), PIXELS)))


def forward(images: torch.Tensor, parameters: tuple[torch.Tensor, ...], eps: float) -> torch.Tensor:
    """The block's images, in channels_last order."""
    images, nets = ordered(images), len(parameters[0])
    out = torch.empty_like(images)
    launch(block_kernel, images, (images, *parameters, out), (eps,), nets, PIXELS, WARPS, programs_of(images, nets, 2 * PROGRAMS))
    return out


def backward(gradient: torch.Tensor, images: torch.Tensor, parameters: tuple[torch.Tensor, ...], eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of the images, float32[G,3C+11,C] with those of widen, narrow, bias and filters)."""
    images, nets = ordered(images), len(parameters[0])
    gradient = ordered(gradient.to(images.dtype))
    channels, programs = images.shape[1] // nets, programs_of(images, nets)
    behind, out = torch.empty_like(images), torch.empty_like(images)
    parts = torch.empty((programs, nets, 3 * channels + 11, channels), device=images.device)
    launch(back_kernel, images, (images, gradient, *parameters, behind, parts), (eps,), nets, PIXELS, WARPS, programs)
    pixels = LOOK_VALUES // width_of(channels)
    launch(look_kernel, images, (images, gradient, behind, parameters[0], out, parts), (), nets, pixels, LOOK_WARPS, programs)
    return out, parts.sum(0)

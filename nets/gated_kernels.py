"""The kernels of `gated.py`, in Triton, and what launches them: a tiny net's block, forward in one kernel, backward in two, and one for the parameters' gradients.

A program works on tiles of pixels times all channels of a net, one after another, with the block's filters at hand. What lies between the map that comes and the one that
goes stays in registers, and is worked out again on the way back; a pixel's neighbours are loaded as often as they are looked at, from the nearest cache. Sums over pixels
are of parts, one a program, in float32, and added up in a fixed order: the same bits every time.

Shapes: images_NCHW in channels_last memory order, with the channels of G nets side by side, C of each; parameters, all float32, look [G,C,9], gain, shift and scale
[G,C], widen [G,2C,C] with gates before values, narrow [G,C,C]. What the forward kernel makes of them for all others: vectors float32[G,11,C], the depthwise filters and
two biases, and matrices [G,3C,C], in the images' dtype, of the gates, the values and the way back.
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
FEW = 16  # sums that a program adds up, of all parts at once


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
def looked_at(first, filters, channels_apart, taps_apart, spot, known, y, x, channel, H: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr, C: tl.constexpr):
    """The depthwise convolution of a tile, float32."""
    total = tl.zeros(known.shape, tl.float32)
    for k in tl.static_range(9):
        weight = tl.load(filters + k * taps_apart + channel * channels_apart, mask=channel < C, other=0.0)
        total += weight * moved(first, spot, known, y, x, k // 3 - 1, k % 3 - 1, H, W, STRIDE)
    return total


@triton.jit
def normalised(looked, channel, eps, C: tl.constexpr):
    """(values of mean 0 and variance 1 over a pixel's channels, 1 / deviation)."""
    centred = tl.where(channel < C, looked - tl.sum(looked, 1, keep_dims=True) / C, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / C + eps)
    return centred * scale, scale


@triton.jit
def square(matrix, C: tl.constexpr, WIDTH: tl.constexpr):
    """A matrix [C,C], filled up with zeros."""
    row, column = tl.arange(0, WIDTH)[:, None], tl.arange(0, WIDTH)[None, :]
    return tl.load(matrix + row * C + column, mask=(row < C) & (column < C), other=0.0)


@triton.jit
def put(matrix, values, C: tl.constexpr, WIDTH: tl.constexpr):
    """Write what `square` reads."""
    row, column = tl.arange(0, WIDTH)[:, None], tl.arange(0, WIDTH)[None, :]
    tl.store(matrix + row * C + column, values.to(matrix.dtype.element_ty), mask=(row < C) & (column < C))


@triton.jit
def entries(vector, C: tl.constexpr, WIDTH: tl.constexpr):
    """A vector [C], filled up with zeros."""
    place = tl.arange(0, WIDTH)
    return tl.load(vector + place, mask=place < C, other=0.0)


@triton.jit
def product(a, b):
    """In the operands' dtype, summed in float32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def block_kernel(
    images, look, gain, shift, widen, narrow, scale, out, vectors, matrices, eps, count, tiles,
    H: tl.constexpr, W: tl.constexpr, NETS: tl.constexpr, C: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """images + scale * narrow(silu(gate) * value) of `count` pixels, `tiles` of P a program, with the norm's gain and shift, and the scale, in the 1x1 filters."""
    net = tl.program_id(1)
    kind: tl.constexpr = images.dtype.element_ty
    stride: tl.constexpr = NETS * C
    channel, place = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH)
    gains, shifts = entries(gain + net * C, C, WIDTH)[None, :], entries(shift + net * C, C, WIDTH)[None, :]
    gates, values = square(widen + net * 2 * C * C, C, WIDTH), square(widen + net * 2 * C * C + C * C, C, WIDTH)
    gate_bias, value_bias = tl.sum(gates * shifts, 1), tl.sum(values * shifts, 1)
    to_gate, to_value = (gates * gains).to(kind), (values * gains).to(kind)
    back = (square(narrow + net * C * C, C, WIDTH) * entries(scale + net * C, C, WIDTH)[:, None]).to(kind)
    if tl.program_id(0) == 0:
        for k in tl.static_range(9):
            tl.store(vectors + (net * 11 + k) * C + place, tl.load(look + (net * C + place) * 9 + k, mask=place < C, other=0.0), mask=place < C)
        tl.store(vectors + (net * 11 + 9) * C + place, gate_bias, mask=place < C)
        tl.store(vectors + (net * 11 + 10) * C + place, value_bias, mask=place < C)
        put(matrices + net * 3 * C * C, to_gate, C, WIDTH)
        put(matrices + net * 3 * C * C + C * C, to_value, C, WIDTH)
        put(matrices + net * 3 * C * C + 2 * C * C, back, C, WIDTH)
    spot = tl.arange(0, P)[:, None] * stride + channel
    for i in range(tiles):
        tile = i * tl.num_programs(0) + tl.program_id(0)
        first = tile.to(tl.int64) * (P * stride) + net * C
        inside, y, x = places(tile, count, H, W, P)
        known = inside & (channel < C)
        looked = looked_at(images + first, look + net * C * 9, 9, 1, spot, known, y, x, channel, H, W, stride, C)
        seen = normalised(looked, channel, eps, C)[0].to(kind)
        gate = product(seen, tl.trans(to_gate)) + gate_bias[None, :]
        hidden = (gate * sigmoid(gate) * (product(seen, tl.trans(to_value)) + value_bias[None, :])).to(kind)
        whole = tl.load(images + first + spot, mask=known, other=0.0).to(tl.float32) + product(hidden, tl.trans(back))
        tl.store(out + first + spot, whole.to(kind), mask=known)


@triton.jit
def back_kernel(
    images, gradient, vectors, matrices, out, part, eps, count, tiles,
    H: tl.constexpr, W: tl.constexpr, NETS: tl.constexpr, C: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out: the gradient behind the depthwise convolution. part [programs, NETS, 3C+11, C]: of the gradients of the matrices and the biases, in its first rows."""
    net = tl.program_id(1)
    kind: tl.constexpr = images.dtype.element_ty
    stride: tl.constexpr = NETS * C
    channel = tl.arange(0, WIDTH)[None, :]
    own = matrices + net * 3 * C * C
    to_gate, to_value, back = square(own, C, WIDTH), square(own + C * C, C, WIDTH), square(own + 2 * C * C, C, WIDTH)
    filters = vectors + net * 11 * C
    gate_bias, value_bias = entries(filters + 9 * C, C, WIDTH)[None, :], entries(filters + 10 * C, C, WIDTH)[None, :]
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
        looked = looked_at(images + first, filters, 1, C, spot, known, y, x, channel, H, W, stride, C)
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
    own = part + (tl.program_id(0) * NETS + net) * (3 * C + 11) * C
    put(own, of_gate, C, WIDTH)
    put(own + C * C, of_value, C, WIDTH)
    put(own + 2 * C * C, of_back, C, WIDTH)
    row, one = tl.arange(0, WIDTH)[:, None], tl.arange(0, LEAST)[None, :]  # all columns are the same
    tl.store(own + 3 * C * C + row + one, of_gate_bias, mask=(row < C) & (one == 0))
    tl.store(own + 3 * C * C + C + row + one, of_value_bias, mask=(row < C) & (one == 0))


@triton.jit
def look_kernel(
    images, gradient, behind, vectors, out, part, count, tiles,
    H: tl.constexpr, W: tl.constexpr, NETS: tl.constexpr, C: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out: the gradient of the images, from that of what came out and that `behind` the depthwise convolution. part [programs, NETS, 3C+11, C]: of the filters', in its last rows."""
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
            total += tl.load(vectors + (net * 11 + k) * C + channel, mask=channel < C, other=0.0) * from_there
            added = added + (sums[k] + image * from_there,)
        sums = added
        tl.store(out + first + spot, total.to(out.dtype.element_ty), mask=known)
    own = part + (tl.program_id(0) * NETS + net) * (3 * C + 11) * C + (3 * C + 2) * C
    for k in tl.static_range(9):
        tl.store(own + k * C + channel, tl.sum(sums[k], 0)[None, :], mask=channel < C)


@triton.jit
def add_kernel(parts, out, count, columns, COUNT: tl.constexpr, COLUMNS: tl.constexpr):
    """out: the sums of `parts`, [count, columns], all loads of a program on their way at once. torch's own sum over the first dimension has a thread go through all
    parts of four columns, one after another: 65 us for 264 parts of a block of 16 channels on an H200, where the bytes take one."""
    part, column = tl.arange(0, COUNT)[:, None], tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = (part < count) & (column < columns)[None, :]
    tl.store(out + column, tl.sum(tl.load(parts + part * columns + column[None, :], mask=there, other=0.0), 0), mask=column < columns)


@triton.jit
def finish_kernel(
    sums, gain, shift, widen, narrow, scale, of_look, of_gain, of_shift, of_widen, of_narrow, of_scale, C: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The parameters' gradients from those of what the forward kernel made of them; a program a net."""
    net = tl.program_id(0)
    place = tl.arange(0, WIDTH)
    own = sums + net * (3 * C + 11) * C
    gains, shifts = entries(gain + net * C, C, WIDTH)[None, :], entries(shift + net * C, C, WIDTH)[None, :]
    for_gain, for_shift = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    for half in tl.static_range(2):
        weights, given = square(widen + (net * 2 + half) * C * C, C, WIDTH), square(own + half * C * C, C, WIDTH)
        of_bias = entries(own + (3 * C + half) * C, C, WIDTH)[:, None]
        put(of_widen + (net * 2 + half) * C * C, given * gains + of_bias * shifts, C, WIDTH)
        for_gain += tl.sum(given * weights, 0)
        for_shift += tl.sum(of_bias * weights, 0)
    tl.store(of_gain + net * C + place, for_gain, mask=place < C)
    tl.store(of_shift + net * C + place, for_shift, mask=place < C)
    given = square(own + 2 * C * C, C, WIDTH)
    put(of_narrow + net * C * C, given * entries(scale + net * C, C, WIDTH)[:, None], C, WIDTH)
    tl.store(of_scale + net * C + place, tl.sum(given * square(narrow + net * C * C, C, WIDTH), 1), mask=place < C)
    for k in tl.static_range(9):
        tl.store(of_look + (net * C + place) * 9 + k, entries(own + (3 * C + 2 + k) * C, C, WIDTH), mask=place < C)


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


def forward(images: torch.Tensor, parameters: tuple[torch.Tensor, ...], eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(the block's images, in channels_last order, vectors, matrices)."""
    images, (nets, channels, _) = ordered(images), parameters[0].shape
    out = torch.empty_like(images), *prepared(images, nets, channels)
    launch(block_kernel, images, (images, *parameters, *out), (eps,), nets, PIXELS, WARPS, programs_of(images, nets, 2 * PROGRAMS))
    return out


def added(parts: torch.Tensor) -> torch.Tensor:
    """The sum over the first dimension."""
    out = parts.new_empty(parts.shape[1:])
    add_kernel[(triton.cdiv(out.numel(), FEW),)](parts, out, len(parts), out.numel(), triton.next_power_of_2(len(parts)), FEW, num_warps=WARPS)
    return out


def prepared(images: torch.Tensor, nets: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for (vectors, matrices)."""
    return images.new_empty((nets, 11, channels), dtype=torch.float32), images.new_empty((nets, 3 * channels, channels))


def backward(
    gradient: torch.Tensor, images: torch.Tensor, vectors: torch.Tensor, matrices: torch.Tensor, parameters: tuple[torch.Tensor, ...], eps: float
) -> tuple[torch.Tensor, ...]:
    """Gradients of the images and of the parameters, in their order."""
    images, (nets, _, channels) = ordered(images), vectors.shape
    gradient, programs = ordered(gradient.to(images.dtype)), programs_of(images, nets)
    behind, out = torch.empty_like(images), torch.empty_like(images)
    parts = torch.empty((programs, nets, 3 * channels + 11, channels), device=images.device)
    launch(back_kernel, images, (images, gradient, vectors, matrices, behind, parts), (eps,), nets, PIXELS, WARPS, programs)
    pixels = LOOK_VALUES // width_of(channels)
    launch(look_kernel, images, (images, gradient, behind, vectors, out, parts), (), nets, pixels, LOOK_WARPS, programs)
    of_parameters = tuple(torch.empty_like(p) for p in parameters)
    finish_kernel[(nets,)](added(parts), *parameters[1:], *of_parameters, channels, width_of(channels), num_warps=2 * WARPS)
    return out, *of_parameters

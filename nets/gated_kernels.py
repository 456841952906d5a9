"""The kernels of `gated.py`, in Triton, and what launches them: a tiny net's block, forward in one kernel, backward in two, and one for the parameters' gradients.

A program works on tiles of pixels times all channels of a net, one after another, with the block's filters at hand. Of what lies between the map that comes and the one that
goes the depthwise convolution is kept, whose nine loads a pixel would be waited for again on the way back; the rest stays in registers, and is worked out again. A pixel's
neighbours are loaded as often as they are looked at, from the nearest cache. Sums over pixels are of parts, one a program, in float32, and added up in a fixed order: the
same bits every time.

Shapes: images_NCHW in channels_last memory order, with the channels of G nets side by side, C of each; parameters, all float32, look [G,C,9], gain, shift and scale
[G,C], widen [G,2C,C] with gates before values, narrow [G,C,C]. What the forward kernel makes of them for all others: vectors float32[G,11,C], the depthwise filters and
two biases, and matrices [G,3C,C], in the images' dtype, of the gates, the values and the way back.
"""

import torch
import triton
import triton.language as tl

from nets.kernels import ordered, sigmoid

MULTIPROCESSORS = 132  # of an H100
LEAST = tl.constexpr(16)  # of a side of a product of matrices
MOST = 64  # channels, whose filters' sums lie in registers
PIXELS, WARPS = 64, 4  # of a tile with products of matrices: the rows that Hopper's unit takes from so many warps
LOOK_VALUES = 512  # of one without: few a thread, so that many programs find room, since each waits for its neighbours' loads
# (programs that find room in a multiprocessor, registers a thread that they may take), by a kernel's name and for how many channels at most: each waits for loads and
# for one product behind another, and the others work meanwhile. Without a limit the compiler takes so many that one or two find room
ROOM = {"block": {32: (4, 128), 64: (2, 255)}, "back": {32: (3, 168), 64: (2, 255)}, "look": {64: (5, 96)}}
FEW, PARTS = 16, 256  # sums that a program adds up, and parts at once


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
        weight = tl.load(filters + k + channel * 9, mask=channel < C, other=0.0)
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
    images, look, gain, shift, widen, narrow, scale, out, looked, vectors, matrices, eps, count, tiles,
    H: tl.constexpr, W: tl.constexpr, NETS: tl.constexpr, C: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """images + scale * narrow(silu(gate) * value) of `count` pixels, `tiles` of P a program, with the norm's gain and shift, and the scale, in the 1x1 filters.
    looked: the depthwise convolution."""
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
        total = looked_at(images + first, look + net * C * 9, spot, known, y, x, channel, H, W, stride, C).to(kind)
        tl.store(looked + first + spot, total, mask=known)
        seen = normalised(total.to(tl.float32), channel, eps, C)[0].to(kind)
        gate = product(seen, tl.trans(to_gate)) + gate_bias[None, :]
        hidden = (gate * sigmoid(gate) * (product(seen, tl.trans(to_value)) + value_bias[None, :])).to(kind)
        whole = tl.load(images + first + spot, mask=known, other=0.0).to(tl.float32) + product(hidden, tl.trans(back))
        tl.store(out + first + spot, whole.to(kind), mask=known)


@triton.jit
def back_kernel(
    looked, gradient, vectors, matrices, out, part, eps, count, tiles,
    H: tl.constexpr, W: tl.constexpr, NETS: tl.constexpr, C: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out: the gradient of the depthwise convolution `looked`. part [programs, NETS, 3C+11, C]: of the gradients of the matrices and the biases, in its first rows."""
    net = tl.program_id(1)
    kind: tl.constexpr = looked.dtype.element_ty
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
        known = (tile * P + tl.arange(0, P)[:, None] < count) & (channel < C)
        given = tl.load(gradient + first + spot, mask=known, other=0.0)
        values, scale = normalised(tl.load(looked + first + spot, mask=known, other=0.0).to(tl.float32), channel, eps, C)
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
def add_kernel(parts, out, products, looks, columns, C: tl.constexpr, COUNT: tl.constexpr, COLUMNS: tl.constexpr):
    """out: the sums of `parts`, [parts, columns]: `products` of `back_kernel`'s, `looks` of `look_kernel`'s; COUNT loads of a column on their way at once. torch's own sum over
    the first dimension has a thread go through all parts of four columns, one after another: 65 us for 264 parts of a block of 16 channels on an H200, where the bytes take one."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    of_products = column % ((3 * C + 11) * C) < (3 * C + 2) * C
    count = tl.where(column < columns, tl.where(of_products, products, looks), 0)[None, :]
    total = tl.zeros([COUNT, COLUMNS], tl.float32)
    for begin in range(0, tl.maximum(products, looks), COUNT):
        part = begin + tl.arange(0, COUNT)[:, None]
        total += tl.load(parts + part.to(tl.int64) * columns + column[None, :], mask=part < count, other=0.0)
    tl.store(out + column, tl.sum(total, 0), mask=column < columns)


@triton.jit
def finish_kernel(
    sums, gain, shift, widen, narrow, scale, of_look, of_gain, of_shift, of_widen, of_narrow, of_scale, C: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The parameters' gradients from those of what the forward kernel made of them; three programs a net, each of which loads all that it needs before it stores."""
    net, role = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, WIDTH)
    own = sums + net * (3 * C + 11) * C
    if role == 0:
        first, second = widen + net * 2 * C * C, widen + net * 2 * C * C + C * C
        gains, shifts = entries(gain + net * C, C, WIDTH)[None, :], entries(shift + net * C, C, WIDTH)[None, :]
        gates, values = square(first, C, WIDTH), square(second, C, WIDTH)
        by_gates, by_values = square(own, C, WIDTH), square(own + C * C, C, WIDTH)
        of_gate_bias, of_value_bias = entries(own + 3 * C * C, C, WIDTH)[:, None], entries(own + (3 * C + 1) * C, C, WIDTH)[:, None]
        put(of_widen + net * 2 * C * C, by_gates * gains + of_gate_bias * shifts, C, WIDTH)
        put(of_widen + net * 2 * C * C + C * C, by_values * gains + of_value_bias * shifts, C, WIDTH)
        tl.store(of_gain + net * C + place, tl.sum(by_gates * gates + by_values * values, 0), mask=place < C)
        tl.store(of_shift + net * C + place, tl.sum(of_gate_bias * gates + of_value_bias * values, 0), mask=place < C)
    elif role == 1:
        given, back, scales = square(own + 2 * C * C, C, WIDTH), square(narrow + net * C * C, C, WIDTH), entries(scale + net * C, C, WIDTH)[:, None]
        put(of_narrow + net * C * C, given * scales, C, WIDTH)
        tl.store(of_scale + net * C + place, tl.sum(given * back, 1), mask=place < C)
    else:
        tap, channel = tl.arange(0, 16)[None, :], place[:, None]
        there = (tap < 9) & (channel < C)
        tl.store(of_look + (net * C + channel) * 9 + tap, tl.load(own + (3 * C + 2 + tap) * C + channel, mask=there, other=0.0), mask=there)


def launch(kernel, name: str, images: torch.Tensor, tensors: tuple, numbers: tuple, nets: int) -> None:
    """Have programs go over all pixels."""
    count, channels, height, length = images.shape
    total, width, pixels, programs = count * height * length, width_of(channels // nets), pixels_of(name, channels // nets), programs_of(name, images, nets)
    shape = height, length, nets, channels // nets, pixels, width
    # no stages: loads that wait in shared memory would leave room for a single program
    options = dict(num_warps=WARPS, num_stages=1, maxnreg=room(name, width)[1])
    kernel[(programs, nets)](*tensors, *numbers, total, triton.cdiv(triton.cdiv(total, pixels), programs), *shape, **options)


def width_of(channels: int) -> int:
    return triton.next_power_of_2(max(LEAST.value, channels))


def pixels_of(name: str, channels: int) -> int:
    """Of a kernel's tile."""
    return LOOK_VALUES // width_of(channels) if name == "look" else PIXELS


def room(name: str, width: int) -> tuple[int, int]:
    return next(found for most, found in ROOM[name].items() if width <= most)


def programs_of(name: str, images: torch.Tensor, nets: int) -> int:
    """How many a net: as many as find room, and no more than there are tiles."""
    channels = images.shape[1] // nets
    most = MULTIPROCESSORS * room(name, width_of(channels))[0]
    return max(1, min(most // nets, triton.cdiv(images[:, 0].numel(), pixels_of(name, channels))))


def forward(images: torch.Tensor, parameters: tuple[torch.Tensor, ...], eps: float) -> tuple[torch.Tensor, ...]:
    """(the block's images and the depthwise convolution, in channels_last order, vectors, matrices)."""
    images, (nets, channels, _) = ordered(images), parameters[0].shape
    out = torch.empty_like(images), torch.empty_like(images), *prepared(images, nets, channels)
    launch(block_kernel, "block", images, (images, *parameters, *out), (eps,), nets)
    return out


def added(parts: torch.Tensor, products: int, looks: int) -> torch.Tensor:
    """The sum over the first dimension, float32[G,3C+11,C]: so many parts have products, so many the depthwise filters."""
    out = parts.new_empty(parts.shape[1:])
    counts = min(PARTS, triton.next_power_of_2(len(parts)))
    add_kernel[(triton.cdiv(out.numel(), FEW),)](parts, out, products, looks, out.numel(), parts.shape[-1], counts, FEW, num_warps=WARPS)
    return out


def prepared(images: torch.Tensor, nets: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for (vectors, matrices)."""
    return images.new_empty((nets, 11, channels), dtype=torch.float32), images.new_empty((nets, 3 * channels, channels))


def backward(
    gradient: torch.Tensor,
    images: torch.Tensor,
    looked: torch.Tensor,
    vectors: torch.Tensor,
    matrices: torch.Tensor,
    parameters: tuple[torch.Tensor, ...],
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients of the images and of the parameters, in their order."""
    images, (nets, _, channels) = ordered(images), vectors.shape
    gradient, products, looks = ordered(gradient.to(images.dtype)), programs_of("back", images, nets), programs_of("look", images, nets)
    behind, out = torch.empty_like(images), torch.empty_like(images)
    parts = torch.empty((max(products, looks), nets, 3 * channels + 11, channels), device=images.device)
    launch(back_kernel, "back", images, (looked, gradient, vectors, matrices, behind, parts), (eps,), nets)
    launch(look_kernel, "look", images, (images, gradient, behind, vectors, out, parts), (), nets)
    of_parameters = tuple(torch.empty_like(p) for p in parameters)
    finish_kernel[(nets, 3)](added(parts, products, looks), *parameters[1:], *of_parameters, channels, width_of(channels), num_warps=2 * WARPS)
    return out, *of_parameters

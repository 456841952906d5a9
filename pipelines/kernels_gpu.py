"""The plan on a GPU, in Triton: one fused pass from stored pixels to normalised batches, and an epoch's order.

Shapes: images_NHWC uint8, rows_n, ids_n, labels_N, out_BHWC, classes_B, state_3 = (seed, epoch, first position).

Equal to `plan.py` and `reference.py` bit for bit: the hash is 32-bit integers, and a pixel is one subtraction and one
multiplication of float32, which no compiler can contract, then one rounding to the output's dtype.
Seed, epoch and position are read from device memory, so a launch neither waits for the host nor freezes
them in a CUDA graph.

The arithmetic, for 32x32x3 in float16: 3,072 bytes read, 6,144 written and 24 of order and label make 9.24 kB an image, so that
the 4.8 TB/s of an H200 are 519 M images/s. In SASS for sm_90 an image takes some 1,800 warp instructions (19 a value: 16 in the
loop, 3 for hash and set-up), of which 132 multiprocessors issue 927 G/s at 1.755 GHz: 509 M images/s. One warp
makes one image; a thread holds 2 neighbouring columns of 8 rows, so that a warp loads whole 32-byte stretches of 2 rows and
stores 64-byte ones, and what depends on a column or a row alone is computed once. 80 registers, no shared memory, no spills. On an H100, whose memory has 3.0 TB/s
in a copy and so 325 M images/s to give, one launch made 262 M images/s in bfloat16.
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from pipelines import plan
from pipelines.plan import FLIPS, PADDINGS, Policy
from pipelines.reference import mean_pixel, scaling
from pipelines.store import Store

SALT_A, SALT_B = tl.constexpr(plan.SALT_A), tl.constexpr(plan.SALT_B)
ORDER, FLIP, DY, DX, CUT_Y, CUT_X = (tl.constexpr(stream) for stream in (plan.ORDER, plan.FLIP, plan.DY, plan.DX, plan.CUT_Y, plan.CUT_X))
NONE, ALTERNATE = tl.constexpr(FLIPS.index("none")), tl.constexpr(FLIPS.index("alternate"))
REFLECT, MEAN = tl.constexpr(PADDINGS.index("reflect")), tl.constexpr(PADDINGS.index("mean"))
SMALL = 4096  # tiles in a launch; below it every tile is a program of its own, to reach all multiprocessors
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: NumPy runs the kernels, on CPU tensors


@triton.jit
def mix(x):
    """uint32: `plan.mix`."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def hash32(seed, epoch, stream: tl.constexpr, sample):
    """uint32: `plan.hash32`; all but the last line is the same for every sample, and is taken out of their loop."""
    key_a = mix(mix(mix(seed ^ SALT_A) ^ epoch) ^ stream)
    key_b = mix(mix(mix(seed ^ SALT_B) ^ epoch) ^ stream)
    return mix(mix(sample ^ key_a) + key_b)


@triton.jit
def choose(seed, epoch, stream: tl.constexpr, n: tl.constexpr, sample):
    """int32 in [0, n): `plan.below` of a sample's hash."""
    return tl.umulhi(hash32(seed, epoch, stream, sample), tl.full((), n, tl.uint32)).to(tl.int32)


@triton.jit
def flipped(seed, epoch, sample, FLIP_MODE: tl.constexpr):
    """int32, 0 or 1: whether the sample is flipped."""
    if FLIP_MODE == NONE:
        return tl.full((), 0, tl.int32)
    elif FLIP_MODE == ALTERNATE:
        return choose(seed, epoch & 0, FLIP, 2, sample) ^ (epoch & 1).to(tl.int32)
    else:
        return choose(seed, epoch, FLIP, 2, sample)


@triton.jit
def mirrored(i, n: tl.constexpr):
    """Indices in (-n, 2n - 1) reflected at the borders, which are not repeated."""
    i = tl.abs(i)
    return tl.minimum(i, 2 * (n - 1) - i)


@triton.jit
def within(i, n: tl.constexpr):
    """Whether 0 <= i < n, in one comparison."""
    return i.to(tl.uint32, bitcast=True) < n


@triton.jit
def pick(values, channel, CHANNELS: tl.constexpr):
    """values[channel], from a tuple of scalars: they come as arguments, so nothing is loaded."""
    chosen = values[CHANNELS - 1]
    for c in tl.static_range(CHANNELS - 1):
        chosen = tl.where(channel == c, values[c], chosen)
    return chosen


@triton.jit
def augment_rows(
    image, out, means, inverses, fill, flip, dy, dx, cut_y, cut_x, top,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, PADDING: tl.constexpr,
    TRANSLATE: tl.constexpr, CUTOUT: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Rows [top, top + TILE_Y) of one image, TILE_X values of each at a time.

    A value is hidden, that is not loaded, where row and column share a bit: 1 cut out, 2 the row lies outside the image, 4 the column does.
    """
    LINE: tl.constexpr = WIDTH * CHANNELS
    INSIDE: tl.constexpr = PADDING == REFLECT or TRANSLATE == 0
    y = top + tl.arange(0, TILE_Y)[None, :]  # columns come first in a tile: on a tie Triton lays threads along the first axis
    source_y = y + dy
    cut_rows = tl.where(within(y - cut_y, CUTOUT), -1, 0)
    hidden_y = 4 | (cut_rows & 1)
    if PADDING == REFLECT:
        source_y = mirrored(source_y, HEIGHT)
    if not INSIDE:
        hidden_y = tl.where(within(source_y, HEIGHT), hidden_y, hidden_y | 2)
    if HEIGHT % TILE_Y != 0:
        hidden_y = tl.where(y < HEIGHT, hidden_y, 7)
    lines = image + source_y * LINE
    targets = out + y * LINE
    for first in range(0, LINE, TILE_X):
        at = tl.multiple_of(first + tl.arange(0, TILE_X), 2 - LINE % 2)[:, None]  # pairs: wider ones would scatter the loads
        x, channel = at // CHANNELS, at % CHANNELS
        source_x = dx + tl.where(flip != 0, WIDTH - 1 - x, x)
        cut_columns = tl.where(within(x - cut_x, CUTOUT), -1, 0)
        hidden_x = 2 | (cut_columns & 1)
        if PADDING == REFLECT:
            source_x = mirrored(source_x, WIDTH)
        if not INSIDE:
            hidden_x = tl.where(within(source_x, WIDTH), hidden_x, hidden_x | 4)
        if LINE % TILE_X != 0:
            hidden_x = tl.where(at < LINE, hidden_x, 7)
        colour = (fill >> (channel * 8)) & 255
        if PADDING != REFLECT and PADDING != MEAN:
            colour = colour & cut_columns & cut_rows
        pixels = tl.load(lines + (source_x * CHANNELS + channel), mask=(hidden_y & hidden_x) == 0, other=colour.to(tl.uint8))
        values = ((pixels.to(tl.float32) - pick(means, channel, CHANNELS)) * pick(inverses, channel, CHANNELS)).to(out.dtype.element_ty)
        if HEIGHT % TILE_Y == 0 and LINE % TILE_X == 0:
            tl.store(targets + at, values)
        else:
            tl.store(targets + at, values, mask=(y < HEIGHT) & (at < LINE))


@triton.jit(do_not_specialize=["fill", "size", "count"], do_not_specialize_on_alignment=["rows", "ids", "labels", "state", "classes"])
def augment_kernel(
    images, rows, ids, labels, means, inverses, fill, state, out, classes, size, count,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, FLIP_MODE: tl.constexpr, PADDING: tl.constexpr,
    TRANSLATE: tl.constexpr, CUTOUT: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """Program (p, q): rows [q * ROWS, (q + 1) * ROWS) of IMAGES images from p * IMAGES on."""
    AREA: tl.constexpr = HEIGHT * WIDTH * CHANNELS
    seed, epoch = tl.load(state).to(tl.uint32), tl.load(state + 1).to(tl.uint32)
    position, top = tl.load(state + 2), tl.program_id(1) * ROWS
    begin = tl.program_id(0) * IMAGES
    for k in range(IMAGES):
        i = begin + k
        if (i < size) & (position + i < count):
            row, sample = tl.load(rows + position + i), tl.load(ids + position + i).to(tl.uint32)
            if top == 0:
                tl.store(classes + i, tl.load(labels + row))
            flip = flipped(seed, epoch, sample, FLIP_MODE)
            dy = choose(seed, epoch, DY, 2 * TRANSLATE + 1, sample) - TRANSLATE
            dx = choose(seed, epoch, DX, 2 * TRANSLATE + 1, sample) - TRANSLATE
            cut_y = choose(seed, epoch, CUT_Y, HEIGHT - CUTOUT + 1, sample)
            cut_x = choose(seed, epoch, CUT_X, WIDTH - CUTOUT + 1, sample)
            image, target = images + row * AREA, out + i.to(tl.int64) * AREA
            for y in range(0, ROWS, TILE_Y):
                augment_rows(
                    image, target, means, inverses, fill, flip, dy, dx, cut_y, cut_x, top + y,
                    HEIGHT, WIDTH, CHANNELS, PADDING, TRANSLATE, CUTOUT, TILE_Y, TILE_X,
                )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def order_kernel(state, out, n, BLOCK: tl.constexpr):
    """int32[n]: the order's hash of each i < n, its top bit turned, so that signed integers sort as the unsigned ones."""
    seed, epoch = tl.load(state).to(tl.uint32), tl.load(state + 1).to(tl.uint32)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    hashed = hash32(seed, epoch, ORDER, i.to(tl.uint32))
    tl.store(out + i, (hashed ^ 0x80000000).to(tl.int32, bitcast=True), mask=i < n)


class Colours(NamedTuple):
    """What normalisation and filling need, as the kernel takes it: means and inverses of C float32, fill a byte a channel."""

    means: tuple[float, ...]
    inverses: tuple[float, ...]
    fill: int

    @classmethod
    def of(cls, store: Store) -> "Colours":
        """A store's: (value - mean) * inverse is `reference.table`; fill is `reference.mean_pixel`."""
        mean, std = scaling(store)
        inverse = np.float32(1) / std
        fill = np.zeros(4, np.uint8)
        fill[: len(mean)] = mean_pixel(store)
        return cls(tuple(mean.tolist()), tuple(inverse.tolist()), int(fill.view("<i4")[0]))


class Shape(NamedTuple):
    """How a launch is cut up: tiles of TILE_Y x TILE_X values, programs of ROWS rows of IMAGES images each."""

    TILE_Y: int
    TILE_X: int
    ROWS: int
    IMAGES: int

    @classmethod
    def of(cls, size: int, height: int, line: int) -> "Shape":
        """For `size` images of `height` rows of `line` values; see the module's arithmetic."""
        padded = {tile: triton.cdiv(line, tile) * tile for tile in (32, 64, 128)}
        tile_x = max(tile for tile, length in padded.items() if 8 * length <= 9 * min(padded.values()))  # wide, at most 1/8 of it idle
        tile_y = min(16, triton.next_power_of_2(height))
        if size * triton.cdiv(height, tile_y) < SMALL:
            return cls(tile_y, tile_x, tile_y, 1)
        even = triton.cdiv(height, tile_y) % 2 == 0  # otherwise a program's second tile would be none of the image's
        return cls(tile_y, tile_x, 2 * tile_y if even else tile_y, 2)


def augment(images, rows, ids, labels, state, out, classes, policy: Policy, colours: Colours) -> None:
    """Write the images at positions [first, first + B) of an epoch, augmented and normalised; one launch, no host sync.

    images   uint8[N,H,W,C], and labels int64[N], where sample ids[p] lies at rows[p]
    rows     int64[n], and ids int64[n]: the epoch's order
    state    int64[3]: seed, epoch and first, read when the kernel runs; where first + B > n, the rest of `out` stays as it is
    out      [B,H,W,C] of float32, float16 or bfloat16, contiguous; classes int64[B]

    All tensors lie on one CUDA device. Safe in a CUDA graph: whoever replays it changes `state` and the order in place.
    """
    size, height, width, channels = out.shape
    modes = FLIPS.index(policy.flip), PADDINGS.index(policy.padding), policy.translate, policy.cutout
    shape = Shape.of(size, height, width * channels)
    grid = triton.cdiv(size, shape.IMAGES), triton.cdiv(height, shape.ROWS)
    made = torch.empty(out.shape) if INTERPRETED and out.dtype == torch.bfloat16 else out  # the interpreter cuts bfloat16 off, unrounded
    with on(out.device):
        augment_kernel[grid](
            images, rows, ids, labels, *colours, state, made, classes, size, len(ids),
            height, width, channels, *modes, *shape, num_warps=shape.TILE_X // 32, num_stages=1, enable_fp_fusion=False,
        )  # fmt: skip
    if made is not out:
        out.copy_(made)


def order(state: torch.Tensor, n: int) -> torch.Tensor:
    """int64[n]: `plan.order` of the (seed, epoch) in `state`, made on its device without a host sync."""
    hashed = torch.empty(n, dtype=torch.int32, device=state.device)
    with on(state.device):
        order_kernel[(triton.cdiv(n, 1024),)](state, hashed, n, 1024)
    return torch.sort(hashed).indices  # no two hashes are equal: any sort is the stable one


def on(device: torch.device):
    """Launches in this block go to `device`, whichever is torch's current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

"""The plan on the CPU, compiled: its hash, and one fused pass from stored pixels to a normalised batch.

Shapes: images_NHWC uint8, out_BHWC; norm_2L and colours_2L hold one row of L = W * C elements each.

Equal to `plan.py` and `reference.py` bit for bit. A pass reads each image once and writes the batch once. Rows are
walked whole, as one run of elements whatever the shift, because only long runs of known step become vector
instructions; what the shift brings in, and the cut square, are painted over afterwards. Half precision
is written as int16 bits, since Numba has no 16-bit floats on a CPU. Flip and padding are given by their positions
in `plan.FLIPS` and `plan.PADDINGS`.

Numba widens uint32 operations to 64 bits, and uint64 with int64 to float64: hence a cast in every line of
the hash. It checks signed indices for being negative, which costs the vector instructions: hence uint64 ones.
"""

import os

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import float32, int16, njit, prange, types, uint32, uint64
from numba.extending import intrinsic, overload, register_jitable

from pipelines.plan import CUT_X, CUT_Y, DX, DY, FLIP, FLIPS, PADDINGS, SALT_A, SALT_B, Plan
from pipelines.reference import mean_pixel, scaling, table
from pipelines.store import Store

RANDOM, ALTERNATE = FLIPS.index("random"), FLIPS.index("alternate")
REFLECT = PADDINGS.index("reflect")
STREAMS = (FLIP, DY, DX, CUT_Y, CUT_X)

if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    # OpenMP starts a pass in 2 us where TBB takes 40, and its threads are the very ones that torch uses
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


class Pass:
    """The fused pass of one plan: `pass_(images, rows, ids, out, epoch)`.

    dtype  of the batches: torch.float32, torch.float16 or torch.bfloat16
    """

    def __init__(self, store: Store, plan: Plan, dtype: torch.dtype):
        policy, width = plan.policy, store.width
        mean, std = scaling(store)
        lookup, channels = table(store, dtype), torch.arange(store.channels)
        cut = lookup[torch.from_numpy(mean_pixel(store)).long(), channels]
        outside = cut if policy.padding == "mean" else lookup[0]
        self.norm = np.tile(np.stack([mean, np.float32(1) / std]), width)
        self.colours = np.tile(_plain(torch.stack([outside, cut])), width)
        self.seed, self.half = plan.seed, dtype == torch.float16
        self.modes = FLIPS.index(policy.flip), PADDINGS.index(policy.padding), policy.translate, policy.cutout

    def __call__(self, images: np.ndarray, rows: np.ndarray, ids: np.ndarray, out: torch.Tensor, epoch: int) -> None:
        """Write samples `ids` (int64[B]), whose pixels are images[rows] (uint8[.,H,W,C], int64[B]), to out [B,H,W,C].

        As many threads work as torch has, without the interpreter's lock. Raises nothing: what reaches it is checked by `Plan`.
        """
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        if torch.get_num_threads() != threads:  # Numba's first start sets OpenMP's count, which is torch's, to all cores
            torch.set_num_threads(threads)
        augment_batch(images, rows, ids, _plain(out), self.norm, self.colours, self.half, self.seed, epoch, *self.modes)


def _plain(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory as the kernels take it, shared: float32, or int16 bits of a 16-bit float."""
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.int16).numpy()


def kernel(**options):
    """Numba's `njit`; what it compiles is kept on disk, where there is a place that can be written."""

    def compiled(function):
        try:
            return njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # a read-only installation and no home: compiled anew in each process
            return njit(nogil=True, **options)(function)

    return compiled


# The hash


@kernel()
def mix(x):
    """uint32: `plan.mix`."""
    x = uint32(x)
    x = uint32(x ^ (x >> uint32(16)))
    x = uint32(x * uint32(0x7FEB352D))
    x = uint32(x ^ (x >> uint32(15)))
    x = uint32(x * uint32(0x846CA68B))
    return uint32(x ^ (x >> uint32(16)))


@kernel()
def key(salt, seed, epoch, stream):
    """uint32: `plan.key`."""
    return mix(mix(mix(uint32(salt) ^ uint32(seed)) ^ uint32(epoch)) ^ uint32(stream))


@kernel()
def keyed(key_a, key_b, sample):
    """uint32: the hash of one sample id under the two keys of a choice."""
    return mix(uint32(mix(uint32(sample) ^ key_a) + key_b))


@kernel()
def hash32(seed, epoch, stream, sample):
    """uint32: `plan.hash32` of one sample id."""
    return keyed(key(SALT_A, seed, epoch, stream), key(SALT_B, seed, epoch, stream), sample)


@kernel()
def epoch_keys(seed, epoch, flip_mode):
    """uint32[5,2]: the keys of `STREAMS`, the same for a whole epoch; alternating flips draw in epoch 0."""
    keys = np.empty((len(STREAMS), 2), np.uint32)
    for i in range(len(STREAMS)):
        at = 0 if STREAMS[i] == FLIP and flip_mode == ALTERNATE else epoch
        keys[i, 0] = key(SALT_A, seed, at, STREAMS[i])
        keys[i, 1] = key(SALT_B, seed, at, STREAMS[i])
    return keys


@kernel()
def choose(keys, i, n, sample):
    """int64 in [0, n): the choice that `STREAMS[i]` makes for a sample; `plan.below` of its hash."""
    return np.int64((uint64(keyed(keys[i, 0], keys[i, 1], sample)) * uint64(n)) >> uint64(32))


# Writing an element


@intrinsic
def half_bits(typingctx, value):
    """int16: the bits of a float32 rounded to float16, by the processor's own conversion."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), codegen


@intrinsic
def float_bits(typingctx, value):
    """uint32: the bits of a float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@register_jitable
def bfloat_bits(value):
    """int16: the bits of a float32 rounded to bfloat16, to nearest, ties to even; value is no NaN."""
    word = float_bits(value)
    return int16(uint32(word + uint32(0x7FFF) + ((word >> uint32(16)) & uint32(1))) >> uint32(16))


def put(out, at, value, half):
    """out[at] = value, as float32, or as the bits of float16 (`half`) or bfloat16 where `out` is int16."""


@overload(put)
def _put(out, at, value, half):
    def write(out, at, value, half):
        out[at] = value

    def write_bits(out, at, value, half):
        out[at] = half_bits(value) if half else bfloat_bits(value)

    return write if out.dtype == types.float32 else write_bits


# Blocks of rows: `source` [1,:] and `out` are whole arrays as one run of elements, `a` and `b` where in them a block
# begins, `line` the elements of an image's row. Each loops over its rows itself: a call a row cost three times the work.
# No kernel takes uint8 of one dimension: FFCV changes Numba's type of it in place, and what was compiled for it is lost.


@kernel()
def forward(source, a, out, b, norm, rows, n, line, half):
    """The first n elements of each row, in their order."""
    for y in range(rows):
        p, q = a + uint64(y * line), b + uint64(y * line)
        for j in range(n):
            put(out, q + uint64(j), (float32(source[0, p + uint64(j)]) - norm[0, j]) * norm[1, j], half)


@kernel()
def backward(source, a, out, b, norm, rows, n, line, half, channels):
    """n pixels of each row, the source's taken from pixel `a` down."""
    for y in range(rows):
        p, q = a + uint64(y * line), b + uint64(y * line)
        if channels == 3:  # unrolled, so that it becomes vector instructions: RGB is nearly every call
            m0, m1, m2, s0, s1, s2 = norm[0, 0], norm[0, 1], norm[0, 2], norm[1, 0], norm[1, 1], norm[1, 2]
            for k in range(n):
                i, o = p - uint64(3) * uint64(k), q + uint64(3) * uint64(k)
                put(out, o, (float32(source[0, i]) - m0) * s0, half)
                put(out, o + uint64(1), (float32(source[0, i + uint64(1)]) - m1) * s1, half)
                put(out, o + uint64(2), (float32(source[0, i + uint64(2)]) - m2) * s2, half)
        else:
            for k in range(n):
                for c in range(channels):
                    i, o = p - uint64(channels * k) + uint64(c), q + uint64(channels * k + c)
                    put(out, o, (float32(source[0, i]) - norm[0, c]) * norm[1, c], half)


@kernel()
def paint(out, b, colour, rows, n, line):
    """The first n elements of each row from a row of colour."""
    for y in range(rows):
        for k in range(n):
            out[b + uint64(y * line + k)] = colour[k]


@kernel()
def mirrored(i, n):
    """int64 in [0, n): index i in (-n, 2n - 1) reflected at the borders, which are not repeated."""
    i = abs(i)
    return i if i < n else 2 * (n - 1) - i


@kernel()
def reflect(source, start, out, goal, norm, shape, dy, begin, step, first, last, half):
    """Columns [first, last) of every row, whose source columns begin + step * x may lie outside the image."""
    height, width, channels = shape
    for y in range(height):
        row = start + mirrored(y + dy, height) * width * channels
        for x in range(first, last):
            at = row + mirrored(begin + step * x, width) * channels
            for c in range(channels):
                value = (float32(source[0, uint64(at + c)]) - norm[0, c]) * norm[1, c]
                put(out, uint64(goal + (y * width + x) * channels + c), value, half)


# Images


@kernel()
def shift(source, start, out, goal, shape, norm, flip, dy, dx, top, rows, half):
    """Rows [top, top + rows) of the finished image, whose source rows lie in the image and follow one another.

    Rows are taken whole: where the shift leads beside the image they hold its neighbours' pixels, to be painted over.
    """
    height, width, channels = shape
    line = width * channels
    low, high = 0, width
    if start + (top + dy) * line + min(dx, 0) * channels < 0 or start + (top + dy + rows) * line + max(dx, 0) * channels > source.shape[1]:
        low, high = max(0, -dx), min(width, width - dx)  # at the array's two ends there is no neighbour
        if flip:
            low, high = width - high, width - low
    column = width - 1 + dx - low if flip else dx + low
    a, b = uint64(start + (top + dy) * line + column * channels), uint64(goal + top * line + low * channels)
    if flip:
        backward(source, a, out, b, norm, rows, high - low, line, half, channels)
    else:
        forward(source, a, out, b, norm, rows, (high - low) * channels, line, half)


@kernel()
def augment(source, start, out, goal, shape, norm, colours, half, flip, dy, dx, cut_y, cut_x, mirror, cutout):
    """Write the image that begins at element `start` to `goal`, treated as `reference.augment` does, and normalised."""
    height, width, channels = shape
    line = width * channels
    top, bottom = max(0, -dy), min(height, height - dy)  # the rows and columns whose source lies in the image
    first, last = max(0, -dx), min(width, width - dx)
    begin, step = dx, 1
    if flip:
        first, last = width - last, width - first
        begin, step = width - 1 + dx, -1
    shift(source, start, out, goal, shape, norm, flip, dy, dx, top, bottom - top, half)
    if mirror:
        for y in range(height):
            if y < top or y >= bottom:
                shift(source, start, out, goal, shape, norm, flip, mirrored(y + dy, height) - y, dx, y, 1, half)
        reflect(source, start, out, goal, norm, shape, dy, begin, step, 0, first, half)
        reflect(source, start, out, goal, norm, shape, dy, begin, step, last, width, half)
    else:
        paint(out, uint64(goal), colours[0], top, line, line)
        paint(out, uint64(goal + bottom * line), colours[0], height - bottom, line, line)
        paint(out, uint64(goal + top * line), colours[0], bottom - top, first * channels, line)
        paint(out, uint64(goal + top * line + last * channels), colours[0], bottom - top, (width - last) * channels, line)
    paint(out, uint64(goal + cut_y * line + cut_x * channels), colours[1], cutout, cutout * channels, line)


@kernel(parallel=True)
def augment_batch(images, rows, ids, out, norm, colours, half, seed, epoch, flip_mode, padding_mode, translate, cutout):
    """`Pass.__call__` with its settings as plain values."""
    keys, odd = epoch_keys(seed, epoch, flip_mode), epoch & 1
    shape = images.shape[1], images.shape[2], images.shape[3]
    size = shape[0] * shape[1] * shape[2]
    source, goal = images.reshape(1, images.size), out.reshape(-1)
    for i in prange(len(ids)):
        sample = ids[i]
        flip = flip_mode == RANDOM and choose(keys, 0, 2, sample) == 1
        flip |= flip_mode == ALTERNATE and choose(keys, 0, 2, sample) != odd
        dy = choose(keys, 1, 2 * translate + 1, sample) - translate
        dx = choose(keys, 2, 2 * translate + 1, sample) - translate
        cut_y, cut_x = choose(keys, 3, shape[0] - cutout + 1, sample), choose(keys, 4, shape[1] - cutout + 1, sample)
        mirror, start = padding_mode == REFLECT, rows[i] * size
        augment(source, start, goal, i * size, shape, norm, colours, half, flip, dy, dx, cut_y, cut_x, mirror, cutout)

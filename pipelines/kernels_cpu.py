"""The plan on the CPU, compiled: its hash, and one fused pass from stored pixels to a normalised batch.

Shapes: image_HWC and images_NHWC uint8, out_BHWC, table_256C and colours_2C of the output's bits.

Equal to `plan.py` and `reference.py` bit for bit. An output is written by looking up every pixel value, so
the kernels move bits and never round: a float32 is handled as an int32, a float16 or a bfloat16 as an
int16 (`bits`). Flip and padding are given by their positions in `plan.FLIPS` and `plan.PADDINGS`.

Numba widens uint32 operations to 64 bits, and uint64 with int64 to float64: hence a cast in every line of
the hash.
"""

import numpy as np
import torch
from numba import njit, prange, uint32, uint64

from pipelines.plan import CUT_X, CUT_Y, DX, DY, FLIP, FLIPS, PADDINGS, SALT_A, SALT_B

RANDOM, ALTERNATE = FLIPS.index("random"), FLIPS.index("alternate")
REFLECT = PADDINGS.index("reflect")
STREAMS = (FLIP, DY, DX, CUT_Y, CUT_X)
INTEGERS = {2: torch.int16, 4: torch.int32}  # by bytes an element


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory as int16 or int32 of the same shape, shared: what the kernels read and write."""
    return tensor.view(INTEGERS[tensor.element_size()]).numpy()


def colours(table: torch.Tensor, fill: np.ndarray, padding: str) -> torch.Tensor:
    """[2,C] of the table's dtype, normalised: what padding brings in (without use for "reflect"), and what cutout leaves.

    fill uint8[C]. Not handed to the kernels as uint8[C]: FFCV changes Numba's shared type of such an array in place, and
    everything compiled for it is lost.
    """
    channels = torch.arange(table.shape[1])
    cut = table[torch.from_numpy(fill).long(), channels]
    return torch.stack([cut if padding == "mean" else table[0], cut])


@njit(cache=True, nogil=True)
def mix(x):
    """uint32: `plan.mix`."""
    x = uint32(x)
    x = uint32(x ^ (x >> uint32(16)))
    x = uint32(x * uint32(0x7FEB352D))
    x = uint32(x ^ (x >> uint32(15)))
    x = uint32(x * uint32(0x846CA68B))
    return uint32(x ^ (x >> uint32(16)))


@njit(cache=True, nogil=True)
def key(salt, seed, epoch, stream):
    """uint32: `plan.key`."""
    return mix(mix(mix(uint32(salt) ^ uint32(seed)) ^ uint32(epoch)) ^ uint32(stream))


@njit(cache=True, nogil=True)
def keyed(key_a, key_b, sample):
    """uint32: the hash of one sample id under the two keys of a choice."""
    return mix(uint32(mix(uint32(sample) ^ key_a) + key_b))


@njit(cache=True, nogil=True)
def hash32(seed, epoch, stream, sample):
    """uint32: `plan.hash32` of one sample id."""
    return keyed(key(SALT_A, seed, epoch, stream), key(SALT_B, seed, epoch, stream), sample)


@njit(cache=True, nogil=True)
def below(n, hashed):
    """int64 in [0, n): `plan.below` of one hash."""
    return np.int64((uint64(hashed) * uint64(n)) >> uint64(32))


@njit(cache=True, nogil=True)
def epoch_keys(seed, epoch, flip_mode):
    """uint32[5,2]: the keys of `STREAMS`, the same for a whole epoch; alternating flips draw in epoch 0."""
    keys = np.empty((len(STREAMS), 2), np.uint32)
    for i in range(len(STREAMS)):
        at = 0 if STREAMS[i] == FLIP and flip_mode == ALTERNATE else epoch
        keys[i, 0] = key(SALT_A, seed, at, STREAMS[i])
        keys[i, 1] = key(SALT_B, seed, at, STREAMS[i])
    return keys


@njit(cache=True, nogil=True)
def choose(keys, i, n, sample):
    """int64 in [0, n): the choice that `STREAMS[i]` makes for a sample."""
    return below(n, keyed(keys[i, 0], keys[i, 1], sample))


@njit(cache=True, nogil=True)
def mirrored(i, n):
    """int64 in [0, n): index i in (-n, 2n - 1) reflected at the borders, which are not repeated."""
    i = abs(i)
    return i if i < n else 2 * (n - 1) - i


@njit(cache=True, nogil=True)
def look_up(row, out, table, first, last, begin, step):
    """out[x] = table[row[begin + step * x]] for x in [first, last); row uint8[W,C], out [W,C]."""
    if row.shape[1] == 3:  # unrolled: RGB is nearly every call
        for x in range(first, last):
            at = begin + step * x
            out[x, 0], out[x, 1], out[x, 2] = table[row[at, 0], 0], table[row[at, 1], 1], table[row[at, 2], 2]
    else:
        for x in range(first, last):
            for c in range(row.shape[1]):
                out[x, c] = table[row[begin + step * x, c], c]


@njit(cache=True, nogil=True)
def look_up_mirrored(row, out, table, first, last, begin, step):
    """`look_up` where the source column may lie outside the row."""
    for x in range(first, last):
        at = mirrored(begin + step * x, row.shape[0])
        for c in range(row.shape[1]):
            out[x, c] = table[row[at, c], c]


@njit(cache=True, nogil=True)
def paint(out, colour, first, last):
    """out[x] = colour for x in [first, last); out [W,C], colour [C]."""
    for x in range(first, last):
        for c in range(out.shape[1]):
            out[x, c] = colour[c]


@njit(cache=True, nogil=True)
def augment(image, out, table, colours, keys, sample, odd, flip_mode, padding_mode, translate, cutout):
    """Write one sample as `reference.augment` makes it, normalised, to out [H,W,C].

    image uint8[H,W,C]; table [256,C] and colours [2,C] of out's dtype; keys as `epoch_keys` gives them;
    sample its id; odd 1 in odd epochs, else 0; translate and cutout in pixels
    """
    height, width, _ = image.shape
    flip = flip_mode == RANDOM and choose(keys, 0, 2, sample) == 1
    flip |= flip_mode == ALTERNATE and choose(keys, 0, 2, sample) != odd
    dy = choose(keys, 1, 2 * translate + 1, sample) - translate
    dx = choose(keys, 2, 2 * translate + 1, sample) - translate
    cut_y = choose(keys, 3, height - cutout + 1, sample)
    cut_x = choose(keys, 4, width - cutout + 1, sample)
    first, last = max(0, -dx), min(width, width - dx)  # the columns whose source lies in the image
    begin, step = dx, 1
    if flip:
        first, last = width - last, width - first
        begin, step = width - 1 + dx, -1
    for y in range(height):
        source, line, edges = y + dy, out[y], ((0, first), (last, width))
        row = image[mirrored(source, height)]
        if padding_mode == REFLECT or 0 <= source < height:
            look_up(row, line, table, first, last, begin, step)
        else:
            edges = ((0, width), (0, 0))
        for left, right in edges:
            if padding_mode == REFLECT:
                look_up_mirrored(row, line, table, left, right, begin, step)
            else:
                paint(line, colours[0], left, right)
        if cut_y <= y < cut_y + cutout:
            paint(line, colours[1], cut_x, cut_x + cutout)


@njit(cache=True, nogil=True, parallel=True)
def augment_rows(images, rows, ids, out, table, colours, seed, epoch, flip_mode, padding_mode, translate, cutout):
    """`augment_batch` where sample ids[i] lies at images[rows[i]]; rows int64[B]."""
    keys = epoch_keys(seed, epoch, flip_mode)
    for i in prange(len(ids)):
        augment(images[rows[i]], out[i], table, colours, keys, ids[i], epoch & 1, flip_mode, padding_mode, translate, cutout)


def augment_batch(images, ids, out, table, colours, seed, epoch, flip_mode, padding_mode, translate, cutout):
    """Write samples `ids` of an epoch, augmented and normalised, to out [B,H,W,C]; all cores, without the GIL.

    images uint8[N,H,W,C]; ids int64[B]; table [256,C] and colours [2,C] of out's dtype (see `bits` and `colours`);
    seed and epoch in [0, 2**32); flip_mode and padding_mode positions in FLIPS and PADDINGS;
    translate and cutout in pixels, as `Policy.fits` allows them
    """
    augment_rows(images, ids, ids, out, table, colours, seed, epoch, flip_mode, padding_mode, translate, cutout)

"""What happens to each image: pure functions of (seed, epoch, sample id).

Shapes: ids_B, flip_B, dy_B; N samples in a split, n of them in an epoch, B in a batch.

Every random choice is one 32-bit hash of (seed, epoch, stream, sample id); a stream is the name of a
choice. The hash is counter-based, so any sample of any epoch is known without drawing the ones before
it, and it is written with nothing but 32-bit integer operations, so NumPy, Numba and Triton agree:

    mix(x)  = the lowbias32 finaliser (Chris Wellons, "Prospecting for hash functions", 2018)
    key(salt) = mix(mix(mix(salt ^ seed) ^ epoch) ^ stream)
    hash    = mix(mix(id ^ key(SALT_A)) + key(SALT_B))

`mix` is a bijection, so for one key two ids never collide: an argsort of the hashes is a permutation
without ties. Two keys make a 64-bit state, so that thousands of seeds do not share an epoch.
A choice among n is the high word of hash * n (Lemire, "Fast random integer generation in an
interval", 2019), whose bias is below n / 2**32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from typing import NamedTuple

import numpy as np

from pipelines.errors import InputError

MASK = 0xFFFFFFFF
SALT_A, SALT_B = 0x9E3779B9, 0x7F4A7C15  # the two halves of 2**64 / golden ratio
ORDER, FLIP, DY, DX, CUT_Y, CUT_X = range(6)  # the streams; new ones are appended, never renumbered
AFFINE, ANGLE, SCALE, SHIFT_Y, SHIFT_X, ERASE, ERASE_Y, ERASE_X, GREY = range(6, 15)
BRIGHTNESS, CONTRAST, SATURATION, SHARPNESS, MIXUP, CUTMIX, PATCH_AREA, PATCH_Y, PATCH_X = range(15, 24)

FLIPS = ("none", "random", "alternate")
PADDINGS = ("zero", "mean", "reflect")


def mix(x):
    """lowbias32 on a uint32 array or a Python int in [0, 2**32); the type is kept."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def key(salt: int, seed: int, epoch: int, stream: int) -> int:
    """The 32-bit key of one random choice in one epoch."""
    seed, epoch = index(seed), index(epoch)  # Python integers: NumPy's would overflow
    return mix(mix(mix(salt ^ seed) ^ epoch) ^ stream)


def hash32(seed: int, epoch: int, stream: int, ids: np.ndarray) -> np.ndarray:
    """uint32[B]: the hash of each sample id (integers in [0, 2**32))."""
    ids = np.asarray(ids).astype(np.uint32)
    key_a = np.uint32(key(SALT_A, seed, epoch, stream))
    key_b = np.uint32(key(SALT_B, seed, epoch, stream))
    return mix(mix(ids ^ key_a) + key_b)


def below(n: int, hashes: np.ndarray) -> np.ndarray:
    """int32[B] in [0, n): each hash as a fair choice among n."""
    return ((hashes.astype(np.uint64) * np.uint64(n)) >> np.uint64(32)).astype(np.int32)


def unit(hashes: np.ndarray) -> np.ndarray:
    """float32[B] in [0, 1): the top 24 bits of each hash, all exactly representable."""
    return (hashes >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """int64[n]: the epoch's permutation of range(n), the stable argsort of the hashes of range(n)."""
    return np.argsort(hash32(seed, epoch, ORDER, np.arange(n)), kind="stable")


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """int64[count], sorted: a fixed choice of samples with as many of each class as can be.

    labels  int64[N]; where count is no multiple of the classes, the first classes have one more
    """
    if not 0 < count <= len(labels):
        raise InputError(f"{count} images of {len(labels)}: give from 1 to {len(labels)}")
    scattered = order(0, 0, len(labels))
    by_class = scattered[np.argsort(labels[scattered], kind="stable")]
    starts = np.searchsorted(labels[by_class], np.arange(labels.max() + 1))
    rank = np.arange(len(labels)) - starts[labels[by_class]]
    return np.sort(by_class[np.argsort(rank, kind="stable")][:count])


@dataclass(frozen=True)
class Policy:
    """What may happen to an image: shift, then flip, then cutout.

    flip       "none", "random" (each epoch, one half), or "alternate" (a random half in even epochs, the
               other half in odd ones; Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024)
    translate  largest shift along each axis, pixels; every offset in [-translate, translate] is as likely
    padding    what a shift brings in: "zero", "mean" (the split's mean, rounded to uint8) or "reflect"
               (without repeating the edge, as numpy.pad does)
    cutout     side of a square wholly inside the image that is set to the mean, pixels; 0 for none
    shuffle    whether the epoch's order is permuted
    """

    flip: str = "random"
    translate: int = 4
    padding: str = "zero"
    cutout: int = 8
    shuffle: bool = True

    def __post_init__(self):
        if self.flip not in FLIPS:
            raise InputError(f"flip {self.flip!r}: choose one of {', '.join(FLIPS)}")
        if self.padding not in PADDINGS:
            raise InputError(f"padding {self.padding!r}: choose one of {', '.join(PADDINGS)}")
        if self.translate < 0 or self.cutout < 0:
            raise InputError("translate and cutout are pixels: give 0 or more")

    def fits(self, height: int, width: int) -> None:
        """Raise `InputError` where an image of this size cannot be treated so."""
        side = min(height, width)
        if self.cutout > side:
            raise InputError(f"cutout {self.cutout} is larger than the {height}x{width} images: give at most {side}")
        if self.translate >= side:
            raise InputError(f"translate {self.translate} leaves nothing of {height}x{width} images: give at most {side - 1}")


PLAIN = Policy(flip="none", translate=0, cutout=0, shuffle=False)  # evaluation: every image as it is, in the store's order


class Augmentation(NamedTuple):
    """What happens to the B images of one batch. out[y, x] = padded[y + dy, x + dx], then flip, then cut.

    flip          bool[B]
    dy, dx        int32[B] in [-translate, translate], pixels
    cut_y, cut_x  int32[B], the square's top left corner in the finished image, pixels
    """

    flip: np.ndarray
    dy: np.ndarray
    dx: np.ndarray
    cut_y: np.ndarray
    cut_x: np.ndarray


def augmentation(policy: Policy, seed: int, epoch: int, ids: np.ndarray, height: int, width: int) -> Augmentation:
    """The augmentation of samples `ids` (int[B]) in an epoch, for images of height x width pixels."""

    def choice(stream, n):
        return below(n, hash32(seed, epoch, stream, ids))

    if policy.flip == "random":
        flip = choice(FLIP, 2) == 1
    elif policy.flip == "alternate":
        first = below(2, hash32(seed, 0, FLIP, ids))
        flip = (first ^ (epoch & 1)) == 1
    else:
        flip = np.zeros(len(ids), bool)
    reach = 2 * policy.translate + 1
    return Augmentation(
        flip,
        choice(DY, reach) - policy.translate,
        choice(DX, reach) - policy.translate,
        choice(CUT_Y, height - policy.cutout + 1),
        choice(CUT_X, width - policy.cutout + 1),
    )


def part_of(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """(first, end) of the images of a batch of `count` that the rank-th of `ranks` processes makes.

    Neighbours 2k and 2k + 1 stay together, as `mixing` pairs them; where they cannot be dealt out evenly, the first have more.
    """
    whole, more = divmod(-(-count // 2), ranks)
    first = rank * whole + min(rank, more)
    return min(2 * first, count), min(2 * (first + whole + (rank < more)), count)


def check_start(epoch: int, step: int) -> None:
    """Raise `InputError` unless there is an epoch of that number, and it can begin at that step."""
    if not 0 <= epoch <= MASK:  # beyond, Python's hash and the kernels' are two
        raise InputError(f"epoch {epoch}: give an integer from 0 to {MASK}")
    if step < 0:
        raise InputError(f"start {step}: give a step from 0 on")


@dataclass(frozen=True, eq=False)  # arrays are compared by element
class Plan:
    """The schedule of one pipeline: which samples make each batch, and what happens to them.

    ids    int64[n]: the samples of an epoch, as positions in the store's split. A sample keeps its id, and
           so its augmentation, whatever subset it is trained in.
    share  (rank, ranks): of `ranks` processes that make each batch together, this one makes the rank-th part. `ids`,
           `batch_size` and the steps are those of all of them; what is ordered and yielded is the part.
    """

    policy: Policy
    seed: int
    ids: np.ndarray = field(repr=False)
    batch_size: int
    height: int
    width: int
    drop_last: bool = False
    share: tuple[int, int] = (0, 1)

    def __post_init__(self):
        self.policy.fits(self.height, self.width)
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}: give 1 or more")
        if not 0 <= self.seed <= MASK:
            raise InputError(f"seed {self.seed}: give an integer from 0 to {MASK}")
        rank, ranks = self.share
        if not 0 <= rank < ranks:
            raise InputError(f"share {self.share}: give (rank, ranks), the first from 0 and below the second")
        if ranks > 1 and (self.batch_size % (2 * ranks) or len(self.ids) < 2 * ranks):
            raise InputError(
                f"{len(self.ids)} images in batches of {self.batch_size} for {ranks} processes: give a multiple of {2 * ranks}, and as many images"
            )

    @classmethod
    def of(cls, store, split: str, policy: Policy | None, seed: int, batch_size: int, ids=None, drop_last: bool = False, share=(0, 1)) -> "Plan":
        """The plan of a store's split. Without a policy, train is augmented and any other split left as it is."""
        count = store.count(split)
        ids = np.arange(count) if ids is None else np.asarray(ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids) or ids.min() < 0 or ids.max() >= count:
            raise InputError(f"{store.path}: sample ids must be in [0, {count}) for {split!r}, and at least one")
        policy = policy or (Policy() if split == "train" else PLAIN)
        return cls(policy, seed, ids.astype(np.int64), batch_size, store.height, store.width, drop_last, tuple(share))

    def __len__(self) -> int:
        """Steps an epoch."""
        whole, rest = divmod(len(self.ids), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def size(self, step: int) -> int:
        """Images of a step's batch, those of all processes."""
        return min(self.batch_size, len(self.ids) - step * self.batch_size)

    @property
    def part(self) -> int:
        """Images of a full batch that are made here."""
        return self.batch_size // self.share[1]

    @cached_property
    def places(self) -> np.ndarray:
        """int64[m]: the positions in an epoch's order of the images that are made here; all n without a share."""
        firsts = range(0, len(self.ids), self.batch_size)
        pieces = [part_of(min(self.batch_size, len(self.ids) - first), *self.share) for first in firsts]
        return np.concatenate([first + np.arange(*piece) for first, piece in zip(firsts, pieces)])

    @property
    def steps(self) -> int:
        """Batches an epoch that are yielded here: those of `len`, but for a last one that is too small for all to have a part."""
        return len(self) if self.share == (0, 1) else min(len(self), -(-len(self.places) // self.part))

    def order(self, epoch: int) -> np.ndarray:
        """int64[m]: the samples of the epoch that are made here in their order, those of a dropped last batch included."""
        ids = self.ids[order(self.seed, epoch, len(self.ids))] if self.policy.shuffle else self.ids
        return ids if self.share == (0, 1) else ids[self.places]

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yield the ids (int64[B], fewer in a last batch that is kept) of each step from `start` on. Raises `InputError` for one before the first."""
        check_start(epoch, start)
        ids = self.order(epoch)
        for step in range(start, self.steps):
            yield ids[step * self.part : (step + 1) * self.part]

    def augmentation(self, epoch: int, ids: np.ndarray) -> Augmentation:
        """The augmentation of `ids` in `epoch`."""
        return augmentation(self.policy, self.seed, epoch, ids, self.height, self.width)

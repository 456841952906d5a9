"""Memory for batches that is used again, but never while anyone still holds the batch before."""

import math
import sys

import numpy as np
import torch

KEPT = 3  # one with the caller, one being made, one for a caller that looks back a step


def references(arrays: list[np.ndarray]) -> int:
    """What Python counts of an array that only a list and a loop over it hold: 3 with getrefcount's own, which some versions borrow."""
    for array in arrays:
        return sys.getrefcount(array)
    raise ValueError("no arrays")


ALONE = references([np.empty(0, np.uint8)])


class Buffers:
    """Tensors of one shape an item, in memory that was faulted in by an earlier batch.

    A tensor holds its array for as long as it, any view of it, or a graph that saved it lives; the array's reference
    count says so. Fresh memory of tens of MB costs more in page faults than the pass that fills it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype):
        self.shape, self.dtype = shape, dtype
        self.arrays: list[np.ndarray] = []

    def take(self, count: int) -> torch.Tensor:
        """[count, *shape] of the dtype, not initialised; no other tensor shares its memory."""
        size = count * math.prod(self.shape) * self.dtype.itemsize
        for array in self.arrays:
            if sys.getrefcount(array) == ALONE and len(array) >= size:
                break
        else:
            array = np.empty(size, np.uint8)
            self.arrays = [*self.arrays[1 - KEPT :], array]
        return torch.from_numpy(array)[:size].view(self.dtype).view(count, *self.shape)

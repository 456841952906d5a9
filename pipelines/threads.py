"""Thread counts that outlive a guest."""

from contextlib import contextmanager

import numba
import torch


@contextmanager
def threads_kept():
    """Give torch and Numba their thread counts back: FFCV sets both for the whole process, to 1 even where it is only imported."""
    counts = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(counts[0])
        numba.set_num_threads(counts[1])

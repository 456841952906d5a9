"""How many threads there may be, and thread counts that outlive a guest."""

import os
from contextlib import contextmanager

import torch


def cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than it has; where the system does not tell, those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads_kept():
    """Give torch and Numba their thread counts back: FFCV sets both for the whole process, to 1 even where it is only imported."""
    import numba  # here: loaders that only count cores do without it

    counts = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(counts[0])
        numba.set_num_threads(counts[1])

"""Where batches are wanted, and small arrays on their way there, without the host waiting for it."""

import numpy as np
import torch

from pipelines.errors import InputError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def wanted(name: str, device: str | torch.device, dtype: torch.dtype) -> torch.device:
    """The device on which a pipeline of that name is to give batches of `dtype`. Raises `InputError` where torch has no such device here, or for another dtype."""
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError(f"pipeline {name}: device {device}: torch knows none of that name: choose cpu or cuda") from None
    if dtype not in DTYPES:
        raise InputError(f"pipeline {name}: dtype {dtype}: choose float32, float16 or bfloat16")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"pipeline {name}: device {device}: torch sees {count} CUDA devices here: choose cpu or one of them")
    return device


def sent(array: np.ndarray, device: torch.device, pinned: bool = True) -> torch.Tensor:
    """An array as a tensor on `device`; on a CPU the array's own memory.

    On CUDA through pinned memory (unless that cannot be had: `pinned`), since torch waits for the stream to be empty after every copy from other memory.
    """
    tensor = torch.from_numpy(array)
    if pinned and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

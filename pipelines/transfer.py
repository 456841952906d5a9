"""Small arrays on their way to a device, without the host waiting for it."""

import numpy as np
import torch


def sent(array: np.ndarray, device: torch.device, pinned: bool = True) -> torch.Tensor:
    """An array as a tensor on `device`; on a CPU the array's own memory.

    On CUDA through pinned memory (unless that cannot be had: `pinned`), since torch waits for the stream to be empty after every copy from other memory.
    """
    tensor = torch.from_numpy(array)
    if pinned and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

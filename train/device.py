"""Where a recipe trains, in which precision, and how a processor is set for it."""

import ctypes
import os

import numpy as np
import torch

from pipelines.errors import InputError
from train.machine import cpu_has_bf16
from train.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(recipe: Recipe) -> torch.device:
    """The device that a recipe means, with this process `settled` on it, and set for the same bits again where the recipe asks for them.

    To be asked before anything is computed.

    Raises `InputError` where the recipe asks for CUDA and there is none.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here: use --device cpu, or mend the driver (nvidia-smi)")
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for; read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
    return settled(torch.device("cuda" if recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available()) else "cpu"))


def precision_of(recipe: Recipe, device: torch.device) -> str:
    """The precision that a recipe means: half where the hardware has it, and bf16 before fp16."""
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() else "fp32"


def settled(device: torch.device) -> torch.device:
    """The device, with this process set for training on it: on a processor memory is kept, and numbers next to zero are zero."""
    if device.type == "cpu":
        keep_memory()
        flush_denormals()
    return device


def keep_memory() -> None:
    """Have this process keep the memory that a step frees, for the next one.

    glibc hands large blocks back to the system, which clears every page again when the next step asks for them: 5 to 19% of
    the processor's time in short trainings (`benchmarks/LOG.md`).
    Another C library is left as it is. Source: mallopt(3).
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def flush_denormals() -> None:
    """Have this thread, and those that it starts from now on, take float32 below 1.2e-38 for zero, where the processor can.

    A filter's row that no gradient reaches shrinks with every step of Muon, which keeps the norm of the whole filter, and products of two such
    rows' values are denormal: an Intel processor then took 3.3 times as long for a step, and the loss was the same to the last bit (`benchmarks/LOG.md`).
    Threads that run already are left as they are. Source: torch.set_flush_denormal.
    """
    for kind in (np.float32, np.float64):  # NumPy works out their smallest numbers once, and warns where there are none
        np.finfo(kind)
    torch.set_flush_denormal(True)

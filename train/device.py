"""Where a recipe trains, and in which precision."""

import torch

from pipelines.errors import InputError
from train.machine import cpu_has_bf16
from train.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(recipe: Recipe) -> torch.device:
    """The device that a recipe means. Raises `InputError` where it asks for CUDA and there is none."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here: use --device cpu, or mend the driver (nvidia-smi)")
    return torch.device("cuda" if recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available()) else "cpu")


def precision_of(recipe: Recipe, device: torch.device) -> str:
    """The precision that a recipe means: half where the hardware has it, and bf16 before fp16."""
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() else "fp32"

"""What fails around a training, in one line that says what to do: device memory that runs out, workers that die."""

from contextlib import contextmanager
from multiprocessing import active_children

import torch

from pipelines.errors import InputError, reason
from train.recipe import Recipe, flag

NO_HOST_MEMORY = "can't allocate memory"  # as torch's allocator on a CPU says it, in a RuntimeError
DEAD_WORKER = "DataLoader worker"  # as torch says it, in a RuntimeError that may come up anywhere


@contextmanager
def explained(recipe: Recipe, device: torch.device):
    """Turn what torch raises of such failures into `InputError`.

    The batch is not made smaller here: it would be another training, with other batches and another schedule, that could not
    be compared with those that had the memory. What to set for it is said instead.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise out_of_memory(recipe, device, error) from None
    except RuntimeError as error:
        if NO_HOST_MEMORY in str(error):
            raise out_of_memory(recipe, device, error) from None
        if DEAD_WORKER in str(error):
            active_children()  # which lets go of the dead one: until then torch raises the same again, anywhere, when another child ends
            remedy = "free some memory, or take --pipeline resident, which has no worker processes"
            raise InputError(f"pipeline {recipe.pipeline}: a worker process died ({reason(error)}): {remedy}") from None
        raise


def out_of_memory(recipe: Recipe, device: torch.device, error: Exception) -> InputError:
    """What to set where the memory of `device` runs out."""
    remedy = "take a smaller --net" if recipe.batch_size == 1 else f"set {smaller(recipe)} (half the batch, rates to match)"
    return InputError(f"{device}: out of memory at batch size {recipe.batch_size} ({reason(error)}): {remedy}")


def smaller(recipe: Recipe) -> str:
    """The flags of half the batch. SGD's rates fall with the batch (Goyal et al. 2017, arXiv:1706.02677), those of AdamW and Muon,
    whose steps do not grow with the gradient, with its square root (Malladi et al. 2022, arXiv:2205.10287)."""
    flags = [f"--batch-size {recipe.batch_size // 2}"]
    for name, rate in recipe.rates().items():
        linear = recipe.optimiser == "sgd" or recipe.optimiser == "muon" and name != "muon_lr"
        flags.append(f"--{flag(name)} {rate * (0.5 if linear else 0.5**0.5):.3g}")
    return " ".join(flags)

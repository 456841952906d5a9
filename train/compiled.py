"""A training step made once for all that come: through torch.compile forward with loss, backward, and the optimiser, each one program.

On CUDA all three are recorded as one graph (`recorded.py`), compiled or not, so that a step costs the host one launch and a copy of its batch. torch.compile's own
graphs are left out: each of its programs would be one, and a loss that is kept for the epoch's end would be written over by the next step.

Seeds of one process share what was compiled: the parameters are inputs of the programs, not constants in them.
"""

import logging
from typing import Any

import torch

from train.recipe import Recipe
from train.recorded import Graphs, Recorded, RecordedLook
from train.scaling import FixedScale

REMARKS = ("torch._dynamo.variables.ctx_manager", "torch.utils.cpp_extension")  # on a profiler's marks, on a CUDA that is not there: nothing to act on
PROGRAMS = 64  # of one method: a size of image times a size of batch times the trainings of a process; torch's own 8 are soon used up, and then it runs eagerly

# a program knows nothing of another stream that still reads a tensor (`nets/aside.py`); the allocator does
KEPT: dict[str, Any] = {"allow_buffer_reuse": False, "inplace_buffers": False}


def build_step(training, recipe: Recipe) -> None:
    """Replace what the recipe says of a `loop.Training` or `together.Together`: `forward` and `update`, on CUDA `work`, too. Its `built` tells whether any was.

    In fp16 the scale of the loss is fixed: a scaler's looks at the gradients, on the host, cannot be in it.
    """
    cuda = training.device.type == "cuda"
    training.built = recipe.compiled or (recipe.recorded and cuda and training.ranks.alone)  # a graph of what processes say to each other has not been tried
    if not training.built:
        return
    if training.precision == "fp16":
        training.scaler = FixedScale(recipe.batch_size)
    keep_rates(training.optimiser, training.device)
    if recipe.compiled:
        compile_step(training)
    if cuda:
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()  # its choices are part of the recording
        graphs = Graphs(training.device)
        training.work = Recorded(training.work, graphs, lambda: training.phase)
        if hasattr(training, "look"):  # a group's nets are tested one by one
            training.look = RecordedLook(training.look, graphs)


def compile_step(training) -> None:
    """Have the two programs in place of the methods."""
    for name in REMARKS:
        logging.getLogger(name).setLevel(logging.ERROR)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
    # no dynamic shapes: a program each for the full batch, the last one, and every side
    training.forward = torch.compile(training.forward, dynamic=False, options=KEPT if getattr(getattr(training, "net", None), "aside", False) else None)
    # without torch 2.11's search for loops that could be turned to be fused: it takes the optimisers' lists for single tensors, and fails
    scaler, optimiser = training.scaler, training.optimiser
    training.update = torch.compile(
        (lambda: scaler.step(optimiser)) if training.precision == "fp16" else optimiser.step, dynamic=False, options={"loop_ordering_after_fusion": False}
    )


def keep_rates(optimiser: torch.optim.Optimizer, device: torch.device) -> None:
    """Have the learning rates in tensors: a number would be a constant of the program, and compiled anew with every rate."""
    for group in optimiser.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


@torch.no_grad()
def restore(net: torch.nn.Module, optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Undo steps in place, as compiled programs know their tensors by address: weights as in `state`, momenta at zero."""
    net.load_state_dict(state)
    for values in optimiser.state.values():
        for value in values.values():
            if torch.is_tensor(value):
                value.zero_()
    optimiser.zero_grad(set_to_none=False)  # gradients may be slices of a group's

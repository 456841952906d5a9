"""Several processes: `torchrun --nproc-per-node N -m train ...`, on one machine or several.

One training is shared: each process makes its part of every batch of the plan, and what depends on the whole batch is added up
over all: batch norm's statistics (`synced.py`), the gradients with the loss, and the test pass. So every step is that of a single
process with the same batch size, but for the order in which floating-point sums are taken. The gradients are one tensor and one
all-reduce: an uneven last batch weighs as it must, and the optimisers see what they always see.

Several trainings (`--runs`, `--sweep`) are dealt out instead, whole.

Processes talk through gloo, or nccl where they share a training on GPUs. Only gloo on CPUs has been run.
"""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from pipelines.errors import InputError, reason
from pipelines.plan import Plan, mix

PATIENCE = timedelta(minutes=30)  # with the slowest process of a step, or the first, which may have to convert the data
DEALT = timedelta(days=30)  # with the process whose trainings take longest


@dataclass(frozen=True)
class Ranks:
    """This process: the `rank`-th of all, the `local`-th of its machine. `count` processes share each training, or
    `side_by_side` have trainings of their own."""

    rank: int = 0
    count: int = 1
    local: int = 0
    side_by_side: int = 1

    @property
    def alone(self) -> bool:
        """Whether it shares its trainings with none."""
        return self.count == 1

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.count * self.side_by_side > 1

    @property
    def share(self) -> tuple[int, int]:
        """What `pipelines.open` takes."""
        return (0, 1) if self.alone else (self.rank, self.count)

    @property
    def writes(self) -> bool:
        """Whether it writes the run folder of what it trains, and speaks of it."""
        return self.alone or self.rank == 0

    def dealt(self, items: list) -> list:
        """Those that fall to this process."""
        return items[self.rank :: self.side_by_side] if self.side_by_side > 1 else items

    def of_all(self, found: dict) -> dict:
        """What all processes found that have trainings of their own."""
        if self.side_by_side == 1:
            return found
        each: list[dict] = [{}] * self.side_by_side
        with peers():
            dist.all_gather_object(each, found)
        return {key: value for theirs in each for key, value in theirs.items()}

    def whole(self, batch: int) -> int:
        """The largest batch size up to `batch` that all can share, at least 2 images for each."""
        return batch if self.alone else max(batch // (2 * self.count), 1) * 2 * self.count

    def device(self, device: torch.device) -> torch.device:
        """Where this process trains: each has a GPU of its machine to itself."""
        if device.type != "cuda" or not self.several:
            return device
        if self.local >= torch.cuda.device_count():
            raise InputError(f"more processes than the {torch.cuda.device_count()} GPUs of this machine: set --nproc-per-node to its GPUs, or --device cpu")
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def first_of_machine(self, make: Callable):
        """What `make()` gives; the others of a machine call it when its first process has, and find what that left on disk."""
        made = None if self.local else make()
        if self.several:
            with peers():
                dist.barrier()
        return make() if self.local else made

    def same(self, make: Callable):
        """What `make()` gives in the first process, in all of them."""
        if not self.several:
            return make()
        values = [make() if self.rank == 0 else None]
        with peers():
            dist.broadcast_object_list(values)
        return values[0]

    def gathered(self, part: torch.Tensor, plan: Plan) -> torch.Tensor:
        """[n, ...]: the rows that all processes have made of an epoch of `plan`, whose places in it are `plan.places` here."""
        if self.alone:
            return part
        rows = part.new_zeros(len(plan.ids), *part.shape[1:])
        rows[torch.from_numpy(plan.places[: len(part)]).to(part.device)] = part
        return total(rows)

    def whole_batch(self, images: torch.Tensor, plan: Plan) -> torch.Tensor:
        """The first batch of an epoch, of which `images` are this process's."""
        if self.alone:
            return images
        rows = images.new_zeros(plan.size(0), *images.shape[1:], dtype=torch.float32)
        rows[torch.from_numpy(plan.places[: len(images)]).to(images.device)] = images.float()
        return total(rows).to(images.dtype, memory_format=torch.channels_last)

    def same_start(self, net: nn.Module) -> None:
        """Give `net` the weights and statistics that it has in the first process."""
        if self.alone:
            return
        with peers(), torch.no_grad():
            for tensor in net.state_dict().values():
                sent = tensor.contiguous()  # a copy where it is channels_last
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    def begin_step(self, seed: int, epoch: int, step: int) -> None:
        """Give each process draws of its own for dropout, that depend on nothing before: so a checkpoint need not hold them."""
        if not self.alone:
            torch.manual_seed(mix(mix(mix(mix(seed) ^ epoch) ^ step) ^ (self.rank + 1)))

    def part_of(self, loss: torch.Tensor, images: int, plan: Plan, step: int) -> torch.Tensor:
        """What the mean loss of this process's `images` adds to that of a step's whole batch."""
        return loss if self.alone else loss * (images / plan.size(step))

    def add_up(self, net: nn.Module, loss: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, right) of the whole batch, and in `net` its gradients, where each process has its `part_of` them."""
        if self.alone:
            return loss, right
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        flat = total(torch.cat([*(g.flatten() for g in gradients), loss[None], right[None].to(loss.dtype)]))
        pieces = flat[:-2].split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [piece.view(g.shape) for piece, g in zip(pieces, gradients)])
        return flat[-2].clone(), flat[-1].round().long()


@contextmanager
def joined(device: torch.device, deal: bool = False):
    """Yield the `Ranks` that torchrun's environment tells of: those that share a training, or with `deal` have trainings of their own."""
    count, rank, local = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    if count == 1:
        yield Ranks()
        return
    mine = Ranks(rank, 1, local, count) if deal else Ranks(rank, count, local)
    gpus = device.type == "cuda" and not deal
    # whoever imports it later, as torch's compiler does, has the group for its functions' defaults: gloo's threads outlive it then, and one that lets go of a tensor
    # while the interpreter ends is aborted, and with it the process (once in some 25 times on a busy machine)
    importlib.import_module("torch.distributed.nn")
    with peers():
        dist.init_process_group("nccl" if gpus else "gloo", timeout=DEALT if deal else PATIENCE, device_id=mine.device(device) if gpus else None)
    failed = True
    try:
        with told(first=mine.writes, between_calls=not gpus):
            yield mine
        failed = False
    finally:
        if not (gpus and failed):  # nccl might wait for what the others never send
            dist.destroy_process_group()


@contextmanager
def told(first: bool, between_calls: bool):
    """What torchrun's signals mean: Ctrl-C is for the first of a training, which saves; the others end with it. What ends
    this process because another has failed becomes an `InputError` where Python gets to see it, `between_calls` of the device:
    one that waits for a GPU for ever would only be ended half a minute later. A process that ends already, since it has
    noticed the other's end by itself, is left to say so."""
    asked = []

    def end(*_):
        if sys.exc_info()[1] is None:  # else it is on its way out, or saves before
            raise InputError("torchrun ends this process: another has failed (look for its line, or torchrun's), or all were asked to end")

    handlers = ({} if first else {signal.SIGINT: lambda *_: asked.append(True)}) | ({signal.SIGTERM: end} if between_calls else {})
    here = threading.current_thread() is threading.main_thread()  # Python hands signals to no other
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()} if here else {}
    try:
        yield
    except BaseException as error:
        if signal.SIGTERM in before:
            before[signal.SIGTERM] = signal.SIG_IGN  # its last line is still to be printed
        if asked and isinstance(error, InputError):
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def peers():
    """Turn what torch raises where another process is gone into one line."""
    try:
        yield
    except RuntimeError as error:  # gloo's own, and torch.distributed's kinds of it
        raise InputError(f"another process of this training has ended ({reason(error).split('] ', 1)[-1]}): look for its line, or torchrun's") from None


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, in place, with the sum of all processes' values."""
    with peers():
        dist.all_reduce(tensor)
    return tensor

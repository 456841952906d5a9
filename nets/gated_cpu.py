"""A tiny net's block (`tiny.py`) on a processor: an operator of torch on C (`gated_cpu.c`), which the system's compiler makes where a training first needs it.

By torch.compile a block reads and writes its map some 45 times on the way forward and back; here the maps of a few images stay in the cache, and what the way back
needs is worked out again. `benchmarks/LOG.md` has what that gives. Where there is no compiler, or no AVX2, a block is torch's own operations.

Shapes: images_NCHW float32, in either order of memory; look_C9, gain_C, shift_C, widen_HC with gates before values, H = 2C, narrow_CC, scale_C; C a multiple of eight.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
ORDERS = (torch.contiguous_format, torch.channels_last)
PART = 32  # images that a thread takes at a time, whatever the number of threads: so sums are the same bits


@cache
def library() -> ctypes.CDLL | None:
    """What the compiler makes of the source, kept beside Python's own compiled files; None where there is no compiler, or it cannot do it."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    try:
        told = SOURCE.read_bytes() + "\0".join((compiler, *FLAGS, processor())).encode()
        name = f"{SOURCE.stem}-{hashlib.sha256(told).hexdigest()[:16]}.so"
        kept = SOURCE.parent / "__pycache__" / name
        if not kept.exists():
            kept = make(compiler, kept)
        return ctypes.CDLL(str(kept))
    except (OSError, subprocess.SubprocessError):
        return None


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the operators can be used here. A compiler of steps takes the answer for good."""
    return library() is not None


def processor() -> str:
    """What a native program depends on: the instructions that this processor has."""
    try:
        return next(line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{sys.platform} {torch.backends.cpu.get_cpu_capability()}"


def make(compiler: str, path: Path) -> Path:
    """Compile to `path`, whole or not at all; where it cannot be written to, into a folder of this process."""
    try:
        path.parent.mkdir(exist_ok=True)
        handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="tenfold-")) / path.name
        handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        subprocess.run([compiler, *FLAGS, "-o", made, str(SOURCE), "-lm"], check=True, capture_output=True, timeout=120)
        os.replace(made, path)
    finally:
        Path(made).unlink(missing_ok=True)
    return path


@cache
def threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def shared(count: int, work) -> None:
    """work(first, end) of all parts of `count` images, by as many threads as torch has."""
    parts = [(first, min(first + PART, count)) for first in range(0, count, PART)]
    if not parts:  # a process that has no images of a batch
        return
    workers = min(torch.get_num_threads(), len(parts))
    for failed in map(work, *zip(*parts)) if workers == 1 else threads(workers).map(work, *zip(*parts)):
        if failed:
            raise MemoryError("no memory for a tiny net's block")


def order(tensor: Tensor) -> torch.memory_format:
    """In which of two orders of memory a map lies; anything else becomes the first."""
    last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def dense(map_NCHW: Tensor) -> tuple[Tensor, bool]:
    """(the map in one of the two orders, whether its channels are last)."""
    memory = order(map_NCHW)
    return map_NCHW.contiguous(memory_format=memory), memory == torch.channels_last


def like(images: Tensor, memory: torch.memory_format) -> Tensor:
    return torch.empty_like(images, memory_format=memory)


def place(tensor: Tensor, row: int = 0) -> ctypes.c_void_p:
    """The address of a row of the first dimension."""
    return ctypes.c_void_p(tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size())


def folded(gain_C: Tensor, shift_C: Tensor, widen_HC: Tensor, narrow_CC: Tensor, scale_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(widen with the norm's gain in it, what the norm's shift adds behind it, narrow with the scale in it)."""
    return widen_HC * gain_C, widen_HC @ shift_C, narrow_CC * scale_C[:, None]


@torch.library.custom_op("tenfold::gated_block_cpu", mutates_args=())
def gated_block(
    images_NCHW: Tensor, look_C9: Tensor, gain_C: Tensor, shift_C: Tensor, widen_HC: Tensor, narrow_CC: Tensor, scale_C: Tensor, eps: float, last: bool
) -> Tensor:
    """images + scale * narrow · (silu(gate) * value), of gate and value = widen · layer norm of the depthwise convolution; float32, with the channels last or not."""
    (images, images_last), look = dense(images_NCHW), look_C9.contiguous()
    widen, bias, narrow = folded(gain_C, shift_C, widen_HC, narrow_CC, scale_C)
    out, there, back = like(images, ORDERS[last]), widen.t().contiguous(), narrow.t().contiguous()
    sizes, made = images.shape[1:], library()

    def work(first: int, end: int) -> int:
        maps = place(images, first), images_last, place(out, first), last
        return made.block_forward(*maps, *map(place, (look, there, bias, back)), ctypes.c_float(eps), end - first, *sizes)

    shared(len(images), work)
    return out


@gated_block.register_fake
def _(images, *others):
    return like(images, ORDERS[others[-1]])


@torch.library.custom_op("tenfold::gated_block_cpu_backward", mutates_args=())
def gated_block_backward(
    gradient: Tensor, images_NCHW: Tensor, look_C9: Tensor, gain_C: Tensor, shift_C: Tensor, widen_HC: Tensor, narrow_CC: Tensor, scale_C: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the images, which lies as they do, and of the parameters."""
    (images, images_last), (gradient, gradient_last), look = dense(images_NCHW), dense(gradient), look_C9.contiguous()
    widen, bias, narrow = folded(gain_C, shift_C, widen_HC, narrow_CC, scale_C)
    out, there = like(images, ORDERS[images_last]), widen.t().contiguous()
    sizes, made, channels = images.shape[1:], library(), images.shape[1]
    parts = -(-len(images) // PART)
    sums = [images.new_empty((parts, *shape)) for shape in ((channels, 9), (2 * channels, channels), (2 * channels,), (channels, channels))]

    def work(first: int, end: int) -> int:
        maps = place(images, first), images_last, place(gradient, first), gradient_last, place(out, first)
        return made.block_backward(
            *maps, *map(place, (look, there, bias, widen, narrow)), *(place(each, first // PART) for each in sums), ctypes.c_float(eps), end - first, *sizes
        )

    shared(len(images), work)
    of_look, of_widen, of_bias, of_narrow = (each.sum(0) for each in sums)
    return (
        out,
        of_look,
        (widen_HC * of_widen).sum(0),
        of_bias @ widen_HC,
        of_widen * gain_C + of_bias[:, None] * shift_C,
        of_narrow * scale_C[:, None],
        (of_narrow * narrow_CC).sum(1),
    )


@gated_block_backward.register_fake
def _(gradient, images, *parameters_and_eps):
    return like(images, order(images)), *(p.new_empty(p.shape) for p in parameters_and_eps[:-1])


def keep(ctx, inputs, output) -> None:
    *tensors, ctx.eps, _ = inputs
    ctx.save_for_backward(*tensors)


def go_back(ctx, gradient: Tensor):
    return *gated_block_backward(gradient, *ctx.saved_tensors, ctx.eps), None, None


gated_block.register_autograd(go_back, setup_context=keep)


def each_net(operator):
    """A rule for `torch.func.vmap`: net by net."""

    def rule(info, in_dims, *given):
        nets = ([v if dim is None else v.select(dim, i) for v, dim in zip(given, in_dims)] for i in range(info.batch_size))
        results = [operator(*net) for net in nets]
        if torch.is_tensor(results[0]):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results))), (0,) * len(results[0])

    return rule


for operator in (gated_block, gated_block_backward):
    operator.register_vmap(each_net(operator))

"""Operators of torch that are C on a processor, made by the system's compiler where they are first needed.

For x86 with AVX2 or AVX-512 and for ARM of 64 bits. Elsewhere, and where there is no compiler, there are none, and a net is torch's own operations.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

HEADER = Path(__file__).with_name("vectors.h")
# every ARM of 64 bits has the instructions that are needed, and compilers of Apple's did not all know the flag
OWN = () if platform.machine() in ("aarch64", "arm64") else ("-march=native",)
FLAGS = (*OWN, "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
AMX = bool(torch.cpu.get_capabilities().get("amx_bf16"))  # a matrix unit, for which oneDNN's convolutions are made
PART = 32  # images that a thread takes at a time, as in `vectors.h`


@cache
def library(name: str) -> ctypes.CDLL | None:
    """What the compiler makes of `nets/<name>.c`, kept beside Python's own compiled files; None where there is no compiler, or it cannot do it."""
    source = HEADER.with_name(f"{name}.c")
    try:
        command = shlex.split(os.environ.get("CC", "cc"))  # which may be several words, such as ccache gcc
        program = shutil.which(command[0]) if command else None
        if program is None:
            return None
        compiler = [program, *command[1:]]
        headers = b"".join(header.read_bytes() for header in sorted(HEADER.parent.glob("*.h")))
        told = source.read_bytes() + headers + "\0".join((*compiler, *FLAGS, processor())).encode()
        kept = source.parent / "__pycache__" / f"{name}-{hashlib.sha256(told).hexdigest()[:16]}.so"
        if not os.access(kept, os.R_OK):  # also where another user's is there, who kept it to himself
            kept = make(compiler, source, kept)
        return ctypes.CDLL(str(kept))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


@torch.compiler.assume_constant_result
def available(name: str) -> bool:
    """Whether it can be used here. A compiler of steps takes the answer for good."""
    return library(name) is not None


@torch.compiler.assume_constant_result
def fast_halves(name: str) -> bool:
    """Whether this processor multiplies bfloat16 by instructions that take pairs."""
    return available(name) and bool(library(name).fast_halves())


def exporting() -> bool:
    """Whether the net is being made a program for any machine, which has no kernels of ours. In torch.compile torch 2.11 says of itself that it exports."""
    return (torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()) or torch.jit.is_tracing()


def known_to(operator: str, images: Tensor, half: bool = False) -> bool:
    """Whether an operator in C can take the images: in float32 on a processor, where a compiler has made it; one that knows what to do of `half` precision, where
    autocast asks for bfloat16, too."""
    if torch.is_autocast_enabled("cpu"):
        known = half and torch.get_autocast_dtype("cpu") == torch.bfloat16 and images.dtype in (torch.float32, torch.bfloat16)
    else:
        known = images.dtype == torch.float32
    return known and images.device.type == "cpu" and not exporting() and available(operator)


def processor() -> str:
    """What a native program depends on: the instructions that this processor has."""
    try:
        return next(line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{sys.platform} {torch.backends.cpu.get_cpu_capability()}"


def make(compiler: list[str], source: Path, path: Path) -> Path:
    """Compile to `path`, whole or not at all; where it cannot be written to, `elsewhere`, if another process has not done so."""
    try:
        path.parent.mkdir(exist_ok=True)
        handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    except OSError:
        path = elsewhere() / path.name
        if path.exists():
            return path
        handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        subprocess.run([*compiler, *FLAGS, "-o", made, str(source), "-lm"], check=True, capture_output=True, timeout=120)
        os.chmod(made, 0o755)  # one installation may be for all users of a machine
        os.replace(made, path)
    finally:
        Path(made).unlink(missing_ok=True)
    return path


def elsewhere() -> Path:
    """A folder for what cannot lie beside its source: the user's cache, as `pipelines` have it, or, where that is another's too, one of this process, which is removed
    when it ends."""
    try:
        folder = Path(os.environ.get("TENFOLD_CACHE") or "~/.cache/tenfold").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o002:  # who may write there could have us run a library of theirs
            raise PermissionError(folder)
    except (OSError, RuntimeError):  # there may be no home at all
        folder = Path(tempfile.mkdtemp(prefix="tenfold-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def shared(function, maps: Sequence[Tensor | None], sums: Sequence[Tensor | None], others: Sequence[Tensor | None], *numbers: int) -> None:
    """A function of C that `SHARED` made (`vectors.h`), by all parts of the images, with as many threads as torch has. maps: a row for each image; sums: for each
    part; None: NULL. Sums and others are float32: C would take anything else for it.

    Raises `TypeError` where they are not.
    """
    if any(t is not None and t.dtype != torch.float32 for t in (*sums, *others)):
        raise TypeError("an operator of a net was given parameters that are not float32")
    tensors, count = [*maps, *sums, *others], next(len(t) for t in maps if t is not None)
    places = (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
    by_image = (ctypes.c_long * len(tensors))(*map(row, maps))
    by_part = (ctypes.c_long * len(tensors))(*[0] * len(maps), *map(row, sums))
    done(function(places, by_image, by_part, len(tensors), (ctypes.c_int * len(numbers))(*numbers), count, torch.get_num_threads()))


def row(tensor: Tensor | None) -> int:
    """From one row to the next, in floats of 32 bits."""
    return 0 if tensor is None else tensor.stride(0) * tensor.itemsize // 4


def done(failed: int) -> None:
    """Raise `MemoryError` where an operator says that it failed."""
    if failed:
        raise MemoryError("no memory for an operator of a net")


def parts(count: int) -> int:
    """Of so many images."""
    return -(-count // PART)


def ordered(map_NCHW: Tensor) -> Tensor:
    """The map with its channels last."""
    return map_NCHW.contiguous(memory_format=torch.channels_last)


def map_of(size: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty map [N,C,H,W] with its channels last."""
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def place(tensor: Tensor) -> ctypes.c_void_p:
    """The tensor's address."""
    return ctypes.c_void_p(tensor.data_ptr())


def custom_op(name: str):
    """torch.library's, with its function kept for `eager`."""

    def defined(function):
        operator = torch.library.custom_op(name, function, mutates_args=())
        operator.function = function  # type: ignore[attr-defined]
        return operator

    return defined


def eager(operator, keep=None, back=None):
    """The operator, or for plain tensors in an eager step its function as it is: torch.library's way through Python takes 60 us each time, of a step of `quick` 1 to 10%
    (`benchmarks/LOG.md`). With `keep` and `back`, which it has been registered with, both for its gradient."""
    function = operator.function

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given):
            output = function(*given)
            keep(ctx, given, output)
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[1:])  # what is kept for the way back
            return output

        @staticmethod
        def backward(ctx, *gradients):
            return back(ctx, *gradients)

    def call(*given):
        if plain(given):
            if back is not None:
                return Direct.apply(*given)
            if not torch.is_grad_enabled():  # else a gradient of this gradient may be asked for, of which the operator knows what to say
                return function(*given)
        return operator(*given)

    return call


def plain(given: Sequence) -> bool:
    """Whether tensors are what they seem, with nobody between them and what is done to them: no compiler, no transform of torch.func, no mode that looks on."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) for t in given if isinstance(t, Tensor))


def each_net(operator):
    """A rule for `torch.func.vmap`: net by net."""

    def rule(info, in_dims, *given):
        nets = ([v if dim is None else v.select(dim, i) for v, dim in zip(given, in_dims)] for i in range(info.batch_size))
        results = [operator(*net) for net in nets]
        if torch.is_tensor(results[0]):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results))), (0,) * len(results[0])

    return rule

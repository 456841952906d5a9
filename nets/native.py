"""Operators of torch that are C on a processor, made by the system's compiler where they are first needed.

For x86 with AVX2 or AVX-512 and for ARM of 64 bits. Elsewhere, and where there is no compiler, there are none, and a net is torch's own operations.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

HEADER = Path(__file__).with_name("vectors.h")
# every ARM of 64 bits has the instructions that are needed, and compilers of Apple's did not all know the flag
OWN = () if platform.machine() in ("aarch64", "arm64") else ("-march=native",)
FLAGS = (*OWN, "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
PART = 32  # images that a thread takes at a time, whatever the number of threads: so sums are the same bits


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
        told = source.read_bytes() + HEADER.read_bytes() + "\0".join((*compiler, *FLAGS, processor())).encode()
        kept = source.parent / "__pycache__" / f"{name}-{hashlib.sha256(told).hexdigest()[:16]}.so"
        if not kept.exists():
            kept = make(compiler, source, kept)
        return ctypes.CDLL(str(kept))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


@torch.compiler.assume_constant_result
def available(name: str) -> bool:
    """Whether it can be used here. A compiler of steps takes the answer for good."""
    return library(name) is not None


def processor() -> str:
    """What a native program depends on: the instructions that this processor has."""
    try:
        return next(line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{sys.platform} {torch.backends.cpu.get_cpu_capability()}"


def make(compiler: list[str], source: Path, path: Path) -> Path:
    """Compile to `path`, whole or not at all; where it cannot be written to, into a folder of this process."""
    try:
        path.parent.mkdir(exist_ok=True)
        handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="tenfold-")) / path.name
        handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        subprocess.run([*compiler, *FLAGS, "-o", made, str(source), "-lm"], check=True, capture_output=True, timeout=120)
        os.replace(made, path)
    finally:
        Path(made).unlink(missing_ok=True)
    return path


@cache
def threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def shared(count: int, work: Callable[[int, int], int]) -> None:
    """work(first, end) of all parts of `count` images, by as many threads as torch has."""
    parts = [(first, min(first + PART, count)) for first in range(0, count, PART)]
    if not parts:  # a process that has no images of a batch
        return
    workers = min(torch.get_num_threads(), len(parts))
    for failed in map(work, *zip(*parts)) if workers == 1 else threads(workers).map(work, *zip(*parts)):
        if failed:
            raise MemoryError("no memory for an operator of a tiny net")


def place(tensor: Tensor, row: int = 0) -> ctypes.c_void_p:
    """The address of a row of the first dimension."""
    return ctypes.c_void_p(tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size())


def each_net(operator):
    """A rule for `torch.func.vmap`: net by net."""

    def rule(info, in_dims, *given):
        nets = ([v if dim is None else v.select(dim, i) for v, dim in zip(given, in_dims)] for i in range(info.batch_size))
        results = [operator(*net) for net in nets]
        if torch.is_tensor(results[0]):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results))), (0,) * len(results[0])

    return rule

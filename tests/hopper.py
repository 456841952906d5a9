"""Kernels compiled for Hopper without a GPU: by Triton's own compiler and ptxas, to sm_90."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import json, re, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:
    get_current_device = get_current_stream = lambda self, *_: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

driver.set_active(Hopper())

def at(dtype):
    tensor = torch.empty(8, dtype=dtype, device="meta")
    tensor.data_ptr = lambda: 0  # of memory that begins at a multiple of 16 bytes
    return tensor

"""


def run(script: str, cache: Path) -> list[str]:
    """The lines that a script prints in a process of its own, in which Triton compiles; `at(dtype)` gives it a tensor. cache: an empty folder."""
    environment = dict(os.environ, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache))
    done = subprocess.run([sys.executable, "-c", PRELUDE + script], cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    if "ptxas" in done.stderr and "not found" in done.stderr.lower():
        pytest.skip("this Triton comes without ptxas")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()

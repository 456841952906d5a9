"""Operators in C: made by the compiler there is, or by none."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nets import gated_cpu, grouped_cpu, native

COMPILER = shutil.which(os.environ.get("CC", "cc"))
NAMES = (gated_cpu.NAME, grouped_cpu.NAME)

pytestmark = pytest.mark.skipif(not native.available(NAMES[0]), reason="no C compiler here that can make nets/gated_cpu.c")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vectors", ["native", "haswell"])
def test_no_byte_outside_of_its_maps_is_touched(tmp_path, name, vectors):
    """By the compiler's sanitizers; of 512 bits where the processor has them, and of 256."""
    flags = [f"-march={vectors}", *(flag for flag in native.FLAGS if flag.startswith("-f") and flag != "-fPIC"), "-O1", "-g", "-fsanitize=address,undefined"]
    driver = Path(__file__).with_name(f"drive_{name}.c")
    built = subprocess.run([COMPILER, *flags, "-o", tmp_path / "drive", driver, "-lm"], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"no sanitizers here: {built.stderr.strip().splitlines()[-1]}")
    try:
        done = subprocess.run([tmp_path / "drive"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("the sanitizers do not come to an end here")
    if done.returncode and name not in done.stderr:  # some kernels put memory where older sanitizers have their own
        pytest.skip(f"the sanitizers do not run here: {done.stderr.strip()[:80]}")
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_without_a_compiler_torch_does_it():
    code = "from nets import tiny; import torch; n = tiny.tiny(10, (8, 8), (1, 1)); x = torch.zeros(2, 3, 4, 4); print(n.stage1[0].nativable(n.stem(x)), n(x).shape)"
    for path in ("/nowhere/cc", "false"):  # none, and one that fails
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "CC": path})
        assert done.stdout.split()[0] == "False" and done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_written_to_is_no_hindrance():
    for name in NAMES:
        made = native.make(COMPILER, native.HEADER.with_name(f"{name}.c"), Path("/proc/none/made.so"))
        assert made.name == "made.so" and made.parent != Path("/proc/none") and ctypes.CDLL(str(made))
        shutil.rmtree(made.parent)

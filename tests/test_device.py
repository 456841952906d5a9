"""How a process is set for training on a processor. Its memory is counted in page faults, not in seconds."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from train.device import device_of
from train.recipe import Recipe

FAULTS = """
import resource, torch
from train.device import keep_memory
if {kept}:
    keep_memory()
before = 0
for _ in range(12):  # the first few settle where it lies
    torch.zeros(1 << 24)
    before, faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back and asks for it again")
def test_memory_that_was_freed_is_used_again_without_page_faults():
    handed_back, kept = (int(subprocess.check_output([sys.executable, "-c", FAULTS.format(kept=kept)])) for kept in (False, True))
    assert kept < handed_back / 10, f"{kept} and {handed_back} page faults for 64 MB"


# a million products, so that every thread has its share
DENORMAL = """
import sys, torch
from train.recipe import Recipe
from train.runs import train
train(Recipe(net="level1", device="cpu", epochs=1, batch_size=16, data=sys.argv[1], out=sys.argv[2]), say=lambda *_: None)
print(int((torch.full((1 << 20,), 1e-20) * 1e-20).count_nonzero()))
"""


def test_denormals_are_zero_in_every_thread_that_trains(store, tmp_path):
    """Which are started after this is set: what is done before must not start them."""
    command = [sys.executable, "-c", DENORMAL, store.path, tmp_path / "run"]
    assert subprocess.check_output(command, env={**os.environ, "OMP_NUM_THREADS": "2"}, text=True).strip() == "0"


def test_numpy_does_not_remark_on_it():
    asked = "import numpy, torch; from train.device import settled; settled(torch.device('cpu')); print(numpy.finfo(numpy.float32), numpy.finfo(numpy.float64))"
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", asked], check=True, stdout=subprocess.DEVNULL)


def test_the_same_bits_are_asked_of_torch_where_the_recipe_asks(monkeypatch):
    """As every program that trains does, by asking where."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # taken away in the end, whatever was set
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        device_of(Recipe(device="cpu"))
        assert not torch.are_deterministic_algorithms_enabled()
        device_of(Recipe(device="cpu", deterministic=True))
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)

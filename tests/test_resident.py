"""The resident pipeline beyond the contract: its buffers, and its two-line use."""

import os
import subprocess
import sys

import numba
import pytest
import torch

from pipelines import resident
from pipelines.buffers import KEPT, Buffers
from pipelines.errors import InputError
from pipelines.transfer import DTYPES


def test_memory_is_used_again_once_it_is_let_go(store):
    ours, places = resident.open(store, batch_size=4), set()
    for images, _ in ours.epoch(0):
        places.add(images.data_ptr())
    assert len(places) <= KEPT


@pytest.mark.parametrize("hold", [lambda t: t, lambda t: t[:1], lambda t: t.permute(2, 0, 1), lambda t: t.numpy()], ids=range(4))
def test_whatever_still_holds_a_batch_keeps_it(hold):
    buffers = Buffers((2, 3), torch.float32)
    held = [hold(buffers.take(5).fill_(i)) for i in range(8)]
    assert all((h == i).all() for i, h in enumerate(held))


def test_what_backward_needs_is_held_too():
    buffers, weight = Buffers((3,), torch.float32), torch.ones(3, requires_grad=True)
    losses = [(buffers.take(2).fill_(i) * weight).sum() for i in range(6)]
    for i, loss in enumerate(losses):
        weight.grad = None
        loss.backward()
        assert weight.grad.tolist() == [2.0 * i] * 3


def test_a_smaller_last_batch_fits_into_a_larger_buffer():
    buffers = Buffers((2,), torch.bfloat16)
    first = buffers.take(8)
    place = first.data_ptr()
    del first
    assert buffers.take(3).data_ptr() == place and buffers.take(3).shape == (3, 2)


THREADS = """
import sys, torch
from pipelines import resident
next(iter(resident.open(sys.argv[1], batch_size=8).epoch(0)))
import numba
print(torch.get_num_threads(), numba.get_num_threads())
"""


@pytest.mark.parametrize("count", [1, 2])
def test_threads_are_as_many_as_the_environment_allows(count, store):
    if count > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("one core")
    environment = {**os.environ, "OMP_NUM_THREADS": str(count)}  # what torchrun sets, too, and Numba alone does not read
    found = subprocess.run([sys.executable, "-c", THREADS, str(store.path)], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(count)] * 2


def test_an_unknown_dtype_is_refused(store):
    with pytest.raises(InputError, match="float64"):
        resident.open(store, dtype=torch.float64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_gives_the_cpus_pixels(dtype, store):
    on_gpu = resident.open(store, batch_size=16, device="cuda", dtype=dtype)
    on_cpu = resident.open(store, batch_size=16, dtype=dtype)
    for (images, labels), (expected, classes) in zip(on_gpu.epoch(1), on_cpu.epoch(1)):
        assert torch.equal(images.cpu(), expected) and torch.equal(labels.cpu(), classes)
        assert images.is_contiguous(memory_format=torch.channels_last)

"""The resident pipeline's torch gather, which the contract test does not reach on the CPU."""

import pytest
import torch

import pipelines
from conftest import make_store
from pipelines import resident
from pipelines.plan import FLIPS, PADDINGS, Policy


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("size", [(5, 9, 1), (32, 32, 3), (12, 7, 4)], ids=str)
def test_gather_equals_the_reference(size, flip, padding, tmp_path):
    height, width, channels = size
    store = make_store(tmp_path / "s.safetensors", 13, 2, height, width, channels)
    policy = Policy(flip, translate=3, padding=padding, cutout=4)
    ours = resident.open(store, batch_size=13, policy=policy, seed=5)
    for epoch in (0, 1):
        images, _ = next(iter(pipelines.open("reference", store, batch_size=13, policy=policy, seed=5).epoch(epoch)))
        ids = next(ours.plan.batches(epoch))
        assert torch.equal(ours._gathered(epoch, ids).permute(0, 3, 1, 2), images)
        assert torch.equal(next(iter(ours.epoch(epoch)))[0], images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gpu_gives_the_cpus_pixels(dtype, store):
    on_gpu = resident.open(store, batch_size=16, device="cuda", dtype=dtype)
    on_cpu = resident.open(store, batch_size=16, dtype=dtype)
    for (images, labels), (expected, classes) in zip(on_gpu.epoch(1), on_cpu.epoch(1)):
        assert torch.equal(images.cpu(), expected) and torch.equal(labels.cpu(), classes)
        assert images.is_contiguous(memory_format=torch.channels_last)

"""The compiled kernels against the plan and the reference, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import kernels_cpu, plan, reference

WORDS = st.integers(0, plan.MASK)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@given(WORDS, WORDS, st.integers(0, 20), st.lists(WORDS, min_size=1, max_size=5), st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_hash_is_the_plans(seed, epoch, stream, ids, n):
    assert kernels_cpu.mix(seed) == plan.mix(seed)
    assert kernels_cpu.key(plan.SALT_A, seed, epoch, stream) == plan.key(plan.SALT_A, seed, epoch, stream)
    expected = plan.hash32(seed, epoch, stream, np.array(ids))
    ours = [kernels_cpu.hash32(seed, epoch, stream, i) for i in ids]
    assert ours == expected.tolist()
    assert [kernels_cpu.below(n, h) for h in ours] == plan.below(n, expected).tolist()


def lookup(channels, dtype):
    """[256,C]: a table with no value twice in float32, so that a wrong pixel cannot look right."""
    return (torch.arange(256 * channels, dtype=torch.float64).reshape(256, channels) / 100 - 3).to(dtype)


@st.composite
def cases(draw):
    """A policy that fits a random image size, and all else that decides a batch."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    side = min(height, width)
    policy = plan.Policy(
        draw(st.sampled_from(plan.FLIPS)), draw(st.integers(0, side - 1)), draw(st.sampled_from(plan.PADDINGS)), draw(st.integers(0, side))
    )
    return height, width, draw(st.integers(1, 4)), policy, draw(WORDS), draw(WORDS), draw(st.sampled_from(DTYPES))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_batch_is_the_references(case):
    height, width, channels, policy, seed, epoch, dtype = case
    rng = np.random.default_rng(height * 41 + width)
    images = rng.integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    fill = rng.integers(0, 256, channels, dtype=np.uint8)
    table, ids = lookup(channels, dtype), np.array([3, 0, 4, 3])

    choices = zip(ids, *plan.augmentation(policy, seed, epoch, ids, height, width))
    pixels = np.stack([reference.augment(images[i], policy, fill, *rest) for i, *rest in choices])
    expected = table[torch.from_numpy(pixels.astype(np.int64)), torch.arange(channels)]

    out = torch.full((len(ids), height, width, channels), torch.nan, dtype=dtype)
    modes = plan.FLIPS.index(policy.flip), plan.PADDINGS.index(policy.padding)
    colours = kernels_cpu.bits(kernels_cpu.colours(table, fill, policy.padding))
    arguments = images, ids, kernels_cpu.bits(out), kernels_cpu.bits(table), colours, seed, epoch, *modes, policy.translate, policy.cutout
    kernels_cpu.augment_batch(*arguments)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_share_the_tensors_memory(dtype):
    tensor = torch.zeros(2, 3, dtype=dtype)
    kernels_cpu.bits(tensor)[1, 2] = kernels_cpu.bits(torch.ones(1, dtype=dtype))[0]
    assert tensor[1, 2] == 1 and tensor.sum() == 1

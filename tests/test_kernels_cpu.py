"""The compiled kernels against the plan and the reference, bit for bit."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from pipelines import kernels_cpu, plan, reference

WORDS = st.integers(0, plan.MASK)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@given(WORDS, WORDS, st.integers(0, 20), st.lists(WORDS, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_hash_is_the_plans(seed, epoch, stream, ids):
    assert kernels_cpu.mix(seed) == plan.mix(seed)
    assert kernels_cpu.key(plan.SALT_A, seed, epoch, stream) == plan.key(plan.SALT_A, seed, epoch, stream)
    expected = plan.hash32(seed, epoch, stream, np.array(ids))
    assert [kernels_cpu.hash32(seed, epoch, stream, i) for i in ids] == expected.tolist()


@st.composite
def cases(draw):
    """A policy that fits a random image size, and all else that decides a batch."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    side = min(height, width)
    policy = plan.Policy(draw(st.sampled_from(plan.FLIPS)), draw(st.integers(0, side - 1)), draw(st.sampled_from(plan.PADDINGS)), draw(st.integers(0, side)))
    return height, width, draw(st.integers(1, 4)), policy, draw(WORDS), draw(WORDS), draw(st.sampled_from(DTYPES))


class Facts:
    """What of a store decides the normalisation."""

    def __init__(self, height, width, channels):
        rng = np.random.default_rng(height * 41 + width)
        self.height, self.width, self.channels = height, width, channels
        self.mean, self.std = rng.uniform(0, 1, channels), rng.uniform(0.004, 0.5, channels)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_a_pass_is_the_reference(case):
    height, width, channels, policy, seed, epoch, dtype = case
    facts = Facts(height, width, channels)
    images = np.random.default_rng(seed).integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    rows, ids = np.array([3, 0, 4, 3]), np.array([3, 70000, 4, 3])  # the first and last image have no neighbour to read
    made = plan.Plan(policy, seed, ids, 4, height, width)

    choices = zip(rows, *made.augmentation(epoch, ids))
    pixels = np.stack([reference.augment(images[i], policy, reference.mean_pixel(facts), *rest) for i, *rest in choices])
    expected = reference.table(facts, dtype)[torch.from_numpy(pixels.astype(np.int64)), torch.arange(channels)]

    out = torch.full((len(ids), height, width, channels), torch.nan, dtype=dtype)
    kernels_cpu.Pass(facts, made, dtype)(images, rows, ids, out, epoch)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_rounding_to_16_bits_is_torchs(dtype):
    """Every kind of float32: ordinary ones, ties, numbers below float16's normal range, and both signs."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 3, 4000), rng.normal(0, 1e-5, 2000), 1 + np.arange(2000) / 2048, [0.0, -0.0, 6e-8, 65504.0]])
    values = values.astype(np.float32)

    @numba.njit
    def rounded(values, out, half):
        for i in range(len(values)):
            kernels_cpu.put(out, numba.uint64(i), values[i], half)

    out = np.empty(len(values), np.int16)
    rounded(values, out, dtype == torch.float16)
    assert torch.equal(torch.from_numpy(out), torch.from_numpy(values).to(dtype).view(torch.int16))

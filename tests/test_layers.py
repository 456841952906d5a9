"""What nets are made of (`nets/layers.py`)."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
from nets.layers import NORMS, GhostBatchNorm, Stage, block, norm


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", NORMS)
def test_norm_has_two_parameters_a_channel(kind):
    assert nets.parameters(norm(kind, 24)) == 48


def test_layer_norm_is_over_one_whole_image():
    features = torch.randn(2, 8, 5, 5) * 3 + 1
    torch.testing.assert_close(norm("layer", 8)(features), F.layer_norm(features, features.shape[1:]))


def test_norm_of_a_pixels_channels_is_torchs_when_compiled():
    """There it is written out in sums, which a large mean must not spoil."""
    kept, inputs, weights = norm("channel", 24), torch.randn(4, 24, 8, 8) + 100, torch.randn(4, 24, 8, 8)
    nn.init.normal_(kept.weight), nn.init.normal_(kept.bias)
    exact = norm("channel", 24).double()
    exact.load_state_dict(kept.state_dict())
    found = []
    for forward, seen in ((exact, inputs.double().requires_grad_()), (torch.compile(kept, dynamic=False), inputs.requires_grad_())):
        outputs = forward(seen)
        found.append((outputs, *torch.autograd.grad((outputs * weights).sum(), (seen, *forward.parameters()))))
    for expected, compiled in zip(*found):
        torch.testing.assert_close(compiled.double(), expected, rtol=1e-3, atol=1e-4)


def test_unknown_norm_and_ghost_of_none():
    with pytest.raises(ValueError, match="choose one of batch, ghost, group, layer, channel"):
        norm("instance", 8)
    with pytest.raises(ValueError, match="at least one image"):
        norm("ghost", 8, ghost=0)


@pytest.mark.parametrize("count", [1, 5, 32])
def test_ghost_norm_of_one_part_is_batch_norm(count):
    ghost, batch, features = GhostBatchNorm(6), nn.BatchNorm2d(6), torch.randn(count, 6, 4, 4)
    assert torch.equal(ghost(features), batch(features))
    assert torch.equal(ghost.eval()(features), batch.eval()(features))


@pytest.mark.parametrize("count, parts", [(64, [32, 32]), (70, [24, 23, 23]), (33, [17, 16])])
def test_ghost_norm_is_batch_norm_part_by_part(count, parts):
    ghost, features = GhostBatchNorm(6, 32), torch.randn(count, 6, 4, 4).contiguous(memory_format=torch.channels_last)
    nn.init.uniform_(ghost.weight)
    mean, var = torch.zeros(6), torch.ones(6)
    wanted = torch.cat([F.batch_norm(part, mean, var, ghost.weight, ghost.bias, True, 0.1) for part in features.split(parts)])
    got = ghost(features)
    torch.testing.assert_close(got, wanted)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close((ghost.running_mean, ghost.running_var), (mean, var))


def test_ghost_norm_evaluates_a_large_batch_as_one():
    ghost, features = GhostBatchNorm(6, 8).eval(), torch.randn(50, 6, 4, 4)
    torch.testing.assert_close(ghost(features), features, rtol=1e-4, atol=1e-4)


def test_ghost_norm_under_autocast():
    net = block(3, 16, "ghost").to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(torch.randn(50, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and output.is_contiguous(memory_format=torch.channels_last)
    assert net[1].running_mean.dtype == torch.float32 and net[1].weight.grad.isfinite().all()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3), nn.MaxPool2d(2, stride=1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2)], ids=str)
def test_a_stage_is_its_modules_one_behind_the_other(pool):
    torch.manual_seed(0)
    modules = [block(3, 16), block(16, 16), pool, block(16, 32, dropout=0.5), nn.MaxPool2d(2), nn.Identity()]
    stage, plain, images = Stage(*modules), deepcopy(nn.Sequential(*modules)), torch.randn(4, 3, 13, 13).to(memory_format=torch.channels_last)
    for train in (True, False):
        stage.train(train), plain.train(train)
        torch.manual_seed(1)
        found = stage(images)
        torch.manual_seed(1)
        torch.testing.assert_close(found, plain(images), rtol=1e-4, atol=1e-5)


def test_of_a_map_that_is_too_small_to_pool_nothing_is_made():
    stage, images = Stage(block(16, 16), nn.MaxPool2d(2)), torch.randn(4, 16, 1, 5).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        stage(images)

"""Muon, and progressive resolution."""

import json

import numpy as np
import pytest
import torch
from conftest import make_store
from torch._dynamo.utils import counters

import nets
from train.muon import Muon, newton_schulz, orthogonal
from train.optim import optimiser
from train.progressive import resize, side
from train.recipe import MUON_NORMS, Recipe
from train.runs import train
from train.scaling import FixedScale


def test_orthogonal_moves_singular_values_to_one():
    torch.manual_seed(0)
    shapes = [(8, 27), (16, 72), (16, 72), (40, 9)]  # the last is tall
    matrices = [torch.randn(shape) for shape in shapes]
    for m, done in zip(matrices, orthogonal([m[None] for m in matrices], steps=5)):
        assert done.shape == (1, *m.shape)
        done = done[0]
        values = torch.linalg.svdvals(done)
        assert values.min() > 0.6 and values.max() < 1.3
        U, S, V = torch.linalg.svd(m, full_matrices=False)  # the same singular vectors: U^T done V is diagonal
        inside = U.T @ done @ V.mT
        assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-3


def test_padding_with_zeros_changes_nothing():
    torch.manual_seed(0)
    m = torch.randn(1, 6, 20)
    padded = torch.nn.functional.pad(m, (0, 12, 0, 4))
    assert torch.allclose(newton_schulz(padded, 3, 1e-7)[:, :6, :20], newton_schulz(m, 3, 1e-7), atol=1e-5)


@pytest.mark.parametrize("norm", MUON_NORMS)
def test_one_step_of_muon_is_the_textbooks(norm):
    torch.manual_seed(0)
    weight, gradient = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    p = torch.nn.Parameter(weight.clone())
    made = Muon([{"params": [p], "filters": True, "norm": norm, "momentum": 0.6, "lr": 0.1}])
    p.grad = gradient.clone()
    made.step()
    kept = weight * (4**0.5 / weight.norm()) if norm == "filter" else weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    move = newton_schulz((gradient * 1.6).reshape(1, 4, 27), 3, 1e-7).reshape(4, 3, 3, 3)
    assert torch.allclose(p, kept - 0.1 * move, atol=1e-5)


@pytest.mark.parametrize("norm", MUON_NORMS)
def test_a_row_without_gradients_shrinks_unless_rows_are_kept(norm):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 16, 1, 1))
    made = Muon([{"params": [p], "filters": True, "norm": norm, "momentum": 0.6, "lr": 0.3}])
    for _ in range(300):
        p.grad = torch.randn_like(p)
        p.grad[3] = 0.0
        made.step()
    norms = p.detach().flatten(1).norm(dim=1)
    assert norms[3] < 0.1 * norms.median() if norm == "filter" else torch.allclose(norms[3], torch.ones(()))


def test_the_rest_goes_as_torchs_nesterov_sgd():
    torch.manual_seed(0)
    start = torch.randn(5, 7)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    muon = Muon([{"params": [ours], "lr": 0.1, "weight_decay": 0.01}], momentum=0.9)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(5, 7)
        muon.step(), sgd.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_every_trained_parameter_has_one_group():
    net = nets.load("quick")
    made = optimiser(net, Recipe(optimiser="muon", muon_lr=0.2, lr=0.1, head_lr=0.3, weight_decay=0.1))
    held = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    assert {group["initial_lr"] for group in made.param_groups if group["filters"]} == {0.2}
    assert {group["initial_lr"]: {p.ndim for p in group["params"]} for group in made.param_groups} == {0.3: {2}, 0.1: {1}, 0.2: {4}}
    assert all(p.ndim == 4 for group in made.param_groups if group["filters"] for p in group["params"])


def test_sides_grow_to_the_full_one_and_stay():
    sides = [side(epoch, 9, 16, 32, 0.67) for epoch in range(9)]
    assert sides == sorted(sides) and sides[0] == 16 and sides[-1] == 32 and set(sides) == {16, 20, 24, 28, 32}
    assert [side(epoch, 9, 0, 32, 0.67) for epoch in range(9)] == [32] * 9
    assert side(0, 1, 16, 32, 0.0) == 32 and side(0, 5, 40, 32, 0.5) == 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resize_keeps_what_it_should(dtype):
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)).to(dtype, memory_format=torch.channels_last)
    assert resize(images, 32) is images
    small = resize(images, 16)
    assert small.shape == (2, 3, 16, 16) and small.dtype == dtype and small.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(resize(torch.full((1, 3, 32, 48), 0.5), 16), torch.full((1, 3, 16, 24), 0.5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_resize_in_half_precision_is_near_float32s(dtype):
    images = torch.rand(2000, 3, 32, 32, device="cuda").to(dtype, memory_format=torch.channels_last)
    for height in (16, 20, 24, 28):
        small = resize(images, height)
        assert small.dtype == dtype and small.is_contiguous(memory_format=torch.channels_last)
        assert (small.float() - resize(images.float(), height)).abs().max() < (0.01 if dtype == torch.bfloat16 else 0.002)


@pytest.mark.parametrize(("shape", "side"), [((2, 3, 32, 32), 20), ((3, 1, 28, 28), 16), ((2, 3, 33, 48), 24), ((0, 3, 32, 32), 16)])
def test_resize_is_torchs_antialiased_interpolation(shape, side):
    images = torch.rand(shape).to(memory_format=torch.channels_last)
    wide = round(shape[3] * side / shape[2])
    expected = torch.nn.functional.interpolate(images, size=(side, wide), mode="bilinear", antialias=True) if len(images) else images[..., :side, :wide]
    torch.testing.assert_close(resize(images, side), expected, rtol=1e-5, atol=1e-6)


def test_a_compiled_step_learns_what_the_eager_one_does_and_seeds_share_it(tmp_path):
    store = make_store(tmp_path / "even.safetensors", train=32)
    small = dict(net="level1", epochs=2, batch_size=16, lr=0.002, muon_lr=0.005, device="cpu", precision="fp32", optimiser="muon", eval_every=0)
    before = counters["stats"]["unique_graphs"]
    for compiled in (False, True):
        train(Recipe(**small, compiled=compiled, runs=2, data=str(store.path), out=str(tmp_path / str(compiled))), "test", lambda *_: None)
    for seed in (0, 1):
        eager, compiled = (
            [json.loads(line)["loss"] for line in (tmp_path / kind / f"seed-{seed}" / "steps.jsonl").read_text().splitlines()] for kind in ("False", "True")
        )
        assert len(eager) == 4 and np.allclose(compiled, eager, rtol=1e-3)
    assert counters["stats"]["unique_graphs"] == before + 2  # forward with its backward, update: once for both seeds


def test_a_compiled_step_in_fp16_learns_what_an_eager_one_in_fp32_does(tmp_path):
    """By a scale that does not change, of gradients that fp16 has no numbers for."""
    store = make_store(tmp_path / "even.safetensors", train=16)  # few: a processor's fp16 convolutions are slow
    small = dict(net="quick", epochs=2, batch_size=8, lr=0.05, device="cpu", eval_every=0, report=False)
    losses = []
    for precision in ("fp16", "fp32"):
        half = dict(precision=precision, compiled=precision == "fp16")
        train(Recipe(**small, **half, data=str(store.path), out=str(tmp_path / precision)), "test", lambda *_: None)
        losses.append([json.loads(line)["loss"] for line in (tmp_path / precision / "steps.jsonl").read_text().splitlines()])
    assert len(losses[0]) == 4 and np.allclose(*losses, rtol=1e-2) and losses[0] != losses[1]


def test_a_fixed_scale_moves_weights_as_none_does():
    weights, optimisers = [torch.ones(3, requires_grad=True) for _ in range(2)], []
    for weight, scale in zip(weights, (FixedScale(2048), FixedScale(1))):
        optimisers.append(torch.optim.SGD([weight, torch.ones(2, requires_grad=True)], lr=0.1))
        scale.scale((weight * 3e-8).sum()).backward()
        half = weight.grad.half()
        assert half.any() if scale.factor > 1 else (half.float() / 3e-8 - 1).abs().min() > 0.5
        scale.step(optimisers[-1])
        scale.update()
    assert torch.allclose(*[weight.grad for weight in weights]) and torch.equal(*weights)


def test_whitening_gives_patches_unit_variance():
    net = nets.load("speednet")
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)).cumsum(2).cumsum(3)
    net.prepare(images)
    with torch.no_grad():
        seen = net.whitening(images).transpose(0, 1).flatten(1)[:12]
    covariance = seen @ seen.T / seen.shape[1]
    assert torch.allclose(covariance, torch.eye(12), atol=0.2)
    assert not net.whitening.weight.requires_grad and net.whitening.bias.requires_grad

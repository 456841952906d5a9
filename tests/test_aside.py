"""Gradients made in a second branch of a recording: here by one whose work is done as late as can be, when it is joined, and again from what its tensors hold then."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import make_store

pytest.importorskip("triton", reason="Triton is not installed")
from nets import aside, fused, speednet
from train import loop
from train.compiled import KEPT
from train.recipe import Recipe
from train.runs import train

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class Late:
    """A branch that gives tensors without a number in them, and fills them when it is joined."""

    def __init__(self):
        self.waiting = []
        self.count = 0

    def run(self, work, reads):
        made = work()
        self.waiting.append((made.detach().fill_(torch.nan), work, reads))
        self.count += 1
        return made

    def join(self):
        for made, work, _ in self.waiting:
            made.copy_(work())
        self.waiting.clear()


@pytest.fixture
def net(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(speednet, "fused", fused)
    monkeypatch.setattr(speednet.Group, "fusible", lambda group, images: group.training)
    return speednet.build(10, widths=(6, 8, 8)).to(DEVICE, memory_format=torch.channels_last)


def gradients(net, forward, branch=None, dtype=torch.float32, side=16) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, side, side, device=DEVICE).to(dtype, memory_format=torch.channels_last), torch.arange(8, device=DEVICE) % 3
    net.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(forward(images).float(), labels)
    with aside.gradients_aside(net.parameters(), branch):
        loss.backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def by_plain(net, **how):
    """By torch's own convolutions and gradients."""
    plain = deepcopy(net)
    plain.several = True
    return gradients(plain, plain, **how)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("side", [16, 17])
def test_nothing_reads_them_before_the_branch_is_joined(side, frozen, net):
    net.settled, net.frozen = True, frozen
    branch = Late()
    found, expected = gradients(net, net, branch, side=side), by_plain(net, side=side)
    assert branch.count == (4 if frozen else 6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


class Twice(torch.nn.Module):
    """Convolutions with what a compiler works out itself between them: each gradient is the sum of two halves, which has room where the gradient before it has been."""

    def __init__(self):
        super().__init__()
        self.filters = torch.nn.ParameterList(torch.randn(3, 6, 3, 3).to(memory_format=torch.channels_last) for _ in range(4))

    def forward(self, images):
        for f in self.filters:
            images = fused.convolve(torch.cat([images, images], 1), f, f.detach(), 1)
        return images.mean((2, 3))


def test_a_compiled_step_leaves_what_a_branch_reads(options=KEPT):
    torch.manual_seed(0)
    net, branch = Twice().to(DEVICE), Late()
    plain = deepcopy(net)
    found, expected = gradients(net, torch.compile(net, dynamic=False, options=options), branch), gradients(plain, plain)
    assert branch.count == 4
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_nor_does_a_compiled_step_whose_buffers_are_its_own(net):
    net.settled = True
    branch, program = Late(), torch.compile(net, dynamic=False, options=KEPT)
    found, expected = gradients(net, program, branch), by_plain(net)
    assert branch.count == 6
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_gradient_that_was_copied_is_told(net):
    with pytest.raises(aside.Copied, match="1 of 6 gradients"):
        weight = net.groups[0][0].weight
        weight.register_hook(torch.clone)
        gradients(net, net, Late())
    assert aside.Open.branch is None


def test_a_copy_is_told_where_its_address_came_again():
    weight, made = torch.nn.Parameter(torch.ones(1)), torch.ones(1)
    weight.grad = made
    with pytest.raises(aside.Copied, match="1 of 2 gradients"), aside.gradients_aside([weight], Late()):
        for _ in range(2):
            aside.aside(lambda: made)


def test_an_error_in_a_backward_pass_comes_up_with_the_branch_joined():
    branch = Late()
    with pytest.raises(ZeroDivisionError), aside.gradients_aside([], branch):
        made = aside.aside(lambda: torch.ones(1))
        raise ZeroDivisionError
    assert aside.Open.branch is None and not branch.waiting and made.item() == 1


def test_without_a_recording_there_is_no_branch():
    assert aside.branch_of(DEVICE) is None
    made = torch.ones(1)
    assert aside.aside(lambda: made) is made


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_filters_are_cast_together(dtype):
    filters = [torch.randn(size, device=DEVICE).to(memory_format=torch.channels_last) for size in [(4, 3, 3, 3), (5, 4, 3, 3), (2, 5, 1, 1)]]
    halves = fused.halves(filters, [8, 4, 5], dtype)
    assert torch.equal(halves[0][:, :3], filters[0].to(dtype)) and not halves[0][:, 3:].any()
    assert all(torch.equal(half, f.to(dtype)) for half, f in zip(halves[1:], filters[1:]))
    assert all(half.is_contiguous(memory_format=torch.channels_last) for half in halves)


@pytest.mark.parametrize("padding", [0, 1])
def test_torch_finds_no_fault_with_the_operators(padding):
    filters, images = torch.randn(4, 3, 3, 3, device=DEVICE, requires_grad=True), torch.randn(2, 3, 6, 6, device=DEVICE, requires_grad=True)
    torch.library.opcheck(fused.convolve, (images, filters, filters.detach().clone(), padding))
    torch.library.opcheck(fused.convolve, (images.detach(), filters, filters.detach().clone(), padding))
    torch.library.opcheck(fused.halves, ([filters.detach()], [8], torch.float16))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("way", ["recorded", "compiled"])
def test_a_recording_with_a_branch_learns_what_one_without_does(way, monkeypatch, tmp_path):
    """Images that grow, layers that rest: every phase of `speed`."""
    store, branches = make_store(tmp_path / "even.safetensors", train=2048), []
    kept = dict(optimiser="muon", muon_lr=0.1, lr=2.0, first_side=16, grown=0.5, settle=0.2, freeze=0.7, precision="bf16", device="cuda", eval_every=0)
    recipe = replace(Recipe(net="speednet", epochs=10, batch_size=512, report=False, data=str(store.path), **kept), **{way: True})

    def of(device):
        branches.append(aside.branch_of(device))
        return branches[-1]

    for name, branch_of in (("with", of), ("without", lambda device: None)):
        monkeypatch.setattr(loop, "branch_of", branch_of)
        train(replace(recipe, out=str(tmp_path / name)), "", lambda *_: None)
    losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "steps.jsonl").read_text().splitlines()] for name in ("with", "without")]
    assert any(branches)
    torch.testing.assert_close(*losses, rtol=2e-2, atol=2e-2)

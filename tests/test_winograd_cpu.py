"""The processor's operator for 3x3 convolutions against torch's own."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

import nets
from nets import layers, native, winograd_cpu
from nets.convolution import Conv2d

pytestmark = pytest.mark.skipif(not native.available(winograd_cpu.NAME), reason="no C compiler here that can make nets/winograd_cpu.c")

SIZES = [
    (70, 16, 32, 4, 4),
    (3, 32, 64, 16, 16),
    (33, 128, 16, 8, 8),
    (40, 16, 48, 2, 2),
    (9, 48, 16, 3, 3),
    (5, 64, 80, 6, 6),
    (37, 32, 32, 5, 7),
    (2, 112, 96, 13, 2),
]  # images, inputs, outputs, height and width: squares of four, three and two, whole and cut off; panels whole and half; one part of a batch and several


def made(inputs: int, outputs: int) -> Conv2d:
    torch.manual_seed(inputs)
    return Conv2d(inputs, outputs, 3, padding=1, bias=False).to(memory_format=torch.channels_last)


ROUNDED = {2: 0.006, 3: 0.011, 4: 0.017}  # an error in bfloat16, root mean square, of squares of each side
ROUNDED_FLOAT = {2: 2e-6, 3: 2.5e-6, 4: 3e-6}  # and in float32


def check(layer: Conv2d, images: torch.Tensor) -> None:
    """The output and both gradients as float64's, within a share of their size; they lie as their likes do, and are of their dtypes."""
    limit = (ROUNDED if images.dtype == torch.bfloat16 else ROUNDED_FLOAT)[winograd_cpu.best(*images.shape[2:])]
    ours, whole, weight = images.clone().requires_grad_(), images.double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    layer.zero_grad()
    out, expected = winograd_cpu.convolved(ours, layer.weight), F.conv2d(whole, weight, padding=1)
    gradient = torch.randn(out.shape, dtype=out.dtype)
    out.backward(gradient)
    expected.backward(gradient.double())
    for a, b in ((out, expected), (ours.grad, whole.grad), (layer.weight.grad, weight.grad)):
        assert (a.double() - b).norm() <= limit * b.norm() and (a.double() - b).abs().max() <= 8 * limit * b.abs().max()
    assert out.dtype == ours.grad.dtype == images.dtype and layer.weight.grad.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last) and layer.weight.grad.stride() == layer.weight.stride()


def images_of(size) -> torch.Tensor:
    return torch.randn(size[0], size[1], *size[3:]).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_torchs(size):
    check(made(*size[1:3]), images_of(size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_so_they_are_on_processors_without_512_bits(size, of_256_bits):
    check(made(*size[1:3]), images_of(size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_is_rounded_only_where_it_must_be(size):
    check(made(*size[1:3]), images_of(size).bfloat16())


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_so_it_is_on_processors_without_512_bits(size, of_256_bits):
    check(made(*size[1:3]), images_of(size).bfloat16())


@pytest.mark.parametrize("side", [4, 3, 2])
@pytest.mark.parametrize("map_side", [2, 3, 4, 5, 7])
def test_squares_of_any_side_give_the_same(side, map_side, monkeypatch):
    monkeypatch.setattr(winograd_cpu, "best", lambda height, width: side)
    layer, images = made(16, 32), images_of((34, 16, 32, map_side, map_side))
    check(layer, images)
    check(layer, images.bfloat16())


def test_the_side_that_takes_the_fewest_products_is_chosen():
    assert [winograd_cpu.best(side, side) for side in (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)] == [2, 3, 4, 3, 3, 4, 4, 4, 4, 4]
    assert winograd_cpu.best(2, 8) == 2 and winograd_cpu.best(3, 8) == 4


def test_maps_and_filters_in_another_order_of_memory_are_taken_too():
    layer = made(16, 32).to(memory_format=torch.contiguous_format)
    check(layer, torch.randn(8, 16, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_nobody_asks_for_is_not_made(dtype, monkeypatch):
    called, done = [], native.done
    monkeypatch.setattr(native, "done", lambda failed: called.append(failed) or done(failed))
    layer, images = made(16, 16), images_of((8, 16, 16, 8, 8)).to(dtype)
    winograd_cpu.convolved(images, layer.weight).sum().backward()
    assert len(called) == 3 and layer.weight.grad is not None  # filters' places, forward, back
    given = images.clone().requires_grad_()
    winograd_cpu.convolved(given, layer.weight.detach()).sum().backward()
    assert len(called) == 3 + 4 and given.grad is not None  # and the filters' places for the way back
    whole = made(16, 16)
    winograd_cpu.convolved(both := images.clone().requires_grad_(), whole.weight).sum().backward()
    assert torch.equal(both.grad, given.grad) and torch.equal(whole.weight.grad, layer.weight.grad)


def test_what_it_does_not_know_is_left_to_torch():
    images = torch.zeros(8, 16, 16, 16)
    assert winograd_cpu.takes(made(16, 32), images)
    other = [nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 5, padding=2, bias=False), nn.Conv2d(16, 16, 3, padding=1)]
    other += [nn.Conv2d(16, 16, 3, padding=1, bias=False, **more) for more in ({"stride": 2}, {"groups": 2}, {"padding_mode": "reflect"})]
    other += [
        nn.Conv2d(16, 16, 3, padding="same", bias=False),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False),
        made(24, 16),
        made(16, 24),
        made(16, 16).bfloat16(),
    ]
    assert not any(winograd_cpu.takes(layer, images) for layer in other)
    layer = made(16, 16)
    for given in (images.double(), images.bfloat16(), images[:3], images[:0], images[..., :1], images[:, :, :1], images.to("meta")):
        assert not winograd_cpu.takes(layer, given)
    with torch.autocast("cpu", torch.float16):
        assert not winograd_cpu.takes(layer, images)


def test_autocast_has_it_where_nothing_is_faster(monkeypatch):
    layer, images = made(16, 16), torch.zeros(8, 16, 16, 16)
    for fast, amx in ((True, False), (True, True), (False, False)):
        monkeypatch.setattr(winograd_cpu, "fast_halves", lambda _, fast=fast: fast)
        monkeypatch.setattr(winograd_cpu, "AMX", amx)
        with torch.autocast("cpu", torch.bfloat16):
            assert winograd_cpu.takes(layer, images) == winograd_cpu.takes(layer, images.bfloat16()) == (fast and not amx)
            assert not winograd_cpu.takes(layer, images.double()) and layer(images).dtype == torch.bfloat16
        assert winograd_cpu.takes(layer, images) and not winograd_cpu.takes(layer, images.bfloat16())


def learnt(net, images) -> list[torch.Tensor]:
    """Logits, those of a test pass, and gradients."""
    logits = net(images)
    logits.square().mean().backward()
    with torch.no_grad():
        return [logits, net.eval()(images), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize(("name", "side", "convolutions"), [("quick", 32, 6), ("level1", 32, 7)])
def test_nets_learn_in_bfloat16_as_by_torch(name, side, convolutions, monkeypatch):
    """Both as far from float32 as rounding leads them: a first pass, not gradients, of which pools make what they like."""
    monkeypatch.setattr(winograd_cpu, "fast_halves", lambda _: True)
    monkeypatch.setattr(winograd_cpu, "AMX", False)
    torch.manual_seed(0)
    net, images, taken = nets.load(name).to(memory_format=torch.channels_last), torch.randn(64, 3, side, side).to(memory_format=torch.channels_last), []
    takes = winograd_cpu.takes
    monkeypatch.setattr(winograd_cpu, "takes", lambda *given: taken.append(takes(*given)) or taken[-1])
    whole = net(images)
    before, _ = len(taken), taken.clear()
    with torch.autocast("cpu", torch.bfloat16):
        ours = net(images)
        F.cross_entropy(ours.float(), torch.arange(64) % 10).backward()
    assert sum(taken) == convolutions and len(taken) == before and all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    monkeypatch.setattr(winograd_cpu, "takes", lambda *_: False)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = net(images)
    away, usual = (float((a.float() - whole).detach().norm() / whole.detach().norm()) for a in (ours, theirs))
    assert away < max(0.05, 5 * usual) and usual < 0.05


@pytest.mark.parametrize(("name", "side", "convolutions"), [("quick", 32, 6), ("quick", 16, 6), ("level1", 32, 7)])
def test_nets_learn_and_test_as_by_torch(name, side, convolutions, monkeypatch):
    torch.manual_seed(0)
    net, images, taken = nets.load(name).to(memory_format=torch.channels_last), torch.randn(64, 3, side, side).to(memory_format=torch.channels_last), []
    wanted, takes = deepcopy(net), winograd_cpu.takes
    monkeypatch.setattr(winograd_cpu, "takes", lambda *given: taken.append(takes(*given)) or taken[-1])
    ours = learnt(net, images)
    assert sum(taken) == 2 * convolutions
    monkeypatch.setattr(winograd_cpu, "takes", lambda *_: False)
    theirs = learnt(wanted, images)
    away = [float((a.double() - b.double()).detach().norm() / b.double().detach().norm()) for a, b in zip(ours, theirs)]
    assert max(away[:2]) < 1e-4 and max(away) < 5e-2  # where a pool's values are nearly equal, the gradient may go another way: of torch's and float64's 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_by_any_number_of_threads(dtype):
    layer, images, before, found = made(32, 48), images_of((100, 32, 48, 6, 6)).to(dtype), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            layer.zero_grad()
            given = images.clone().requires_grad_()
            out = winograd_cpu.convolved(given, layer.weight)
            out.square().sum().backward()
            found.append([out, given.grad, layer.weight.grad.clone()])
    finally:
        torch.set_num_threads(before)
    for several in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], several))


def test_the_operators_hold_to_torchs_rules():
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.randn(4, 16, 6, 6, dtype=dtype, requires_grad=True)
        torch.library.opcheck(winograd_cpu.convolved, (images, weight))
        for asked in ((True, True), (True, False), (False, True)):
            torch.library.opcheck(winograd_cpu.gradients, (images.detach(), images.detach(), weight.detach(), *asked))


def test_a_gradient_of_a_gradient_says_what_to_do():
    images, weight = torch.randn(4, 16, 6, 6, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    (first,) = torch.autograd.grad(winograd_cpu.convolved(images, weight).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="CC=none"):
        first.sum().backward()


def test_compiled_it_gives_what_it_gives():
    torch.manual_seed(0)
    layer, images = made(16, 16), images_of((8, 16, 16, 12, 12))
    wanted = deepcopy(layer)
    for one in (torch.compile(layer), wanted):
        one(images).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, wanted.weight.grad, rtol=1e-5, atol=1e-4)


def test_an_exported_net_has_none_of_it():
    net = nets.load("level1").eval()
    with torch.no_grad():
        assert "tenfold" not in str(torch.export.export(net, (torch.randn(64, 3, 32, 32),)).graph)


def test_several_nets_as_one_program():
    blocks, images = [layers.block(16, 32).train() for _ in range(2)], torch.randn(2, 8, 16, 12, 12)
    parameters, buffers = torch.func.stack_module_state(blocks)
    out = vmap(lambda p, b, x: functional_call(blocks[0], (p, b), (x,)), randomness="different")(parameters, buffers, images)
    out.square().sum().backward()
    for i, block in enumerate(blocks):
        expected = block(images[i])
        expected.square().sum().backward()
        torch.testing.assert_close(out[i], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(parameters["0.weight"].grad[i], block[0].weight.grad, rtol=1e-3, atol=1e-3)

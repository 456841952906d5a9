"""Convolutions of small maps whose filters' gradient is a product of matrices, against torch's own."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import nets
from nets import convolution
from nets.convolution import Conv2d, of_filters

SIZES = [((6, 5, 4, 4), 7, 3), ((3, 8, 8, 8), 4, 3), ((5, 4, 2, 2), 6, 3), ((4, 3, 5, 7), 2, 5), ((1, 2, 1, 1), 3, 3)]


@pytest.fixture
def able(monkeypatch) -> list[torch.Size]:
    """A processor that has AMX, or is said to: the shapes of maps that were treated so."""
    taken: list[torch.Size] = []
    apply = convolution.by_patches
    monkeypatch.setattr(convolution, "AMX", True)
    monkeypatch.setattr(convolution, "CHANNELS", 2)
    monkeypatch.setattr(convolution, "by_patches", lambda images, *given: taken.append(images.shape) or apply(images, *given))
    return taken


def made(size: tuple[int, ...], outputs: int, kernel: int) -> tuple[Conv2d, torch.Tensor]:
    torch.manual_seed(outputs)
    layer = Conv2d(size[1], outputs, kernel, padding=kernel // 2, bias=False).to(memory_format=torch.channels_last)
    return layer, torch.randn(size).bfloat16().to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "outputs", "kernel"), SIZES, ids=str)
def test_all_is_torchs_but_the_filters_gradient_which_is_near_float64s(size, outputs, kernel, able):
    layer, images = made(size, outputs, kernel)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())  # what autocast works with
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    plain = deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = layer(ours), nn.Conv2d.forward(plain, theirs)
    assert able == [size] and torch.equal(out, expected) and out.dtype == torch.bfloat16
    gradient = torch.randn(out.shape).bfloat16()  # in another order of memory
    out.backward(gradient)
    expected.backward(gradient)
    exact = deepcopy(plain).double()
    exact(images.double()).backward(gradient.double())
    assert torch.equal(ours.grad, theirs.grad)  # torch's own, which without instructions for bf16 rounds sums of parts, too
    assert (layer.weight.grad.double() - exact.weight.grad).abs().max() <= 8e-3 * exact.weight.grad.abs().max()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.stride() == layer.weight.stride()


def test_gradients_of_single_images_by_vmap(able):
    layer, images = made((3, 4, 4, 4), 5, 3)
    weight = layer.weight.detach().bfloat16()

    def loss(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return convolution.by_patches(image[None], weight, 1).float().square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, images)
    for each, image in zip(found, images):
        torch.testing.assert_close(each, torch.func.grad(loss)(weight, image), rtol=2e-2, atol=2e-2 * float(each.abs().max()))


def test_large_batches_are_summed_in_parts(monkeypatch):
    torch.manual_seed(0)
    images, gradient = torch.randn(10, 3, 4, 4), torch.randn(10, 5, 4, 4)
    expected = of_filters(images, gradient, torch.Size((5, 3, 3, 3)), 1)
    monkeypatch.setattr(convolution, "BYTES", 3 * 16 * 27 * 4)  # three images'
    torch.testing.assert_close(of_filters(images, gradient, torch.Size((5, 3, 3, 3)), 1), expected)
    exact = nn.grad.conv2d_weight(images.double(), (5, 3, 3, 3), gradient.double(), padding=1)
    torch.testing.assert_close(expected.double(), exact, rtol=1e-4, atol=1e-4)


def test_only_where_it_is_the_faster_way(able, monkeypatch):
    layer, images = made((4, 8, 4, 4), 8, 3)

    def taken(layer: nn.Module, images: torch.Tensor, half: bool = True) -> bool:
        able.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            layer(images)
        return bool(able)

    assert taken(layer, images) and taken(deepcopy(layer).bfloat16(), images, half=False)
    assert not taken(layer, images.float(), half=False)
    assert not taken(layer, torch.randn(4, 8, 9, 8))  # a large map
    assert not taken(layer, images[:0])
    assert not taken(Conv2d(8, 8, 1, bias=False), images)
    others = dict(stride=2), dict(groups=2), dict(dilation=2), dict(bias=True), dict(padding=(1, 0))
    assert not any(taken(Conv2d(8, 8, 3, **{"padding": 1, "bias": False, **other}), images) for other in others)
    with torch.no_grad():
        assert not taken(layer, images)
    assert not taken(deepcopy(layer).requires_grad_(False), images.clone().requires_grad_())
    assert not taken(Conv2d(8, 1, 3, padding=1, bias=False), images)  # few channels
    monkeypatch.setattr(convolution, "AMX", False)
    assert not taken(layer, images)


def test_a_compiler_has_torchs_own(able):
    layer, images = made((4, 8, 4, 4), 8, 3)
    programs = []
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(layer, backend=lambda graph, _: programs.append(graph) or graph.forward)(images)
    assert len(programs) == 1 and not able


def test_nets_have_it_where_their_maps_are_small_and_wide(able, monkeypatch):
    monkeypatch.setattr(convolution, "CHANNELS", 64)
    for name, expected in (("quick", 5), ("speednet", 3), ("level1", 0)):
        able.clear()
        net = nets.load(name).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            net(torch.randn(4, 3, 32, 32)).float().sum().backward()
        assert len(able) == expected, (name, able)

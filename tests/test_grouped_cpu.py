"""The processor's operator for the convolution between a tiny net's stages against torch's own."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

import nets
from nets import grouped_cpu, layers, native, tiny

SIZES = [
    (3, 16, 24, 32, 32),
    (70, 24, 40, 16, 16),
    (2, 8, 8, 2, 2),
    (5, 48, 64, 8, 4),
    (33, 16, 8, 6, 10),
]  # images, inputs, outputs, height and width: rows of whole vectors and not, one part of a batch and several

pytestmark = pytest.mark.skipif(not native.available(grouped_cpu.NAME), reason="no C compiler here that can make nets/grouped_cpu.c")


def made(inputs: int, outputs: int) -> tiny.Grouped:
    torch.manual_seed(inputs)
    return tiny.Grouped(inputs, outputs).to(memory_format=torch.channels_last)


def check(net: tiny.Grouped, use, images: torch.Tensor, limit: float = 2e-6) -> None:
    """The output and both gradients of `use` as float64's, within a share of their largest value; the filters' lies as they do."""
    ours, whole, weight = images.clone().requires_grad_(), images.double().requires_grad_(), net.weight.detach().double().requires_grad_()
    out, expected = use(ours), F.conv2d(whole, weight, None, 2, 1, groups=net.groups)
    gradient = torch.randn_like(out)
    net.zero_grad()
    out.backward(gradient)
    expected.backward(gradient.double())
    for a, b in ((out, expected), (ours.grad, whole.grad), (net.weight.grad, weight.grad)):
        assert (a.double() - b).abs().max() <= limit * b.abs().max()
    assert out.is_contiguous() and net.weight.grad.stride() == net.weight.stride()


@pytest.mark.parametrize("size", SIZES)
def test_it_gives_what_torch_gives(size):
    count, inputs, outputs, *sides = size
    net, images = made(inputs, outputs), torch.randn(count, inputs, *sides)
    assert net.nativable(images)
    check(net, net, images)


def test_a_map_in_another_order_of_memory_is_taken_too():
    net, images = made(16, 24), torch.randn(3, 16, 8, 12).to(memory_format=torch.channels_last)
    check(net, lambda images: grouped_cpu.grouped(images, net.weight), images)


def test_all_maps_of_a_net_are_planes_behind_the_first_block():
    net, seen = nets.load("tiny10k").to(memory_format=torch.channels_last), []
    for module in net.modules():
        if isinstance(module, (layers.Block, tiny.Block, tiny.Grouped, nn.BatchNorm2d)):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output.is_contiguous()))
    net(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last))
    assert seen == [False] + [True] * 11


@pytest.mark.parametrize("size", SIZES)
def test_so_does_the_code_for_processors_without_512_bits(size, of_256_bits):
    count, inputs, outputs, *sides = size
    net = made(inputs, outputs)
    check(net, net, torch.randn(count, inputs, *sides))


def test_a_process_without_images_has_a_gradient_for_all_that():
    net, images = made(8, 16), torch.zeros(0, 8, 8, 8, requires_grad=True)
    out = net(images)
    out.sum().backward()
    assert out.shape == (0, 16, 4, 4) and images.grad.shape == images.shape and (net.weight.grad == 0).all()


def test_the_same_bits_by_any_number_of_threads():
    net, images, before, found = made(16, 24), torch.randn(100, 16, 8, 8), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            net.zero_grad()
            ours = images.clone().requires_grad_()
            net(ours).square().sum().backward()
            found.append((ours.grad, net.weight.grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for several in found[1:] for a, b in zip(found[0], several))


def test_when_it_is_used():
    net, images = made(8, 16), torch.zeros(2, 8, 4, 4)
    with torch.autocast("cpu", torch.float16):
        assert not net.nativable(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert net.nativable(images) and net(images.bfloat16()).dtype == torch.float32
    assert net.nativable(images) and not (net.nativable(images.double()) or net.nativable(images.to(memory_format=torch.channels_last)))
    assert not net.nativable(images[:, :, 1:].contiguous()) and not net.nativable(images[..., 1:].contiguous())
    program = str(torch.export.export(net, (images,)).graph)
    assert "grouped_cpu" not in program and net(images[:, :, 1:]).shape == (2, 16, 1, 2)


def test_the_operators_hold_to_torchs_rules():
    weight, images = made(8, 16).weight.detach().requires_grad_(), torch.randn(2, 8, 4, 6)
    for memory in (torch.channels_last, torch.contiguous_format):
        torch.library.opcheck(grouped_cpu.grouped, (images.to(memory_format=memory).requires_grad_(), weight))


def test_compiled_it_gives_what_it_gives():
    net = made(16, 24)
    check(net, torch.compile(net), torch.randn(4, 16, 8, 8))


def test_several_nets_as_one_program():
    net, images = made(8, 16), torch.randn(2, 3, 8, 6, 6)
    weights = torch.stack([net.weight.detach(), 2 * net.weight.detach()]).requires_grad_()
    out = vmap(lambda weight, own: functional_call(net, {"weight": weight}, (own,)))(weights, images)
    out.square().sum().backward()
    for i in range(2):
        weight = weights[i].detach().double().requires_grad_()
        alone = F.conv2d(images[i].double(), weight, None, 2, 1, groups=8)
        alone.square().sum().backward()
        torch.testing.assert_close(out[i].double(), alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(weights.grad[i].double(), weight.grad, rtol=1e-5, atol=1e-5 * float(weight.grad.abs().max()))

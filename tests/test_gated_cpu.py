"""The processor's operator for a tiny net's block against torch's own operations."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

import nets
from nets import gated_cpu, native, tiny

SIZES = [
    (3, 16, 32, 32),
    (70, 40, 8, 8),
    (2, 24, 7, 5),
    (1, 8, 1, 1),
    (33, 48, 4, 6),
    (2, 64, 20, 20),
    (5, 16, 16, 16),
    (3, 8, 12, 8),
    (9, 8, 8, 4),
]  # whole vectors and not, two rows in a vector of 512 bits or 256, one group of images and several, one part and several

pytestmark = pytest.mark.skipif(not native.available(gated_cpu.NAME), reason="no C compiler here that can make nets/gated_cpu.c")


def made(channels: int, times: int = 1) -> tiny.Block:
    """A block whose every part matters."""
    torch.manual_seed(channels)
    block = tiny.Block(channels, "batch", 0.0, times=times)
    for own in (block, *block.more):
        for parameter in (own.norm.weight, own.scale):
            nn.init.uniform_(parameter, 0.5, 2)
        nn.init.normal_(own.norm.bias)
    return block.to(memory_format=torch.channels_last)


def plain(block: tiny.Block) -> tiny.Block:
    """A copy that torch's own operations work out, in float64."""
    copy = deepcopy(block).double()
    assert not copy.nativable(torch.zeros(1, 8, 4, 4, dtype=torch.float64))
    return copy


def check(block: tiny.Block, use, images: torch.Tensor, gradient: torch.Tensor, limit: float = 2e-5) -> None:
    """Outputs and all gradients of `use` as float64's, within a share of their largest value."""
    wanted, whole, ours = plain(block), images.double().requires_grad_(), images.clone().requires_grad_()
    expected, out = wanted(whole), use(ours)
    expected.backward(gradient.double())
    out.backward(gradient)
    pairs = {"out": (out, expected), "images": (ours.grad, whole.grad)} | {
        name: (p.grad, q.grad) for (name, p), q in zip(block.named_parameters(), wanted.parameters())
    }
    for name, (a, b) in pairs.items():
        assert (a.double() - b).abs().max() <= limit * b.abs().max(), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_a_block_gives_what_torch_gives(size, times, memory):
    block = made(size[1], times)
    images, gradient = torch.randn(size).to(memory_format=memory), torch.randn(size)
    assert block.nativable(images)
    with torch.no_grad():
        assert block(images).is_contiguous()
    check(block, block, images, gradient)
    block.zero_grad()
    check(block, block, images, gradient.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("size", SIZES)
def test_so_does_the_code_for_processors_without_512_bits(size, of_256_bits):
    block = made(size[1], 2)
    check(block, block, torch.randn(size), torch.randn(size))


def test_a_map_in_another_order_of_memory_is_taken_too():
    block = made(16)
    images, gradient = torch.randn(16, 5, 6, 4).transpose(0, 1).transpose(2, 3), torch.randn(5, 16, 6, 4)[..., [3, 2, 1, 0]]
    assert gated_cpu.order(images) == torch.contiguous_format and not images.is_contiguous()
    check(block, block, images[..., ::2], gradient[:, :, :4, :3])


def test_a_process_without_images_has_gradients_for_all_that():
    """As where several processes share a batch that is too small for all of them."""
    block, images = made(16), torch.zeros(0, 16, 8, 8, requires_grad=True)
    out = block(images)
    out.sum().backward()
    assert out.shape == images.shape == images.grad.shape and all((p.grad == 0).all() for p in block.parameters())


def test_large_gates_and_numbers_that_are_none():
    block = made(8)
    with torch.no_grad():
        block.widen.weight *= 300  # gates far outside of what exp knows
    check(block, block, 10 * torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6), 1e-4)
    with torch.no_grad():
        bad = torch.randn(2, 8, 6, 6)
        bad[1, 3, 2, 2] = torch.nan
        out = block(bad)
        assert out[0].isfinite().all() and out[1, :, 2, 2].isnan().all()


def test_the_same_bits_by_any_number_of_threads():
    """Parts of a batch are of one size, and their sums are added up in their order."""
    block, images = made(24), torch.randn(100, 24, 8, 8)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            block.zero_grad()
            ours = images.clone().requires_grad_()
            block(ours).square().sum().backward()
            found.append([ours.grad, *(p.grad for p in block.parameters())])
    finally:
        torch.set_num_threads(before)
    for several in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], several))


def test_when_it_is_used():
    block, images = made(16), torch.zeros(2, 16, 4, 4)
    assert block.nativable(images) and made(16, 2).nativable(images)
    with torch.autocast("cpu", torch.float16):
        assert not block.nativable(images)
    assert not block.nativable(images.double()) and not block.nativable(torch.zeros(2, 12, 4, 4))
    assert not tiny.Block(16, "group", 0.0).nativable(images) and not tiny.Block(16, "batch", 0.1).nativable(images)
    assert block.eval().nativable(images) and tiny.Block(16, "batch", 0.1).eval().nativable(images)


@pytest.mark.parametrize("times", [1, 2])
def test_under_autocast_it_is_the_same_in_float32(times, monkeypatch):
    """Where bfloat16 gains nothing."""
    monkeypatch.setattr(gated_cpu, "fast_halves", lambda _: False)
    block, images, found = made(16, times), torch.randn(4, 16, 8, 8).bfloat16(), []
    for half in (False, True):
        block.zero_grad()
        ours = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = block(ours if half else ours.float())
            out.square().sum().backward()  # the way back, too
        found.append([out, ours.grad, *(p.grad for p in block.parameters())])
    assert found[0][0].dtype == torch.float32 and all(torch.equal(a, b) for a, b in zip(*found))


class Rounded(torch.autograd.Function):
    """terms_NI · weight_OI, and both gradients, of terms rounded to bfloat16; sums in float32."""

    @staticmethod
    def forward(ctx, terms_NI, weight_OI):
        terms_NI, weight_OI = (each.bfloat16().float() for each in (terms_NI, weight_OI))
        ctx.save_for_backward(terms_NI, weight_OI)
        return terms_NI @ weight_OI.t()

    @staticmethod
    def backward(ctx, gradient_NO):
        (terms_NI, weight_OI), gradient_NO = ctx.saved_tensors, gradient_NO.bfloat16().float()
        return gradient_NO @ weight_OI, gradient_NO.t() @ terms_NI


def by_rounded_terms(block: tiny.Block, images_NCHW: torch.Tensor) -> torch.Tensor:
    """One use of a block's filters by torch, its products of rounded terms."""
    look, gain, shift, widen, narrow, scale = block.matrices(block)
    plain_norm = F.layer_norm(block.look(images_NCHW).permute(0, 2, 3, 1), look.shape[:1], eps=block.norm.eps)
    wide = Rounded.apply(plain_norm.flatten(0, 2), widen * gain) + widen @ shift
    gate, value = wide.chunk(2, -1)
    narrowed = Rounded.apply(F.silu(gate) * value, narrow * scale[:, None])
    return images_NCHW + narrowed.view(plain_norm.shape).permute(0, 3, 1, 2)


def check_halves(size: tuple[int, ...], memory: torch.memory_format = torch.contiguous_format) -> None:
    block, gradient, found = made(size[1]), torch.randn(size), []
    images = torch.randn(size).to(memory_format=memory)
    for use in (block, partial(by_rounded_terms, block)):
        block.zero_grad()
        ours = images.clone().requires_grad_()
        out = use(ours)
        out.backward(gradient)
        found.append([out, ours.grad, *(p.grad for p in block.parameters())])
    for ours, theirs in zip(*found):
        assert (ours - theirs).norm() <= 5e-4 * theirs.norm()  # what a value that is rounded up here and down there makes; bfloat16 as such 5e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_in_halves_products_are_of_rounded_terms(size, memory, monkeypatch):
    monkeypatch.setattr(gated_cpu, "halves", lambda: True)
    check_halves(size, memory)


@pytest.mark.parametrize("size", SIZES)
def test_so_they_are_without_512_bits(size, of_256_bits, monkeypatch):
    monkeypatch.setattr(gated_cpu, "halves", lambda: True)
    check_halves(size)


def test_autocast_has_halves_where_they_are_faster(monkeypatch):
    for fast, amx in ((True, False), (True, True), (False, False)):
        monkeypatch.setattr(gated_cpu, "fast_halves", lambda _, fast=fast: fast)
        monkeypatch.setattr(gated_cpu, "AMX", amx)
        assert not gated_cpu.halves()
        with torch.autocast("cpu", torch.float16):
            assert not gated_cpu.halves()
        with torch.autocast("cpu", torch.bfloat16):
            assert gated_cpu.halves() == (fast and not amx)


def test_the_operators_hold_to_torchs_rules():
    parameters = [p.detach().clone().requires_grad_() for p in made(8).matrices(made(8))]
    for memory in (torch.channels_last, torch.contiguous_format):
        images = torch.randn(2, 8, 4, 4).to(memory_format=memory).requires_grad_()
        for half in (False, True):
            torch.library.opcheck(gated_cpu.gated_block, (images, *parameters, 1e-5, half))


def test_compiled_it_gives_what_it_gives():
    block, images = made(16, 2), torch.randn(4, 16, 8, 8).to(memory_format=torch.channels_last)
    check(block, torch.compile(block), images, torch.randn(4, 16, 8, 8))


def test_a_compiled_net_has_the_operator_and_an_exported_one_has_not():
    """torch 2.11 says in torch.compile, too, that it exports: no compiled step had the kernels."""
    block, images, graphs = made(16), torch.randn(4, 16, 8, 8), []

    def kept(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    torch.compile(block, backend=kept)(images)
    assert "gated_block_cpu" in "".join(graphs)
    assert "gated_block_cpu" not in str(torch.export.export(block, (images,)).graph)
    assert not native.exporting()


def test_several_nets_as_one_program():
    blocks, images = [made(8), made(8)], torch.randn(2, 3, 8, 5, 5)
    nn.init.normal_(blocks[1].narrow.weight)
    stacked = {name: torch.stack([dict(b.named_parameters())[name].detach() for b in blocks]).requires_grad_() for name, _ in blocks[0].named_parameters()}
    out = vmap(partial(functional_call, blocks[0]))(stacked, (images,))
    out.square().sum().backward()
    for i, block in enumerate(blocks):
        alone = plain(block)(images[i].double())
        alone.square().sum().backward()
        torch.testing.assert_close(out[i].double(), alone, rtol=1e-4, atol=1e-4)
    again = plain(blocks[1])
    again(images[1].double()).square().sum().backward()
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(stacked[name].grad[1].double(), parameter.grad, rtol=1e-4, atol=1e-4 * float(parameter.grad.abs().max()))


def test_a_net_is_measured_by_its_parts_all_the_same():
    net = nets.load("tiny25k")
    assert net.stage1[0].nativable(torch.zeros(1, 16, 32, 32)) and any(layer.name == "stage1.0.look" for layer in nets.measure.layers(net))
    assert nets.training_flop(net) == 2 * (3 * nets.macs(net) - 3 * 16 * 9 * 32 * 32)  # images have no gradient

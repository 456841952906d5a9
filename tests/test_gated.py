"""The kernels of a tiny net's block against torch's own: interpreted where there is no GPU."""

import json
from copy import deepcopy

import hopper
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

pytest.importorskip("triton", reason="Triton is not installed")
import nets
from nets import gated, tiny
from nets.gated_kernels import MOST

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SIZES = [(3, 24, 6, 5), (1, 16, 8, 16), (2, 40, 7, 8), (1, 64, 3, 3), (2, 5, 9, 4)]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setattr(tiny, "gated", gated)


def made(channels: int, times: int = 1) -> tiny.Block:
    """A block whose every part matters."""
    torch.manual_seed(channels)
    block = tiny.Block(channels, "batch", 0.0, times=times)
    for own in (block, *block.more):
        for parameter in (own.norm.weight, own.scale):
            nn.init.uniform_(parameter, 0.5, 2)
        nn.init.normal_(own.norm.bias)
    return block.to(DEVICE, memory_format=torch.channels_last)


def check(size, dtype, limit, times=1):
    """Largest differences from float64's, as shares of the largest value."""
    block = made(size[1], times)
    images = torch.randn(size).to(DEVICE, dtype, memory_format=torch.channels_last)
    gradient = torch.randn(size).to(DEVICE, dtype)  # in another order of memory
    wanted, whole = deepcopy(block).double(), images.double().requires_grad_()
    expected = by_torch(wanted, whole)
    expected.backward(gradient.double())
    ours = images.clone().requires_grad_()
    block.nativable, block.fusible = lambda images: False, lambda images: True
    out = block(ours)
    out.backward(gradient)
    assert out.dtype == dtype and ours.grad.dtype == dtype
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (out, ours.grad))
    pairs = {"out": (out, expected), "images": (ours.grad, whole.grad)}
    pairs |= {name: (p.grad, q.grad) for (name, p), q in zip(block.named_parameters(), wanted.parameters())}
    for name, (a, b) in pairs.items():
        assert (a.double() - b).abs().max() <= limit * b.abs().max(), name


def by_torch(block: tiny.Block, images: torch.Tensor) -> torch.Tensor:
    """The block without any operator of ours."""
    for own in (block, *block.more):
        images = block.plain(images, own)
    return images


@pytest.mark.parametrize("dtype", [torch.float16] if CUDA else [torch.float32, torch.float16], ids=str)  # the interpreter cuts bfloat16 off, unrounded
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_torchs(size, dtype):
    check(size, dtype, 1e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float16] if CUDA else [torch.float32], ids=str)
def test_filters_that_are_used_twice_have_the_gradients_of_both(dtype):
    check((2, 8, 5, 6), dtype, 1e-5 if dtype == torch.float32 else 8e-3, times=2)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(256, 32, 32, 32), (256, 48, 16, 16), (256, 64, 8, 8), (80, 24, 20, 20), (256, 16, 32, 32)], ids=str)
def test_so_they_are_at_full_size(size, dtype):
    check(size, dtype, 3e-2 if dtype == torch.bfloat16 else 4e-3)


def test_more_tiles_than_programs_are_summed(monkeypatch):
    monkeypatch.setattr("nets.gated_kernels.MULTIPROCESSORS", 1)
    check((5, 16, 8, 9), torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_the_same_bits_every_time():
    block, images = made(48), torch.randn(256, 48, 16, 16, device=DEVICE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    found = []
    for _ in range(2):
        block.zero_grad()
        block.fused(images, block).float().square().sum().backward()
        found.append([p.grad.clone() for p in block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_several_nets_go_together():
    blocks = [made(channels) for channels in (24, 24, 24)]
    for i, block in enumerate(blocks):
        nn.init.normal_(block.widen.weight, std=0.1 + 0.1 * i)
    stacked = {name: torch.stack([dict(b.named_parameters())[name].detach() for b in blocks]).requires_grad_() for name, _ in blocks[0].named_parameters()}
    images = torch.randn(2, 3, 24, 5, 6, device=DEVICE)
    fused = deepcopy(blocks[0])
    fused.nativable, fused.fusible = lambda images: False, lambda images: True
    out = vmap(lambda p, x: functional_call(fused, p, (x,)), in_dims=(0, 1))(stacked, images)
    out.square().sum().backward()
    for i, block in enumerate(blocks):
        expected = by_torch(block, images[:, i])
        expected.square().sum().backward()
        torch.testing.assert_close(out[i], expected, rtol=1e-4, atol=1e-4)
        for name, parameter in block.named_parameters():
            torch.testing.assert_close(stacked[name].grad[i], parameter.grad, rtol=1e-3, atol=1e-3 * float(parameter.grad.abs().max()))


def test_torch_finds_no_fault_with_the_operator():
    shapes = (2, 4, 3, 3), (1, 4, 9), (1, 4), (1, 4), (1, 8, 4), (1, 4, 4), (1, 4)
    torch.library.opcheck(gated.gated_block, (*(torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes), 1e-5))


def test_a_block_takes_the_kernels_only_where_they_can_do_it():
    class Elsewhere:
        is_cuda = True

        def __init__(self, channels, dtype):
            self.shape, self.dtype = (2, channels, 8, 8), dtype

    def fusible(training=True, dtype=torch.bfloat16, **some):
        chosen = dict(channels=24, norm="batch", dropout=0.0) | some
        return tiny.Block(**chosen).train(training).fusible(Elsewhere(chosen["channels"], dtype))

    assert fusible() and fusible(dtype=torch.float16) and fusible(norm="channel") and fusible(channels=MOST) and fusible(dropout=0.1, training=False)
    assert not (fusible(channels=MOST + 8) or fusible(norm="group") or fusible(dtype=torch.float32) or fusible(dropout=0.1))
    assert not tiny.Block(8, "batch", 0.0).fusible(torch.zeros(2, 8, 4, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_nets_logits_and_gradients_are_as_near_to_float32s_as_torchs(compiled):
    torch.manual_seed(0)
    net = nets.load("tiny83k", 10).to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(64, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    found = {}
    for name, kernels, half in (("float32", None, False), ("theirs", None, True), ("ours", gated, True)):
        tiny.gated = kernels
        net.zero_grad()
        run = torch.compile(net, dynamic=False) if compiled and kernels else net
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            logits = run(images).float()
        logits.square().mean().backward()
        found[name] = logits.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])
    for wanted, theirs, ours in zip(found["float32"], found["theirs"], found["ours"]):
        assert (ours - wanted).norm() <= 1.5 * (theirs - wanted).norm() <= 0.3 * wanted.norm()


COMPILE = """
from nets.gated_kernels import *

half, whole = at(torch.bfloat16), at(torch.float32)
given = {
    block_kernel: (half, *[whole] * 6, half, half, whole, half, 1e-5, 65536, 4),
    back_kernel: (half, half, whole, half, half, whole, 1e-5, 65536, 4),
    look_kernel: (half, half, half, whole, half, whole, 65536, 4),
}
for kernel, arguments in given.items():
    name = kernel.fn.__name__[:-7]
    made = kernel.run(*arguments, 16, 16, 1, 48, pixels_of(name, 48), 64, grid=(1, 1), warmup=True, num_warps=WARPS, num_stages=1, maxnreg=room(name, 64)[1])
    found = set(re.findall(r"(?:ld|st)[.]global[.]v[24](?=[.]b32)|wgmma[.]mma_async", made.asm["ptx"]))
    print(json.dumps([kernel.fn.__name__, sorted(found), made.metadata.shared]))
"""


def test_compiles_for_hopper_without_a_gpu(tmp_path):
    """Through Triton's own compiler and ptxas, to sm_90: 16 bytes at a time, or 8, products by its matrix unit, and room for three programs and more in shared memory."""
    lines = hopper.run(COMPILE, tmp_path)
    memory, products = ["ld.global.v4", "st.global.v4"], ["wgmma.mma_async"]
    found = {name: (words, shared) for name, words, shared in map(json.loads, lines)}
    words = {name: set(words) for name, (words, _) in found.items()}
    assert words["block_kernel"] == {*memory, *products} and words["back_kernel"] == {"ld.global.v2", *memory, *products}
    assert words["look_kernel"] == {"ld.global.v2", "ld.global.v4", "st.global.v2"}
    assert all(shared <= 228 * 1024 // 3 for _, shared in found.values())

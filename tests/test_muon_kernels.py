"""Muon's kernels against its own torch code: interpreted where there is no GPU."""

import json

import hopper
import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")
import nets
from nets.aside import opened
from train import muon, muon_kernels
from train.optim import optimiser
from train.recipe import MUON_NORMS, Recipe

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SIZES = [(16, 3, 3, 3), (32, 16, 1, 1), (70, 8, 3, 3), (96, 48, 1, 1), (1, 5, 1, 1), (10, 65, 1, 1)]
CLOSE = 0.02 if CUDA else 2e-6  # bf16 has eight bits


@pytest.fixture
def kernels(monkeypatch):
    """Muon takes them here, too."""

    def fusible(filters, momenta):
        taken.append(len(filters))
        return True

    taken: list[int] = []
    monkeypatch.setattr(muon, "kernels", muon_kernels)
    if not CUDA:
        monkeypatch.setattr(muon, "fusible", fusible)
    return taken


def made(sizes, norm: str, rate=0.1) -> tuple[list[nn.Parameter], muon.Muon]:
    torch.manual_seed(0)
    filters = [nn.Parameter(torch.randn(size).to(DEVICE, memory_format=torch.channels_last)) for size in sizes]
    return filters, muon.Muon([{"params": filters, "filters": True, "norm": norm, "momentum": 0.6, "lr": rate}])


def moved(sizes, norm: str, steps: int = 2, rate=0.1, scale: float = 1e-3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(filters, momenta) after some steps."""
    filters, made_of = made(sizes, norm, rate)
    for _ in range(steps):
        for p in filters:
            p.grad = (scale * torch.randn(p.shape)).to(DEVICE)  # in another order of memory
        made_of.step()
    return [p.detach() for p in filters], [made_of.state[p]["momentum_buffer"] for p in filters]


def by_torch(monkeypatch, *given, **settings):
    with monkeypatch.context() as patched:
        patched.setattr(muon, "kernels", None)
        patched.setattr(muon, "fusible", lambda *_: False)
        return moved(*given, **settings)


@pytest.mark.parametrize("norm", MUON_NORMS)
def test_filters_move_as_by_torch(norm, kernels, monkeypatch):
    expected = by_torch(monkeypatch, SIZES, norm)
    found = moved(SIZES, norm)
    assert CUDA or kernels == [6, 6]
    for ours, theirs, momentum, their_momentum in zip(*found[:1], *expected[:1], *found[1:], *expected[1:]):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=CLOSE)
        torch.testing.assert_close(momentum, their_momentum, rtol=1e-5, atol=1e-9)
        assert ours.permute(0, 2, 3, 1).is_contiguous()


def test_more_filters_than_a_launch_takes(kernels, monkeypatch):
    expected, _ = by_torch(monkeypatch, SIZES[:5], "filter", steps=1)
    monkeypatch.setattr(muon_kernels, "FILTERS", 2)
    found, _ = moved(SIZES[:5], "filter", steps=1)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=CLOSE)


def test_a_rate_on_the_device_is_read_there(kernels, monkeypatch):
    expected, _ = by_torch(monkeypatch, SIZES[:2], "filter", steps=1, rate=0.3)
    found, _ = moved(SIZES[:2], "filter", steps=1, rate=torch.tensor(0.3, device=DEVICE))
    assert all((ours - theirs).abs().max() <= 3 * CLOSE for ours, theirs in zip(found, expected))


@pytest.mark.parametrize("norm", MUON_NORMS)
def test_without_gradients_filters_keep_their_direction_and_are_numbers(norm, kernels):
    before, _ = made(SIZES[:2], norm)
    found, _ = moved(SIZES[:2], norm, steps=1, scale=0.0)
    for p, q in zip(before, found):
        assert q.isfinite().all() and torch.cosine_similarity(p.detach().flatten(), q.flatten(), 0) > (0.999 if norm == "filter" else 0.9)


def test_several_nets_go_together(kernels, monkeypatch):
    """As slices of one tensor, whose gradients are slices, too."""
    expected, _ = by_torch(monkeypatch, [(32, 16, 1, 1)] * 3, "filter", steps=1)
    torch.manual_seed(0)
    start = [torch.randn(32, 16, 1, 1) for _ in range(3)]
    whole = torch.stack(start).to(DEVICE)
    filters = [nn.Parameter(piece) for piece in whole]
    made_of = muon.Muon([{"params": filters, "filters": True, "momentum": 0.6, "lr": 0.1}])
    for p, gradient in zip(filters, torch.stack([1e-3 * torch.randn(32, 16, 1, 1) for _ in range(3)]).to(DEVICE)):
        p.grad = gradient
    made_of.step()
    torch.testing.assert_close(whole, torch.stack(expected), rtol=0, atol=CLOSE)


def test_in_a_branch_filters_move_beside_all_else(kernels):
    class Later:
        """Does its work when it is joined."""

        def __init__(self):
            self.waiting = []

        def run(self, work, reads):
            assert not self.waiting and torch.equal(bias, start)  # the longest first
            self.waiting.append(work)

        def join(self):
            assert not torch.equal(bias, start) and all(torch.equal(p, before) for p, before in zip(filters, firsts))
            self.waiting.pop()()

    torch.manual_seed(0)
    firsts, start = [torch.randn(size, device=DEVICE).contiguous(memory_format=torch.channels_last) for size in SIZES[:2]], torch.randn(7, device=DEVICE)
    results = []
    for branch in (None, Later()):
        filters, bias = [nn.Parameter(f.clone()) for f in firsts], nn.Parameter(start.clone())
        made_of = muon.Muon([{"params": [bias], "lr": 0.1}, {"params": filters, "filters": True, "momentum": 0.6, "lr": 0.1}])
        for p in (bias, *filters):
            p.grad = torch.ones_like(p)
        with opened(branch):
            made_of.step()
        results.append([p.detach() for p in (bias, *filters)])
    assert all(torch.equal(one, other) for one, other in zip(*results)) and not torch.equal(results[0][1], firsts[0])


def test_torch_finds_no_fault_with_the_operator():
    filters, gradients, momenta = ([torch.randn(size, device=DEVICE).contiguous(memory_format=torch.channels_last) for size in SIZES[:2]] for _ in range(3))
    torch.library.opcheck(
        muon_kernels.move, (filters, gradients, momenta, torch.tensor(0.1, device=DEVICE), 0.6, True, muon.STEPS, list(muon.COEFFICIENTS), muon.EPS)
    )


@pytest.mark.skipif(CUDA, reason="looks at a processor's program")
def test_in_a_compiled_step_they_are_one_call_without_copies(kernels):
    filters, made_of = made(SIZES[:2], "filter", torch.tensor(0.1))
    programs = []

    def look(graph, _):
        programs.append(graph)
        return graph.forward

    for p in filters:
        p.grad = torch.randn_like(p)
    torch.compile(made_of.step, dynamic=False, backend=look)()
    (program,) = programs
    called = [node.target for node in program.graph.nodes if node.op.startswith("call") and node.target is not torch._C._set_grad_enabled]
    assert called == [torch.ops.tenfold.muon.default]


def test_they_are_for_filters_as_they_lie_on_a_gpu():
    class Elsewhere:
        """A tensor that says it is on a GPU."""

        is_cuda = True

        def __init__(self, tensor):
            self.dtype, self.permute = tensor.dtype, tensor.permute

    def asked(tensor):
        return muon.fusible([Elsewhere(tensor)], [Elsewhere(tensor)])

    filters, held = torch.randn(8, 4, 3, 3), muon.kernels
    muon.kernels = muon_kernels
    try:
        assert asked(filters.contiguous(memory_format=torch.channels_last)) and asked(torch.randn(8, 4, 1, 1))
        assert not asked(filters) and not asked(filters.double().contiguous(memory_format=torch.channels_last))
        assert not muon.fusible([filters.contiguous(memory_format=torch.channels_last)], [filters])
    finally:
        muon.kernels = held


COMPILE = """
import nets
from train.muon_kernels import *

sizes = [(len(p), p[0].numel()) for p in nets.load(NET).parameters() if p.requires_grad and p.ndim == 4 and p.shape[1] > 1]
shape, (rows, columns) = Stack.of(sizes), zip(*sizes)
half, whole, some = at(torch.bfloat16), at(torch.float32), (at(torch.float32),) * len(sizes)
given = {
    gather_kernel: [(some, some, some, rows, columns, half, whole, at(torch.int32), 0, len(sizes), 0.6, *shape.filters)],
    multiply_kernel: [
        (*[half] * 4, whole, at(torch.int32), 1.0, 1.0, 1e-7, *shape.products, *how)
        for how in ((True, False, False, 2), (False, False, True, 0), (False, True, True, 1))
    ],
    apply_kernel: [(some, rows, columns, half, whole, whole, 0, len(sizes), 1e-7, *shape.products, *shape.filters[-2:], False)],
}
for kernel, calls in given.items():
    for arguments in calls:
        made = kernel.run(*arguments, grid=(1,), warmup=True, num_warps=WARPS, num_stages=STAGES)
        found = re.findall(r"st[.]global[.]v4|wgmma[.]mma_async|cp[.]async[.]cg[^;]*, 0x10", made.asm["ptx"])
        print(json.dumps([kernel.fn.__name__, sorted({word.split()[0] for word in found}), made.metadata.shared]))
"""


@pytest.mark.parametrize("net", ["speednet", "tiny83k"])
def test_compiles_for_hopper_without_a_gpu(net, tmp_path):
    """Through Triton's own compiler and ptxas, to sm_90: products by its matrix unit, of tiles that come 16 bytes at a time, and room for three programs in shared memory."""
    found = [json.loads(line) for line in hopper.run(COMPILE.replace("NET", repr(net)), tmp_path)]
    product = ["cp.async.cg.shared.global", "st.global.v4", "wgmma.mma_async"]
    assert [words for _, words, _ in found] == [["st.global.v4"], product, product, product, []]
    assert all(shared <= 228 * 1024 // 3 for _, _, shared in found)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("net", ["speednet", "tiny83k", "tiny300k", "level1", "quick"])
def test_whole_nets_move_as_by_torch_with_the_same_bits_twice(net, monkeypatch):
    sizes = [tuple(p.shape) for group in optimiser(nets.load(net), Recipe(optimiser="muon")).param_groups if group["filters"] for p in group["params"]]
    (expected, _), (found, _), (again, _) = by_torch(monkeypatch, sizes, "filter"), moved(sizes, "filter"), moved(sizes, "filter")
    for ours, theirs, same in zip(found, expected, again):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=CLOSE)
        assert torch.equal(ours, same)

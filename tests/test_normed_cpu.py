"""The processor's operator for batch norm with SiLU or ReLU, a pool or a shortcut against torch's own operations."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import nets
from nets import layers, native, normed_cpu

pytestmark = pytest.mark.skipif(not native.available(normed_cpu.NAME), reason="no C compiler here that can make nets/normed_cpu.c")

SIZES = [
    (3, 16, 4, 4),
    (40, 64, 8, 8),
    (5, 96, 7, 5),
    (2, 32, 9, 9),
    (33, 112, 2, 3),
    (9, 48, 1, 1),
    (70, 128, 4, 4),
]  # of one, two and four vectors of channels
WAYS = ["alone", "pooled", "shortcut"]
ACTS = {"silu": nn.SiLU(), "relu": nn.ReLU(), "none": None}


def norm_of(channels: int) -> nn.BatchNorm2d:
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, -1, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def by_torch(norm, act, images, shortcut=None, pools=False):
    out = norm(images) if act is None else act(norm(images))
    return nn.functional.max_pool2d(out, 2) if pools else out if shortcut is None else shortcut + out


def check(size, way, act="silu", away=5.0, limit=2e-5, dtype=torch.float32):
    """Everything as float64's within a share of its largest value, of maps as they are rounded."""
    ours, wanted = norm_of(size[1]), norm_of(size[1]).double()
    if way == "pooled" and min(size[2:]) < 2:
        return
    images, shortcut = (t.to(dtype, memory_format=torch.channels_last) for t in (2 * torch.randn(size) + away, torch.randn(size)))
    extra = {"pools": True} if way == "pooled" else {}
    given = [images, shortcut] if way == "shortcut" else [images]
    mine, theirs = [t.clone().requires_grad_() for t in given], [t.double().requires_grad_() for t in given]
    out, expected = normed_cpu.normed(ours, ACTS[act], *mine, **extra), by_torch(wanted, ACTS[act], *theirs, **extra)
    gradient = torch.randn(expected.shape).to(dtype)
    out.backward(gradient)
    expected.backward(gradient.double())
    pairs = [(out, expected), *((a.grad, b.grad) for a, b in zip((*mine, ours.weight, ours.bias), (*theirs, wanted.weight, wanted.bias)))]
    pairs += [(a, b) for a, b in zip(ours.buffers(), wanted.buffers())]
    for a, b in pairs:
        assert (a.double() - b).abs().max() <= limit * max(1, b.abs().max())
    assert out.dtype == mine[0].grad.dtype == dtype and ours.weight.grad.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last) and mine[0].grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_gradients_and_statistics_are_torchs(size, way, act):
    check(size, way, act)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_so_they_are_on_processors_without_512_bits(size, way, act, of_256_bits):
    check(size, way, act)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_so_they_are_in_bfloat16(size, way, act):
    check(size, way, act, limit=6e-3, dtype=torch.bfloat16)


def test_bfloat16_is_rounded_to_the_nearest_and_keeps_what_is_no_number(of_256_bits):
    norm, images = nn.BatchNorm2d(16).eval(), torch.randn(64, 16, 8, 8).to(memory_format=torch.channels_last)
    images[0, 0, 0, 0] = torch.nan
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole, half = (normed_cpu.normed(norm, nn.SiLU(), t) for t in (images.bfloat16().float(), images.bfloat16()))
    assert torch.equal(half.isnan(), whole.isnan()) and half.isnan().sum() == 1
    assert torch.equal(half.nan_to_num(), whole.nan_to_num().bfloat16())


def test_values_far_from_zero_keep_their_variance():
    check((8, 32, 8, 8), "alone", away=1000.0, limit=2e-3)


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_test_pass_takes_the_running_statistics(way, act):
    norm, images = norm_of(32).eval(), torch.randn(5, 32, 6, 7).to(memory_format=torch.channels_last)
    extra = {"shortcut": torch.randn(5, 32, 6, 7)} if way == "shortcut" else {"pools": way == "pooled"}
    before = deepcopy(list(norm.buffers()))
    with torch.no_grad():
        assert normed_cpu.takes(norm, act, images)
        torch.testing.assert_close(normed_cpu.normed(norm, act, images, **extra), by_torch(norm, act, images, **extra), rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, before, norm.buffers()))


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_ties_and_no_numbers_are_pooled_as_torch_does(act):
    norm, images = nn.BatchNorm2d(16), torch.randint(-2, 3, (6, 16, 8, 8)).float().to(memory_format=torch.channels_last)
    ours, wanted = images.clone().requires_grad_(), images.clone().requires_grad_()
    normed_cpu.normed(norm, act, ours, pools=True).square().sum().backward()
    by_torch(nn.BatchNorm2d(16), act, wanted, pools=True).square().sum().backward()
    torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-4, atol=1e-5)
    images[0, 3, 1, 1] = torch.nan
    pooled, plain = normed_cpu.normed(norm, act, images, pools=True), normed_cpu.normed(norm, act, images)
    assert pooled[:, 3].isnan().all() and pooled[:, 4].isfinite().all() and plain[:, 3].isnan().all() and plain[:, 4].isfinite().all()


def test_what_it_does_not_know_is_left_to_torch():
    images, norm, silu = torch.zeros(2, 16, 4, 4), nn.BatchNorm2d(16), nn.SiLU()
    assert normed_cpu.takes(norm, silu, images)
    assert (
        not normed_cpu.takes(norm, nn.GELU(), images)
        and not normed_cpu.takes(norm, silu, images.double())
        and not normed_cpu.takes(norm, silu, images[:1, :, :1, :1])
    )
    assert not normed_cpu.takes(nn.BatchNorm2d(24), silu, images) and not normed_cpu.takes(layers.GhostBatchNorm(16), silu, images)
    for other in (nn.BatchNorm2d(16, affine=False), nn.BatchNorm2d(16, track_running_stats=False)):
        with torch.no_grad():
            assert not normed_cpu.takes(other, silu, images) and not normed_cpu.takes(other.eval(), silu, images)
    assert not normed_cpu.takes(nn.BatchNorm2d(16, momentum=None), silu, images)
    assert not normed_cpu.takes(norm, silu, images.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not normed_cpu.takes(nn.BatchNorm2d(16).bfloat16(), silu, images.bfloat16())
        assert normed_cpu.takes(norm, silu, images.bfloat16()) and normed_cpu.takes(norm, silu, images)
    with torch.autocast("cpu", torch.float16):
        assert not normed_cpu.takes(norm, silu, images.half()) and not normed_cpu.takes(norm, silu, images)
    assert not normed_cpu.takes(norm.eval(), silu, images)  # a map that somebody wants gradients of
    with torch.no_grad():
        assert normed_cpu.takes(norm, silu, images)


def learnt(net, images, half=False) -> list[torch.Tensor]:
    """Logits, those of a test pass, gradients and statistics."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = net(images)
        logits.square().mean().backward()
        with torch.no_grad():
            return [logits, net.eval()(images), *(p.grad for p in net.parameters()), *net.buffers()]


@pytest.fixture
def quick():
    torch.manual_seed(0)
    return nets.load("quick").to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "side", "norms"),
    [("quick", 16, 7), ("quick", 20, 7), ("quick", 32, 7), ("level1", 32, 11), ("level2", 32, 15), ("tiny10k", 32, 1)],
)
def test_nets_learn_and_test_as_by_torch(name, side, norms, monkeypatch):
    torch.manual_seed(0)
    net, images, called = nets.load(name).to(memory_format=torch.channels_last), torch.randn(40, 3, side, side).to(memory_format=torch.channels_last), []
    wanted, done = deepcopy(net), native.done
    monkeypatch.setattr(normed_cpu, "done", lambda failed: called.append(failed) or done(failed))
    ours = learnt(net, images)
    assert len(called) == 3 * norms
    monkeypatch.setattr(normed_cpu, "takes", lambda *_: False)
    theirs = learnt(wanted, images)
    if name in ("quick", "tiny10k"):
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4)
    away = [float((a.double() - b.double()).detach().norm() / (b.double().detach().norm() + 1e-9)) for a, b in zip(ours, theirs)]
    assert max(away[:2]) < 1e-4 and max(away) < 5e-2  # where values are nearly equal, or near zero, a gradient may go another way


def test_in_bfloat16_it_is_no_further_from_float32_than_torch_is(quick, monkeypatch):
    images, copies = torch.randn(40, 3, 32, 32).to(memory_format=torch.channels_last), [deepcopy(quick) for _ in range(2)]
    ours = learnt(quick, images, half=True)
    monkeypatch.setattr(normed_cpu, "takes", lambda *_: False)
    theirs, exact = learnt(copies[0], images, half=True), learnt(copies[1], images)
    away = [
        sum(float((a.detach().double() - b.detach().double()).norm() / (b.detach().double().norm() + 1e-9)) for a, b in zip(found, exact))
        for found in (ours, theirs)
    ]
    assert [t.dtype for t in ours] == [t.dtype for t in theirs] and 0 < away[0] <= 1.1 * away[1]


def test_the_same_bits_by_any_number_of_threads():
    images, before, found = torch.randn(100, 32, 8, 8), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norm, mine = norm_of(32), images.clone().requires_grad_()
            out = normed_cpu.normed(norm, nn.SiLU(), mine, pools=True)
            out.square().sum().backward()
            found.append([out, mine.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])
    finally:
        torch.set_num_threads(before)
    for several in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], several))


def test_the_operators_hold_to_torchs_rules():
    images, gain, bias = (torch.randn(size, requires_grad=True) for size in ((2, 16, 4, 4), (16,), (16,)))
    shortcut = torch.randn(2, 16, 4, 4, requires_grad=True)
    for given in ((images, gain, bias, None, 1e-5, True, normed_cpu.SILU), (images, gain, bias, shortcut, 1e-5, False, normed_cpu.RELU)):
        torch.library.opcheck(normed_cpu.norm_act, given)


def test_compiled_it_gives_what_it_gives():
    torch.manual_seed(0)
    block, images = layers.block(16, 16, activation=nn.SiLU).to(memory_format=torch.channels_last), torch.randn(4, 16, 8, 8)
    wanted = deepcopy(block)
    for made in (torch.compile(block), wanted):
        made(images).square().sum().backward()
    for a, b in zip((*block.buffers(), *(p.grad for p in block.parameters())), (*wanted.buffers(), *(p.grad for p in wanted.parameters()))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_an_exported_net_has_none_of_it():
    net = nets.load("quick").eval()
    with torch.no_grad():
        assert "tenfold" not in str(torch.export.export(net, (torch.randn(2, 3, 32, 32),)).graph)


def test_several_nets_as_one_program():
    blocks, images = [layers.block(16, 16, activation=nn.SiLU).train() for _ in range(2)], torch.randn(2, 3, 16, 5, 5)
    parameters, buffers = torch.func.stack_module_state(blocks)
    out = vmap(lambda p, b, x: functional_call(blocks[0], (p, b), (x,)), randomness="different")(parameters, buffers, images)
    out.square().sum().backward()
    for i, block in enumerate(blocks):
        expected = block(images[i])
        expected.square().sum().backward()
        torch.testing.assert_close(out[i], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(parameters["0.weight"].grad[i], block[0].weight.grad, rtol=1e-3, atol=1e-3)

"""The kernels of batch norm, SiLU and max-pool against torch's own: interpreted where there is no GPU."""

import json
from copy import deepcopy

import hopper
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

pytest.importorskip("triton", reason="Triton is not installed")
from nets import fused, speednet

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SIZES = [(3, 5, 7, 8), (2, 64, 15, 15), (40, 24, 2, 3), (2, 3, 2, 2)]
HALF = dict(rtol=2e-2, atol=2e-2)
EPS = 1e-5


def theirs(images, bias, pooled):
    """The same in float64, written out: on CUDA torch's batch norm is not made for a bias alone."""
    pixels = F.max_pool2d(images, 2) if pooled else images
    mean, variance = pixels.mean((0, 2, 3), keepdim=True), pixels.var((0, 2, 3), unbiased=False, keepdim=True)
    return F.silu((pixels - mean) * torch.rsqrt(variance + EPS) + bias[:, None, None])


def check(size, dtype, pooled, edge=False):
    torch.manual_seed(sum(size))
    images = (2 * torch.randn(size) + 0.5).to(DEVICE, dtype, memory_format=torch.channels_last)
    bias = torch.randn(size[1], device=DEVICE)
    ours, wanted = ([t.detach().clone().to(kind).requires_grad_() for t in (images, bias)] for kind in (None, torch.float64))
    out, stats, *_ = fused.pool_norm_silu(*ours, EPS) if pooled else fused.norm_silu(*ours, EPS, edge)
    expected = F.pad(theirs(*wanted, pooled), (int(edge), 0, int(edge), 0))
    gradient = torch.randn_like(expected).to(dtype)
    out.backward(gradient)
    expected.backward(gradient.double())
    limits = HALF if dtype.itemsize == 2 else dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.double(), expected, **limits)
    torch.testing.assert_close(ours[0].grad.double(), wanted[0].grad, **limits)
    torch.testing.assert_close(ours[1].grad.double(), wanted[1].grad, rtol=limits["rtol"], atol=1e-2 * gradient[:, 0].numel() ** 0.5)
    pixels = F.max_pool2d(wanted[0], 2) if pooled else wanted[0]
    for ours_of, theirs_of in zip(stats, (pixels.mean((0, 2, 3)), pixels.var((0, 2, 3), unbiased=False))):
        torch.testing.assert_close(ours_of.double(), theirs_of, rtol=1e-4, atol=1e-4)
    assert out.is_contiguous(memory_format=torch.channels_last) and ours[0].grad.is_contiguous(memory_format=torch.channels_last)
    given = (images, bias, torch.stack([pixels.mean((0, 2, 3)), pixels.var((0, 2, 3), unbiased=False)]).float().detach(), EPS)
    torch.testing.assert_close(fused.applied(*given, pooled, edge).double(), expected, **limits)


WAYS = pytest.mark.parametrize(("pooled", "edge"), [(False, False), (True, False), (False, True)], ids=["norm", "pooled", "edged"])


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)  # the interpreter cuts bfloat16 off, unrounded
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_gradients_and_statistics_are_torchs(size, dtype, pooled, edge):
    check(size, dtype, pooled, edge)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@WAYS
@pytest.mark.parametrize("size", [(500, 64, 31, 31), (500, 256, 15, 15), (2000, 256, 3, 3), (2000, 256, 7, 7)], ids=str)
def test_so_they_are_at_full_size(size, pooled, edge):
    check(size, torch.bfloat16, pooled, edge)


def test_ties_and_no_numbers_are_pooled_as_torch_does():
    images = torch.randint(-2, 3, (4, 6, 9, 8), device=DEVICE).float().to(memory_format=torch.channels_last)
    _, _, pooled, place = fused.pool_norm_silu(images, torch.zeros(6, device=DEVICE), EPS)
    expected, flat = F.max_pool2d(images, 2, return_indices=True)
    assert torch.equal(pooled, expected)
    assert torch.equal(place.long(), flat // 8 % 2 * 2 + flat % 8 % 2)
    images[0, 0, 1, 1] = torch.nan
    assert fused.pool_norm_silu(images, torch.zeros(6, device=DEVICE), EPS)[2][0, 0, 0, 0].isnan()


@pytest.mark.parametrize("operator", [fused.norm_silu, fused.pool_norm_silu])
def test_torch_finds_no_fault_with_the_operators(operator):
    torch.library.opcheck(fused.white, (torch.randn(2, 3, 6, 6, device=DEVICE), torch.randn(4, 3, 2, 2, device=DEVICE), torch.randn(4, device=DEVICE)))
    torch.library.opcheck(operator, (torch.randn(2, 4, 6, 6, device=DEVICE, requires_grad=True), torch.randn(4, device=DEVICE, requires_grad=True), EPS))


def check_white(size, dtype, channels, side, edge=False):
    torch.manual_seed(0)
    images = torch.randn(size).to(DEVICE, dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, size[1], side, side, device=DEVICE), torch.randn(channels, device=DEVICE)
    for ordered in (weight, weight.to(memory_format=torch.channels_last)):
        out = fused.white(images, ordered, bias, edge)
        expected = F.silu(F.conv2d(images.double(), weight.to(dtype).double(), bias.double()))  # by filters as the images are, as autocast does
        expected = F.pad(expected, (int(edge), 0, int(edge), 0))
        torch.testing.assert_close(out.double(), expected, **(HALF if dtype.itemsize == 2 else dict(rtol=1e-4, atol=1e-4)))
        assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "channels", "side"), [((3, 3, 8, 7), 24, 2), ((2, 3, 9, 9), 32, 3), ((2, 1, 5, 5), 5, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("edge", [False, True])
def test_whitening_with_its_silu_is_torchs(size, channels, side, dtype, edge):
    check_white(size, dtype, channels, side, edge)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("edge", [False, True])
def test_so_it_is_at_full_size(edge):
    check_white((500, 3, 32, 32), torch.bfloat16, 24, 2, edge)


COMPILE = """
from nets.kernels import *
from nets import kernels

half, whole, place = at(torch.bfloat16), at(torch.float32), at(torch.uint8)
given = {
    "pool": (half, half, place, whole, 112500, 9, 31, 31, 64),
    "sum": (half, whole, 112500, 9, 64),
    "apply": (half, whole, whole, half, 1e-5, 112500, False, False, 15, 15, 64),
    "apply edged": (half, whole, whole, half, 1e-5, 128000, False, True, 15, 15, 64),
    "back_sum": (half, half, whole, whole, 1e-5, whole, 112500, 9, False, 15, 15, 64),
    "back_sum edged": (half, half, whole, whole, 1e-5, whole, 112500, 9, True, 15, 15, 64),
    "back": (half, half, place, whole, whole, whole, half, 1e-5, 128000, True, False, 31, 31, 64),
    "back edged": (half, half, half, whole, whole, whole, half, 1e-5, 112500, False, True, 15, 15, 64),
    "white": (half, half, whole, half, 32, 32, 3, 2, 32, 0, 8, 32, 16, 32),
    "white edged": (half, half, whole, half, 32, 32, 3, 2, 32, 1, 8, 32, 16, 32),
}
for name, arguments in given.items():
    kernel, *_ = name.split()
    made = getattr(kernels, kernel + "_kernel").run(*arguments, *(() if kernel == "white" else wide(64, 2 * TILE if kernel == "apply" else TILE)), grid=(1,), warmup=True, num_warps=WARPS)
    print(json.dumps([name, sorted(set(re.findall(r"cp[.]async[.]cg|ld[.]global[.]v4|st[.]global[.]v4|[.]local", made.asm["ptx"])))]))
"""


def test_compiles_for_hopper_without_a_gpu_to_wide_loads_and_stores(tmp_path):
    """Through Triton's own compiler and ptxas, to sm_90: 16 bytes at a time (a patch of three colours lies in pieces of six), and nothing in local memory."""
    lines = hopper.run(COMPILE, tmp_path)
    found = dict(json.loads(line) for line in lines)
    both, ahead = ["ld.global.v4", "st.global.v4"], ["cp.async.cg"]  # which takes 16 bytes and no other number
    ways = {"pool": ahead + both[1:], "sum": ahead, "apply": both, "back_sum": ahead + both[:1], "back": both, "white": both[1:]}
    assert found == ways | {f"{name} edged": ways[name] for name in ("apply", "back_sum", "back", "white")}


def test_norms_follow_the_same_in_lists_and_apart():
    """And as torch's own."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(channels, momentum=momentum) for channels, momentum in ((3, 0.4), (5, 0.1))]
    images = [torch.randn(4, norm.num_features, 3, 3) for norm in norms]
    found = []
    for way in (True, False, None):
        moved = deepcopy(norms)
        for _ in range(2):
            if way is None:
                for norm, each in zip(moved, images):
                    norm(each)
            else:
                seen = [speednet.Seen(norm, torch.stack([each.mean((0, 2, 3)), each.var((0, 2, 3), unbiased=False)]), 36) for norm, each in zip(moved, images)]
                speednet.follow(seen, apart=way)
        found.append([buffer for norm in moved for buffer in norm.buffers()])
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("side", [16, 17, 20, 32])
def test_a_net_whose_maps_have_edges_learns_as_torchs(side, settled, monkeypatch):
    """Values, gradients and statistics of the whole net; sides whose pools cut lines off and sides whose do not."""
    torch.manual_seed(0)
    monkeypatch.setattr(speednet, "fused", fused)
    wanted = speednet.build(10, widths=(6, 8, 8)).to(DEVICE, memory_format=torch.channels_last)
    wanted.settled = settled
    ours = deepcopy(wanted)
    for group in wanted.groups:
        monkeypatch.setattr(group, "fusible", lambda images: False)
    for group in ours.groups:
        monkeypatch.setattr(group, "fusible", lambda images: True)
    sizes = []
    for group in ours.groups:
        plain = group[0].forward
        monkeypatch.setattr(
            group[0], "forward", lambda images, edged=False, half=None, plain=plain: sizes.append((images.shape[2], edged)) or plain(images, edged, half)
        )
    images, results = torch.randn(4, 3, side, side, device=DEVICE).to(memory_format=torch.channels_last), []
    for net in (ours, wanted):
        logits = net(images)
        logits.square().sum().backward()
        results.append((logits.detach(), [p.grad for p in net.parameters() if p.grad is not None], list(net.buffers())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)
    assert (
        sizes
        == {
            16: [(16, True), (8, True), (4, True)],
            17: [(16, False), (8, False), (4, False)],
            20: [(20, True), (10, True), (4, False)],
            32: [(32, True), (16, True), (8, True)],
        }[side]
    )


@pytest.fixture
def groups(monkeypatch):
    """(a group by the kernels, the same by torch), biases and statistics moved."""
    torch.manual_seed(0)
    monkeypatch.setattr(speednet, "fused", fused)
    ours = speednet.Group(6, 8, "batch", 0.0).to(DEVICE, memory_format=torch.channels_last)
    for norm in (ours[2], ours[5]):
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    wanted = deepcopy(ours)
    monkeypatch.setattr(ours, "fusible", lambda images: True)
    monkeypatch.setattr(wanted, "fusible", lambda images: False)
    return ours, wanted


def test_a_group_learns_and_tests_as_torchs(groups):
    images = torch.randn(4, 6, 9, 9, device=DEVICE)
    for training in (True, False):
        results = []
        for group in groups:
            group.train(training).zero_grad()
            with torch.set_grad_enabled(training):
                results.append(group(images))
            if training:
                results[-1].square().sum().backward()
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    trained = [[p.grad for p in group.parameters() if p.requires_grad] for group in groups]
    torch.testing.assert_close(*trained, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(*[list(group.buffers()) for group in groups], rtol=1e-4, atol=1e-4)


def test_groups_of_several_nets_go_together(groups):
    ours, wanted = groups
    scaled = {name: torch.stack([p.detach() * (1 + 0.1 * i * p.requires_grad) for i in range(3)]).requires_grad_() for name, p in ours.named_parameters()}
    moved = {name: torch.stack([b.clone() for _ in range(3)]) for name, b in ours.named_buffers()}
    images = torch.randn(4, 3, 6, 9, 9, device=DEVICE)
    out = vmap(lambda p, b, x: functional_call(ours, (p, b), (x,)), in_dims=(0, 0, 1), randomness="different")(scaled, moved, images)
    out.square().sum().backward()
    for i in range(3):
        parameters = {name: p[i].detach().requires_grad_() for name, p in scaled.items()}
        buffers = {name: b.clone() for name, b in wanted.named_buffers()}
        expected = functional_call(wanted, (parameters, buffers), (images[:, i],))
        expected.square().sum().backward()
        torch.testing.assert_close(out[i], expected, rtol=1e-4, atol=1e-4)
        for name in ("0.weight", "2.bias", "4.weight", "5.bias"):
            torch.testing.assert_close(scaled[name].grad[i], parameters[name].grad, rtol=1e-3, atol=1e-3)
        for name in buffers:
            torch.testing.assert_close(moved[name][i], buffers[name], rtol=1e-4, atol=1e-4)


def test_several_nets_whose_maps_have_edges_go_together(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(speednet, "fused", fused)
    monkeypatch.setattr(speednet.Group, "fusible", lambda group, images: True)
    nets = [speednet.build(10, widths=(6, 8, 8)).to(DEVICE, memory_format=torch.channels_last) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(nets)
    first, images = deepcopy(nets[0]), torch.randn(4, 2, 3, 16, 16, device=DEVICE)
    first.several = True
    out = vmap(lambda p, b, x: functional_call(first, (p, b), (x,)), in_dims=(0, 0, 1), randomness="different")(parameters, buffers, images)
    out.square().sum().backward()
    for i, net in enumerate(nets):
        expected = net(images[:, i])
        expected.square().sum().backward()
        torch.testing.assert_close(out[i], expected, rtol=1e-4, atol=1e-4)
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameters[name].grad[i], parameter.grad, rtol=1e-3, atol=1e-3)
        for name, buffer in net.named_buffers():
            torch.testing.assert_close(buffers[name][i], buffer, rtol=1e-4, atol=1e-4)


def test_whitenings_of_several_nets_are_each_net_s(monkeypatch):
    images, weight, bias = torch.randn(2, 3, 3, 6, 6, device=DEVICE), torch.randn(3, 8, 3, 2, 2, device=DEVICE), torch.randn(3, 8, device=DEVICE)
    out = vmap(fused.white, in_dims=(1, 0, 0))(images, weight, bias)
    for i in range(3):
        torch.testing.assert_close(out[i], F.silu(F.conv2d(images[:, i], weight[i], bias[i])), rtol=1e-4, atol=1e-4)


def test_what_the_kernels_do_not_know_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(speednet, "fused", fused)

    class Pretends(torch.Tensor):
        is_cuda = True

    images = torch.zeros(2, 3, 4, 4).as_subclass(Pretends)
    made = speednet.Group(3, 4, "batch", 0.0)
    assert made.fusible(images) and not made.fusible(torch.zeros(2, 3, 4, 4)) and not made.fusible(images[:1, :, :2, :2])
    assert not made.eval().fusible(images)
    with torch.no_grad():
        assert made.fusible(images)
    assert not speednet.Group(3, 4, "batch", 0.1).fusible(images) and not speednet.Group(3, 4, "ghost", 0.0).fusible(images)


@pytest.mark.parametrize("settled", [False, True])
def test_a_map_filled_up_with_zeros_is_the_same_map(settled, monkeypatch):
    torch.manual_seed(0)
    net = speednet.build(10, widths=(8, 8, 8)).to(memory_format=torch.channels_last)
    net.settled = settled
    filled, results, seen = deepcopy(net), [], []
    monkeypatch.setattr(filled, "spare", lambda images: 8)
    images = torch.randn(4, 3, 16, 16)
    for one in (net, filled):
        one.groups[0].register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
        logits = one(images)
        logits.square().sum().backward()
        results.append((logits, {name: p.grad for name, p in one.named_parameters() if p.grad is not None}))
    assert seen == [24, 32]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    assert ("whitening.bias" in results[0][1]) != settled and "groups.group1.0.weight" in results[0][1]

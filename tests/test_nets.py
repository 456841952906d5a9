"""The nets: their sizes, shapes and names, and what is measured of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import nets
from nets import native, winograd_cpu
from nets.layers import NORMS, Residual
from nets.measure import layers, output_shape

LADDER = {"level1": 83_368, "level2": 203_624, "level3": 203_624, "level4": 96_490}
NAMES = nets.names()
BUILDERS = ("level1", "quick", "speednet", "tiny10k")  # of each kind but `tiniest`, which compiles for minutes


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Random images_NCHW in channels_last memory order."""
    return torch.randn(count, 3, height, width).contiguous(memory_format=torch.channels_last)


def built(name: str, num_classes: int = 10, **options) -> nn.Module:
    return nets.load(name, num_classes, **options).to(memory_format=torch.channels_last)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "nets", *arguments], capture_output=True, text=True)


def test_names_are_the_files_that_build():
    assert {*LADDER, "quick"} <= set(NAMES)
    assert not {"layers", "ladder", "measure"} & set(NAMES)


@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("kind", NORMS)
def test_parameters_of_the_ladder_whatever_the_norm(name, kind):
    assert nets.parameters(nets.load(name, norm=kind)) == LADDER[name]


def test_parameters_of_the_anchor():
    assert nets.parameters(nets.load("tiniest")) == 97_530


def test_dropout_of_the_ladder():
    def rates(name):
        return [module.p for module in nets.load(name).modules() if isinstance(module, nn.Dropout2d)]

    assert rates("level1") == rates("level2") == []
    assert rates("level3") == [0.1] * 11
    assert rates("level4") == [0.05] * 11


@pytest.mark.parametrize("name", ["level2", "level3"])
def test_stride_blocks_of_levels_2_and_3_keep_batch_norm(name):
    kinds = [type(m) for m in nets.load(name, norm="layer", dropout=0.3).modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
    assert (kinds.count(nn.BatchNorm2d), kinds.count(nn.GroupNorm)) == (4, 11)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_any_count_size_and_classes(name, kind):
    for classes in (10, 100):
        net = built(name, classes, norm=kind)
        assert net(images(3)).shape == (3, classes)
        net.eval()
        for count, height, width in ((1, 32, 32), (2, 28, 40), (2, 64, 64), (1, 33, 47)):
            logits = net(images(count, height, width))
            assert logits.shape == (count, classes) and logits.isfinite().all()


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter(name, kind):
    net = built(name, norm=kind)
    F.cross_entropy(net(images(8)), torch.arange(8)).backward()
    for key, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key


@pytest.mark.parametrize("name, compiled", [*((name, False) for name in NAMES), *((name, True) for name in BUILDERS)])
def test_gradients_in_bf16_are_those_in_float32(name, compiled, monkeypatch):
    """But for rounding: a library's kernel for one shape in half precision may be wrong, or a compiler's sums, and training does not tell."""
    monkeypatch.setattr(winograd_cpu, "fast_halves", lambda _: False)
    check_bf16(built(name, dropout=0.0), compiled)


@pytest.mark.parametrize("name, compiled", [*((name, False) for name in ("level1", "level2", "level3", "quick", "speednet")), ("quick", True)])
def test_so_they_are_by_winograd(name, compiled, monkeypatch):
    """Which rounds five times as much. Whether a ReLU lets a value near zero pass, and which of a window's values is the largest, is then another's turn more often: with SiLU and means
    in their places the gradient has no such steps, and what is left is the operator's."""
    monkeypatch.setattr(winograd_cpu, "fast_halves", lambda _: True)
    monkeypatch.setattr(winograd_cpu, "AMX", False)
    net, smooth = built(name, dropout=0.0), {nn.ReLU: nn.SiLU(), nn.MaxPool2d: nn.AvgPool2d(2)}
    for module in list(net.modules()):
        for key, child in module.named_children():
            setattr(module, key, smooth.get(type(child), child))
    check_bf16(net, compiled, 0.3)


def check_bf16(net: nn.Module, compiled: bool, limit: float = 0.7) -> None:
    inputs, gradients = images(8), []
    for half in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = (torch.compile(net, dynamic=False) if half and compiled else net)(inputs)
        F.cross_entropy(logits.float(), torch.arange(8)).backward()
        gradients.append({key: p.grad.clone() for key, p in net.named_parameters() if p.requires_grad})
    whole = torch.cat([exact.flatten() for exact in gradients[0].values()]).norm()  # a part that is next to nothing of it is rounding alone
    for key, exact in gradients[0].items():
        assert (gradients[1][key] - exact).norm() < limit * exact.norm() + 1e-3 * whole, key


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_channels_last_is_kept(name, kind, monkeypatch):
    """By torch's own operations: what follows a processor's operator for the tiny nets' blocks lies in planes."""
    monkeypatch.setattr(native, "available", lambda name: False)
    net, seen = built(name, norm=kind), []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.ReLU, nn.MaxPool2d)):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output.is_contiguous(memory_format=torch.channels_last)))
    net(images(40))
    assert seen and all(seen)


# Level 3 without dropout is level 2.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "level3"])
def test_overfits_256_images(name):
    net, inputs, labels = built(name, dropout=0.0), images(256, 16, 16), torch.arange(256) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(400):
        part = torch.arange(64) + 64 * (step % 4)
        logits = net(inputs[part])
        if step % 20 == 0 and (net(inputs).argmax(1) == labels).float().mean() > 0.95:
            return
        optimizer.zero_grad()
        F.cross_entropy(logits, labels[part]).backward()
        optimizer.step()
    pytest.fail("100 passes did not fit 256 images")


SAID = """
import sys, torch, nets
from safetensors.torch import load_file, save_file
said, inputs = {}, load_file(sys.argv[1] + "/inputs.safetensors")["inputs"].contiguous(memory_format=torch.channels_last)
for name in nets.names():
    net = nets.load(name, norm="ghost").to(memory_format=torch.channels_last).eval()
    net.load_state_dict(load_file(f"{sys.argv[1]}/{name}.safetensors"))
    said[name] = net(inputs).detach()
save_file(said, sys.argv[1] + "/said.safetensors")
"""


def test_saved_nets_say_the_same_in_a_new_process(tmp_path):
    said, inputs = {}, images(4)
    for name in NAMES:
        net = built(name, norm="ghost")
        net(images(40))
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / f"{name}.safetensors")
        said[name] = net.eval()(inputs).detach()
    save_file({"inputs": inputs.contiguous()}, tmp_path / "inputs.safetensors")
    subprocess.run([sys.executable, "-c", SAID, str(tmp_path)], check=True)
    theirs = load_file(tmp_path / "said.safetensors")
    assert all(torch.equal(theirs[name], said[name]) for name in NAMES)


def test_receptive_field_by_hand():
    def field(*modules):
        return nets.receptive_field(nn.Sequential(*modules))

    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    assert field(nn.Conv2d(3, 4, 1), pooled) == 1
    assert field(nn.Conv2d(3, 4, 3, padding=1), pooled) == 3
    # 3, then 5 in the branch, then a 2x2 pool (+1), then 3x3 at stride two (+4).
    branch = Residual(nn.Conv2d(4, 4, 3, padding=1))
    assert field(nn.Conv2d(3, 4, 3, padding=1), branch, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), pooled) == 10
    assert field(nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.GroupNorm(2, 4), nn.ReLU(), pooled) == 5
    # Larger than the first trial image.
    assert field(nn.Conv2d(3, 4, 151, stride=8, padding=75), pooled) == 151


def test_receptive_fields_of_the_ladder():
    assert [nets.receptive_field(nets.load(name)) for name in LADDER] == [76, 91, 91, 75]


def test_macs_by_the_formula():
    convolution = nn.Conv2d(3, 8, 5, stride=2, padding=2)
    assert nets.macs(convolution, (3, 32, 48)) == 8 * 16 * 24 * 3 * 5 * 5
    assert nets.macs(nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 10, 10)) == 6 * 100 * 9
    assert nets.macs(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), (3, 2, 2)) == 84


@pytest.mark.parametrize("name", ["level1", "level4", "quick", "speednet", "tiniest", "tiny25k", "tiny_8-16x2_1-1_2"])
def test_layers_add_up_and_measuring_changes_nothing(name):
    net = nets.load(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    rows = layers(net)
    assert sum(row.parameters for row in rows) == nets.parameters(net)
    assert sum(row.macs for row in rows) == nets.macs(net)
    assert output_shape(net) == (10,)
    assert max(row.sees or 0 for row in rows) == nets.receptive_field(net)
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_parameters_counts_what_trains():
    net = nn.Conv2d(3, 4, 1)
    net.weight.requires_grad_(False)
    assert nets.parameters(net) == 4


@pytest.mark.parametrize("name", ["level9", "layers", "../nets/level1", ""])
def test_unknown_net_is_one_line_with_the_names(name):
    with pytest.raises(nets.UnknownNet) as caught:
        nets.load(name, 10)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)
    assert "level1, level2, level3, level4, quick" in str(caught.value)


def test_a_net_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "plain.py").write_text("def helper():\n    pass\n")
    (tmp_path / "slim.py").write_text("from torch import nn\n\n\ndef build(num_classes):\n    return nn.Linear(2, num_classes)\n")
    monkeypatch.setattr(nets, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(nets, "__path__", [str(tmp_path)])
    assert nets.names() == ["slim"]
    assert nets.load("slim", 5).out_features == 5


def test_command_prints_every_net():
    done = run()
    assert done.returncode == 0 and "83,368" in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()[2:]} == set(NAMES)
    assert done.stdout.strip() in (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_command_prints_the_layers_of_one_net():
    done = run("level1")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].split()[:2] == ["total", "83,368"]
    done = run("tiny_16-24-40_2-3-2_2")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].split()[:2] == ["total", "24,506"]


def test_command_names_the_nets_for_an_unknown_one():
    done = run("level9")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: net 'level9'") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("count", ["-1", "0", "100000000000"])
def test_command_refuses_classes_that_no_net_can_have(count):
    done = run("level1", "--classes", count)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: --classes {count}: give 1 to 1,000,000\n")


@pytest.mark.parametrize("name", ["speednet", "tiny10k"])
def test_what_is_filled_up_with_zeros_counts_as_it_is(name):
    """In half precision, and on a GPU, where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, half = nets.load(name), nets.load(name).to(device, torch.bfloat16)
    assert nets.macs(half) == nets.macs(net) and nets.training_flop(half) == nets.training_flop(net) and nets.output_shape(half) == (10,)
    assert next(half.parameters()).dtype == torch.bfloat16

"""Operators in C: made by the compiler there is, or by none."""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import nets
from nets import gated_cpu, grouped_cpu, layers, native, normed_cpu, tiny, winograd_cpu

COMPILER = shlex.split(os.environ.get("CC", "cc"))
NAMES = (gated_cpu.NAME, grouped_cpu.NAME, normed_cpu.NAME, winograd_cpu.NAME)

pytestmark = pytest.mark.skipif(not native.available(NAMES[0]), reason="no C compiler here that can make nets/gated_cpu.c")


def driver(name: str, compiler: list[str], path: Path, *flags: str) -> str:
    """Build the program that calls an operator in C on maps of many shapes; what the compiler said against it."""
    own = (flag for flag in native.FLAGS if flag.startswith("-f") and flag != "-fPIC")
    return subprocess.run([*compiler, *flags, *own, "-o", path, Path(__file__).with_name(f"drive_{name}.c"), "-lm"], capture_output=True, text=True).stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vectors", [*native.OWN, "-march=haswell"])
def test_no_byte_outside_of_its_maps_is_touched(tmp_path, name, vectors):
    """By the compiler's sanitizers; of 512 bits where the processor has them, and of 256."""
    against = driver(name, COMPILER, tmp_path / "drive", vectors, "-O1", "-g", "-fsanitize=address,undefined")
    if not (tmp_path / "drive").exists():
        pytest.skip(f"no sanitizers here: {against.strip().splitlines()[-1]}")
    try:
        done = subprocess.run([tmp_path / "drive"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("the sanitizers do not come to an end here")
    if done.returncode and name not in done.stderr:  # some kernels put memory where older sanitizers have their own
        pytest.skip(f"the sanitizers do not run here: {done.stderr.strip()[:80]}")
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_processor_comes_to_the_same_values(tmp_path, name):
    """A page behind each map is closed to it, as no sanitizer runs in the emulator."""
    if None in (shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")):
        pytest.skip("no compiler for ARM and no emulator: Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static have them")
    against = driver(name, ["aarch64-linux-gnu-gcc"], tmp_path / "arm", "-O3", "-static") + driver(name, COMPILER, tmp_path / "here", *native.OWN, "-O3")
    assert not against, against
    there, here = (
        [tuple(map(float, line.split())) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()]
        for command in (["qemu-aarch64-static", tmp_path / "arm"], [tmp_path / "here"])
    )
    assert len(there) == len(here) > 10
    for (placed, size, _), (expected, expected_size, limit) in zip(there, here):
        assert abs(placed - expected) < limit * expected_size and abs(size - expected_size) < limit * expected_size


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac's threads are the system's")
def test_threads_are_those_that_torch_has():
    """Others are there beside them, and wait for the processor."""
    code = "import os, torch; torch.set_num_threads(3); torch.randn(1000, 1000) @ torch.randn(1000, 1000); before = len(os.listdir('/proc/self/task')); import nets"
    more = "n = nets.load('tiny10k'); n(torch.randn(256, 3, 32, 32)).sum().backward(); print(before, len(os.listdir('/proc/self/task')), n.stage1[0].nativable(torch.zeros(1, 16, 4, 4)))"
    done = subprocess.run([sys.executable, "-c", f"{code}; {more}"], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    before, behind, native_block = done.stdout.split()
    assert int(before) >= 3 and before == behind and native_block == "True"


def test_without_a_compiler_torch_does_it():
    code = "from nets import tiny; import torch; n = tiny.tiny(10, (8, 8), (1, 1)); x = torch.zeros(2, 3, 4, 4); print(n.stage1[0].nativable(n.stem(x)), n(x).shape)"
    for path in ("/nowhere/cc", "false", "", "'"):  # none, one that fails, and no command
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "CC": path})
        assert done.stdout.split()[0] == "False" and done.returncode == 0, done.stderr


def test_a_compiler_of_several_words_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", shlex.join(["env", "LANG=C", *COMPILER]))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, f"-DNAME={tmp_path.name}"))  # so that nothing is there yet
    assert native.library.__wrapped__(NAMES[0]) is not None


def test_a_folder_that_cannot_be_written_to_is_no_hindrance(tmp_path, monkeypatch):
    """What is made then lies in the user's cache, for the next process."""
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    for name in NAMES:
        source, beside = native.HEADER.with_name(f"{name}.c"), Path(f"/proc/none/{name}.so")
        made = native.make(COMPILER, source, beside)
        assert made == tmp_path / "cache" / beside.name and ctypes.CDLL(str(made))
        assert native.make(["false"], source, beside) == made
    assert len(list(made.parent.iterdir())) == len(NAMES)


def test_where_there_is_no_cache_either_nothing_is_left_behind(tmp_path, monkeypatch):
    ends = []
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(native.atexit, "register", lambda *given, **more: ends.append(partial(*given, **more)))
    made = native.make(COMPILER, native.HEADER.with_name(f"{NAMES[0]}.c"), Path("/proc/none/made.so"))
    assert made.parent.parent == tmp_path and ctypes.CDLL(str(made))
    for end in ends:
        end()
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


def test_a_cache_that_others_may_write_to_holds_no_libraries(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path))
    monkeypatch.setattr(native.atexit, "register", lambda remove, folder, **_: remove(folder))
    assert native.elsewhere() == tmp_path
    tmp_path.chmod(0o777)
    assert native.elsewhere() != tmp_path


def test_what_is_made_is_for_all_users_and_what_may_not_be_read_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    source = native.HEADER.with_name(f"{NAMES[0]}.c")
    made = native.make(COMPILER, source, tmp_path / "made.so")
    assert made.stat().st_mode & 0o777 == 0o755
    looked = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).suffix != ".so" and looked(path, mode))  # as root every file can be read
    monkeypatch.setattr(native, "make", lambda compiler, source, kept: made)
    assert native.library.__wrapped__(NAMES[0])._name == str(made)


WRONG = {
    "convolution": (lambda: layers.Conv2d(32, 32, 3, padding=1, bias=False), (4, 16, 16, 16)),
    "norm": (lambda: layers.Block(nn.Conv2d(3, 512, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()), (2, 3, 8, 8)),
    "shortcut of other channels": (lambda: layers.Residual(layers.block(16, 32)), (4, 16, 16, 16)),
    "shortcut of another size": (lambda: layers.Residual(layers.block(16, 16, stride=2)), (4, 16, 16, 16)),
    "pool of nothing": (lambda: layers.Stage(layers.block(16, 16), nn.MaxPool2d(2)), (4, 16, 1, 4)),
    "tiny block, too few": (lambda: tiny.Block(16, "channel", 0.0), (4, 8, 8, 8)),
    "tiny block, too many": (lambda: tiny.Block(16, "channel", 0.0), (4, 32, 8, 8)),
    "tiny block without pixels": (lambda: tiny.Block(16, "channel", 0.0), (4, 16, 0, 4)),
    "between stages": (lambda: tiny.Grouped(16, 24), (4, 8, 8, 8)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("made, shape", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_as_by_torch(made, shape, training):
    """And nothing is read or written beside the maps."""
    net = made().train(training)
    with torch.set_grad_enabled(training), pytest.raises(RuntimeError):
        net(torch.randn(shape))


@pytest.mark.parametrize("name", ["quick", "level1", "tiny10k"])
def test_who_looks_on_in_a_test_pass_sees_operations_of_torch(name):
    net, images = nets.load(name).eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        logits = net(images)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert net(mode.from_tensor(images)).shape == logits.shape
        torch.testing.assert_close(torch.func.vmap(lambda image: net(image[None])[0])(images), logits, rtol=1e-4, atol=1e-5)
    for learns in (False, True):
        with torch.set_grad_enabled(learns):
            traced = torch.jit.trace(net, images)
            torch.testing.assert_close(traced(images), logits, rtol=1e-4, atol=1e-5)
            assert "tenfold" not in str(traced.inlined_graph)


@pytest.mark.parametrize("name", ["quick", "tiny10k"])
def test_an_eager_step_that_goes_round_the_dispatcher_has_the_operators_bits(name, monkeypatch):
    found = []
    for way in (native.plain, lambda given: False):
        monkeypatch.setattr(native, "plain", way)
        torch.manual_seed(0)
        net, images = nets.load(name), torch.randn(8, 3, 32, 32, requires_grad=True)
        out = net(images)
        out.logsumexp(1).sum().backward()
        with torch.no_grad():
            again = net(images)
        found.append((out, again, images.grad, *(p.grad for p in net.parameters()), *net.buffers()))
    assert all(torch.equal(*each) for each in zip(*found))


def test_only_plain_tensors_go_round_the_dispatcher():
    class Other(torch.Tensor):
        pass

    seen, x = [], torch.randn(2, 3)
    assert native.plain([x, torch.nn.Parameter(x), None, 1e-5, True]) and not native.plain([x, x.as_subclass(Other)])
    torch.func.vmap(lambda row: seen.append(native.plain([row])) or row)(x)
    torch.func.grad(lambda whole: seen.append(native.plain([x])) or whole.sum())(x)
    with FakeTensorMode():
        seen.append(native.plain([torch.empty(2)]))
    compiled = torch.compile(lambda whole: whole * 2 if native.plain([whole]) else whole * 3, fullgraph=True, backend="eager")
    assert seen == [False, False, False] and torch.equal(compiled(x), x * 3)


def test_a_gradient_of_a_gradient_is_still_the_operators_business():
    images, weight = torch.randn(4, 16, 6, 6, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    (first,) = torch.autograd.grad(winograd_cpu.convolve(images, weight).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="CC=none"):
        first.sum().backward()

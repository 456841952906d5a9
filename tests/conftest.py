"""Small stores for every test, and the real images where they lie beside the project."""

import os
import sys
import tempfile
import warnings
from pathlib import Path

# Before torch is imported: OpenMP's threads that spin at every join make a busy machine's tests take twenty times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# Kernels are compiled anew, after whatever other libraries did to Numba: a warm cache once hid that FFCV breaks its types.
COMPILED = tempfile.TemporaryDirectory()
os.environ["NUMBA_CACHE_DIR"] = COMPILED.name

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, and when kernels are defined

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from makers import stored  # noqa: E402

from pipelines.__main__ import main  # noqa: E402
from pipelines.convert import convert, statistics  # noqa: E402
from pipelines.errors import exit_code  # noqa: E402
from pipelines.sources import find  # noqa: E402
from pipelines.store import Store, write  # noqa: E402
from train.device import flush_denormals  # noqa: E402

flush_denormals()  # as whoever trains does first: here before a test starts the threads
settings.register_profile("tenfold", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tenfold")  # the same examples every time, and nothing that depends on how busy the machine is

REAL = Path(__file__).parents[2] / "shared" / "cifar10-jpeg"


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=0, help="how often test_resume.py kills the training of each pipeline; 0 for its own choice")


def make_store(path: Path, train: int = 37, test: int = 11, height: int = 32, width: int = 32, channels: int = 3, classes: int = 10) -> Store:
    """A raw store of random pixels; the same arguments give the same store."""
    rng = np.random.default_rng(train + test + height + width + channels)
    tensors, mean, std = {}, None, None
    for split, count in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
        tensors |= {f"{split}.images": images, f"{split}.labels": rng.integers(0, classes, count)}
        if split == "train":
            mean, std = statistics(images)
    shape = {"height": str(height), "width": str(width), "channels": str(channels)}
    names = [f"class{i}" for i in range(classes)]
    write(path, tensors, encoding="raw", **shape, classes=names, mean=mean, std=std, source="random")
    return Store(path)


@pytest.fixture(scope="session")
def narrow_library(tmp_path_factory):
    """`native.library` for processors that know no vectors of 512 bits; each is made once."""
    import ctypes
    import shlex
    from functools import cache

    from nets import native

    folder, compiler = tmp_path_factory.mktemp("narrow"), [*shlex.split(os.environ.get("CC", "cc")), "-march=haswell"]

    @cache
    def made(name: str) -> ctypes.CDLL:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "FLAGS", tuple(flag for flag in native.FLAGS if flag not in native.OWN))
            return ctypes.CDLL(str(native.make(compiler, native.HEADER.with_name(f"{name}.c"), folder / f"{name}.so")))

    return made


@pytest.fixture
def of_256_bits(monkeypatch, narrow_library):
    """The operators in C as a processor has them that knows no vectors of 512 bits."""
    from nets import gated_cpu, grouped_cpu, normed_cpu, winograd_cpu

    for module in (gated_cpu, grouped_cpu, normed_cpu, winograd_cpu):
        monkeypatch.setattr(module, "library", narrow_library)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests keep what they convert out of the user's cache, and take no data from the user's environment."""
    before = {name: os.environ.pop(name, None) for name in ("TENFOLD_CACHE", "TENFOLD_DATA")}
    os.environ["TENFOLD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["TENFOLD_CACHE"]
    os.environ.update({name: value for name, value in before.items() if value is not None})


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    """37 train and 11 test images, 32x32x3, raw."""
    return make_store(tmp_path_factory.mktemp("store") / "random.safetensors")


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> dict[str, Store]:
    """A store of 8 and 4 images, 8x8, of each encoding."""
    folder = tmp_path_factory.mktemp("small")
    return {encoding: stored(folder / f"{encoding}.safetensors", encoding) for encoding in ("raw", "jpeg")}


@pytest.fixture(scope="session")
def run_folder(store, tmp_path_factory) -> Path:
    """A finished run: level1, two epochs over `store`. Copy it before changing it."""
    from train.recipe import Recipe
    from train.runs import train

    out = tmp_path_factory.mktemp("run") / "out"
    train(Recipe(net="level1", epochs=2, batch_size=16, lr=0.01, device="cpu", precision="fp32", data=str(store.path), out=str(out)), "", lambda *_: None)
    return out


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """What stands written in the pictures that the test saves."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts, save = [], Figure.savefig

    def saved(figure, *given, **settings):
        save(figure, *given, **settings)
        texts.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", saved)
    return texts


def an_empty_page(out: Path, *_) -> None:
    """A report in place of `report.write`'s: without any, a run that is to have one is not finished."""
    (out / "report.html").touch()


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs without a report, which takes longer than small trainings and is tested by itself."""
    from train import report

    monkeypatch.setattr(report, "write", an_empty_page)


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Run `convert SOURCE` on the command line; give its one line on stderr once all that must hold has held."""

    def run(source, *words, encoding="raw"):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["pipelines", "convert", str(source), str(out / "s.safetensors"), "--encoding", encoding])
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # as lines on stderr, which pytest would swallow
            monkeypatch.setattr(warnings, "showwarning", lambda *a, **k: print("warning", a, file=sys.stderr))
            code = exit_code(main)
        printed = capfd.readouterr()
        assert (code, printed.out, list(out.iterdir())) == (2, "", []), printed
        assert printed.err.count("\n") == 1 and "Traceback" not in printed.err, printed.err
        for word in words:
            assert str(word) in printed.err
        return printed.err

    return run


@pytest.fixture(scope="session")
def real_source() -> Path:
    """The folder of CIFAR-10 (JPEG q75)."""
    if not (REAL / "train.tar.xz").exists():
        pytest.skip(f"CIFAR-10 (JPEG q75) is not at {REAL}")
    return REAL


def _converted(source: Path, out: Path, encoding: str) -> Store:
    convert(find(source), out, encoding)
    return Store(out)


@pytest.fixture(scope="session")
def real_raw(real_source, tmp_path_factory) -> Store:
    """CIFAR-10 (JPEG q75) as raw pixels; converted once a session, some 15 s."""
    return _converted(real_source, tmp_path_factory.mktemp("real") / "raw.safetensors", "raw")


@pytest.fixture(scope="session")
def real_jpeg(real_source, tmp_path_factory) -> Store:
    """CIFAR-10 (JPEG q75) as its own JPEGs; converted once a session, some 15 s."""
    return _converted(real_source, tmp_path_factory.mktemp("real") / "jpeg.safetensors", "jpeg")

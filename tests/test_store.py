"""The store: what goes in comes out, damage and lies are found, and a failed write leaves nothing behind."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from conftest import make_store
from hypothesis import given, settings, strategies as st
from PIL import Image

from pipelines import store as module
from pipelines.__main__ import main
from pipelines.convert import convert, statistics
from pipelines.errors import InputError, exit_code
from pipelines.files import replacing
from pipelines.pictures import blank, decode, split_jpeg
from pipelines.plan import Plan
from pipelines.sources import Item, Source
from pipelines.store import Store, read, write

REPOSITORY = Path(__file__).parents[1]


def picture(seed: int, side=8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind="JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def source_of(train: list, test: list) -> Source:
    """A source of arrays or files, labels 0 and 1 in turn."""

    def items(pictures):
        return lambda: (Item(i, f"made/{i}", i % 2, p) for i, p in enumerate(pictures))

    return Source("made", ("even", "odd"), {"train": (len(train), items(train)), "test": (len(test), items(test))})


JPEGS = [encoded(picture(i), quality=75) for i in range(12)]


def stored(path: Path, encoding="jpeg") -> Store:
    convert(source_of(JPEGS[:8], JPEGS[8:]), path, encoding)
    return Store(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, Store]:
    """A store of 8 and 4 images, 8x8, of each encoding."""
    folder = tmp_path_factory.mktemp("small")
    return {encoding: stored(folder / f"{encoding}.safetensors", encoding) for encoding in ("raw", "jpeg")}


def refused(path: Path, use=Store) -> str:
    """The one line with which a store is refused."""
    with pytest.raises(InputError) as error:
        use(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000 and str(path) in str(error.value)
    return str(error.value)


# Round trips


def test_raw_keeps_every_pixel(tmp_path):
    pictures = [picture(i) for i in range(6)]
    convert(source_of(pictures[:4], pictures[4:]), tmp_path / "s.safetensors")
    ours = Store(tmp_path / "s.safetensors")
    np.testing.assert_array_equal(ours.images("train"), pictures[:4])
    np.testing.assert_array_equal(ours.images("test"), pictures[4:])
    assert ours.labels("train").tolist() == [0, 1, 0, 1] and ours.labels("train").dtype == np.int64
    assert (ours.encoding, ours.height, ours.width, ours.channels) == ("raw", 8, 8, 3)
    assert (ours.classes, ours.source, ours.splits) == (("even", "odd"), "made", ("train", "test"))
    scaled = np.stack(pictures[:4]) / 255
    np.testing.assert_allclose(ours.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(ours.std, scaled.std((0, 1, 2)), rtol=1e-12)
    ours.verify()
    assert read(ours) is ours and read(ours.path).count("test") == 2
    with pytest.raises(InputError, match="no split 'val'"):
        ours.images("val")
    with pytest.raises(InputError, match="raw pixels"):
        ours.jpeg("train", 0)


def test_jpeg_keeps_every_file_and_shared_headers_once(small):
    ours = small["jpeg"]
    for split, files in (("train", JPEGS[:8]), ("test", JPEGS[8:])):
        assert [ours.jpeg(split, i) for i in range(len(files))] == files
        np.testing.assert_array_equal(ours.images(split), [decode(f) for f in files])
        np.testing.assert_array_equal(ours.images(split), small["raw"].images(split))
    tensors = safetensors.numpy.load_file(ours.path)
    header = split_jpeg(JPEGS[0])[0]
    assert tensors["train.headers"].tobytes() == header and 500 < len(header) < len(JPEGS[0])
    ours.verify()


def test_jpegs_of_every_kind_come_back_byte_for_byte(tmp_path):
    smooth = np.tile(np.arange(0, 256, 32, dtype=np.uint8)[:, None, None], (1, 8, 3))
    plain = encoded(smooth)
    files = [plain, encoded(smooth, quality=10), encoded(smooth, progressive=True), encoded(smooth[:, :, 0])]
    files += [encoded(smooth, comment=b"c" * 999), plain + b"behind the end"]
    files += [plain[:2] + b"\xff" + plain[2:], encoded(smooth, optimize=True, subsampling=0)]
    convert(source_of(files, files[:1]), tmp_path / "s.safetensors", "jpeg")
    ours = Store(tmp_path / "s.safetensors")
    assert [ours.jpeg("train", i) for i in range(len(files))] == files
    np.testing.assert_array_equal(ours.images("train"), [decode(f) for f in files])


def test_pictures_that_were_no_jpegs_are_encoded(tmp_path):
    smooth = [np.tile(np.linspace(20 * i, 200, 16).astype(np.uint8)[:, None, None], (1, 16, 3)) for i in range(4)]
    train = [smooth[0], encoded(smooth[1], "PNG"), encoded(smooth[2], quality=75)]
    convert(source_of(train, smooth[3:]), tmp_path / "s.safetensors", "jpeg")
    ours = Store(tmp_path / "s.safetensors")
    assert ours.jpeg("train", 2) == encoded(smooth[2], quality=75)
    for i in range(3):
        np.testing.assert_array_equal(ours.images("train")[i], decode(ours.jpeg("train", i)))
        assert np.abs(ours.images("train")[i].astype(int) - smooth[i]).max() < 12
    assert statistics(ours.images("train")) == (list(ours.mean), list(ours.std))


def test_the_same_source_gives_the_same_bytes_which_any_tool_reads(small, tmp_path):
    for encoding, ours in small.items():
        again = stored(tmp_path / "again.safetensors", encoding)
        assert again.path.read_bytes() == ours.path.read_bytes()
        np.testing.assert_array_equal(safetensors.torch.load_file(ours.path)["train.labels"], [0, 1] * 4)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\xff\xd8\xff\xdb" + tail) | st.sampled_from(JPEGS))
def test_a_jpeg_is_split_without_loss_whatever_it_is(data):
    head, rest = split_jpeg(data)
    assert head + rest == data


def test_pixels_are_memory_mapped_and_the_file_cannot_be_changed_through_them(tmp_path):
    ours = make_store(tmp_path / "s.safetensors")
    before = ours.path.read_bytes()
    assert np.shares_memory(ours.images("train"), ours.images("train"))
    ours.images("train")[:] = 7
    ours.labels("train")[:] = 1
    assert ours.path.read_bytes() == before
    Store(ours.path).verify()


# Damage and lies


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_any_flipped_byte_is_found(encoding, small, tmp_path_factory):
    whole = small[encoding].path.read_bytes()
    path = tmp_path_factory.mktemp("flipped") / "s.safetensors"

    @settings(max_examples=300)
    @given(st.integers(0, len(whole) - 1) | st.integers(0, 2000), st.integers(1, 255))
    def flip(at, change):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
        refused(path, lambda p: Store(p).verify())

    flip()


def test_a_file_that_is_cut_or_has_more(small, tmp_path):
    whole, path = small["jpeg"].path.read_bytes(), tmp_path / "s.safetensors"
    for size in [*range(0, 64), *range(64, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    for begin in (b"", len(data).to_bytes(8, "little"), (len(data) + 1).to_bytes(8, "little") + b"{"):
        path.write_bytes(begin + data)
        refused(path)


def test_paths_that_are_no_store(tmp_path):
    assert "no such store" in refused(tmp_path / "missing.safetensors")
    assert "no such store" in refused(tmp_path)
    refused(Path("/dev/zero"))
    refused(Path("x" * 300))
    safetensors.numpy.save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    assert "not a Tenfold store" in refused(tmp_path / "model.safetensors")


RAW_LIES = {
    "newer": lambda t, m: m.update(version="2"),
    "no version": lambda t, m: m.pop("version"),
    "unknown encoding": lambda t, m: m.update(encoding="png"),
    "labels too large": lambda t, m: t.update({"train.labels": t["train.labels"] + 2}),
    "labels negative": lambda t, m: t.update({"test.labels": t["test.labels"] - 1}),
    "labels int32": lambda t, m: t.update({"train.labels": t["train.labels"].astype(np.int32)}),
    "labels a table": lambda t, m: t.update({"train.labels": t["train.labels"][None]}),
    "labels a number": lambda t, m: t.update({"train.labels": np.array(3)}),
    "one label more": lambda t, m: t.update({"train.labels": np.zeros(9, np.int64)}),
    "images float": lambda t, m: t.update({"train.images": t["train.images"].astype(np.float32)}),
    "images flat": lambda t, m: t.update({"train.images": t["train.images"].ravel()}),
    "images bfloat16": lambda t, m: t.update({"train.images": torch.zeros(8, 8, 8, 3, dtype=torch.bfloat16)}),
    "labels float8": lambda t, m: t.update({"train.labels": torch.zeros(8, dtype=torch.float8_e4m3fn)}),
    "no images": lambda t, m: t.pop("test.images"),
    "no labels at all": lambda t, m: [t.pop("train.labels"), t.pop("test.labels")],
    "no tensors": lambda t, m: t.clear(),
    "height": lambda t, m: m.update(height="9"),
    "height no number": lambda t, m: m.update(height="9" * 5000),
    "height negative": lambda t, m: m.update(height="-8", width="-8"),
    "mean missing": lambda t, m: m.pop("mean"),
    "mean of one": lambda t, m: m.update(mean="[0.5]"),
    "mean NaN": lambda t, m: m.update(mean="[0.5, NaN, 0.5]"),
    "mean infinite": lambda t, m: m.update(mean="[0.5, Infinity, 0.5]"),
    "mean of 255": lambda t, m: m.update(mean="[125, 122, 113]"),
    "std NaN": lambda t, m: m.update(std="[0.5, NaN, 0.5]"),
    "std zero": lambda t, m: m.update(std="[0.5, 0, 0.5]"),
    "std negative": lambda t, m: m.update(std="[0.5, -0.1, 0.5]"),
    "std infinite": lambda t, m: m.update(std="[0.5, 1e999, 0.5]"),
    "std words": lambda t, m: m.update(std='["a", "b", "c"]'),
    "std a number": lambda t, m: m.update(std="5"),
    "std beyond float": lambda t, m: m.update(std=f"[0.1, 0.1, 1{'0' * 400}]"),
    "classes no list": lambda t, m: m.update(classes="7"),
    "classes too few": lambda t, m: m.update(classes='["one"]'),
    "classes no JSON": lambda t, m: m.update(classes="["),
    "classes too deep": lambda t, m: m.update(classes="[" * 200_000),
    "sums no JSON": lambda t, m: m.update(sha256="x"),
    "sums a list": lambda t, m: m.update(sha256="[1, 2]"),
    "no sum of the header": lambda t, m: m.pop("header"),
}
JPEG_LIES = {
    "offsets shifted": lambda t, m: t.update({"train.offsets": t["train.offsets"] + 1}),
    "offsets falling": lambda t, m: t.update({"train.offsets": t["train.offsets"][[0, 2, 1, *range(3, 9)]]}),
    "offsets overflowing": lambda t, m: t["train.offsets"].__setitem__(slice(1, 3), [2**63 - 1, -(2**63)]),
    "offsets too few": lambda t, m: t.update({"train.offsets": t["train.offsets"][[0, 8]]}),
    "offsets float": lambda t, m: t.update({"train.offsets": t["train.offsets"].astype(np.float64)}),
    "no offsets": lambda t, m: t.pop("train.offsets"),
    "header ids too large": lambda t, m: t.update({"train.header_ids": t["train.header_ids"] + 1}),
    "header ids negative": lambda t, m: t.update({"train.header_ids": t["train.header_ids"] - 1}),
    "header ids float": lambda t, m: t.update({"train.header_ids": t["train.header_ids"].astype(np.float32)}),
    "header offsets empty": lambda t, m: t.update({"train.header_offsets": np.zeros(0, np.int64)}),
    "header offsets a number": lambda t, m: t.update({"train.header_offsets": np.array(0)}),
    "headers float": lambda t, m: t.update({"train.headers": t["train.headers"].astype(np.float32)}),
    "images a table": lambda t, m: t.update({"train.images": t["train.images"][:, None]}),
    "four channels": lambda t, m: m.update(channels="4", mean="[0.5, 0.5, 0.5, 0.5]", std="[0.5, 0.5, 0.5, 0.5]"),
    "enormous pixels": lambda t, m: m.update(height="1000000", width="1000000"),
}
LIES = [("raw", name) for name in RAW_LIES] + [("jpeg", name) for name in JPEG_LIES]


def lied(store: Store, path: Path, lie) -> Path:
    """A copy of a store with its tensors and metadata changed, as another tool would write it."""
    tensors = {n: t.copy() for n, t in safetensors.numpy.load_file(store.path).items()}
    with safetensors.safe_open(store.path, framework="np") as file:
        metadata = dict(file.metadata())
    lie(tensors, metadata)
    as_torch = {n: t if isinstance(t, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(t)) for n, t in tensors.items()}
    safetensors.torch.save_file(as_torch, path, metadata)
    return path


@pytest.mark.parametrize("encoding, name", LIES)
def test_a_header_that_lies_is_refused(encoding, name, small, tmp_path):
    message = refused(lied(small[encoding], tmp_path / "s.safetensors", {"raw": RAW_LIES, "jpeg": JPEG_LIES}[encoding][name]))
    assert "python -m pipelines convert" in message
    if name == "newer":
        assert "version 2" in message and "reads 1" in message and "upgrade" in message


def test_headers_that_ask_for_memory_or_for_one_another(tmp_path):
    def file(header, data=b""):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    def tensor(shape, begin, end, dtype="U8"):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    path = tmp_path / "s.safetensors"
    for content in (
        (1 << 63).to_bytes(8, "little") + b"{}",
        (99_000_000).to_bytes(8, "little") + b"{}",
        file(b"[" * 100_000),
        file({"train.images": tensor([1 << 62, 1 << 62], 0, 1)}, b"1"),
        file({"train.images": tensor([1 << 40], 0, 1 << 40)}, b"1"),
        file({"train.images": tensor([4], 0, 4), "train.labels": tensor([4], 2, 6)}, b"123456"),
        file({"train.images": tensor([4], 4, 0)}, b"1234"),
        file({"__metadata__": {"format": "tenfold", "version": 1}}),
    ):
        path.write_bytes(content)
        refused(path)
    with pytest.raises(InputError, match="do not fit in memory"):
        blank((1 << 40, 512, 512, 3), path)


def test_a_store_without_images_opens_and_cannot_be_trained_on(small, tmp_path):
    def empty(tensors, metadata):
        tensors.update({"test.images": np.zeros((0, 8, 8, 3), np.uint8), "test.labels": np.zeros(0, np.int64)})

    ours = Store(lied(small["raw"], tmp_path / "s.safetensors", empty))
    assert ours.count("test") == 0 and ours.images("test").shape == (0, 8, 8, 3)
    with pytest.raises(InputError, match="at least one"):
        Plan.of(ours, "test", None, 0, 8)
    with pytest.raises(InputError, match="0 images"):
        convert(source_of(JPEGS, []), tmp_path / "t.safetensors")


def test_a_jpeg_that_is_not_what_the_header_says(small, tmp_path):
    def wrong_size(tensors, metadata):
        metadata.update(height="16", width="16")

    def cut(tensors, metadata):
        tensors["train.offsets"][3:8] = tensors["train.offsets"][3]

    def garbled(tensors, metadata):
        tensors["train.headers"][:] = 0

    for lie in (wrong_size, cut, garbled):
        assert "of train" in refused(lied(small["jpeg"], tmp_path / "s.safetensors", lie), lambda p: Store(p).images("train"))


def test_inspect_and_verify_on_the_command_line(small, tmp_path, monkeypatch, capfd):
    ours = small["jpeg"]

    def run(command, path):
        monkeypatch.setattr(sys, "argv", ["pipelines", command, str(path)])
        return exit_code(main), *capfd.readouterr()

    code, out, err = run("inspect", ours.path)
    assert (code, err) == (0, "") and json.loads(out)["images"] == {"train": 8, "test": 4}
    code, out, err = run("verify", ours.path)
    assert (code, err) == (0, "") and str(ours.path) in out
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(ours.path.read_bytes()[:-1] + b"\0")
    for command in ("inspect", "verify"):
        code, out, err = run(command, tmp_path / "missing.safetensors")
        assert (code, out, err.count("\n")) == (2, "", 1)
    code, out, err = run("verify", damaged)
    assert (code, out, err.count("\n")) == (2, "", 1) and str(damaged) in err


# Writing


FULL = """
import resource, sys
from pipelines.__main__ import main
from pipelines.errors import exit_code
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
sys.exit(exit_code(main))
"""


def test_a_file_size_limit_ends_in_one_line_and_leaves_nothing(tmp_path):
    out = tmp_path / "s.safetensors"
    run = subprocess.run([sys.executable, "-c", FULL, "convert", "shapes", out], cwd=REPOSITORY, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), run.stderr
    assert str(out) in run.stderr and "too large" in run.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_in_one_line_and_leaves_the_old_store(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        old = stored(disk / "s.safetensors").path.read_bytes()
        large = source_of([picture(i, 64) for i in range(16)], [picture(0, 64)])
        assert "No space left" in refused(disk / "s.safetensors", lambda path: convert(large, path))
        assert [p.name for p in disk.iterdir()] == ["s.safetensors"] and (disk / "s.safetensors").read_bytes() == old
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for name in ("missing/s.safetensors", "file/s.safetensors", "/proc/x.safetensors", f"{'x' * 300}.safetensors"):
        path = tmp_path / name
        tensors = {"train.labels": np.zeros(1, np.int64)}
        refused(path, lambda p, tensors=tensors: write(p, tensors, encoding="raw"))
    refused(tmp_path, lambda p: write(p, {}))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_conversion_leaves_an_existing_store_untouched(tmp_path):
    path = tmp_path / "s.safetensors"
    old = stored(path).path.read_bytes()
    with pytest.raises(InputError, match="made/1"):
        convert(source_of([JPEGS[0], b"no image"], JPEGS), path)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"] and path.read_bytes() == old


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capfd):
    path = tmp_path / "s.safetensors"

    def interrupt(*_):
        raise KeyboardInterrupt

    def interrupted():
        yield from (Item(i, "made", 0, JPEGS[i]) for i in range(4))
        interrupt()

    source = Source("made", ("even",), {"train": (8, interrupted)})
    assert exit_code(lambda: convert(source, path)) == 130 and not list(tmp_path.iterdir())
    monkeypatch.setattr(module.os, "fsync", interrupt)  # all is written, nothing renamed
    assert exit_code(lambda: stored(path)) == 130 and not list(tmp_path.iterdir())
    assert capfd.readouterr().err == "interrupted\n" * 2


def test_two_writers_of_one_path_both_end_well(tmp_path):
    path = tmp_path / "s.safetensors"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert path.read_bytes() == b"one" and [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
    command = [sys.executable, "-m", "pipelines", "convert", "shapes", path]
    runs = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(run.communicate()[1], run.returncode) for run in runs] == [(b"", 0), (b"", 0)]
    Store(path).verify()
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


# CIFAR-10 (JPEG q75)


def members(tar: Path, every: int) -> dict[int, bytes]:
    """Place among the sorted names to file, for every so-many-th of a tar's images."""
    with tarfile.open(tar) as file:
        names = [m.name for m in file if m.isfile()]
    places = {name: i for i, name in enumerate(sorted(names)) if i % every == 0}
    with tarfile.open(tar) as file:
        return {places[m.name]: file.extractfile(m).read() for m in file if m.name in places}


@pytest.mark.real
def test_real_counts_and_classes(real_raw, real_jpeg):
    for ours in (real_raw, real_jpeg):
        for split, each in (("train", 5000), ("test", 1000)):
            assert np.bincount(ours.labels(split)).tolist() == [each] * 10
        assert (ours.height, ours.width, ours.channels) == (32, 32, 3)
        assert ours.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        np.testing.assert_allclose(ours.mean, (0.4913, 0.4821, 0.4465), atol=5e-5)
        np.testing.assert_allclose(ours.std, (0.2452, 0.2428, 0.2606), atol=5e-5)
        ours.verify()
    assert real_jpeg.path.stat().st_size <= 20_000_000


@pytest.mark.real
@pytest.mark.parametrize("split, every", [("train", 211), ("test", 53)])
def test_real_files_come_back_byte_for_byte(split, every, real_source, real_raw, real_jpeg):
    sample = members(real_source / f"{split}.tar.xz", every)
    assert len(sample) > 180
    for place, file in sample.items():
        assert hashlib.sha256(real_jpeg.jpeg(split, place)).digest() == hashlib.sha256(file).digest()
        np.testing.assert_array_equal(real_raw.images(split)[place], np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


@pytest.mark.real
def test_real_pixels_are_the_same_in_both_encodings(real_raw, real_jpeg):
    np.testing.assert_array_equal(real_jpeg.images("test"), real_raw.images("test"))


@pytest.mark.real
def test_real_raw_store_is_opened_without_being_read(real_raw):
    before = psutil.Process().memory_info().rss
    opened = Store(real_raw.path)
    assert opened.images("train").nbytes == 153_600_000
    assert psutil.Process().memory_info().rss - before < 20_000_000

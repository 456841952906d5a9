"""The store: what goes in comes out, to the last byte, and a failed write leaves nothing behind."""

import hashlib
import io
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
from conftest import make_store
from hypothesis import given, strategies as st
from makers import JPEGS, encoded, picture, refusal, source_of, stored
from PIL import Image

from pipelines import store as module
from pipelines.convert import convert, statistics
from pipelines.errors import InputError, exit_code
from pipelines.files import replacing
from pipelines.pictures import decode, split_jpeg
from pipelines.sources import Item, Source
from pipelines.store import Store, read, write

REPOSITORY = Path(__file__).parents[1]


def jpeg(pixels: np.ndarray, **options) -> bytes:
    return encoded(pixels, "JPEG", **options)


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
    plain = jpeg(smooth)
    files = [plain, jpeg(smooth, quality=10), jpeg(smooth, progressive=True), jpeg(smooth[:, :, 0])]
    files += [jpeg(smooth, comment=b"c" * 999), plain + b"behind the end"]
    files += [plain[:2] + b"\xff" + plain[2:], jpeg(smooth, optimize=True, subsampling=0)]
    convert(source_of(files, files[:1]), tmp_path / "s.safetensors", "jpeg")
    ours = Store(tmp_path / "s.safetensors")
    assert [ours.jpeg("train", i) for i in range(len(files))] == files
    np.testing.assert_array_equal(ours.images("train"), [decode(f) for f in files])


def test_pictures_that_were_no_jpegs_are_encoded(tmp_path):
    smooth = [np.tile(np.linspace(20 * i, 200, 16).astype(np.uint8)[:, None, None], (1, 16, 3)) for i in range(4)]
    train = [smooth[0], encoded(smooth[1], "PNG"), jpeg(smooth[2], quality=75)]
    convert(source_of(train, smooth[3:]), tmp_path / "s.safetensors", "jpeg")
    ours = Store(tmp_path / "s.safetensors")
    assert ours.jpeg("train", 2) == jpeg(smooth[2], quality=75)
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
        assert "No space left" in refusal(disk / "s.safetensors", lambda path: convert(large, path))
        assert [p.name for p in disk.iterdir()] == ["s.safetensors"] and (disk / "s.safetensors").read_bytes() == old
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for name in ("missing/s.safetensors", "file/s.safetensors", "/proc/x.safetensors", f"{'x' * 300}.safetensors"):
        path = tmp_path / name
        tensors = {"train.labels": np.zeros(1, np.int64)}
        refusal(path, lambda p, tensors=tensors: write(p, tensors, encoding="raw"))
    refusal(tmp_path, lambda p: write(p, {}))
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


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    """A store that was put on a larger disk stays there, also one that is not there yet."""
    (tmp_path / "large").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "large" / "real.safetensors")
    for train in (20, 30):
        made = make_store(tmp_path / "link.safetensors", train=train)
        assert (tmp_path / "link.safetensors").is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["large", "link.safetensors"]
        assert [p.name for p in (tmp_path / "large").iterdir()] == ["real.safetensors"]
        assert Store(tmp_path / "large" / "real.safetensors").sha256 == made.sha256


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

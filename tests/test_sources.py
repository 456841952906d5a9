"""Sources: what is read is right, and what is bad is refused in one line that names it, with nothing left behind."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import official, sources
from pipelines.__main__ import main
from pipelines.convert import convert
from pipelines.errors import InputError, exit_code
from pipelines.sources import find
from pipelines.store import Store

REPOSITORY = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
OPENERS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz", ".txz": "w:xz"}


# Makers of small sources


def picture(side=8, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def images(classes=("bee", "ant"), each=3, side=8, kind="PNG", first=0) -> dict[str, bytes]:
    """<class>/<image> to bytes, classes not in their sorted order."""
    return {f"{c}/{i}.{kind.lower()}": encoded(picture(side, first + 10 * k + i), kind) for k, c in enumerate(classes) for i in range(each)}


def write_tar(path: Path, files: dict[str, bytes], mode="w", extra=()) -> Path:
    """A tar of `files` in their order, then of the TarInfos `extra`."""
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member, io.BytesIO(b"\0" * member.size))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def image_source(path: Path, **changes) -> Path:
    """A good image folder of two folders."""
    write_folder(path / "train", images(**changes))
    write_folder(path / "test", images(first=50, **changes))
    return path


def python2_pickle(value) -> bytes:
    """Protocol 2 as Python 2 wrote the official batches: byte strings as such, and NumPy 1's module names."""

    def short(data):
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + len(data).to_bytes(4, "little") + data

    def put(v):
        if isinstance(v, dict):
            return b"}(" + b"".join(put(k) + put(x) for k, x in v.items()) + b"u"
        if isinstance(v, list):
            return b"](" + b"".join(map(put, v)) + b"e"
        if isinstance(v, int):
            return b"J" + v.to_bytes(4, "little", signed=True)
        if isinstance(v, bytes):
            return short(v)
        shape = b"(" + b"".join(map(put, v.shape)) + b"t"
        state = b"(K\x03" + put(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        kind = b"cnumpy\ndtype\n(" + put(v.dtype.str[1:].encode()) + b"K\x00K\x01tR" + state
        blank = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + put(b"b") + b"tR"
        return blank + b"(K\x01" + shape + kind + b"\x89" + put(v.tobytes()) + b"tb"

    return b"\x80\x02" + put(value) + b"."


def python3_pickle(value) -> bytes:
    return pickle.dumps(value, protocol=2)


def cifar10(dump=python2_pickle, each=4) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """(files, pixels of train then test, labels) in the official layout; rows are 1,024 red, green, blue bytes."""
    rows = RNG.integers(0, 256, (6 * each, 3072), dtype=np.uint8)
    labels = RNG.integers(0, 3, 6 * each)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {}
    for i, name in enumerate(names):
        mine = slice(i * each, (i + 1) * each)
        batch = {b"batch_label": name.encode(), b"labels": labels[mine].tolist(), b"data": rows[mine]}
        files[name] = dump(batch | {b"filenames": [b"x.png"] * each})
    files["batches.meta"] = dump({b"num_cases_per_batch": each, b"label_names": [b"airplane", b"automobile", b"bird"], b"num_vis": 3072})
    pixels = np.stack([rows[:, :1024], rows[:, 1024:2048], rows[:, 2048:]], axis=-1).reshape(-1, 32, 32, 3)
    return {f"cifar-10-batches-py/{n}": d for n, d in files.items()} | {"cifar-10-batches-py/readme.html": b"<html>"}, pixels, labels


def cifar100(dump=python3_pickle) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    rows = RNG.integers(0, 256, (7, 3072), dtype=np.uint8)
    fine = [0, 1, 1, 0, 1, 0, 1]
    files = {
        "train": dump({b"fine_labels": fine[:4], b"coarse_labels": [9] * 4, b"data": rows[:4]}),
        "test": dump({b"fine_labels": fine[4:], b"coarse_labels": [9] * 3, b"data": rows[4:]}),
        "meta": dump({b"fine_label_names": [b"apple", b"aquarium_fish"], b"coarse_label_names": [b"food"]}),
    }
    return {f"cifar-100-python/{n}": d for n, d in files.items()}, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), fine


# Checkers


def decoded(picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) if isinstance(picture, bytes) else picture


def gathered(source) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split to (pixels, labels), every item at its place."""
    out = {}
    for split, (count, items) in source.splits.items():
        items = sorted(items(), key=lambda item: item.place)
        assert [item.place for item in items] == list(range(count))
        out[split] = np.stack([decoded(item.picture) for item in items]), np.array([item.label for item in items])
    return out


def is_sample_images(source, kind="PNG"):
    """Assert that a source is `images()` and `images(first=50)`: classes sorted, files sorted within them."""
    assert source.classes == ("ant", "bee")
    for split, first in (("train", 0), ("test", 50)):
        pixels, labels = gathered(source)[split]
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
        files = images(first=first, kind=kind)
        for ours, name in zip(pixels, sorted(files)):
            np.testing.assert_array_equal(ours, np.asarray(Image.open(io.BytesIO(files[name]))))


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


# Official archives


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("make, name, folder", [(cifar10, "cifar10", "cifar-10-batches-py"), (cifar100, "cifar100", "cifar-100-python")])
def test_official_archive_as_tar_and_as_folder(make, name, folder, dump, tmp_path):
    files, pixels, labels = make(dump)
    tar = write_tar(tmp_path / f"{folder}.tar.gz", files, "w:gz")
    inside = write_folder(tmp_path / "unpacked", files)
    for source in (find(tar), find(inside / folder), find(inside)):
        assert source.name == name
        assert source.classes == (("airplane", "automobile", "bird") if name == "cifar10" else ("apple", "aquarium_fish"))
        found = gathered(source)
        np.testing.assert_array_equal(np.concatenate([found["train"][0], found["test"][0]]), pixels)
        np.testing.assert_array_equal(np.concatenate([found["train"][1], found["test"][1]]), labels)


def test_an_array_pickled_by_columns_is_not_garbled(tmp_path):
    files, pixels, _ = cifar100(lambda v: python3_pickle({k: np.asfortranarray(x) if k == b"data" else x for k, x in v.items()}))
    found = gathered(find(write_tar(tmp_path / "c.tar", files)))
    np.testing.assert_array_equal(found["train"][0], pixels[:4])


class Runs:
    """Pickles to a call."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def test_hostile_pickles_run_nothing(tmp_path, refused):
    ran = tmp_path / "ran"
    shell, code = f"touch {ran}", f"open({str(ran)!r}, 'w').close()"
    hostile = {
        "system": python3_pickle({b"data": Runs(os.system, shell)}),
        "eval": python3_pickle(Runs(eval, code)),
        "exec": python3_pickle([Runs(exec, code)]),
        "popen": b"csubprocess\nPopen\n((S'touch'\nS'" + str(ran).encode() + b"'\nltR.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        "mutates the admitted": b"\x80\x02c_codecs\nencode\nN}U\x0b__defaults__Ns\x86b.",
        "objects": python3_pickle({b"data": np.array([[1, "x"]], object), b"labels": [0]}),
        "floats": python3_pickle({b"data": np.zeros((1, 3072)), b"labels": [0]}),
        "huge": python3_pickle({b"data": Runs(np.ndarray, (1 << 40, 3072), "u1"), b"labels": [0]}),
        "short": python2_pickle({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 4})[:-4000],
        "wide": python2_pickle({b"data": np.zeros((4, 3073), np.uint8), b"labels": [0] * 4}),
        "labels": python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 3]}),
        "more labels": python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1, 1]}),
        "no dict": python3_pickle([1, 2]),
        "no pickle": b"hello",
        "nothing": b"",
    }
    files, _, _ = cifar10()
    for data in hostile.values():
        for name in ("data_batch_3", "batches.meta"):
            tar = write_tar(tmp_path / "c.tar", files | {f"cifar-10-batches-py/{name}": data})
            refused(tar, f"{tar}/{name}")
    assert not ran.exists()


def test_names_that_are_no_names_and_batches_that_are_missing(tmp_path, refused):
    files, _, _ = cifar10()
    for names in (5, [], [b"\xff", b"x", b"y"], [1, 2, 3], None):
        meta = {"cifar-10-batches-py/batches.meta": python3_pickle({b"label_names": names})}
        refused(write_tar(tmp_path / "c.tar", files | meta), "batches.meta")
    none = {"cifar-10-batches-py/test_batch": python2_pickle({b"data": np.empty((0, 3072), np.uint8), b"labels": []})}
    refused(write_tar(tmp_path / "c.tar", files | none), "test_batch: not a CIFAR batch")
    del files["cifar-10-batches-py/data_batch_4"]
    refused(write_tar(tmp_path / "c.tar", files), "data_batch_4")
    link = tarfile.TarInfo("cifar-10-batches-py/batches.meta")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    refused(write_tar(tmp_path / "links.tar", {}, extra=[link]), "links.tar")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """An "official" archive behind a file:// address; gives (cache folder, its pixels)."""
    files, pixels, _ = cifar10()
    remote = write_tar(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
    spec = replace(official.ARCHIVES["cifar10"], url=remote.as_uri(), md5=hashlib.md5(remote.read_bytes()).hexdigest())
    monkeypatch.setitem(official.ARCHIVES, "cifar10", spec)
    return tmp_path / "cache" / "deeper", pixels


def test_download_is_checked_and_kept(served, tmp_path):
    cache, pixels = served
    np.testing.assert_array_equal(gathered(find("cifar10", cache))["train"][0], pixels[:20])
    assert [p.name for p in cache.iterdir()] == ["cifar-10-python.tar.gz"]
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    assert find("cifar10", cache).name == "cifar10"  # from the cache, the remote is gone


def test_download_that_fails_leaves_nothing(served, tmp_path, monkeypatch, refused):
    cache, _ = served
    monkeypatch.setenv("TENFOLD_CACHE", str(cache))
    good = official.ARCHIVES["cifar10"]
    monkeypatch.setitem(official.ARCHIVES, "cifar10", replace(good, md5="0" * 32))
    refused("cifar10", "md5")
    monkeypatch.setitem(official.ARCHIVES, "cifar10", replace(good, url="file:///nowhere/c.tar.gz"))
    refused("cifar10", "file:///nowhere/c.tar.gz")
    assert not cache.exists() or not list(cache.iterdir())
    monkeypatch.setitem(official.ARCHIVES, "cifar10", good)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "file"))
    refused("cifar10", tmp_path / "file")


# Image folders and tars


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_image_folder(kind, split, tmp_path):
    write_folder(tmp_path / "train", images(kind=kind) | {"ant/notes.txt": b"x", "ant/._0.png": b"x", ".git/0.png": b"x"})
    write_folder(tmp_path / split, images(first=50, kind=kind))
    is_sample_images(find(tmp_path), kind)


@pytest.mark.parametrize("ending", OPENERS)
def test_tars_of_class_folders_in_any_order(ending, tmp_path):
    shuffled = dict(sorted(images().items(), key=lambda kv: kv[0][::-1]))
    write_tar(tmp_path / f"train{ending}", {f"./{n}": d for n, d in shuffled.items()}, OPENERS[ending])
    write_tar(tmp_path / f"test{ending}", images(first=50), OPENERS[ending])
    is_sample_images(find(tmp_path))


def test_a_folder_and_a_tar(tmp_path):
    write_folder(tmp_path / "train", images())
    write_tar(tmp_path / "val.tar.gz", images(first=50), "w:gz")
    is_sample_images(find(tmp_path))


@pytest.mark.parametrize("around, split", [("", "test"), ("pets/", "validation")])
def test_one_tar_of_splits(around, split, tmp_path):
    files = {f"{around}{split}/{n}": d for n, d in images(first=50).items()} | {f"{around}train/{n}": d for n, d in images().items()}
    is_sample_images(find(write_tar(tmp_path / "pets.tar.xz", files, "w:xz")))
    assert find(tmp_path / "pets.tar.xz").name == "pets"


def test_links_and_devices_in_a_tar_are_no_images(tmp_path):
    extra = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo(f"cow/{kind.decode()}.png")
        member.type, member.linkname = kind, "/etc/passwd"
        extra.append(member)
    write_tar(tmp_path / "train.tar", images(), extra=extra)
    write_folder(tmp_path / "test", images(first=50))
    is_sample_images(find(tmp_path))


def test_a_name_twice_in_a_tar_counts_once_and_the_last_is_it(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for files in (images(first=70), images()):
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write_folder(tmp_path / "test", images(first=50))
    is_sample_images(find(tmp_path))


def test_names_that_are_not_utf8(tmp_path, refused):
    source = image_source(tmp_path / os.fsdecode(b"caf\xe9"))
    (source / "train/ant/0.png").rename(source / "train/ant" / os.fsdecode(b"\xff.png"))
    out = tmp_path / "s.safetensors"
    convert(find(source), out)
    assert Store(out).source == r"caf\udce9" and Store(out).count("train") == 6
    (source / "test/ant/0.png").write_bytes(b"no image")
    refused(source, "0.png")
    with pytest.raises(InputError, match="UTF-8"):
        convert(find("shapes"), tmp_path / os.fsdecode(b"\xfe.safetensors"))


# What is refused


def test_places_that_hold_no_images(tmp_path, refused):
    refused(tmp_path / "missing", tmp_path / "missing")
    refused("x" * 5000, "no such file")
    refused("a\nb", "a b")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "empty", "train/<class>")
    write_folder(tmp_path / "flat", {"train/0.png": encoded(picture())})
    refused(tmp_path / "flat", tmp_path / "flat")
    refused(write_tar(tmp_path / "none.tar", {}), "none.tar")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", tmp_path / "pipe")
    refused("/dev/null", "/dev/null")


def test_folders_that_may_not_be_read(tmp_path, monkeypatch, refused):
    source, listed = image_source(tmp_path / "s"), Path.iterdir

    def closed(path):  # as root every folder can be read, so this one only says that it cannot
        if path == source:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    assert "Permission denied" in refused(source, source)


def test_classes_must_be_the_same_in_both_splits(tmp_path, refused):
    write_folder(tmp_path / "s/train", images(("ant", "bee")))
    write_folder(tmp_path / "s/test", images(("ant", "cow")))
    assert "'bee'" in refused(tmp_path / "s", tmp_path / "s")
    image_source(tmp_path / "odd", classes=("ant", os.fsdecode(b"b\xffe")))
    refused(tmp_path / "odd", tmp_path / "odd/train", "rename")


def damaged_tars(folder: Path, files: dict[str, bytes]):
    """Yield tars that are text, cut, or with a flipped byte in a header or, where compressed, in the checksum."""
    for ending, mode in {".tar": "w", ".tar.gz": "w:gz", ".tar.xz": "w:xz"}.items():
        whole = write_tar(folder / f"whole{ending}", files, mode).read_bytes()
        text = b"This is no archive.\n" * 100
        cuts = [text, b"", whole[: len(whole) // 2], whole[: len(whole) // 2 // 512 * 512], whole[:-9] if ending != ".tar" else whole[:700]]
        flips = [512 * (1 + -(-len(next(iter(files.values()))) // 512)) + 3] if ending == ".tar" else [len(whole) // 2, len(whole) - 6]
        for at in flips:
            cuts.append(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for data in cuts:
            yield ending, data


def test_damaged_tars(tmp_path, refused):
    files = {f"{split}/{n}": d for split in ("train", "test") for n, d in images(each=12, side=16).items()}
    for ending, data in damaged_tars(tmp_path, files):
        path = tmp_path / f"bad{ending}"
        path.write_bytes(data)
        refused(path, path)
        path.unlink()
    split = tmp_path / "split"
    write_folder(split / "test", images())
    for ending, data in damaged_tars(tmp_path, images(each=12, side=16)):
        (split / f"train{ending}").write_bytes(data)
        refused(split, split / f"train{ending}")
        (split / f"train{ending}").unlink()


def test_a_plain_tar_cut_anywhere_is_refused_or_whole(tmp_path):
    files = {f"{split}/{n}": d for split in ("train", "test") for n, d in images(each=1).items()}
    whole = write_tar(tmp_path / "whole.tar", files).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in range(0, len(whole), 256):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        try:
            assert find(tmp_path / "cut.tar").splits["train"][0] == 2 and size >= end
        except InputError as error:
            assert "cut.tar" in str(error) and size < end + 1024


def test_members_that_lead_outside(tmp_path, refused):
    files = {f"{split}/{n}": d for split in ("train", "test") for n, d in images().items()}
    for name in ("../evil.png", "/etc/evil.png", "train/../../evil.png"):
        assert "leads outside" in refused(write_tar(tmp_path / "evil.tar", files | {name: b"x"}), "evil.tar", name)


def claiming(png: bytes, side: int) -> bytes:
    """A PNG that says it is side x side pixels, its header's checksum right."""
    head = png[12:16] + side.to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]


def test_images_that_cannot_be_used(tmp_path, refused):
    jpeg, png = encoded(picture(), "JPEG"), encoded(picture())
    bad = {
        "text.png": b"no image",
        "nothing.png": b"",
        "half.jpeg": jpeg[: len(jpeg) // 2],
        "last.jpeg": jpeg[:-20],
        "half.png": png[: len(png) // 2],
        "flipped.png": png[:40] + bytes([png[40] ^ 255]) + png[41:],
        "bomb.png": claiming(png, 30_000),  # Pillow refuses to open it
        "warned.png": claiming(png, 10_000),  # Pillow opens it with a warning
        "large.png": encoded(picture(513)),
        "sixteen.png": encoded(np.zeros((8, 8), np.uint16)),
        "other.png": encoded(picture(9)),
    }
    for name, data in bad.items():
        source = image_source(tmp_path / name)
        (source / "train/bee" / name).write_bytes(data)
        refused(source, source / "train/bee" / name)
    write_folder(tmp_path / "in", {})
    for name in ("half.jpeg", "other.png"):
        files = images() | {f"bee/{name}": bad[name]}
        write_tar(tmp_path / f"{name}.tar", {f"{s}/{n}": d for s in ("train", "test") for n, d in files.items()})
        refused(tmp_path / f"{name}.tar", f"{name}.tar/train/bee/{name}", encoding="jpeg")


def test_things_named_like_images(tmp_path, refused):
    makers = {
        "folder.png": Path.mkdir,
        "pipe.png": os.mkfifo,
        "device.png": lambda path: path.symlink_to("/dev/zero"),
        "gone.png": lambda path: path.symlink_to("/gone"),
    }
    for name, make in makers.items():
        source = image_source(tmp_path / name)
        make(source / "train/ant" / name)
        refused(source, source / "train/ant" / name)
    sparse = image_source(tmp_path / "sparse")
    with (sparse / "test/ant/huge.png").open("wb") as file:
        file.truncate(1 << 36)
    refused(sparse, sparse / "test/ant/huge.png")


def test_splits_of_two_sizes(tmp_path, refused):
    write_folder(tmp_path / "s/train", images(side=8))
    write_folder(tmp_path / "s/test", images(side=9))
    refused(tmp_path / "s", tmp_path / "s/test/ant/0.png", "9x9 and 8x8")


def test_places_that_cannot_take_a_store(tmp_path, monkeypatch, capfd):
    source = image_source(tmp_path / "s")
    tar = write_tar(tmp_path / "s.tar", images())
    (tmp_path / "folder.safetensors").mkdir()
    before = tar.read_bytes()
    names = ("missing/s.safetensors", "/proc/x.safetensors", "folder.safetensors", tar.name, "", "/", "s.tar/x.safetensors")
    for out in (*(tmp_path / name for name in names), "."):
        monkeypatch.setattr(sys, "argv", ["pipelines", "convert", str(source), str(out)])
        assert exit_code(main) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error
    assert tar.read_bytes() == before


def test_the_command_line_itself(tmp_path):
    """One good and one bad run in their own processes: exit codes, stdout and stderr as a person sees them."""
    source, out = image_source(tmp_path / "s"), tmp_path / "s.safetensors"

    def run(*words):
        return subprocess.run([sys.executable, "-m", "pipelines", *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True)

    bad = run("convert", tmp_path / "missing", out)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1) and str(tmp_path / "missing") in bad.stderr
    good = run("convert", source, out)
    assert (good.returncode, good.stderr) == (0, "") and str(out) in good.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "s.safetensors"]


def test_a_source_that_changes_while_it_is_read(tmp_path):
    source = find(image_source(tmp_path / "s"))
    (tmp_path / "s/train/ant/1.png").unlink()
    with pytest.raises(InputError, match="1.png"):
        convert(source, tmp_path / "s.safetensors")
    assert not list(tmp_path.glob("*.safetensors")) and sources.find(tmp_path / "s").splits["train"][0] == 5

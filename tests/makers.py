"""Small sources and stores for the tests: pictures, class folders, tars, official archives; and checks of what is read of them."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.convert import convert
from pipelines.errors import InputError
from pipelines.sources import Item, Source
from pipelines.store import Store

RNG = np.random.default_rng(0)
OPENERS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz", ".txz": "w:xz"}


def picture(seed: int = 0, side: int = 8) -> np.ndarray:
    """uint8[side,side,3]: noise, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def images(classes=("bee", "ant"), each=3, side=8, kind="PNG", first=0) -> dict[str, bytes]:
    """<class>/<image> to bytes, classes not in their sorted order."""
    return {f"{c}/{i}.{kind.lower()}": encoded(picture(first + 10 * k + i, side), kind) for k, c in enumerate(classes) for i in range(each)}


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


def refusal(path: Path, use=Store) -> str:
    """The one line with which a store is refused."""
    with pytest.raises(InputError) as error:
        use(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000 and str(path) in str(error.value)
    return str(error.value)


# Makers of small stores


def source_of(train: list, test: list) -> Source:
    """A source of arrays or files, labels 0 and 1 in turn."""

    def items(pictures):
        return lambda: (Item(i, f"made/{i}", i % 2, p) for i, p in enumerate(pictures))

    return Source("made", ("even", "odd"), {"train": (len(train), items(train)), "test": (len(test), items(test))})


JPEGS = [encoded(picture(i), "JPEG", quality=75) for i in range(12)]


def stored(path: Path, encoding="jpeg") -> Store:
    convert(source_of(JPEGS[:8], JPEGS[8:]), path, encoding)
    return Store(path)

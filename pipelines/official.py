"""The official CIFAR archives, "python version": fetched, checked, and read without running anything in them.

Their pickles pass an unpickler that admits arrays and plain values, and an array is read from the bytes
it was pickled as, so that not even NumPy's own unpickling runs.
"""

import hashlib
import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
from tqdm import tqdm

from pipelines import tars
from pipelines.errors import InputError
from pipelines.store import replacing

MOST_BYTES = 1 << 30  # of one pickle: CIFAR-100's training batch has 155 MB
BLOCK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """An official "python version" archive; names and md5 are those of its page."""

    url: str
    md5: str
    folder: str  # what it unpacks to
    files: dict[str, tuple[str, ...]]  # split: batches
    labels: bytes
    meta: str
    names: bytes


OFFICIAL = "https://www.cs.toronto.edu/~kriz/"
ARCHIVES = {
    "cifar10": Archive(
        OFFICIAL + "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        b"labels",
        "batches.meta",
        b"label_names",
    ),
    "cifar100": Archive(
        OFFICIAL + "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        b"fine_labels",
        "meta",
        b"fine_label_names",
    ),
}


class Batch(NamedTuple):
    """One pickled batch: where it is (for messages), uint8[N,32,32,3] and N labels."""

    where: str
    pictures: np.ndarray
    labels: list[int]


def kind(names) -> str | None:
    """Which official archive has these files, if any."""
    names = {n.rsplit("/", 1)[-1] for n in names}
    if "batches.meta" in names or "data_batch_1" in names:
        return "cifar10"
    return "cifar100" if {"meta", "train", "test"} <= names else None


def load(path: Path) -> tuple[str, tuple[str, ...], dict[str, list[Batch]]]:
    """(name, class names, batches of each split) of a tar, or of the folder it unpacks to."""
    files = _folder_files(path) if path.is_dir() else _tar_files(path)
    name = kind(files)
    spec = ARCHIVES[name]
    missing = [f for fs in (*spec.files.values(), (spec.meta,)) for f in fs if f not in files]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing: get the archive again")
    classes = _classes(files[spec.meta], f"{path}/{spec.meta}", spec)
    return name, classes, {s: [_batch(files[f], f"{path}/{f}", spec, len(classes)) for f in fs] for s, fs in spec.files.items()}


def download(name: str, folder: Path) -> Path:
    """Fetch an official archive into `folder` with a progress bar, check its md5, and give its path."""
    spec = ARCHIVES[name]
    target = folder / spec.url.rsplit("/", 1)[1]
    if target.is_file() and _md5(target) == spec.md5:
        return target
    blocks, total = _fetch(spec.url)
    with replacing(target) as part:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file, tqdm(desc=f"download {target.name}", total=total, unit="B", unit_scale=True, disable=None) as bar:
            for block in blocks:
                file.write(block)
                bar.update(len(block))
        if _md5(part) != spec.md5:
            raise InputError(f"{spec.url}: what came does not match md5 {spec.md5}: try again later")
    return target


def _known() -> set[str]:
    return {f for spec in ARCHIVES.values() for f in (*sum(spec.files.values(), ()), spec.meta)}


def _folder_files(path: Path) -> dict[str, bytes]:
    """File name to contents."""
    found = {}
    for file in (path / name for name in _known()):
        if file.is_file():
            try:
                tars.check_size(str(file), file.stat().st_size, MOST_BYTES)
                found[file.name] = file.read_bytes()
            except OSError as error:
                raise InputError(f"{file}: cannot be read ({error.strerror}): get the archive again") from None
    return found


def _tar_files(path: Path) -> dict[str, bytes]:
    """File name to contents."""
    known = {name.rsplit("/", 1)[-1]: member for name, member in tars.index(path).items()}
    known = {name: member for name, member in known.items() if name in _known()}
    names = list(known)
    return {names[i]: data for i, data in tars.contents(path, list(known.values()), MOST_BYTES)}


def _classes(data: bytes, where: str, spec: Archive) -> tuple[str, ...]:
    names = _unpickle(data, where).get(spec.names)
    if not isinstance(names, list) or not names or not all(isinstance(n, bytes) and n.isascii() for n in names):
        raise InputError(f"{where}: holds no class names: get the archive again")
    return tuple(n.decode() for n in names)


def _batch(data: bytes, where: str, spec: Archive, classes: int) -> Batch:
    """One pickled batch; a row is 3072 bytes, planes of red, green and blue."""
    batch = _unpickle(data, where)
    rows, labels = _rows(batch.get(b"data")), batch.get(spec.labels)
    if rows is None or not isinstance(labels, list) or len(labels) != len(rows):
        raise InputError(f"{where}: not a CIFAR batch: get the archive again")
    if not all(isinstance(v, int) and 0 <= v < classes for v in labels):
        raise InputError(f"{where}: a label is not in 0..{classes - 1}: get the archive again")
    return Batch(where, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _rows(array) -> np.ndarray | None:
    """uint8[N,3072] of an unpickled array, or None where it is anything else."""
    try:
        _, (count, width), dtype, fortran, data = array.state
        if dtype.name not in ("u1", b"u1") or width != 3072:
            return None
        return np.frombuffer(data, np.uint8).reshape((count, width), order="F" if fortran else "C")
    except (AttributeError, TypeError, ValueError):
        return None


class _Array:
    """Stands for a pickled array and keeps the state that NumPy wrote: version, shape, dtype, order, bytes."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        self.state = state


class _Dtype(_Array):
    """Stands for a pickled dtype and keeps its name."""

    def __init__(self, name, *_):
        self.name = name


class _Latin1(_Array):
    """What Python 3 pickles bytes as, with protocol 2."""

    def __new__(cls, text, coding):
        return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Admits what arrays of plain numbers are pickled as, and nothing else."""

    ADMITTED = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _Latin1,
    }

    def find_class(self, module, name):
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return self.ADMITTED[module, name]


def _unpickle(data: bytes, where: str) -> dict:
    """The pickled dict, keys and names as bytes whichever Python wrote it."""
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        return {_bytes(k): [_bytes(v) for v in vs] if isinstance(vs, list) else vs for k, vs in value.items()}
    except Exception as error:  # a damaged pickle can raise anything; none of it may pass as data
        raise InputError(f"{where}: refused, not a CIFAR pickle ({error!s:.200}): get the archive again") from None


def _bytes(value):
    return value.encode() if isinstance(value, str) else value


def _fetch(url: str) -> tuple[Iterator[bytes], int]:
    """(the blocks of a download, its size or 0); what fails on the way is an `InputError`."""

    def failed(error):
        return InputError(f"{url}: cannot be had ({error}): download it elsewhere and give its path")

    def blocks():
        try:
            with reply:
                while block := reply.read(BLOCK):
                    yield block
        except (OSError, HTTPException) as error:
            raise failed(error) from None

    try:
        reply = urlopen(url, timeout=30)
    except (OSError, HTTPException) as error:
        raise failed(error) from None
    return blocks(), int(reply.headers.get("Content-Length") or 0)


def _md5(path: Path) -> str:
    digest = hashlib.md5()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()

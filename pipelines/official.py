"""The official CIFAR archives, "python version": fetched, checked, and read without running anything in them.

Their pickles are read by `pickles.py`, which admits arrays and plain values, and an array is taken from the bytes it
was pickled as, so that not even NumPy's own unpickling runs.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from os.path import isfile  # unlike Path's, False for what may not be looked at
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
from tqdm import tqdm

from pipelines import tars
from pipelines.errors import InputError, reason
from pipelines.files import make_folder, replacing
from pipelines.pickles import Name, Stand, load as values

MOST_BYTES = 1 << 30  # of one pickle: CIFAR-100's training batch has 155 MB
MOST_SWELL = 16  # bytes of files to one of their archive: CIFAR's own are 1.1
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
    name = kind(files) or "cifar10"  # whose files are then missing
    spec = ARCHIVES[name]
    missing = [f for fs in (*spec.files.values(), (spec.meta,)) for f in fs if f not in files]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing: get the archive again")
    classes = _classes(files[spec.meta], f"{path}/{spec.meta}", spec)
    return name, classes, {s: [_batch(files[f], f"{path}/{f}", spec, len(classes)) for f in fs] for s, fs in spec.files.items()}


def download(name: str, folder: Path) -> Path:
    """Fetch an official archive into `folder` and give its path."""
    return fetched(ARCHIVES[name].url, ARCHIVES[name].md5, folder)


def fetched(url: str, md5: str, folder: Path) -> Path:
    """The file of `url` in `folder`, fetched unless it is there, with a progress bar; its md5 is checked."""
    target = folder / url.rsplit("/", 1)[1]
    try:
        if isfile(target) and _md5(target) == md5:
            return target
    except OSError as error:
        raise InputError(f"{target}: cannot be read ({error.strerror}): allow it, or name another folder with TENFOLD_CACHE") from None
    blocks, total = _fetch(url)
    make_folder(folder)
    with replacing(target) as part:
        with part.open("wb") as file, tqdm(desc=f"download {target.name}", total=total, unit="B", unit_scale=True, disable=None) as bar:
            for block in blocks:
                file.write(block)
                bar.update(len(block))
        if _md5(part) != md5:
            raise InputError(f"{url}: what came does not match md5 {md5}: try again later")
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
    most = MOST_SWELL * path.stat().st_size + BLOCK
    if sum(member.size for member in known.values()) > most:
        raise InputError(f"{path}: its files are more than {MOST_SWELL} times as large as itself, which images never are: get the archive again")
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
    if rows is None or not len(rows) or not isinstance(labels, list) or len(labels) != len(rows):
        raise InputError(f"{where}: not a CIFAR batch: get the archive again")
    if not all(isinstance(v, int) and 0 <= v < classes for v in labels):
        raise InputError(f"{where}: a label is not in 0..{classes - 1}: get the archive again")
    return Batch(where, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _rows(array) -> np.ndarray | None:
    """uint8[N,3072] of an unpickled array, or None where it is anything else."""
    try:
        _, (count, width), dtype, fortran, data = array.state  # as NumPy writes it: version, shape, dtype, order, bytes
        if dtype.arguments[0] not in ("u1", b"u1") or width != 3072:
            return None
        return np.frombuffer(data, np.uint8).reshape((count, width), order="F" if fortran else "C")
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _unpickle(data: bytes, where: str) -> dict:
    """The pickled dict, keys and names as bytes whichever Python wrote it."""
    left = len(data)

    def latin1(text, _):
        """What Python 3 pickles bytes as, with protocol 2: each once, so that all together are no longer than the pickle."""
        nonlocal left
        left -= len(text)
        if left < 0:
            raise ValueError("more bytes than it holds")
        return text.encode("latin1")

    arrays = {Name(module, "_reconstruct"): Stand for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
    admitted = {**arrays, Name("numpy", "ndarray"): Stand, Name("numpy", "dtype"): Stand, Name("_codecs", "encode"): latin1}
    try:
        value = values(data, admitted)
        return {_bytes(k): [_bytes(v) for v in vs] if isinstance(vs, list) else vs for k, vs in value.items()}
    except Exception as error:  # a damaged pickle can raise anything; none of it may pass as data
        raise InputError(f"{where}: refused, not a CIFAR pickle ({reason(error)}): get the archive again") from None


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

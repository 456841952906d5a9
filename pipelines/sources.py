"""Where images come from: official archives, image folders and tars, and drawn shapes.

`find(name)` looks at what a name or a path is and gives a `Source`: class names and, for every split,
items of (where, label, picture). A picture is uint8[H,W,3] or an encoded file's bytes. Nothing is unpacked on disk,
and nothing in an archive can run: pickles pass an unpickler that admits only arrays and plain values.
"""

import hashlib
import io
import lzma
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.request import urlopen

import numpy as np
from tqdm import tqdm

from pipelines import shapes
from pipelines.errors import InputError

LAYOUT = "expected train/<class>/* and test/<class>/*, or train.tar and test.tar of class folders"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
MOST_BYTES = 1 << 26  # of one image file: 64 MiB, far beyond any small image
MOST_PICKLE = 1 << 30  # of one pickle: CIFAR-100's training batch has 155 MB


@dataclass(frozen=True)
class Item:
    """One image: where it is (for messages), its label, and uint8[H,W,3] or a file's bytes."""

    where: str
    label: int
    picture: np.ndarray | bytes


@dataclass(frozen=True)
class Source:
    """A set of images. `splits` maps "train" and "test" to (count, function that iterates its items)."""

    name: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[int, Callable[[], Iterator[Item]]]]


@dataclass(frozen=True)
class Archive:
    """An official "python version" archive; names and md5 are those of its page."""

    url: str
    md5: str
    files: dict[str, tuple[str, ...]]  # split: batches
    labels: bytes
    meta: str
    names: bytes


OFFICIAL = "https://www.cs.toronto.edu/~kriz/"
ARCHIVES = {
    "cifar10": Archive(
        OFFICIAL + "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        b"labels",
        "batches.meta",
        b"label_names",
    ),
    "cifar100": Archive(
        OFFICIAL + "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        {"train": ("train",), "test": ("test",)},
        b"fine_labels",
        "meta",
        b"fine_label_names",
    ),
}


def find(name: str | Path, cache: Path | None = None) -> Source:
    """The source that a name or a path means.

    name   "shapes", "cifar10", "cifar100" (downloaded into `cache`), or the path of an official archive
           (a tar or its extracted folder), or of an image folder or tar of <split>/<class>/<image>
    Raises `InputError` where nothing is there, or it is none of these.
    """
    path = Path(name)
    if not path.exists():
        if str(name) == "shapes":
            return drawn()
        if str(name) in ARCHIVES:
            return archive(download(str(name), cache or Path(".")))
        raise InputError(f"{path}: no such file or folder: give a store, a source, or one of shapes, {', '.join(ARCHIVES)}")
    if path.is_dir():
        return archive(path) if _kind(p.name for p in path.iterdir()) else image_folder(path)
    with _reading(path), tarfile.open(path) as tar:
        members = [PurePosixPath(m.name).name for m in _members(tar, path)]
    return archive(path) if _kind(members) else image_tar(path)


def drawn() -> Source:
    """The embedded `shapes`: ten classes of drawn figures, 32x32, the same on every machine."""

    def items(split):
        for i, (picture, label) in enumerate(zip(*shapes.draw(split))):
            yield Item(f"shapes {split} {i}", int(label), picture)

    return Source("shapes", shapes.CLASSES, {s: (n, lambda s=s: items(s)) for s, n in shapes.COUNTS.items()})


# Image folders and tars


def image_folder(path: Path) -> Source:
    """<path>/<split>/<class>/<image>, where <split> is a folder or a tar of class folders."""
    splits = {}
    for split, aliases in {"train": ("train",), "test": ("test", "val", "valid", "validation")}.items():
        found = next((p for a in aliases for p in (path / a, *(path / (a + s) for s in TARS)) if p.exists()), None)
        if found is None:
            raise InputError(f"{path}: no {split} images: {LAYOUT}")
        splits[split] = (found, _folder_names(found) if found.is_dir() else _tar_names(found, depth=2))
    return _images(path.resolve().name, splits)


def image_tar(path: Path) -> Source:
    """One tar of <split>/<class>/<image>; a common folder around the splits is allowed."""
    names = _tar_names(path, depth=3)
    splits = {s: [n for n in names if PurePosixPath(n).parts[-3] == s] for s in ("train", "test")}
    for split, members in splits.items():
        if not members:
            raise InputError(f"{path}: no {split} images: {LAYOUT}")
    return _images(path.name.split(".")[0], {s: (path, members) for s, members in splits.items()})


def _images(name: str, splits: dict[str, tuple[Path, list[str]]]) -> Source:
    """A source of image files; every split must have the same classes, sorted."""
    classes = {s: sorted({PurePosixPath(n).parts[-2] for n in names}) for s, (_, names) in splits.items()}
    if classes["train"] != classes["test"]:
        odd = sorted(set(classes["train"]) ^ set(classes["test"]))[0]
        raise InputError(f"{splits['test'][0]}: class {odd!r} is not in both train and test: give both the same class folders")
    labels = {c: i for i, c in enumerate(classes["train"])}

    def items(path: Path, names: list[str]) -> Iterator[Item]:
        for member, data in (_read_folder if path.is_dir() else _read_tar)(path, names):
            yield Item(f"{path}/{member}", labels[PurePosixPath(member).parts[-2]], data)

    made = {s: (len(names), lambda p=path, n=names: items(p, n)) for s, (path, names) in splits.items()}
    return Source(name, tuple(labels), made)


def _folder_names(path: Path) -> list[str]:
    """The images of <path>/<class>/<image>, sorted, as paths below `path`."""
    names = sorted(p.relative_to(path).as_posix() for p in path.glob("*/*") if p.suffix.lower() in SUFFIXES)
    if not names:
        raise InputError(f"{path}: no images in it: {LAYOUT}")
    return names


def _read_folder(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        file = path / name
        try:
            if file.stat().st_size > MOST_BYTES:
                raise InputError(f"{file}: larger than {MOST_BYTES >> 20} MiB: this is for small images")
            yield name, file.read_bytes()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}): mend or remove it") from None


def _tar_names(path: Path, depth: int) -> list[str]:
    """The images of a tar, sorted, at least `depth` levels deep."""
    with _reading(path), tarfile.open(path) as tar:
        names = sorted(m.name for m in _members(tar, path) if m.isfile() and m.name.lower().endswith(SUFFIXES))
    names = [n for n in names if len(PurePosixPath(n).parts) >= depth]
    if not names:
        raise InputError(f"{path}: no images in it: {LAYOUT}")
    return names


def _read_tar(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """In the order of the sorted names, whatever the tar's; one pass, since a compressed tar cannot seek."""
    wanted, held = iter(names), {}
    chosen = set(names)
    following = next(wanted, None)
    with _reading(path), tarfile.open(path) as tar:
        for member in _members(tar, path):
            if member.name in chosen:
                held[member.name] = tar.extractfile(member).read()
            while following in held:
                yield following, held.pop(following)
                following = next(wanted, None)


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, refused where a name leads outside or a size is beyond reason."""
    for member in tar:
        parts = PurePosixPath(member.name)
        if parts.is_absolute() or ".." in parts.parts:
            raise InputError(f"{path}: member {member.name!r} leads outside the archive: it is refused, get it from a source you trust")
        if member.isfile() and member.size > MOST_PICKLE:
            raise InputError(f"{path}: member {member.name!r} says it has {member.size} bytes: it is refused")
        yield member


class _reading:
    """Turn what a damaged archive raises into one line that names it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)):
            raise InputError(f"{self.path}: not a whole tar archive ({error}): get it again") from None


# Official archives


def archive(path: Path) -> Source:
    """CIFAR-10 or CIFAR-100, "python version": the tar, or the folder it unpacks to."""
    files = _archive_files(path)
    name = _kind(files)
    spec = ARCHIVES[name]
    missing = [f for fs in (*spec.files.values(), (spec.meta,)) for f in fs if f not in files]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing: get the archive again")
    meta = _unpickle(files[spec.meta](), f"{path}/{spec.meta}")
    classes = tuple(_text(c) for c in meta.get(spec.names, ()))
    batches = {s: [_batch(files[f](), f"{path}/{f}", spec, len(classes)) for f in fs] for s, fs in spec.files.items()}

    def items(split):
        for where, pictures, labels in batches[split]:
            for i, picture in enumerate(pictures):
                yield Item(f"{where} image {i}", int(labels[i]), picture)

    return Source(name, classes, {s: (sum(len(b[2]) for b in bs), lambda s=s: items(s)) for s, bs in batches.items()})


def _kind(names) -> str | None:
    """Which official archive has these files, if any."""
    names = set(names)
    if "batches.meta" in names or "data_batch_1" in names:
        return "cifar10"
    return "cifar100" if {"meta", "train", "test"} <= names else None


def _archive_files(path: Path) -> dict[str, Callable[[], bytes]]:
    """File name to a function that reads it."""
    known = {f for spec in ARCHIVES.values() for f in (*sum(spec.files.values(), ()), spec.meta)}
    if path.is_dir():
        return {p.name: p.read_bytes for p in path.iterdir() if p.name in known and p.is_file()}
    with _reading(path), tarfile.open(path) as tar:
        found = {}
        for member in _members(tar, path):
            name = PurePosixPath(member.name).name
            if member.isfile() and name in known:
                found[name] = lambda data=tar.extractfile(member).read(): data
        return found


def _batch(data: bytes, where: str, spec: Archive, classes: int) -> tuple[str, np.ndarray, list[int]]:
    """(where, uint8[N,32,32,3], labels) of one pickled batch; rows are 3072 bytes, planes of red, green, blue."""
    batch = _unpickle(data, where)
    rows, labels = batch.get(b"data"), batch.get(spec.labels)
    shaped = isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1] == 3072
    if not shaped or not isinstance(labels, list) or len(labels) != len(rows):
        raise InputError(f"{where}: not a CIFAR batch: get the archive again")
    if not all(isinstance(v, int) and 0 <= v < classes for v in labels):
        raise InputError(f"{where}: a label is not in 0..{classes - 1}: get the archive again")
    return where, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


class _Unpickler(pickle.Unpickler):
    """Admits what NumPy arrays of plain numbers are made of, and nothing else."""

    ADMITTED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module, name):
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(data: bytes, where: str) -> dict:
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything; none of it may pass as data
        raise InputError(f"{where}: refused, not a CIFAR pickle ({error}): get the archive again") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: not a CIFAR pickle: get the archive again")
    return {k.encode() if isinstance(k, str) else k: v for k, v in value.items()}


def _text(name) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def download(name: str, folder: Path) -> Path:
    """Fetch an official archive into `folder` with a progress bar, check its md5, and give its path."""
    spec = ARCHIVES[name]
    target = folder / spec.url.rsplit("/", 1)[1]
    if target.exists() and _md5(target) == spec.md5:
        return target
    part = target.with_name(target.name + f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urlopen(spec.url, timeout=30) as reply, part.open("wb") as file:
            total = int(reply.headers.get("Content-Length") or 0)
            with tqdm(desc=f"download {target.name}", total=total, unit="B", unit_scale=True) as bar:
                while block := reply.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        if _md5(part) != spec.md5:
            raise InputError(f"{spec.url}: what came does not match md5 {spec.md5}: try again later")
        part.replace(target)
    except OSError as error:
        raise InputError(f"{spec.url}: cannot be had ({error}): download it elsewhere and give its path with --data") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _md5(path: Path) -> str:
    digest = hashlib.md5()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

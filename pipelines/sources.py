"""Where images come from: official archives, image folders and tars, and drawn shapes.

`find(name)` looks at what a name or a path is and gives a `Source`: class names and, for every split,
items of (place, where, label, picture). A picture is uint8[H,W,3] or an encoded file's bytes. Nothing is
unpacked on disk, and nothing in an archive can run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from os.path import exists, isdir, isfile  # unlike Path's, False for what may not be looked at
from pathlib import Path
from stat import S_ISREG

import numpy as np

from pipelines import official, shapes, tars
from pipelines.errors import InputError
from pipelines.official import ARCHIVES, download
from pipelines.pictures import MOST_BYTES
from pipelines.store import is_utf8

LAYOUT = "expected train/<class>/* and test/<class>/*, or train.tar and test.tar of class folders"
SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")


@dataclass(frozen=True)
class Item:
    """One image: its place in the split, where it is (for messages), its label, uint8[H,W,3] or a file's bytes."""

    place: int
    where: str
    label: int
    picture: np.ndarray | bytes


@dataclass(frozen=True)
class Source:
    """A set of images. `splits` maps "train" and "test" to (count, function that iterates its items).

    The items of a split have the places 0 to count - 1, and may come in any order.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[int, Callable[[], Iterator[Item]]]]


@dataclass(frozen=True)
class _Files:
    """The image files of a split: sorted names, ending in <class>/<image>, and (place, bytes) of each."""

    where: Path
    names: list[str]
    contents: Callable[[], Iterator[tuple[int, bytes]]]


def find(name: str | Path, cache: Path | None = None) -> Source:
    """The source that a name or a path means.

    name   "shapes", "cifar10", "cifar100" (downloaded into `cache`), or the path of an official archive
           (a tar, its extracted folder, or the folder around either), or of an image folder or tar of
           <split>/<class>/<image>
    Raises `InputError` where nothing is there, or it is none of these.
    """
    path = Path(name)
    if not exists(path):
        if str(name) == "shapes":
            return drawn()
        if str(name) in ARCHIVES:
            return archive(download(str(name), cache or Path(".")))
        raise InputError(f"{path}: no such file or folder: give a store, a source, or one of shapes, {', '.join(ARCHIVES)}")
    if isdir(path):
        if official.kind(f.name for f in _entries(path) if isfile(f)):
            return archive(path)
        inner = [path / n for spec in ARCHIVES.values() for n in (spec.folder, spec.url.rsplit("/", 1)[1])]
        found = next((p for p in inner if exists(p)), None)
        return archive(found) if found else image_folder(path)
    if not isfile(path):
        raise InputError(f"{path}: neither a file nor a folder: give a store, an archive or an image folder")
    members = tars.index(path)
    return archive(path) if official.kind(members) else image_tar(path, members)


def drawn() -> Source:
    """The embedded `shapes`: ten classes of drawn figures, 32x32, the same on every machine."""

    def items(split):
        for i, (picture, label) in enumerate(zip(*shapes.draw(split))):
            yield Item(i, f"shapes {split} {i}", int(label), picture)

    return Source("shapes", shapes.CLASSES, {s: (n, partial(items, s)) for s, n in shapes.COUNTS.items()})


def archive(path: Path) -> Source:
    """CIFAR-10 or CIFAR-100, "python version": the tar, or the folder it unpacks to."""
    name, classes, batches = official.load(path)

    def items(split):
        rows = ((b, i) for b in batches[split] for i in range(len(b.labels)))
        for place, (batch, i) in enumerate(rows):
            yield Item(place, f"{batch.where} image {i}", int(batch.labels[i]), batch.pictures[i])

    return Source(name, classes, {s: (sum(len(b.labels) for b in bs), partial(items, s)) for s, bs in batches.items()})


def image_folder(path: Path) -> Source:
    """<path>/<split>/<class>/<image>, where <split> is a folder or a tar of class folders."""
    splits = {}
    for split, aliases in SPLITS.items():
        found = next((p for a in aliases for p in (path / a, *(path / (a + s) for s in TARS)) if exists(p)), None)
        if found is None:
            raise InputError(f"{path}: no {split} images: {LAYOUT}")
        splits[split] = _in_folder(found) if isdir(found) else _in_tar(found, tars.index(found), depth=2)
    return _images(path.resolve().name, splits)


def image_tar(path: Path, members: dict) -> Source:
    """One tar of <split>/<class>/<image>; a common folder around the splits is allowed. `members` is its index."""
    depth = 3
    there = {tars.parts(n)[-depth] for n in members if len(tars.parts(n)) >= depth}
    splits = {}
    for split, aliases in SPLITS.items():
        alias = next((a for a in aliases if a in there), None)
        if alias is None:
            raise InputError(f"{path}: no {split} images: {LAYOUT}")
        splits[split] = _in_tar(path, {n: m for n, m in members.items() if tars.parts(n)[-depth:][:1] == [alias]}, depth)
    return _images(path.name.split(".")[0], splits)


def _images(name: str, splits: dict[str, _Files]) -> Source:
    """A source of image files; every split must have the same classes, sorted."""
    owners = {s: [tars.parts(n)[-2] for n in files.names] for s, files in splits.items()}
    train, test = set(owners["train"]), set(owners["test"])
    for odd in sorted(train ^ test):
        raise InputError(f"{splits['test'].where}: class {odd!r} is not in both train and test: give both the same class folders")
    for odd in (c for c in train if not is_utf8(c)):
        raise InputError(f"{splits['train'].where}: the name of class folder {odd!a} is not UTF-8: rename it")
    labels = {c: i for i, c in enumerate(sorted(train))}

    def items(split):
        files, mine = splits[split], [labels[c] for c in owners[split]]
        for place, data in files.contents():
            yield Item(place, f"{files.where}/{files.names[place]}", mine[place], data)

    readable = name.encode("utf-8", "backslashreplace").decode()  # a store holds UTF-8 only
    return Source(readable, tuple(labels), {s: (len(files.names), partial(items, s)) for s, files in splits.items()})


def _is_image(names: list[str]) -> bool:
    """Whether <class>/<image> is one; hidden files, such as the `._` copies that macOS leaves, are none."""
    return names[-1].lower().endswith(SUFFIXES) and not any(n.startswith(".") for n in names[-2:])


def _in_tar(path: Path, members: dict, depth: int) -> _Files:
    """The images of a tar, at least `depth` levels deep."""
    names = sorted(n for n in members if len(tars.parts(n)) >= depth and _is_image(tars.parts(n)))
    if not names:
        raise InputError(f"{path}: no images in it: {LAYOUT}")
    return _Files(path, names, lambda: tars.contents(path, [members[n] for n in names], MOST_BYTES))


def _in_folder(path: Path) -> _Files:
    """The images of <path>/<class>/<image>."""
    folders = [f for f in _entries(path) if isdir(f)]
    names = sorted(f"{f.name}/{file.name}" for f in folders for file in _entries(f) if _is_image([f.name, file.name]))
    if not names:
        raise InputError(f"{path}: no images in it: {LAYOUT}")
    return _Files(path, names, lambda: ((i, _read(path / name)) for i, name in enumerate(names)))


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError as error:
        raise InputError(f"{path}: cannot be listed ({error.strerror}): allow it to be read") from None


def _read(file: Path) -> bytes:
    try:
        status = file.stat()
        if not S_ISREG(status.st_mode):  # a folder, or a device that never ends
            raise InputError(f"{file}: named like an image, but no plain file: rename or remove it")
        tars.check_size(str(file), status.st_size, MOST_BYTES)
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}): mend or remove it") from None

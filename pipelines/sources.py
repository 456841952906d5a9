"""Where images come from: official archives, SVHN, image folders and tars, and drawn shapes.

`find(name)` looks at what a name or a path is and gives a `Source`: class names and, for every split,
items of (place, where, label, picture). A picture is uint8[H,W,3] or an encoded file's bytes. Nothing is
unpacked on disk, and nothing in an archive can run.
"""

import zipfile
from functools import partial
from os.path import exists, isdir, isfile  # unlike Path's, False for what may not be looked at
from pathlib import Path

from pipelines import folders, official, shapes, svhn, tars
from pipelines.errors import InputError
from pipelines.items import Item, Source
from pipelines.official import ARCHIVES, download
from pipelines.store import cache_folder

NAMED = ("shapes", *ARCHIVES, "svhn")


def find(name: str | Path, cache: Path | None = None) -> Source:
    """The source that a name or a path means.

    name   one of `NAMED` (downloaded into `cache`, else `cache_folder()`, but for "shapes"), or the path of an official archive (a tar, its extracted
           folder, or the folder around either), of SVHN's folder, of Tiny-ImageNet's, or of an image folder or tar of
           <split>/<class>/<image> or <class>/<image>
    Raises `InputError` where nothing is there, or it is none of these.
    """
    path = Path(name)
    if not exists(path):
        if str(name) == "shapes":
            return drawn()
        if str(name) == "svhn":
            return svhn.source(svhn.download(cache or cache_folder()))
        if str(name) in ARCHIVES:
            return archive(download(str(name), cache or cache_folder()))
        raise InputError(f"{path}: no such file or folder: give a store, a source, or one of {', '.join(NAMED)}")
    if isdir(path):
        return folder(path)
    if not isfile(path):
        raise InputError(f"{path}: neither a file nor a folder: give a store, an archive or an image folder")
    if zipfile.is_zipfile(path) and begins(path, b"PK"):  # a tar whose last file is a zip ends like one
        raise InputError(f"{path}: a zip archive: unpack it, and name the folder")
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: a store, not what one is made of: name its source")
    if path.suffix.lower() in folders.SUFFIXES:
        raise InputError(f"{path}: one picture: name the folder around its class folders")
    members = tars.index(path)
    return archive(path) if official.kind(members) else folders.image_tar(path, members)


def begins(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def folder(path: Path) -> Source:
    """The source that a folder is, or that it holds."""
    names = {f.name for f in folders.entries(path) if isfile(f)}
    if official.kind(names):
        return archive(path)
    if set(svhn.FILES.values()) <= names:
        return svhn.source(path)
    inner = [path / n for spec in ARCHIVES.values() for n in (spec.folder, spec.url.rsplit("/", 1)[1])]
    found = next((p for p in inner if exists(p)), None)
    return archive(found) if found else folders.image_folder(path)


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

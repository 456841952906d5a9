"""What `--data` means: a store, or a source that is converted once and kept in the cache."""

import glob
import hashlib
import os
import sys
from os.path import exists, isdir, isfile  # unlike Path's, False for what may not be looked at
from pathlib import Path

from pipelines import shapes
from pipelines.convert import convert
from pipelines.errors import InputError
from pipelines.files import make_folder, walk
from pipelines.sources import NAMED, find
from pipelines.store import VERSION, Store, cache_folder

NO_DATA = """
*** No CIFAR-10 here, and it cannot be downloaded: training on the embedded `shapes` instead.
*** The figures of this run say nothing about CIFAR-10. To train on your own data: --data PATH
"""


def locate(data: str = "", size: int = 0) -> Store:
    """The store for `data`: a store's path, a source's path or name, or "" for what can be found.

    "" means $TENFOLD_DATA, then `data/`, then the official CIFAR-10 archive, downloaded, and where that
    cannot be had the embedded `shapes`, which is said on stderr. `size` is the side that a source's pictures are brought to, 0
    leaves them as they are. Raises `InputError` for anything else, and for a store whose images have another size.
    """
    data = data or os.environ.get("TENFOLD_DATA", "") or ("data" if isfile("data") or glob.glob("data/*") else "")
    if data:
        return _store(data, size)
    try:
        return _store("cifar10", size)
    except InputError as error:
        print(f"{error}\n{NO_DATA}", file=sys.stderr)
        return _store("shapes", size)


def _store(data: str, size: int) -> Store:
    path = Path(data)
    stores = [path] if path.suffix == ".safetensors" else _stores(path) if isdir(path) else []
    if len(stores) == 1:
        store = Store(stores[0])
        if size and (store.height, store.width) != (size, size):
            raise InputError(f"{store.path}: its images have {store.width}x{store.height} pixels: convert their source again with --size {size}")
        return store
    if stores and isdir(path):
        raise InputError(f"{data}: {len(stores)} stores in it ({', '.join(p.name for p in stores)}): name one with --data")
    kept = cache_folder() / f"{_readable(path)}-{_fingerprint(path, size)}.safetensors"
    if not exists(kept):
        source = find(data)
        make_folder(kept.parent)
        convert(source, kept, size=size)
        if source.note:
            print(source.note, file=sys.stderr)
    return Store(kept)


def _stores(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("."))  # such as the copies that macOS leaves


def _readable(path: Path) -> str:
    """What a source's store is called, for people: a name that any disk and safetensors take."""
    name = os.path.basename(os.path.abspath(path)).split(".")[0]
    return name.encode("utf-8", "replace").decode()[:40]


def _fingerprint(path: Path, side: int) -> str:
    """Twelve hex digits that change when a source does, or the side it is brought to: of every file's place, size and time, or the name."""
    facts: list[tuple]
    if isdir(path):
        facts = sorted(fact for folder in walk(path) for fact in _facts_within(path, *folder))
    elif exists(path):
        facts = [_facts(path)]
    else:  # a name: an archive, which never changes, or shapes, which change with the code that draws them
        facts = [_facts(shapes.__file__)] if str(path) == "shapes" else []
    return hashlib.sha256(repr((VERSION, str(path) if str(path) in NAMED else "", facts, *([side] if side else []))).encode()).hexdigest()[:12]


def _facts(file: str | Path) -> tuple:
    status = os.stat(file)
    return os.path.realpath(file), status.st_size, status.st_mtime_ns


def _facts_within(path: Path, place: str, _, files: list[str]) -> list[tuple]:
    """Of a folder somewhere in `path`, and of its files: what each is called there, as that says its class, and where it is, to which a link may lead."""
    inside = os.path.relpath(place, path)
    return [(inside, os.path.realpath(place)), *((f"{inside}/{name}", *_facts(f"{place}/{name}")) for name in files if isfile(f"{place}/{name}"))]

"""What `--data` means: a store, or a source that is converted once and kept in the cache."""

import hashlib
import os
import sys
from pathlib import Path

from pipelines import shapes
from pipelines.convert import convert
from pipelines.errors import InputError
from pipelines.files import make_folder
from pipelines.sources import ARCHIVES, find
from pipelines.store import VERSION, Store, cache_folder

NO_DATA = """
*** No CIFAR-10 here, and it cannot be downloaded: training on the embedded `shapes` instead.
*** The figures of this run say nothing about CIFAR-10. To train on your own data: --data PATH
"""


def locate(data: str = "") -> Store:
    """The store for `data`: a store's path, a source's path or name, or "" for what can be found.

    "" means $TENFOLD_DATA, then `data/`, then the official CIFAR-10 archive, downloaded, and where that
    cannot be had the embedded `shapes`, which is said on stderr. Raises `InputError` for anything else.
    """
    data = data or os.environ.get("TENFOLD_DATA", "") or ("data" if Path("data").exists() else "")
    if data:
        return _store(data)
    try:
        return _store("cifar10")
    except InputError as error:
        print(f"{error}\n{NO_DATA}", file=sys.stderr)
        return _store("shapes")


def _store(data: str) -> Store:
    path = Path(data)
    if path.suffix == ".safetensors":
        return Store(path)
    if path.is_dir() and len(stores := sorted(path.glob("*.safetensors"))) == 1:
        return Store(stores[0])
    kept = cache_folder() / f"{path.resolve().name.split('.')[0]}-{_fingerprint(path)}.safetensors"
    if not kept.exists():
        source = find(data, cache_folder())
        make_folder(kept.parent)
        convert(source, kept)
    return Store(kept)


def _fingerprint(path: Path) -> str:
    """Twelve hex digits that change when a source does: of every file's place, size and time, or the name."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.exists():
        files = [path]
    else:  # a name: an archive, which never changes, or shapes, which change with the code that draws them
        files = [Path(shapes.__file__)] if str(path) == "shapes" else []
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr((VERSION, str(path) if str(path) in ARCHIVES else "", facts)).encode()).hexdigest()[:12]

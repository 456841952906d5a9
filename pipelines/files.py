"""Files that are there whole or not at all."""

import fcntl
import glob
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from pipelines.errors import InputError


def make_folder(folder: Path) -> None:
    """Make a folder of the cache, where it is not there; raises `InputError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}): name another folder with TENFOLD_CACHE") from None


def walk(folder: Path, onerror: Callable | None = None) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, through links to folders, too; but no folder is gone through twice, so that there is an end."""
    known = set()
    for place, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        real = os.path.realpath(place)
        if real in known:
            folders.clear()
            files = []
        known.add(real)
        yield place, folders, files


@contextmanager
def replacing(path: str | Path):
    """Yield a temporary path beside `path`, an empty file; renamed onto it when the block ends well, removed when not. A link stays one: it is what it leads to that is replaced.

    A writer that is killed leaves its temporary file. The next one of the same path removes it: each is locked while its
    writer lives. Raises `InputError` where the folder cannot be written or is full.
    """
    named, path = path, Path(os.path.realpath(path))
    if os.path.isdir(path):
        raise InputError(f"{named}: is a folder: name a file in it")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # its own, whoever else writes here
    try:
        sweep(path)
        with temporary.open("xb") as mine:
            with suppress(OSError):  # some network file systems know no locks: there, nothing is removed
                fcntl.flock(mine, fcntl.LOCK_EX)
            yield temporary
            os.fsync(mine.fileno())
            temporary.replace(path)
    except OSError as error:
        raise InputError(f"{named}: cannot be written ({error.strerror or error}): free some room or name another folder") from None
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the folder itself is missing or is no folder: nothing was written
            pass


def check_writable(path: str | Path) -> None:
    """Raise `InputError` as `replacing` does where no such file can be written: before the work that gives what is to be in it. What is there stays."""
    with suppress(_LeftAlone), replacing(path):
        raise _LeftAlone


class _LeftAlone(Exception):
    pass


HELD: set[int] = set()  # folders' handles, which a forked child, such as a loader's worker, must not keep when this process is gone


def let_go() -> None:
    while HELD:
        os.close(HELD.pop())


os.register_at_fork(after_in_child=let_go)


@contextmanager
def held(folder: Path):
    """A folder for this process alone while the block runs. Raises `InputError` where another has it; a file system that knows no locks lets all in."""
    handle = os.open(folder, os.O_RDONLY)
    HELD.add(handle)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another process is training into it: wait for its end, or name another folder with --out") from None
        yield
    finally:
        HELD.discard(handle)
        os.close(handle)


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.part"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its writer lives
            left.unlink(missing_ok=True)


def write_json(path: str | Path, values: dict) -> None:
    """Write values whole or not at all; a dataclass becomes a dict. Raises `InputError` as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, default=asdict) + "\n", encoding="utf-8")

"""Tar archives from anywhere: listed once, checked to their end, read in their own order, never unpacked on disk."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import InputError


class _Header(tarfile.TarInfo):
    """A member's header. `tarfile` takes a damaged one, or none, for the archive's end; here it is an error."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # the end mark, which a tar that was cut does not have
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def index(path: Path) -> dict[str, tarfile.TarInfo]:
    """Name to member, plain files only: links and devices are no images. Of two with one name the last counts.

    Raises `InputError` for a damaged archive, and for one with a member that leads outside it.
    """
    with _whole(path), tarfile.open(path, tarinfo=_Header) as tar:
        found = {}
        for member in tar:
            if member.name.startswith("/") or ".." in member.name.split("/"):
                raise InputError(f"{path}: member {member.name!r} leads outside the archive: get it from a source you trust")
            if member.isfile():
                found[member.name] = member
        while tar.fileobj.read(1 << 20):  # gzip and xz keep their checksum behind the last member
            pass
    return found


def contents(path: Path, members: list[tarfile.TarInfo], most: int) -> Iterator[tuple[int, bytes]]:
    """(place in `members`, bytes), in the archive's order, since a compressed one cannot go back.

    members  of `index`; `most` is the bytes one of them may have
    """
    with _whole(path), tarfile.open(path) as tar:
        for i in sorted(range(len(members)), key=lambda i: members[i].offset_data):
            check_size(f"{path}/{members[i].name}", members[i].size, most)
            yield i, tar.extractfile(members[i]).read()


def check_size(where: str, size: int, most: int) -> None:
    """Raise `InputError` for a file that is larger than anything this is for."""
    if size > most:
        raise InputError(f"{where}: {size:,} bytes, more than the {most >> 20} MiB that are read: this is for small images")


def parts(name: str) -> list[str]:
    """The folders and the file of a member's name, which has slashes on every system."""
    return [part for part in name.split("/") if part not in ("", ".")]


@contextmanager
def _whole(path: Path):
    """Turn whatever a damaged archive raises into one line that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # tarfile lets ValueError, OverflowError and more through
        reason = str(error).split("\n")[0].rstrip(":")
        raise InputError(f"{path}: not a whole tar archive ({reason}): get it again") from None

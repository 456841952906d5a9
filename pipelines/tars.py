"""Tar archives from anywhere: listed once, checked to their end, read in their own order, never unpacked on disk."""

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import InputError, reason

MOST_NAME = 1 << 16  # bytes of a long name or a set of extended records
MOST_KEYWORD = 1 << 10  # bytes of an extended record's length and name
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
MOST_SWELL = (1 << 30, 1000)  # bytes that an archive may become, and more for each byte it has: images stay far below it
MOST_HEADERS = (1 << 24, 16)  # bytes of headers likewise: they are what stays in memory


class _Header(tarfile.TarInfo):
    """A member's header. `tarfile` takes a damaged one, or none, for the archive's end; here it is an error.

    So are a size below zero, at which older Pythons turn in a circle, names that fill memory, and sparse files, which
    are larger than their archive. Extended records are read here, as older Pythons take quadratic time to find one in them.
    """

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # the end mark, which a tar that was cut does not have
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    def _proc_member(self, tar):  # tarfile's place for subclasses to look at a header, before its content is read
        if self.size < 0 or self.size > MOST_NAME and self.type in NAMES or self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"a member of type {self.type!r} with {self.size} bytes")
        member = super()._proc_member(tar)
        if member.size < 0 or member.issparse():
            raise tarfile.ReadError("a member that is sparse or of a negative size")
        return member

    def _proc_pax(self, tar):
        """The member behind a set of extended records, whose path and size count; what is said for all members says neither."""
        records = _records(tar.fileobj.read(self._block(self.size))[: self.size])
        if any(name.startswith(b"GNU.sparse.") for name in records) or self.type == tarfile.XGLTYPE and records.keys() & {b"path", b"size"}:
            raise tarfile.ReadError("a member that is sparse, or one name or size for all members")
        try:
            member = self.fromtarfile(tar)
        except tarfile.HeaderError:  # the end mark
            raise tarfile.ReadError("extended records of no member") from None
        member.offset = self.offset
        if b"path" in records:
            member.name = records[b"path"].decode(errors="surrogateescape").rstrip("/")
        if b"size" in records:
            member.size = int(records[b"size"])
            follows = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
            tar.offset = member.offset_data + (member._block(member.size) if follows else 0)
        return member


def _records(content: bytes) -> dict[bytes, bytes]:
    """Name to value of POSIX's extended records: "LENGTH NAME=VALUE" and a new line, LENGTH of all that. Raises `tarfile.ReadError`."""
    found, at = {}, 0
    while at < len(content):
        begin = re.match(rb"([1-9]\d{0,4}) ([^=\n]+)=", content[at : at + MOST_KEYWORD])
        end = at + int(begin[1]) if begin else at
        if not begin or end < at + begin.end() or content[end - 1 : end] != b"\n":
            raise tarfile.ReadError("extended records out of shape")
        found[begin[2]] = content[at + begin.end() : end - 1]
        at = end
    return found


def index(path: Path) -> dict[str, tarfile.TarInfo]:
    """Name to member, plain files only: links and devices are no images. Of two with one name the last counts.

    Raises `InputError` for a damaged archive, and for one with a member that leads outside it.
    """
    with _whole(path), tarfile.open(path, tarinfo=_Header) as tar:
        found, headers = {}, 0
        for member in tar:
            headers += member.offset_data - member.offset
            _check_swell(path, tar.offset, MOST_SWELL)
            _check_swell(path, headers, MOST_HEADERS)
            if member.name.startswith("/") or ".." in member.name.split("/"):
                raise InputError(f"{path}: member {member.name!r} leads outside the archive: get it from a source you trust")
            if member.isfile():
                found[member.name] = member
        while tar.fileobj.read(1 << 20):  # gzip and xz keep their checksum behind the last member
            _check_swell(path, tar.fileobj.tell(), MOST_SWELL)
    return found


def contents(path: Path, members: list[tarfile.TarInfo], most: int) -> Iterator[tuple[int, bytes]]:
    """(place in `members`, bytes), in the archive's order, since a compressed one cannot go back.

    members  of `index`; `most` is the bytes one of them may have
    """
    with _whole(path), tarfile.open(path, tarinfo=_Header) as tar:
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


def _check_swell(path: Path, size: int, most: tuple[int, int]) -> None:
    if size > most[0] + most[1] * path.stat().st_size:
        raise InputError(f"{path}: not a whole tar archive (it says it holds {size:,} bytes, far more than images would take): get it again")


@contextmanager
def _whole(path: Path):
    """Turn whatever a damaged archive raises into one line that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # tarfile lets ValueError, OverflowError and more through
        raise InputError(f"{path}: not a whole tar archive ({reason(error)}): get it again") from None

"""Ways to spoil a tar or a zip archive, as `fuzz_mutations.py` has them for other files; `bomb` packs much into little."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from functools import cache
from random import Random

import fuzz_mutations as spoilt

# Tar


FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
}
RECORDS = (
    "size=-512", "size=-1024", "size=0", "size=99999999999999", "size=x", "path=../ran", "path=/ran", "path=train/../../ran", "path=",
    "GNU.sparse.map=0,1", "GNU.sparse.size=2000000000", "GNU.sparse.major=1\nGNU.sparse.minor=0\nGNU.sparse.realsize=2000000000",
    "GNU.sparse.map=0,0,2000000000,0\nGNU.sparse.size=2000000000", "linkpath=../ran", "hdrcharset=BINARY", "mtime=nan", "uid=9e999", "comment=" + "x" * 70000, "comment=" + "1" * 60000,
)  # fmt: skip


def tar(rng: Random, data: bytes) -> bytes:
    """A plain tar with a header that lies, its checksum mended, or a member more."""
    heads, at = [], 0
    while at + 512 <= len(data) and data[at : at + 512].strip(b"\0"):
        heads.append(at)
        at += 512 + -(-int(data[at + 124 : at + 135], 8) // 512) * 512
    at = rng.choice(heads)
    if rng.random() < 0.4:
        return data[:at] + _member(rng) + data[at:]
    header = bytearray(data[at : at + 512])
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(FIELDS))
        start, length = FIELDS[name]
        header[start : start + length] = _field(rng, name, length)
    return data[:at] + summed(header) + data[at + 512 :]


def _field(rng: Random, name: str, length: int) -> bytes:
    if name == "type":
        return rng.choice([bytes([c]) for c in b"01234567gxLKSVMNDX\0\xff"])
    if name in ("size", "mode", "mtime"):
        value = rng.choice(spoilt.NUMBERS) * rng.choice((1, 1, -1))
        base256 = (value % (1 << 8 * (length - 1))).to_bytes(length - 1, "big")
        return rng.choice(
            (b"%0*o" % (length - 1, abs(value)), (b"\xff" if value < 0 else b"\x80") + base256, b"-1".ljust(length, b"\0"), rng.randbytes(length))
        )[:length].ljust(length, b"\0")
    names = (
        "../ran",
        "/ran",
        "train/../../ran",
        "train/bee/\xff.png",
        "a/" * 60,
        "train/bee/0.png",
        "test/bee/0.png",
        "train/new/0.png",
        "train/bee/\n.png",
        "train/bee/\x1b[2J.png",
        "",
    )
    return rng.choice(names).encode("latin1")[:length].ljust(length, b"\0")


def summed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _member(rng: Random) -> bytes:
    """A member of any kind, with content that fits its kind or not."""
    kind = rng.choice(
        (
            tarfile.XHDTYPE,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_SPARSE,
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.FIFOTYPE,
            tarfile.CHRTYPE,
        )
    )
    member = tarfile.TarInfo(rng.choice(("x", "train/bee/x.png", "../ran")))
    member.type, member.linkname, content = kind, rng.choice(("../ran", "/etc/passwd", "train/bee/0.png")), b""
    if kind in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        records = (f"{r}\n" for r in rng.choice(RECORDS).split("\n"))
        content = b"".join(pax_record(r) for r in records) if rng.random() < 0.9 else rng.choice((b"1" * 50_000, b"5 a=\n" * 3, b"-9 x=y\n", b"0 x=y\n"))
    elif kind == tarfile.GNUTYPE_LONGNAME:
        content = rng.choice((b"../ran\0", b"train/bee/" + b"x" * 300 + b".png\0", b"x/" * 30_000, b""))
    member.size = len(content) if rng.random() < 0.8 else rng.choice(spoilt.NUMBERS[:-3])
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if kind == tarfile.GNUTYPE_SPARSE:
        header[386:410] = b"%011o\0%011o\0" % (0, rng.choice((0, 1, 512)))
        header[483:495] = b"%011o\0" % rng.choice((0, 512, 2 * 10**9))
    block = summed(header) + content + bytes(-len(content) % 512)
    return block * (3000 if kind == tarfile.GNUTYPE_LONGNAME and rng.random() < 0.1 else 40 if len(content) > 50_000 else 1)


def pax_record(text: str) -> bytes:
    length = len(text) + 1
    while len(str(length)) + 1 + len(text) != length:
        length = len(str(length)) + 1 + len(text)
    return f"{length} {text}".encode()


# Compression


PACKERS = {"": bytes, ".gz": lambda data: gzip.compress(data, 1, mtime=0), ".xz": lambda data: lzma.compress(data, preset=0), ".bz2": bz2.compress}


def _end(data: bytes) -> int:
    """Where the members of a good tar end, and zeros begin."""
    used = len(data.rstrip(b"\0"))
    return used + -used % 512


@cache
def _packed(ending: str, block: bytes) -> bytes:
    return PACKERS[ending](block)


def bomb(rng: Random, data: bytes, ending: str) -> bytes:
    """A tar, compressed, with far more in it than its size tells: zeros in a member or behind the end, or members without end."""
    kind = rng.choice(("in a member", "behind the end", "members", "names"))
    if kind == "members":
        return _packed(ending, data[: _end(data)]) + _packed(ending, tarfile.TarInfo("x").tobuf() * 2048) * 600
    if kind == "behind the end":
        return _packed(ending, data) + _packed(ending, bytes(spoilt.MEBI)) * 400
    member = tarfile.TarInfo(rng.choice(("train/bee/x.png", "cifar-10-batches-py/data_batch_1")))
    member.type, member.size = (tarfile.REGTYPE if kind == "in a member" else tarfile.GNUTYPE_LONGNAME), 400 * spoilt.MEBI
    return _packed(ending, member.tobuf()) + _packed(ending, bytes(spoilt.MEBI)) * 400 + _packed(ending, data)


# Zip


def zipped(rng: Random, data: bytes) -> bytes:
    """A checkpoint's archive with one record spoilt, dropped, doubled, renamed or swollen."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    i = next(i for i, (name, _) in enumerate(records) if name.endswith("/data.pkl")) if rng.random() < 0.6 else rng.randrange(len(records))
    name, content = records[i]
    action = rng.randrange(8)
    if name.endswith(".pkl") and action > 1:
        records[i] = name, spoilt.pickled(rng, content)
    elif action == 0:
        del records[i]
    elif action == 1:
        records.insert(rng.randrange(len(records)), (name, spoilt.spoil(rng, content)))
    elif action == 2:
        records[i] = rng.choice(("../ran", "/ran", "ran", records[0][0], name + "x", name.upper())), content
    elif action == 3:
        return swollen(records, i)
    else:
        records[i] = name, spoilt.spoil(rng, content)
    return zip_of(records, rng.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED,)))


def zip_of(records: list[tuple[str, bytes]], kind: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in records:
            info = zipfile.ZipInfo(name)
            info.compress_type = kind
            archive.writestr(info, content)
    return file.getvalue()


def swollen(records: list[tuple[str, bytes]], i: int) -> bytes:
    """The i-th record with 400 MiB of zeros behind it, in less than one."""
    name, content = records[i]
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    begin = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH)
    body = begin + _zeros() * 400 + b"\x03\x00"
    crc = zlib.crc32(content)
    for _ in range(400):
        crc = zlib.crc32(bytes(spoilt.MEBI), crc)
    old = zip_of([*records[:i], (name, body), *records[i + 1 :]], zipfile.ZIP_STORED)
    sizes = len(body).to_bytes(4, "little") * 2
    stored = b"\0\0" + _dos() + zlib.crc32(body).to_bytes(4, "little") + sizes
    lie = b"\x08\0" + _dos() + crc.to_bytes(4, "little") + sizes[:4] + (len(content) + 400 * spoilt.MEBI).to_bytes(4, "little")
    return old.replace(stored, lie)


def _dos() -> bytes:
    return b"\0\0\x21\0"  # ZipInfo's date, 1980-01-01, as zip writes it


@cache
def _zeros() -> bytes:
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflate.compress(bytes(spoilt.MEBI)) + deflate.flush(zlib.Z_FULL_FLUSH)

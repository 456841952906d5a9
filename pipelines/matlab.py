"""Numeric arrays out of a MATLAB file of level 5, as SVHN's are ("MAT-File Format", MathWorks).

SciPy reads all of the format, but 1.4 MB of cells in cells make it overflow the stack, and what is compressed swells to
what it says. Here cells, structures, sparse and complex arrays are refused, and memory is what the file justifies.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines import tars
from pipelines.errors import InputError, reason

HEADER = 128  # bytes: text, version, and the order of bytes
MATRIX, COMPRESSED, UINT32, INT32, INT8 = 14, 15, 6, 5, 1  # types of elements
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC = range(6, 16)  # classes of arrays: double, single, and the integers
COMPLEX = 0x800
MOST_SWELL = 16  # bytes of an array to one of the file: SVHN's have 1.2
MOST_BYTES = 1 << 31  # of an array: SVHN's "extra" has 1.6 GB
ROOM = 1 << 20


def read(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of these names, in MATLAB's shape and storage type. Raises `InputError` for what is damaged or lacks one."""
    try:
        tars.check_size(str(path), path.stat().st_size, MOST_BYTES)
        data = memoryview(path.read_bytes())
        if bytes(data[:HEADER])[124:128] != b"\0\x01IM":
            raise ValueError("no MATLAB file of level 5 from a little-endian machine")
        left, found = min(MOST_SWELL * len(data) + ROOM, MOST_BYTES), {}
        for kind, content in elements(data[HEADER:], aligned=False):
            if kind == COMPRESSED:
                content = inflated(content, left)
                left -= len(content)
                ((kind, content),) = elements(content)
            if kind == MATRIX:
                found |= matrix(content, wanted)
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"no array {missing[0]!r} in it")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): mend or remove it") from None
    except Exception as error:  # a damaged file can raise anything; none of it may pass as data
        raise InputError(f"{path}: not a MATLAB file that can be read ({reason(error)}): get it again") from None
    return found


def elements(data: memoryview, aligned: bool = True) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of each element. Within a matrix they begin at multiples of 8 bytes; compressed ones do not."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("cut within an element")
        kind, size = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4))
        begin = at + 8
        if kind >> 16:  # a small element: its size is in the upper half, its content where the size would be
            kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise ValueError("a small element of more than 4 bytes")
        if begin + size > len(data):
            raise ValueError("an element is longer than the file")
        yield kind, data[begin : begin + size]
        at = max(begin + size, at + 8)
        if aligned or kind != COMPRESSED:
            at += -at % 8


def inflated(content: memoryview, most: int) -> memoryview:
    """What a compressed element holds, at most `most` bytes."""
    machine = zlib.decompressobj()
    data = machine.decompress(content, max(most, 1))  # 0 would be no limit
    if not machine.eof:
        raise ValueError("its compressed data is cut, or swells beyond what images do")
    return memoryview(data)


def matrix(content: memoryview, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """{name: array} of a matrix, empty where it is not wanted. Stored by columns, and so is the array."""
    parts = elements(content)
    kinds, (flags, shape, name) = zip(*(next(parts) for _ in range(3)))
    if kinds != (UINT32, INT32, INT8):
        raise ValueError("a matrix without flags, shape and name")
    called = bytes(name).decode("latin1")
    if called not in wanted:
        return {}
    described = int.from_bytes(flags[:4], "little")
    if described & 0xFF not in NUMERIC or described & COMPLEX:
        raise ValueError(f"{called!r} is no plain array of numbers")
    kind, values = next(parts)
    if kind not in TYPES:
        raise ValueError(f"{called!r} holds no numbers")
    sizes = [int(n) for n in np.frombuffer(shape, "<i4")]
    array = np.frombuffer(values, f"<{TYPES[kind]}")
    if not 2 <= len(sizes) <= 8 or min(sizes) < 0 or math.prod(sizes) != len(array):
        raise ValueError(f"{called!r} is not of its shape")
    return {called: array.reshape(sizes, order="F")}

"""Fuzzed: other layouts, SVHN's MATLAB files and Tiny-ImageNet's folders with their texts, and class folders without a split.

A MATLAB file is written here, element by element, so that each lie in it has the lengths and the compression that let it reach the
reader; nothing is shared with `pipelines/matlab.py`. `fuzz_readers.py` gives these a place among the readers.
"""

import zlib
from random import Random

import fuzz_mutations as spoilt
import numpy as np

CLASSES = ("n01", "n02")
NAMES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}  # of SVHN's files, as their page has them
KINDS = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12, "u8": 13}
LABELS = ([0, 11], [-1, 1], [1, 2, 3], [1], [], [0.5, 1], [float("nan"), 1], [float("inf"), 1], [2**31 - 1, 1], [255, 1])


# MATLAB files


def element(kind: int, content: bytes, size: int | None = None) -> bytes:
    """A type, a size (the content's, or a lie), the content and what fills it up to 8 bytes."""
    return b"".join((n % (1 << 32)).to_bytes(4, "little") for n in (kind, len(content) if size is None else size)) + content + bytes(-len(content) % 8)


def matrix(name: bytes, array: np.ndarray, **lies) -> bytes:
    """An array as an element; `lies` replace its parts: flags, shape, kind (of the values), values, sizes of the elements."""
    flags = lies.get("flags", 9 if array.dtype == np.uint8 else 6)
    shape = b"".join((n % (1 << 32)).to_bytes(4, "little") for n in lies.get("shape", array.shape))
    values = lies.get("values", array.tobytes(order="F"))
    parts = [
        element(lies.get("flags kind", 6), (flags % (1 << 64)).to_bytes(8, "little"), lies.get("flags size")),
        element(lies.get("shape kind", 5), shape, lies.get("shape size")),
        element(lies.get("name kind", 1), name, lies.get("name size")),
        element(lies.get("kind", KINDS[array.dtype.str[1:]]), values, lies.get("values size")),
    ]
    return element(14, b"".join(parts[: lies.get("parts", 4)]), lies.get("size"))


def packed(rng: Random, inside: bytes) -> bytes:
    """An element compressed, or as it is. A compressed one is not filled up."""
    if rng.random() < 0.3:
        return inside
    data = zlib.compress(inside, 1)
    return (15).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data


def mat(*matrices: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM" + b"".join(matrices)


def digits(seed: int, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), rng.integers(1, 11, (count, 1)).astype(np.uint8)


def svhn_files(compress: bool = True) -> dict[str, bytes]:
    rng = Random(0)
    rng.random = lambda: float(compress)
    return {name: mat(*(packed(rng, matrix(n, a)) for n, a in zip((b"X", b"y"), digits(i)))) for i, name in enumerate(NAMES.values())}


def lying(rng: Random, name: bytes, array: np.ndarray) -> bytes:
    """A matrix with a lie in it."""
    numbers, lies = (*spoilt.NUMBERS, -1, -8), {}
    for _ in range(rng.choice((1, 1, 2))):
        part = rng.choice(
            ("flags", "shape", "kind", "values", "size", "values size", "shape size", "name size", "flags size", "shape kind", "name kind", "parts")
        )
        if part == "flags":
            lies[part] = rng.choice((rng.randrange(20), 1, 2, 5, 9 | 0x800, 6 | 0x800, 9 | 0x200, rng.getrandbits(64)))
        elif part == "shape":
            other = list(array.shape)
            other[rng.randrange(len(other))] = rng.choice(numbers)
            lies[part] = rng.choice((other, other, [array.size], [], [0] * len(other), [1] * 40, [65536] * 4, [-n for n in array.shape], [*array.shape, 1]))
        elif part == "values":
            lies[part] = rng.choice((b"", array.tobytes() * 2, array.tobytes()[:-1], bytes(rng.choice((1, 4, 8, 4096)))))
        elif part == "parts":
            lies[part] = rng.randrange(4)
        else:
            lies[part] = rng.choice(numbers) if part.endswith("size") else rng.choice((rng.randrange(20), rng.randrange(1 << 32), 4 << 16 | 2, 5 << 16 | 2))
    return matrix(name, array, **lies)


def swollen(rng: Random) -> bytes:
    """Little that says it is much: zeros that a compressed element swells to, one compressed in another, cells in cells."""
    kind = rng.choice(("zeros", "zeros", "twice", "cells"))
    if kind == "cells":
        inside = b""
        for _ in range(rng.choice((100, 20_000))):  # at ten thousand SciPy's reader overflows the stack
            inside = matrix(b"X", np.zeros((1, 1), np.uint8), flags=1, kind=14, values=inside[8:])
            if len(inside) > 1 << 20:
                break
        return inside
    zeros = zlib.compress(element(14, bytes(rng.choice((8, 64, 300)) << 20)), 9) if kind == "zeros" else zlib.compress(packed(rng, bytes(1 << 20)))
    return (15).to_bytes(4, "little") + len(zeros).to_bytes(4, "little") + zeros


def make_svhn(rng: Random) -> tuple[str, dict[str, bytes]]:
    files, name = dict(svhn_files(rng.random() < 0.7)), rng.choice(tuple(NAMES.values()))
    how = rng.choice(("matrix", "matrix", "matrix", "labels", "bytes", "inside", "bomb", "order"))
    X, y = digits(rng.randrange(4))
    parts = [matrix(b"X", X), matrix(b"y", y)]
    if how == "matrix":
        parts[chosen] = lying(rng, *((b"X", X), (b"y", y))[chosen := rng.randrange(2)])
    elif how == "labels":
        kind = rng.choice(tuple(KINDS))
        with np.errstate(all="ignore"):
            y = np.array(rng.choice(LABELS)).astype(kind).reshape(rng.choice(((-1, 1), (1, -1))))
        parts[1] = matrix(b"y", y)
    elif how == "inside":
        parts[0] = spoilt.spoil(rng, parts[0])
    elif how == "bomb":
        parts.insert(rng.randrange(3), swollen(rng) if rng.random() < 0.2 else matrix(b"z", X))
    elif how == "order":
        parts = [rng.choice(parts) for _ in range(rng.choice((0, 1, 2, 3, 5)))]
    files[name] = mat(*(packed(rng, part) if part[:1] == b"\x0e" else part for part in parts))
    return how, files | {name: spoilt.spoil(rng, files[name])} if how == "bytes" else files


# Folders


def tiny_files(picture) -> dict[str, bytes]:
    """Tiny-ImageNet as it is unpacked; `picture(seed)` gives an image file's bytes."""
    files = {f"train/{name}/images/{name}_{i}.JPEG": picture(4 * k + i) for k, name in enumerate(CLASSES) for i in range(2)}
    files |= {f"val/images/val_{k}.JPEG": picture(k) for k in range(2)}
    lines = "".join(f"val_{k}.JPEG\t{name}\t0\t0\t7\t7\n" for k, name in enumerate(CLASSES))
    return files | {"val/val_annotations.txt": lines.encode(), "words.txt": b"n01\tgoldfish, Carassius auratus\nn02\tcrane\n"}


NAMED = (
    "../../train/n01/images/n01_0.JPEG",
    "/etc/passwd",
    "/etc/passwd.JPEG",
    ".val_0.JPEG",
    "val_0.JPEG/x.JPEG",
    "val_9.JPEG",
    "x" * 5000 + ".JPEG",
    "\0.JPEG",
    "val_0.JPEG",
    "",
)


def make_tiny(picture, rng: Random) -> tuple[str, dict[str, bytes]]:
    files = {f"tiny/{name}": data for name, data in tiny_files(picture).items()}
    how = rng.choice(("bytes of a text", "bytes of a text", "lines", "lines", "names", "missing", "images", "words"))
    text = rng.choice(("tiny/val/val_annotations.txt", "tiny/words.txt"))
    if how == "bytes of a text":
        files[text] = spoilt.spoil(rng, files[text])
    elif how == "lines":
        odd = ("{}\tn01", "{}\tn02\t0", "{}", "val_0.JPEG\t{}", "{}\t{}", "\t{}", "{}\t" * 30)
        lines = files[text].decode().splitlines()
        lines[rng.randrange(len(lines))] = rng.choice(odd).replace("{}", rng.choice((*NAMED, *spoilt.TEXTS)))
        files[text] = (rng.choice(("\n", "\n", "\r\n", "\n\n", "\u2028", "\n" * 1000)).join(lines * rng.choice((1, 1, 1, 9))) + "\n").encode(
            errors="surrogatepass"
        )
    elif how == "words":
        files["tiny/words.txt"] = "".join(f"{name}\t{rng.choice(spoilt.TEXTS)}\n" for name in CLASSES).encode(errors="surrogatepass")
    else:
        name = rng.choice(sorted(files))
        data = files.pop(name)
        if how == "names":
            files[
                rng.choice((name.replace("n01", "n03"), name.replace("/images", ""), name.replace("n02", ".n02"), name + ".png", name.replace("n0", "\n")))
            ] = data
        elif how == "images":
            files[name] = spoilt.spoil(rng, data)
    return how, files


def class_files(picture, each: int = 3) -> dict[str, bytes]:
    return {f"own/{name}/{i}.png": picture(4 * k + i) for k, name in enumerate(CLASSES) for i in range(each)}


def make_classes(picture, rng: Random) -> tuple[str, dict[str, bytes]]:
    files = class_files(picture)
    how = rng.choice(("names", "missing", "images"))
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(sorted(files))
        data = files.pop(name)
        if how == "images":
            files[name] = spoilt.spoil(rng, data)
        elif how == "names":
            owner, file = name.split("/")[1:] if name.count("/") == 2 else ("n01", "0.png")
            place = rng.choice(
                (
                    "own/train/{}/{}",
                    "own/{}/deep/er/{}",
                    "own/.{}/{}",
                    "own/{}\x1b[2J/{}",
                    "own/{}/{}.png",
                    "own/n03/{}{}",
                    "own/{}/\n{}",
                    "own/{}\udcff/{}",
                    "own/{}/.{}",
                )
            )
            files[place.format(owner, file)] = data
    return how, files or {"own/x": b""}

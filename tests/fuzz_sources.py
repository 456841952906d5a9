"""Readers of images: sources, which are converted into a store that is then verified, and pictures that a net is asked about."""

import pickle
import zlib
from pathlib import Path
from random import Random

import fuzz_archives as archives
import fuzz_mutations as spoilt
import numpy as np
from fuzz_good import KINDS, OTHERS, cifar100_files, image, official_files, picture_files, tar_of

from pipelines.convert import convert
from pipelines.sources import find
from pipelines.store import Store
from train import predict

ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}
FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file closefile\n%%EOF\n",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'><image href='/etc/passwd'/></svg>",
    b"GIF89a" + b"\xff" * 7,
    b"P3\n8 8 255\n" + b"1 " * 192,
    b"P6\n8 8 65535\n" + bytes(384),
    b"Pf\n8 8\n-1.0\n" + bytes(256),
    b"BM" + bytes(52),
    b"\xd7\xcd\xc6\x9a" + bytes(100),
    b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {\n" + b"0x00, " * 8 + b"};\n",
    b"",
)


def read_source(path: Path, out: Path, encoding: str = "raw") -> Store:
    source = find(path)
    convert(source, out, encoding)
    store = Store(out)
    store.verify()
    assert {split: count for split, (count, _) in source.splits.items()} == {split: store.count(split) for split in store.splits}, "count"
    assert store.classes == source.classes and all(len(store.images(s)) for s in store.splits), "images"
    return store


def make_official(rng: Random) -> tuple[str, dict[str, bytes]]:
    files = dict(cifar100_files(rng.choice((2, 4))) if rng.random() < 0.2 else official_files(rng.choice((0, 0, 2, 2, 3, 4))))
    how = rng.choice(("pickle", "pickle", "pickle", "bytes of a pickle", "array", "bytes of the tar", "tar", "bomb", "missing"))
    name = rng.choice(sorted(files))
    if how == "pickle":
        files[name] = spoilt.pickled(rng, files[name])
    elif how == "bytes of a pickle":
        files[name] = spoilt.spoil(rng, files[name])
    elif how == "array":
        files[name] = other_batch(rng)
    elif how == "missing":
        files[name + "x"] = files.pop(name)
    if rng.random() < 0.3 and how not in ("tar", "bytes of the tar", "bomb"):
        return how, files
    return packed(rng, how, tar_of(files))


def other_batch(rng: Random) -> bytes:
    """A batch that holds arrays and labels of other types and shapes."""
    kind = rng.choice(("u1", "i1", "f4", "u2", "?", "O", "S1"))
    shape = rng.choice(((2, 3072), (2, 3073), (3072, 2), (2, 3, 32, 32), (0, 3072), (3, 3072), (3072,), ()))
    array = np.zeros(shape, kind, order=rng.choice("CF"))
    labels = rng.choice(([0, 1], [0, 3], [-1, 0], [0.0, 1.0], [True, False], ["0", "1"], [], (0, 1), [[0], [1]], [2**70, 0], None, np.array([0, 1]), [0, 1, 2]))
    return pickle.dumps(
        {b"data": array, b"labels": labels, b"label_names": [b"a", rng.choice((b"b", "b", "\ud7ff", 1, b"\xff", b"\x1b[31m"))]}, rng.choice((2, 3, 4))
    )


def packed(rng: Random, how: str, data: bytes) -> tuple[str, dict[str, bytes]]:
    """A tar, compressed or not, spoilt before or after it is packed where `how` says so."""
    ending = rng.choice(("", "", "", ".gz", ".xz", ".bz2"))
    if how == "tar":
        data = archives.tar(rng, data)
    if how == "bomb":
        if rng.random() < 0.9:  # dear: most of them lie about a size instead
            return "tar", packed(rng, "tar", data)[1]
        ending = rng.choice((".gz", ".xz", ".bz2"))
        return how, {f"a.tar{ending}": archives.bomb(rng, data, ending)}
    data = archives.PACKERS[ending](data)
    if how == "bytes of the tar":
        data = spoilt.spoil(rng, data)
    return how, {f"a.tar{ending}": data}


def read_official(folder: Path) -> None:
    inside = next(folder.iterdir())
    store = read_source(inside, folder.parent / "out" / "a.safetensors")
    for split in store.splits:
        assert store.images(split).shape[1:] == (32, 32, 3), "shape"


def make_tar(rng: Random) -> tuple[str, dict[str, bytes]]:
    files = dict(picture_files(rng.choice(KINDS[:3])))
    how = rng.choice(("tar", "tar", "tar", "bytes of the tar", "bytes of the tar", "names", "bomb"))
    if how == "names":
        for _ in range(rng.choice((1, 2, 8))):
            name = rng.choice(sorted(files))
            files[
                rng.choice((name.replace("train", "test"), "../" + name, name.replace("bee", "\udcff"), name + "/x.png", "a/b/" + name, name[:-4], name + "\n"))
            ] = files.pop(name)
    return packed(rng, how, tar_of(files))


def read_tar(folder: Path) -> None:
    read_source(next(folder.iterdir()), folder.parent / "out" / "a.safetensors")


def make_folder(rng: Random) -> tuple[str, dict[str, bytes]]:
    kind = rng.choice(KINDS)
    files = {f"images/{split}/bee/0.{ENDINGS.get(kind, kind.lower())}": image(kind, s, "RGB") for s, split in enumerate(("train", "test"))}
    name = rng.choice(sorted(files))
    how = rng.choice(("bytes", "bytes", "bytes", "chunks", "other format", "other mode"))
    if how == "chunks":
        files[name] = spoilt.png(rng, image("PNG", 0))
    elif how == "other format":
        files[name] = image(rng.choice(OTHERS), 0) if rng.random() < 0.5 else rng.choice(FOREIGN)
    elif how == "other mode":
        mode = rng.choice(("1", "L", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "LA"))
        files[name] = spoilt.spoil(rng, image("TIFF" if mode in ("CMYK", "YCbCr", "LAB", "F", "I") else "PNG", 0, mode))
    else:
        files[name] = spoilt.spoil(rng, files[name])
    return how, files


def read_folder(folder: Path) -> None:
    encoding = "jpeg" if len(next(folder.rglob("test/bee/*")).read_bytes()) % 2 else "raw"
    read_source(folder / "images", folder.parent / "out" / "a.safetensors", encoding)


def read_layout(folder: Path) -> None:
    inside = next((folder / name for name in ("tiny", "own") if (folder / name).exists()), folder)
    store = read_source(inside, folder.parent / "out" / "a.safetensors")
    if inside == folder:
        assert store.source == "svhn" and store.classes == tuple("0123456789") and store.images("train").shape[1:] == (32, 32, 3), "digits"
    elif inside.name == "tiny":
        assert store.source == "tiny-imagenet" and len(store.classes) >= 1, "classes"
    elif "held out" in store.source:  # every image is in one of the splits, and once
        assert sum(store.count(split) for split in store.splits) == len(
            [p for p in inside.rglob("*.png") if not any(n.startswith(".") for n in p.relative_to(inside).parts)]
        ), "splits"


def make_picture(rng: Random) -> tuple[str, dict[str, bytes]]:
    """As `make_folder`, and sizes that lie."""
    if rng.random() < 0.7:
        how, files = make_folder(rng)
        return how, {"0.png": files[sorted(files)[0]]}
    data = image("PNG", 0)
    size = b"".join(rng.choice((1, 8, 513, 9000, 10_000, 65_535, 2**24, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big") for _ in range(2))
    head = b"IHDR" + size + rng.choice((data[24:29], bytes((rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, rng.choice((0, 1))))))
    return "size", {"0.png": data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]}


def read_picture(folder: Path) -> None:
    pixels = predict.read(str(folder / "0.png"), 8, 6)
    assert pixels.shape == (8, 6, 3) and pixels.dtype == np.uint8, "shape"

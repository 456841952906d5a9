"""source → store: decode every image once, measure mean and std, write one file."""

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipelines.errors import InputError
from pipelines.items import Item, Source
from pipelines.pictures import LARGEST, TooLarge, blank, decode, fit, fitted, split_jpeg
from pipelines.store import is_utf8, write

ENCODINGS = ("raw", "jpeg")
QUALITY = 95  # of pictures that were no JPEGs, with encoding "jpeg"
BLOCK = 1 << 20  # pixels at once, of which NumPy makes eight bytes each to count them


def convert(source: Source, out: str | Path, encoding: str = "raw", size: int = 0) -> None:
    """Write a store of `source`; a progress bar goes to stderr where that is a terminal.

    encoding  "raw": the pixels that Pillow decodes, or "jpeg": files that are JPEGs keep their own
              bytes, other pictures are encoded (quality 95, no chroma subsampling; not lossless)
    size      side that all pictures are brought to, pixels (`pictures.fitted`); 0 leaves them as they are
    Raises `InputError`, and leaves no file, for an image that cannot be read or is of another size
    than the first, and for a place that cannot be written.
    """
    out = Path(out)
    check(out, encoding, size)
    tensors: dict[str, np.ndarray] = {}
    shape: tuple[int, ...] = ()
    mean, std = None, None
    for split, (count, items) in source.splits.items():
        bar = tqdm(items(), desc=f"{source.name} {split}", total=count, unit=" images", disable=None, leave=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files: what matters is an error here
            pixels, labels, files = _gather(bar, count, shape, encoding == "jpeg", size)
        shape = pixels.shape[1:]
        if split == "train":
            mean, std = statistics(pixels)
        tensors[f"{split}.labels"] = labels
        packed = _pack(files) if encoding == "jpeg" else {"images": pixels}
        tensors.update({f"{split}.{name}": tensor for name, tensor in packed.items()})
    described = dict(zip(("height", "width", "channels"), map(str, shape)))
    write(out, tensors, encoding=encoding, **described, classes=source.classes, mean=mean, std=std, source=source.name)


def check(out: Path, encoding: str, size: int) -> None:
    """Raise `InputError` where no such store can be written, before there is any work to lose."""
    if encoding not in ENCODINGS:
        raise InputError(f"encoding {encoding!r}: choose one of {', '.join(ENCODINGS)}")
    if not 0 <= size <= LARGEST:
        raise InputError(f"size {size}: give from 1 to {LARGEST} pixels, or 0 to leave the pictures as they are")
    if not os.path.isdir(out.parent):
        raise InputError(f"{out.parent}: no such folder: make it, or name another")
    if out.suffix != ".safetensors":  # a source named by mistake stays whole
        raise InputError(f"{out}: name the store with the ending .safetensors")
    if not is_utf8(str(out)):  # safetensors opens no such path
        raise InputError(f"{out}: the store's path is not UTF-8: name another")
    if os.path.isdir(out) or not os.access(out.parent, os.W_OK):
        raise InputError(f"{out}: cannot be written: name another place")


def _gather(items: Iterator[Item], count: int, shape: tuple[int, ...], keep_files: bool, size: int) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """(uint8[N,H,W,3], int64[N], files) of a split; `shape` is what an earlier split has, or (); `size` as for `convert`."""
    pixels, labels, files = None, np.empty(count, np.int64), [b""] * count
    done = 0
    for item in items:
        picture, file = _picture(item, keep_files, size)
        shape = shape or picture.shape
        if picture.shape != shape:
            shapes = " and ".join(f"{s[1]}x{s[0]}" for s in (picture.shape, shape))
            raise InputError(f"{item.where}: images of two sizes, {shapes} pixels: bring them to one with --size 32, or another side")
        if pixels is None:
            pixels = blank((count, *shape), item.where)
        pixels[item.place], labels[item.place], files[item.place] = picture, item.label, file
        done += 1
    if done != count or pixels is None:
        raise InputError(f"the source says {count} images and gave {done}: it changed while it was read, convert it again")
    return pixels, labels, files


def _picture(item: Item, keep_file: bool, size: int) -> tuple[np.ndarray, bytes]:
    """(uint8[H,W,3], JPEG file or b"") of an item; the pixels are always those that the file decodes to."""
    file = item.picture
    if isinstance(file, bytes):
        picture = _decode(file, item.where, size)
    else:
        picture = fit(Image.fromarray(file), size, size) if size else file
    if not keep_file:
        return picture, b""
    if isinstance(file, bytes) and file[:2] == b"\xff\xd8" and not size:
        return picture, file
    file = _encode(picture)
    return _decode(file, item.where), file


def _decode(data: bytes, where: str, size: int = 0) -> np.ndarray:
    try:
        return fitted(data, size, size) if size else decode(data)
    except TooLarge as error:
        raise InputError(f"{where}: {error}: bring the images to one size with --size 32, or another side") from None
    except Exception as error:  # Pillow's many decoders raise many kinds; all mean one thing here
        raise InputError(f"{where}: cannot be read as an image ({str(error).split(' <')[0]}): mend, resize or remove it") from None


def _encode(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def _pack(files: list[bytes]) -> dict[str, np.ndarray]:
    """The tensors of a `jpeg` split: each distinct header once, then the images' own data."""
    heads: dict[bytes, int] = {}
    ids, data = [], []
    for file in files:
        head, rest = split_jpeg(file)
        ids.append(heads.setdefault(head, len(heads)))
        data.append(rest)
    return {
        "images": np.frombuffer(b"".join(data), np.uint8),
        "offsets": _offsets(data),
        "headers": np.frombuffer(b"".join(heads), np.uint8),
        "header_offsets": _offsets(list(heads)),
        "header_ids": np.array(ids, np.int32),
    }


def _offsets(pieces: list[bytes]) -> np.ndarray:
    return np.cumsum([0, *map(len, pieces)], dtype=np.int64)


def statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation a channel, fractions of 1, exact sums over uint8[N,H,W,C].

    A channel that never varies gets the deviation 1/255, so that it can be divided by.
    """
    counts = np.zeros((images.shape[-1], 256), np.int64)
    step = max(1, BLOCK // (images.shape[1] * images.shape[2]))
    for begin in range(0, len(images), step):
        block = images[begin : begin + step].reshape(-1, images.shape[-1])
        for c, plane in enumerate(block.T):
            counts[c] += np.bincount(plane, minlength=256)
    values, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    return mean.tolist(), np.where(std > 0, std, 1 / 255).tolist()

"""source → store: decode every image once, measure mean and std, write one file."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipelines.errors import InputError
from pipelines.sources import Item, Source
from pipelines.store import decode, split_jpeg, write

ENCODINGS = ("raw", "jpeg")
LARGEST = 512  # pixels a side: what is meant by small images
QUALITY = 95  # of pictures that were no JPEGs, with encoding "jpeg"


def convert(source: Source, out: str | Path, encoding: str = "raw") -> None:
    """Write a store of `source`; a progress bar goes to stderr where that is a terminal.

    encoding  "raw": the pixels that Pillow decodes, or "jpeg": files that are JPEGs keep their own
              bytes, other pictures are encoded (quality 95, no chroma subsampling; not lossless)
    Raises `InputError`, and leaves no file, for an image that cannot be read or is of another size
    than the first, and for a place that cannot be written.
    """
    if encoding not in ENCODINGS:
        raise InputError(f"encoding {encoding!r}: choose one of {', '.join(ENCODINGS)}")
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder: make it, or name another")
    tensors, size, mean, std = {}, None, None, None
    for split, (count, items) in source.splits.items():
        bar = tqdm(items(), desc=f"{source.name} {split}", total=count, unit=" images", disable=None, leave=False)
        pixels, labels, files = _gather(bar, count, size, keep_files=encoding == "jpeg")
        size = pixels.shape[1:]
        if split == "train":
            mean, std = statistics(pixels)
        tensors[f"{split}.labels"] = labels
        packed = _pack(files) if encoding == "jpeg" else {"images": pixels}
        tensors.update({f"{split}.{name}": tensor for name, tensor in packed.items()})
    height, width, channels = (str(n) for n in size)
    shape = {"height": height, "width": width, "channels": channels}
    write(out, tensors, encoding=encoding, **shape, classes=source.classes, mean=mean, std=std, source=source.name)


def _gather(items: Iterator[Item], count: int, size, keep_files: bool) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """(uint8[N,H,W,3], int64[N], files) of a split; `size` is what an earlier split has, or None."""
    pixels, labels, files = None, np.empty(count, np.int64), []
    i = -1
    for i, item in enumerate(items):
        file = item.picture
        if not isinstance(file, bytes) and keep_files:
            file = _encode(file)
        picture = _decode(file, item.where) if isinstance(file, bytes) else file
        if keep_files and file[:2] != b"\xff\xd8":
            file = _encode(picture)
            picture = _decode(file, item.where)
        size = size or picture.shape
        if picture.shape != size:
            shapes = " and ".join(f"{s[1]}x{s[0]}" for s in (picture.shape, size))
            raise InputError(f"{item.where}: images of two sizes, {shapes} pixels: resize them to one size first")
        if pixels is None:
            if max(size) > LARGEST:
                raise InputError(f"{item.where}: {size[1]}x{size[0]} pixels: resize to at most {LARGEST} a side first")
            pixels = np.empty((count, *size), np.uint8)
        pixels[i], labels[i] = picture, item.label
        if keep_files:
            files.append(file)
    if i + 1 != count or not count:
        raise InputError(f"the source says {count} images and gave {i + 1}: it changed while it was read, convert it again")
    return pixels, labels, files


def _decode(data: bytes, where: str) -> np.ndarray:
    try:
        return decode(data)
    except Exception as error:  # Pillow's many decoders raise many kinds; all mean one thing here
        raise InputError(f"{where}: cannot be read as an image ({str(error).split(' <')[0]}): mend or remove it") from None


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
    for begin in range(0, len(images), 1024):
        block = images[begin : begin + 1024].reshape(-1, images.shape[-1])
        for c, plane in enumerate(block.T):
            counts[c] += np.bincount(plane, minlength=256)
    values, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    return mean.tolist(), np.where(std > 0, std, 1 / 255).tolist()

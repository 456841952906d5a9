"""Encoded images: decoded with care, and JPEGs taken apart."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from pipelines.errors import InputError

MOST_BYTES = 1 << 26  # of one image file: 64 MiB
LARGEST = 512  # pixels a side: what is meant by small images
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM", "TIFF")  # Pillow reads more, some by starting other programs


class TooLarge(ValueError):
    """An image of more than `LARGEST` pixels a side."""


def decode(data: bytes) -> np.ndarray:
    """uint8[H,W,3] of an encoded image in one of `FORMATS`, whatever its file is called; raises what Pillow raises.

    Raises `TooLarge`, before anything is decoded, for a large image, and `ValueError` for pixels of more than 8 bits,
    which Pillow would clip.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if max(image.size) > LARGEST:
            raise TooLarge(f"{image.width}x{image.height} pixels, more than {LARGEST} a side")
        if image.mode[0] in "IF":
            raise ValueError(f"{image.mode} pixels, more than 8 bits a channel")
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def fitted(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8[height,width,3] of an encoded image of any size, as training sets of small images were made of photographs.

    It is turned upright as its camera noted (EXIF), cut to the largest centred part of the asked shape, and resized,
    bicubic and antialiased. One that has that size already is taken pixel by pixel. Raises what `decode` raises, and
    `Image.DecompressionBombWarning` above 89 million pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"{image.mode} pixels, more than 8 bits a channel")
            image.draft("RGB", (4 * max(height, width),) * 2)  # a JPEG is decoded no larger than it takes to look the same
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return fit(upright, height, width)


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """uint8[height,width,3] of an RGB image: its centre, resized, bicubic and antialiased."""
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


def blank(shape: tuple[int, ...], where) -> np.ndarray:
    """uint8 of `shape`, for a set of images; raises `InputError` where there is no room for it."""
    try:
        return np.empty(shape, np.uint8)
    except (MemoryError, ValueError):
        size = np.prod(shape, dtype=float) / 1e9
        raise InputError(f"{where}: {size:.1f} GB of pixels do not fit in memory: use fewer or smaller images") from None


def split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """(header, data) of a JPEG, cut behind its first start-of-scan segment (ITU-T T.81, B.1.1.3).

    Where the segments cannot be followed the header is empty; header + data is the file either way.
    """
    at = 2
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            return data[:end], data[end:]
        at = end
    return b"", data

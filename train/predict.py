"""python -m train predict RUN IMAGE...: classify pictures with a trained net.

A picture may have any size. It is rotated upright (EXIF), center-cropped to the shape of the training images (a square
for CIFAR) and resized to their size, bicubic and antialiased. A picture of their size is used pixel by pixel.
"""

import argparse
from pathlib import Path

import numpy as np

from nets.__main__ import table
from pipelines.errors import InputError, plain, reason
from pipelines.pictures import FORMATS, MOST_BYTES, fitted
from train import result
from train.command import parser_of


def read(path: str, height: int, width: int) -> np.ndarray:
    """uint8[height,width,3] of a picture. Raises `InputError` where it is none, or has more than 8 bits a channel."""
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
        return fitted(Path(path).read_bytes(), height, width)
    except Exception as error:  # Pillow's decoders raise many kinds; all mean one thing here
        why = getattr(error, "strerror", None) or reason(error).split(" <")[0]
        raise InputError(f"{path}: not a picture that can be read ({why}): give one in {', '.join(FORMATS)}") from None


def parser() -> argparse.ArgumentParser:
    made = parser_of("predict", __doc__)
    made.add_argument("run", metavar="RUN", help="run folder")
    made.add_argument("images", nargs="+", metavar="IMAGE", help="picture of any size")
    made.add_argument("--top", type=int, default=3, metavar="K", help="number of classes to print, the most likely first (default 3)")
    return made


def main(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    model = result.model(given.run)
    if given.top < 1:
        raise InputError(f"--top {given.top}: give 1 or more")
    top = min(given.top, len(model.classes))
    names, images, wrong = [], [], []
    for path in given.images:
        try:
            images.append(read(path, model.height, model.width))
            names.append(path)
        except InputError as error:
            wrong.append(error)
    best = model.logits(np.stack(images)).softmax(1).topk(top) if images else None
    rows = []
    for path, shares, classes in zip(names, best.values.tolist(), best.indices.tolist()) if best else ():
        rows.append((plain(path), *(f"{share:6.1%} {plain(model.classes[k])}" for share, k in zip(shares, classes))))
    lines = table(("image", *[""] * top), rows, left=top + 1).splitlines() if rows else []
    print("\n".join(line.rstrip() for line in lines[2:]), end="\n" if rows else "")
    if wrong:
        raise InputError(f"{wrong[0]}" + (f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""))

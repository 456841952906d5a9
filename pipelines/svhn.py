"""The Street View House Numbers, cropped digits ("format 2"): train_32x32.mat and test_32x32.mat."""

from functools import partial
from pathlib import Path

import numpy as np

from pipelines import matlab
from pipelines.errors import InputError
from pipelines.items import Item, Source
from pipelines.official import fetched

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
PAGE = "http://ufldl.stanford.edu/housenumbers/"
MD5 = {"train": "e26dedcc434d2e4c54c9b2d4a06d8373", "test": "eb5a983be6a315427106f1b164d9cef3"}
CLASSES = tuple("0123456789")


def download(folder: Path) -> Path:
    """Fetch both files into a folder of their own in `folder`, check their md5, and give it."""
    place = folder / "svhn"
    for split, name in FILES.items():
        fetched(PAGE + name, MD5[split], place)
    return place


def source(path: Path) -> Source:
    """The source of a folder with both files. Raises `InputError` where one is damaged."""
    splits = {split: batch(path / name) for split, name in FILES.items()}

    def items(split):
        pictures, labels = splits[split]
        for i, label in enumerate(labels):
            yield Item(i, f"{path / FILES[split]} image {i}", int(label), pictures[i])

    return Source("svhn", CLASSES, {split: (len(labels), partial(items, split)) for split, (_, labels) in splits.items()})


def batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(uint8[N,32,32,3], int64[N]) of one file; it writes the digit 0 as 10."""
    arrays = matlab.read(path, ("X", "y"))
    pictures, labels = arrays["X"], arrays["y"]
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[:3] != (32, 32, 3):
        raise InputError(f"{path}: X is {pictures.dtype} of shape {pictures.shape}, not 32x32x3 pixels each: get it again")
    count = pictures.shape[3]
    if not count or labels.size != count or not np.isin(labels, np.arange(11)).all():
        raise InputError(f"{path}: y holds no digit for each of {count} images: get it again")
    return pictures.transpose(3, 0, 1, 2), labels.reshape(-1).astype(np.int64) % 10

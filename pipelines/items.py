"""What a source gives: items, in splits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Item:
    """One image: its place in the split, where it is (for messages), its label, uint8[H,W,3] or a file's bytes."""

    place: int
    where: str
    label: int
    picture: np.ndarray | bytes


@dataclass(frozen=True)
class Source:
    """A set of images. `splits` maps "train" and "test" to (count, function that iterates its items).

    The items of a split have the places 0 to count - 1, and may come in any order. `note` is what a person should know of it.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[int, Callable[[], Iterator[Item]]]]
    note: str = ""

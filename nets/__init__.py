"""Nets, loaded by name, and what they cost.

A net is a module `nets/<name>.py` with

    build(num_classes, **options) -> nn.Module

which takes images [B,3,H,W] and gives logits [B,num_classes]. To add one, add the file. A family is a module with

    member(numbers) -> build

so that any member can be named by its numbers, without a file: `tiny_16-24-40_2-3-2_2` is `member("16-24-40_2-3-2_2")` of `nets/tiny.py`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from nets.measure import macs, output_shape, parameters, receptive_field, training_flop

__all__ = ["UnknownNet", "find", "load", "macs", "names", "output_shape", "parameters", "receptive_field", "training_flop"]


class UnknownNet(ValueError):
    """There is no net of that name. The message is one line, with the names there are, or how a family's members are named."""


def names() -> list[str]:
    """The nets there are: the modules beside this one that define `build`."""
    return modules("build")


def modules(function: str) -> list[str]:
    """Those beside this one that define a function, by reading: none is imported."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [f.stem for f in files if f.stem != "__init__" and f"\ndef {function}(" in f.read_text(encoding="utf-8")]


def find(name: str) -> Callable[..., nn.Module]:
    """`build` of the net of that name, or of that member of a family. Raises `UnknownNet`."""
    if name in names():
        return importlib.import_module(f"nets.{name}").build
    family, _, numbers = name.partition("_")
    if numbers and family in modules("member"):
        try:
            return importlib.import_module(f"nets.{family}").member(numbers)
        except ValueError as error:
            raise UnknownNet(f"net {name!r:.60}: {error}") from None
    raise UnknownNet(f"net {name!r:.60}: choose one of {', '.join(names())}")


def load(name: str, num_classes: int = 10, **options) -> nn.Module:
    """Build the net `name` with fresh weights, from torch's random stream; `options` are its own, such as norm and dropout. Raises `UnknownNet`."""
    return find(name)(num_classes, **options)

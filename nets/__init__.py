"""Nets, loaded by name, and what they cost.

A net is a module `nets/<name>.py` with

    build(num_classes, **options) -> nn.Module

which takes images [B,3,H,W] and gives logits [B,num_classes]. To add one, add the file.
"""

import importlib
from pathlib import Path

from torch import nn

from nets.measure import macs, output_shape, parameters, receptive_field, training_flop

__all__ = ["UnknownNet", "load", "macs", "names", "output_shape", "parameters", "receptive_field", "training_flop"]


class UnknownNet(ValueError):
    """There is no net of that name. The message is one line, with the names there are."""


def names() -> list[str]:
    """The nets there are: the modules beside this one that define `build`."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [f.stem for f in files if f.stem != "__init__" and "\ndef build(" in f.read_text(encoding="utf-8")]


def load(name: str, num_classes: int = 10, **options) -> nn.Module:
    """Build the net `name` with fresh weights, from torch's random stream; `options` are its own, such as norm and dropout."""
    if name not in names():
        raise UnknownNet(f"net {name!r:.60}: choose one of {', '.join(names())}")
    return importlib.import_module(f"nets.{name}").build(num_classes, **options)

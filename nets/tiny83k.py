"""The tiny net for a budget of 83,368, which the ladder's level 1 has: 82,570 parameters at ten classes."""

from torch import nn

from nets.tiny import tiny


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return tiny(num_classes, widths=(32, 48, 64), blocks=(2, 4, 3), norm=norm, dropout=dropout)

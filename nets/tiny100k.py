"""The tiny net for a budget of 100,000: 99,482 parameters at ten classes."""

from torch import nn

from nets.tiny import tiny


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return tiny(num_classes, widths=(32, 48, 72), blocks=(2, 5, 3), norm=norm, dropout=dropout)

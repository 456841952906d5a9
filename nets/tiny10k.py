"""The tiny net for a budget of 10,000: 9,738 parameters at ten classes."""

from torch import nn

from nets.tiny import tiny


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return tiny(num_classes, widths=(16, 16, 24), blocks=(2, 2, 2), norm=norm, dropout=dropout)

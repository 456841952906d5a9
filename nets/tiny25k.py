"""The tiny net for a budget of 25,000: 24,314 parameters at ten classes."""

from torch import nn

from nets.tiny import tiny


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return tiny(num_classes, widths=(16, 24, 40), blocks=(2, 4, 2), norm=norm, dropout=dropout)

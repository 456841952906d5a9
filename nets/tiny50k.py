"""The tiny net for a budget of 50,000: 49,554 parameters at ten classes."""

from torch import nn

from nets.tiny import tiny


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return tiny(num_classes, widths=(24, 40, 48), blocks=(2, 3, 3), norm=norm, dropout=dropout)

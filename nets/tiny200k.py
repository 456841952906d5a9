"""The tiny net for a budget of 200,000: 199,634 parameters at ten classes."""

from torch import nn

from nets.tiny import tiny


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return tiny(num_classes, widths=(40, 72, 88), blocks=(3, 4, 4), norm=norm, dropout=dropout)

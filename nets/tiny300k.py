"""The tiny net for a budget of 300,000: 299,794 parameters at ten classes."""

from torch import nn

from nets.tiny import tiny


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return tiny(num_classes, widths=(56, 96, 136), blocks=(3, 2, 3), norm=norm, dropout=dropout)

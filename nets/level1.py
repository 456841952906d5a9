"""Level 1: bottlenecks and max-pools. 83,368 parameters at ten classes.

c16 c32 M · p16 c32 c64 M · p16 c32 c64 M · p16 c32 c64 M · G · 3x3 conv 64→K (bias) · 1x1 conv K→K (bias)

Its author's figures on CIFAR-10, 50 epochs, SGD 0.01, batch 64, no augmentation: best train 97.37%, best test 78.72%.
Four max-pools: images of at least 16x16.
"""

from torch import nn

from nets import ladder


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return ladder.wide(num_classes, norm, dropout, ladder.pool)

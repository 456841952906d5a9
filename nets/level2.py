"""Level 2: level 1 with each max-pool a stride-2 convolution. 203,624 parameters at ten classes.

c16 c32 s32 · p16 c32 c64 s64 · p16 c32 c64 s64 · p16 c32 c64 s64 · G · 3x3 conv 64→K (bias) · 1x1 conv K→K (bias)

Its author's figures on CIFAR-10, 50 epochs, SGD 0.01, batch 64, no augmentation: best train 98.50%, best test 78.78%.
The stride-2 blocks keep batch norm, without dropout, whatever `norm` and `dropout` say.
"""

from torch import nn

from nets import ladder


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return ladder.wide(num_classes, norm, dropout, ladder.strided)

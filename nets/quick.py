"""Quick: the default, made to train well in about five minutes on two CPU cores. 464,832 parameters at ten classes.

4x4 stride-2 conv to 32 · c64 M · residual (c64 c64) · c128 M · residual (c128 c128) · global max-pool · linear / 8

On a CPU the time goes to the wide maps at full resolution, where a stem of few channels fills neither the
caches nor the vector units; so the first convolution halves the image, and its kernel of four covers it evenly. The
activation is SiLU. Images of any side that 8 divides fit, which a recipe may use to start with small ones.
"""

from collections import OrderedDict
from functools import partial

from torch import nn

from nets.layers import Block, MaxHead, Residual, Stage, block as any_block, norm as norm_of

block = partial(any_block, activation=nn.SiLU)


def stage(inputs: int, outputs: int, norm: str, dropout: float) -> nn.Module:
    """Widen, halve the map, and refine it beside a shortcut."""
    refine = Residual(block(outputs, outputs, norm, dropout), block(outputs, outputs, norm, dropout))
    return Stage(block(inputs, outputs, norm, dropout), nn.MaxPool2d(2), refine)


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    stem = Block(nn.Conv2d(3, 32, 4, stride=2, padding=1, bias=False), norm_of(norm, 32), nn.SiLU(inplace=True))
    stages = OrderedDict(stem=stem, stage1=stage(32, 64, norm, dropout), stage2=stage(64, 128, norm, dropout))
    return nn.Sequential(OrderedDict(stages, head=MaxHead(128, num_classes)))

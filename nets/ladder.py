"""The ladder: four nets, each a step towards fewest parameters at highest accuracy.

Levels 1 to 3 share one frame and differ in how a feature map is halved; level 4 is narrow and even.
`level1.py` to `level4.py` name the steps, with their sizes and the figures of the ladder's author.

Shapes: images_NCHW in, logits_NK out. In the docstrings of the levels, c16 is a 3x3 convolution to 16
channels without bias, norm, ReLU and Dropout2d; p16 the same with a 1x1 kernel; s32 the same with stride
2; M a 2x2 max-pool; G the global average pool.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from nets.layers import GlobalMean, Stage, block, half, point


def pool(channels: int) -> nn.Module:
    """M: halves the map with no parameters."""
    return nn.MaxPool2d(2)


def strided(channels: int) -> nn.Module:
    """s: halves the map with a convolution. As in the ladder: batch norm whatever the others' norm, and no dropout."""
    return half(channels, channels)


def wide(num_classes: int, norm: str, dropout: float, shrink: Callable[[int], nn.Module]) -> nn.Module:
    """Levels 1 to 3: two blocks, then three times squeeze to 16 channels, widen to 64, and `shrink`.

    The head's 3x3 convolution follows the global pool, so it reads a single pixel amid padding: eight
    ninths of its weights multiply zeros (5,120 for ten classes), count as parameters and never learn.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=Stage(block(3, 16, norm, dropout), block(16, 32, norm, dropout), shrink(32)))
    for i, inputs in enumerate((32, 64, 64), start=1):
        squeeze, middle, widen = point(inputs, 16, norm, dropout), block(16, 32, norm, dropout), block(32, 64, norm, dropout)
        stages[f"stage{i}"] = Stage(squeeze, middle, widen, shrink(64))
    mix, last = nn.Conv2d(64, num_classes, 3, padding=1), nn.Conv2d(num_classes, num_classes, 1)
    stages["head"] = nn.Sequential(GlobalMean(), mix, last, nn.Flatten())
    return nn.Sequential(stages)


def narrow(num_classes: int, norm: str, dropout: float) -> nn.Module:
    """Level 4: eleven 3x3 blocks of 32 channels, the third, sixth and ninth with stride 2, and a linear head."""
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(block(3, 32, norm, dropout), block(32, 32, norm, dropout)))
    for i in range(1, 4):
        blocks = [half(32, 32, norm, dropout), block(32, 32, norm, dropout), block(32, 32, norm, dropout)]
        stages[f"stage{i}"] = nn.Sequential(*blocks)
    stages["head"] = nn.Sequential(GlobalMean(), nn.Conv2d(32, 64, 1), nn.Conv2d(64, num_classes, 1), nn.Flatten())
    return nn.Sequential(stages)

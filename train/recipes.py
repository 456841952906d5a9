"""Named recipes: each function returns a `Recipe`, and its docstring says what to expect of it."""

from dataclasses import replace

import torch

from train.machine import cpu_has_bf16
from train.recipe import Recipe


def default() -> Recipe:
    """A good net in about five minutes on two CPU cores; its settings for a GPU have not been measured.

    Two cores, CIFAR-10 (JPEG q75), one run each: test accuracy 0.8475 in fp32 (8 epochs, 243 s of training), 0.8547 on a
    processor with bf16 (12 epochs, 242 s). The number of epochs is what fits into the five minutes.
    """
    common = dict(net="quick", nesterov=True, weight_decay=5e-4, label_smoothing=0.1, schedule="linear", padding="reflect", translate=2)
    if torch.cuda.is_available():
        return Recipe(**common, epochs=20, batch_size=512, lr=0.4, warmup=4)
    return Recipe(**common, epochs=12 if cpu_has_bf16() else 8, batch_size=128, lr=0.15, warmup=1)


def level1() -> Recipe:
    """The ladder's first level with its author's settings: 83,368 parameters, 50 epochs.

    The author's best test accuracy is 0.787 (on original pixels). No augmentation, a constant learning rate.
    """
    plain = dict(flip="none", translate=0, cutout=0)
    return Recipe(net="level1", epochs=50, batch_size=64, lr=0.01, momentum=0.9, schedule="constant", precision="fp32", **plain)


def level2() -> Recipe:
    """Level 1 with strided convolutions for pooling: 203,624 parameters; the author's best 0.788."""
    return replace(level1(), net="level2")


def level3() -> Recipe:
    """Level 2 with dropout and augmentation, each with probability one half; the author's best 0.726.

    The erased square is set to the mean after normalisation, as the author's code did; `--erase-fill mean` is
    the neutral square that was meant.
    """
    return replace(level2(), net="level3", affine_p=0.5, shift=0.0625, scale=0.1, rotate=45.0, erase_p=0.5, erase=16, erase_fill="offset")


def level4() -> Recipe:
    """A narrower net with milder augmentation: 96,490 parameters, 100 epochs; the author's best 0.814.

    The author's probability of a grey image is not known: one half, the default of the library he used.
    """
    return replace(level3(), net="level4", epochs=100, schedule="plateau", shift=0.05, scale=0.1, rotate=7.0, grey_p=0.5)

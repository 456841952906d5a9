"""Named recipes: each function returns a `Recipe`, and its docstring says what to expect of it. One that suits itself to the machine takes the --device asked for."""

from dataclasses import replace

import torch

from train.machine import cpu_has_avx512, cpu_has_bf16
from train.recipe import Recipe


def default(device: str = "auto") -> Recipe:
    """What `make train` runs: `cpu` on a CPU; on a GPU `speed`, recorded as a CUDA graph instead of compiled, which saves a minute of compilation.

    On a GPU neither its time nor its accuracy has been measured; `speed` computes the same up to rounding.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return cpu()
    return replace(speed(), compiled=False, recorded=True)


def cpu() -> Recipe:
    """For two CPU cores and five minutes: a stride-2 stem, Muon, progressive resizing. 24 epochs, or 13 on processors without AVX-512.

    Test accuracy on CIFAR-10 (JPEG q75), two cores, torch 2.11: 0.8713 (n 3, standard deviation 0.0014, 95% interval 0.8679 to 0.8747) in 252 to 260 s of training on an
    Intel Xeon with AVX-512, fp32; 0.8725 (n 3, standard deviation 0.0011, 95% interval 0.8697 to 0.8752) in 247 to 263 s on a slower AMD EPYC with fast bf16; 0.8636
    (n 3, standard deviation 0.0022, 95% interval 0.8581 to 0.8691) in 251 to 266 s on a busy AMD EPYC with AVX2 only. Test-time augmentation (`--views 6 --views-share
    0.25`) takes three models of 22 epochs from 0.8727 to 0.8841 (standard deviation 0.0034, 95% interval 0.8757 to 0.8925).
    """
    epochs = 24 if cpu_has_bf16() or cpu_has_avx512() else 13
    kept = dict(schedule="linear", warmup=1, label_smoothing=0.1, translate=2, padding="reflect", flip="alternate")
    rates = dict(optimiser="muon", muon_lr=0.1, lr=0.1, weight_decay=5e-4)
    return Recipe(net="quick", epochs=epochs, batch_size=256, first_side=16, grown=0.67, **rates, **kept)


def speed() -> Recipe:
    """For a GPU: the field's 94% (on original pixels) as fast as we can. `speednet`, Muon, progressive resizing, early layers frozen towards the end, the whole step
    compiled, one test pass at the end with test-time augmentation: six views of the least confident quarter of the images.

    One H200, CIFAR-10 (JPEG q75), bf16: test accuracy 0.9069 with those views (n 25, standard deviation 0.0016, 95% interval 0.9063 to 0.9076) in 0.623 s, of which
    the test pass takes 0.017; 0.220 PFLOP. The record holder's script (hiverge 2025) had 0.9076 (n 50) in 1.086 s on the day before, compiled with `reduce-overhead`
    instead of its `max-autotune`. Learning rates started from that script's (after airbench94_muon, Jordan 2024), rescaled for a mean loss instead of a summed one;
    two searches on held-out images moved them.
    """
    kept = dict(schedule="linear", warmup=0.3, translate=1, padding="reflect", flip="alternate", label_smoothing=0.05, eval_every=0, views=6, views_share=0.25)
    grows = dict(first_side=16, grown=0.5, settle=0.1, freeze=0.66)
    rates = dict(optimiser="muon", muon_lr=0.225, muon_momentum=0.66, momentum=0.82, lr=55.0, head_lr=700.0, weight_decay=3e-6)
    return Recipe(net="speednet", epochs=10, batch_size=2000, compiled=True, **grows, **rates, **kept)


def speed95() -> Recipe:
    """`speed` for the field's 95%: 20 epochs, no layer frozen; 0.49 PFLOP.

    CIFAR-10 (JPEG q75), on a CPU (bf16, eager): test accuracy 0.9119 with `speed`'s views (n 1), train accuracy 0.9955. Its time on a GPU has not been measured.
    """
    return replace(speed(), epochs=20, freeze=1.0, translate=2)


def speed96() -> Recipe:
    """`speed` for the field's 96%: 60 epochs, cutout, no layer frozen; 1.5 PFLOP.

    Neither time nor accuracy has been measured.
    """
    return replace(speed(), epochs=60, cutout=12, freeze=1.0, translate=2)


def level1() -> Recipe:
    """The ladder's first level with its author's settings: 83,368 parameters, 50 epochs.

    The author's best test accuracy is 0.787 (on original pixels). No augmentation, constant learning rate.
    """
    plain = dict(flip="none", translate=0, cutout=0)
    return Recipe(net="level1", epochs=50, batch_size=64, lr=0.01, momentum=0.9, schedule="constant", precision="fp32", **plain)


def level2() -> Recipe:
    """Level 1 with strided convolutions instead of pooling: 203,624 parameters; the author's best is 0.788."""
    return replace(level1(), net="level2")


def level3() -> Recipe:
    """Level 2 with dropout and augmentation, each with probability one half; the author's best is 0.726.

    The erased square is filled with the mean *after* normalisation, as in the author's code; `--erase-fill mean` gives
    the neutral square that was intended.
    """
    return replace(level2(), net="level3", affine_p=0.5, shift=0.0625, scale=0.1, rotate=45.0, erase_p=0.5, erase=16, erase_fill="offset")


def level4() -> Recipe:
    """A narrower net with milder augmentation: 96,490 parameters, 100 epochs; the author's best is 0.814.

    The author's probability of a grey image is not known; one half is the default of the library he used.
    """
    return replace(level3(), net="level4", epochs=100, schedule="plateau", shift=0.05, scale=0.1, rotate=7.0, grey_p=0.5)


def modern() -> Recipe:
    """The ladder's nets as one would train them today: Muon, a learning rate that decays linearly to zero, flips and shifts, label smoothing.

    The author's nets, unchanged, and his 50 epochs. `benchmarks/ladder.py` trains them with both recipes.
    """
    kept = dict(schedule="linear", warmup=1, label_smoothing=0.1, translate=2, padding="reflect", flip="alternate")
    return Recipe(net="level1", epochs=50, batch_size=256, optimiser="muon", muon_lr=0.1, lr=0.1, weight_decay=5e-4, **kept)


def tiny(device: str = "auto") -> Recipe:
    """For a GPU: the most accuracy from few parameters, `tiny83k` for 200 epochs.

    `modern` with an EMA of the weights, Muon's norm kept per row so that no channel dies, and stronger augmentation for the long schedule: larger
    shifts, rotation, colour jitter, sharpness, and mixup that ramps up over the first half. Neither time nor accuracy has been measured.
    """
    richer = dict(translate=4, affine_p=0.5, rotate=15.0, brightness=0.1, contrast=0.1, saturation=0.1, sharpness=0.3, mixup=0.2, mix_ramp=100.0)
    compiled = device != "cpu" and torch.cuda.is_available()
    return replace(modern(), net="tiny83k", epochs=200, ema=0.999, muon_norm="row", compiled=compiled, eval_every=10, **richer)


def tiniest() -> Recipe:
    """The best published small net (xvel/cifar10-tiniest) with its published recipe: 97,530 parameters, 200 epochs, AdamW with a one-cycle schedule.

    Its author reports 0.944 (on original pixels, 5 runs). What is not published (weight decay, strength of the colour jitter) is our choice.
    """
    rates = dict(optimiser="adamw", lr=0.02, beta=0.99, schedule="cosine", warmup=60, floor=0.1, weight_decay=0.01, ema=0.999)
    richer = dict(affine_p=1.0, rotate=15.0, brightness=0.1, contrast=0.1, saturation=0.1, sharpness=0.3, mixup=0.5, mix_ramp=200.0)
    return Recipe(net="tiniest", epochs=200, batch_size=256, translate=4, eval_every=10, **rates, **richer)

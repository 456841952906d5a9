"""python -m train lr-find [RECIPE] [--field value ...]: a learning-rate range test (Smith 2015, arXiv:1506.01186).

The recipe's net trains for a few hundred steps while its learning rate grows exponentially, until the loss is far above its
minimum. For a schedule that decays from the start (linear, cosine) the suggested rate is the one at which the smoothed
loss is smallest; for other schedules the one at which it falls fastest. All of the recipe's rates (Muon's and the others)
move together, in the recipe's proportions. The reasons are in benchmarks/LOG.md.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines import data
from pipelines.errors import InputError
from train.assembly import assemble, known
from train.command import parser_of
from train.device import device_of
from train.failures import explained
from train.flags import named, parse
from train.recipe import flag
from train.run import make_folder
from train.stopwatch import Stopwatch

FALLING = ("linear", "cosine")  # schedules that leave the largest rate at once
LAST = 10  # steps whose mean loss decides when the test ends
FAR = 2.0  # times the least of these means: where it ends
WIDTH = 0.025  # standard deviation of the smoothing, share of the steps


def measure(training, factors: np.ndarray) -> np.ndarray:
    """float64[n], n <= len(factors): the finite losses of the steps, each taken at that factor of the recipe's rates."""
    training.prepare()
    losses, least, epoch = [], math.inf, 0
    while True:
        for images, targets in training.batches(epoch):
            for group in training.optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factors[len(losses)]
            loss = training.step(images, targets)[0].item()
            if not math.isfinite(loss):
                return np.array(losses)
            losses.append(loss)
            mean = sum(losses[-LAST:]) / LAST
            least = min(least, mean) if len(losses) >= LAST else least
            if len(losses) == len(factors) or mean > FAR * least:
                return np.array(losses)
        epoch += 1


def smoothed(losses: np.ndarray) -> np.ndarray:
    """float64[n]: the losses under a Gaussian window, which unlike a running mean does not lag behind them."""
    reach = np.arange(-len(losses) + 1, len(losses))
    window = np.exp(-0.5 * (reach / max(WIDTH * len(losses), 1)) ** 2)
    return np.convolve(losses, window, "valid") / np.convolve(np.ones(len(losses)), window, "valid")


def turns(factors: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """(factor where the smoothed loss falls fastest by its logarithm, factor where it is least).

    Raises `InputError` where the loss does not fall.
    """
    smooth = smoothed(losses) if len(losses) >= LAST else np.zeros(1)
    lowest = int(smooth.argmin())
    if lowest < 3:
        raise InputError("the loss never fell: start from a lower --lowest, or give the test more --steps")
    slopes = np.gradient(smooth[: lowest + 1], np.log(factors[: lowest + 1]))
    return float(factors[slopes.argmin()]), float(factors[lowest])


def draw(path: Path, name: str, rates: np.ndarray, losses: np.ndarray, marks: dict[str, float], title: str) -> None:
    """Write the curve, with a line at each rate of `marks`, which says what it is; without matplotlib, a line on stderr."""
    from train import figures

    if figures.plt is None:
        print("matplotlib is not installed: the curve is not drawn", file=sys.stderr)
        return
    smooth = smoothed(losses)
    figure, axes = figures.plt.subplots(figsize=(7, 4.2))
    axes.plot(rates, losses, color=figures.TRAIN, alpha=0.3, lw=1)
    axes.plot(rates, smooth, color=figures.TRAIN, label="smoothed")
    for (text, rate), style in zip(marks.items(), (":", "--")):
        axes.axvline(rate, color=figures.TEST, lw=1.2, ls=style, label=f"{text}: {rate:.3g}")
    margin = 0.25 * (smooth[0] - smooth.min())
    axes.set(xlabel=name, ylabel="cross-entropy of a step", ylim=(smooth.min() - margin, smooth[0] + 2 * margin), title=title)
    figures.log_scale(axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figures.save(path, figure)


def parser() -> argparse.ArgumentParser:
    made = parser_of("lr-find", __doc__, add_help=False, usage="python -m train lr-find [RECIPE] [--steps N] [--lowest F] [--highest F] [--field value ...]")
    made.add_argument("--steps", type=int, default=200, metavar="N", help="steps of the test (default 200)")
    made.add_argument("--lowest", type=float, default=1e-3, metavar="F", help="first rate, as a factor of the recipe's (default 0.001)")
    made.add_argument("--highest", type=float, default=100.0, metavar="F", help="last rate, as a factor of the recipe's (default 100)")
    return made


def main(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(parser().format_help() + "\nand a recipe with all of its flags, as python -m train --help lists them; --out DIR takes lr-find.png")
        return
    given, rest = parser().parse_known_args(arguments)
    name, recipe = parse(rest, named())
    known(recipe)
    if not recipe.rates():
        raise InputError("lr-find: the recipe's rates are 0: give it an --lr to start from")
    if given.steps < LAST or not 0 < given.lowest < given.highest < math.inf:
        raise InputError("--steps takes 10 or more, and --lowest and --highest factors above 0, the first below the second")
    recipe = replace(recipe, compiled=False, recorded=False, first_side=0)  # a rate a step would be compiled anew; the rate is for whole images
    device = device_of(recipe)
    out = Path(recipe.out or f"runs/lr-find-{name}")
    training = assemble(recipe, data.locate(recipe.data, recipe.size), device, Stopwatch(device))
    make_folder(out)
    factors = np.geomspace(given.lowest, given.highest, given.steps)
    with explained(recipe, device):
        losses = measure(training, factors)
    steepest, least = turns(factors, losses)
    chosen = least if recipe.schedule in FALLING else steepest
    first, base = next(iter(recipe.rates().items()))
    marks = {"falls fastest": base * steepest, "is least": base * least}
    draw(out / "lr-find.png", first, base * factors[: len(losses)], losses, marks, f"{recipe.net}, batch {recipe.batch_size}: learning-rate range test")
    print(f"{out / 'lr-find.png'}: the loss falls fastest at {first} {base * steepest:.3g}, and is least at {base * least:.3g}")
    print(f"for the {recipe.schedule} schedule: " + " ".join(f"--{flag(key)} {value * chosen:.3g}" for key, value in recipe.rates().items()))

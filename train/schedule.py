"""Learning-rate schedules as callable values: progress in epochs → a factor of the largest rate."""

import math
from collections.abc import Callable

from train.recipe import Recipe

Schedule = Callable[[float], float]


def schedule(recipe: Recipe) -> Schedule:
    """The factor in [0, 1] at `t` epochs (a float, so that it moves within an epoch).

    "plateau" is decided by the loss, not by the time (`optim.Plateau`); its factor here is the warm-up's.
    """
    shapes = {
        "constant": lambda t: 1.0,
        "plateau": lambda t: 1.0,
        "step": lambda t: recipe.factor ** (t // recipe.step_epochs),
        "linear": lambda t: falling(1 - _share(t, recipe)),
        "cosine": lambda t: falling(0.5 * (1 + math.cos(math.pi * _share(t, recipe)))),
    }
    shape = shapes[recipe.schedule]

    def falling(rest: float) -> float:
        return recipe.floor + (1 - recipe.floor) * rest

    return lambda t: (t / recipe.warmup if t < recipe.warmup else 1.0) * shape(t)


def _share(t: float, recipe: Recipe) -> float:
    """How much of the time behind the warm-up is over."""
    rest = recipe.epochs - recipe.warmup
    return min(max((t - recipe.warmup) / rest, 0.0), 1.0) if rest > 0 else 0.0

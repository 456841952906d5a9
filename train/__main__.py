"""python -m train [RECIPE] [--field value ...]"""

import inspect
import sys

from pipelines.errors import exit_code
from train import recipes
from train.recipe import parse
from train.runs import train


def named() -> dict:
    """The functions of `train/recipes.py`, by name."""
    return {name: made for name, made in inspect.getmembers(recipes, inspect.isfunction) if made.__module__ == recipes.__name__}


def main() -> None:
    name, recipe = parse(sys.argv[1:], named())
    train(recipe, name)


if __name__ == "__main__":
    sys.exit(exit_code(main))

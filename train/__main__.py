"""python -m train [RECIPE] [--field value ...], python -m train --resume RUN, or python -m train COMMAND ..."""

import importlib
import inspect
import sys

from pipelines.errors import exit_code
from train import recipes, resume
from train.recipe import parse
from train.runs import train

COMMANDS = ("catalogue",)  # words that stand for a module of their own, train/<word>.py with main(arguments); "-" is "_" in its name


def named() -> dict:
    """The functions of `train/recipes.py`, by name."""
    return {name: made for name, made in inspect.getmembers(recipes, inspect.isfunction) if made.__module__ == recipes.__name__}


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(f"train.{arguments[0].replace('-', '_')}").main(arguments[1:])
    if any(word.split("=")[0] == "--resume" for word in arguments):
        return resume.main(arguments)
    name, recipe = parse(arguments, named())
    train(recipe, name)


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""python -m train [RECIPE] [--field value ...], python -m train --resume RUN, or python -m train COMMAND ..."""

import importlib
import inspect
import sys

from pipelines.errors import exit_code

# Words that stand for a module of their own, train/<word>.py with main(arguments); "-" is "_" in its name.
COMMANDS = {
    "catalogue": "every recipe, and what was measured of it",
    "predict": "what a trained net says of pictures",
    "export": "a trained net for use without Tenfold: safetensors, torch.export program, ONNX",
    "compare": "runs side by side",
    "events": "a run's metrics for TensorBoard",
    "lr-find": "a learning rate for a recipe",
    "completion": "a script that completes these commands in bash or zsh",
}


def named() -> dict:
    """The functions of `train/recipes.py`, by name."""
    recipes = importlib.import_module("train.recipes")
    return {name: made for name, made in inspect.getmembers(recipes, inspect.isfunction) if made.__module__ == recipes.__name__}


def main() -> None:
    # what trains is imported by what trains: a command, or --help, starts in half the time without it
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(f"train.{arguments[0].replace('-', '_')}").main(arguments[1:])
    if any(word.split("=")[0] == "--resume" for word in arguments):
        return importlib.import_module("train.resume").main(arguments)
    from train.recipe import parse

    name, recipe = parse(arguments, named())
    importlib.import_module("train.runs").train(recipe, name)


if __name__ == "__main__":
    sys.exit(exit_code(main))

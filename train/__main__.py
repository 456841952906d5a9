"""python -m train [RECIPE] [--field value ...], python -m train --resume RUN, or python -m train COMMAND ..."""

import importlib
import sys

from pipelines.errors import exit_code
from train.command import COMMANDS


def main() -> None:
    # what trains is imported by what trains: a command, or --help, starts in half the time without it
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(f"train.{arguments[0].replace('-', '_')}").main(arguments[1:])
    if any(word.split("=")[0] == "--resume" for word in arguments):
        return importlib.import_module("train.resume").main(arguments)
    from train.flags import named, parse

    name, recipe = parse(arguments, named())
    importlib.import_module("train.runs").train(recipe, name)


if __name__ == "__main__":
    sys.exit(exit_code(main))

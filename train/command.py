"""The commands of `python -m train`, and what they share: a parser whose help is the module's docstring."""

import argparse
import shutil
import textwrap

WIDEST = 100  # characters of a line of help

# Words that stand for a module of their own, train/<word>.py with main(arguments); "-" is "_" in its name.
COMMANDS = {
    "catalogue": "all recipes with their measured accuracy",
    "evaluate": "test trained nets again, or on other images, and the mean of several",
    "predict": "classify pictures with a trained net",
    "export": "export a trained net: safetensors, torch.export program, ONNX",
    "compare": "compare runs side by side",
    "events": "convert a run's metrics for TensorBoard",
    "lr-find": "learning-rate range test for a recipe",
    "completion": "print a completion script for bash or zsh",
}


def parser_of(word: str, text: str, **options) -> argparse.ArgumentParser:
    """A parser for `python -m train <word>`. `text` is a docstring whose first line is "<command line>: what it does."."""
    about = text.split(": ", 1)[1]
    return argparse.ArgumentParser(
        prog=f"python -m train {word}",
        description=wrapped(about[0].upper() + about[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )


def wrapped(text: str) -> str:
    """The paragraphs of a docstring at the width of the terminal; those that are set in stay as they are."""
    width = min(shutil.get_terminal_size().columns, WIDEST) - 2
    return "\n\n".join(part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), width) for part in text.rstrip().split("\n\n"))


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural where it is not one."""
    return f"{number} {noun}{'s' * (number != 1)}"

"""python -m train catalogue: all recipes with their measured accuracy, from their docstrings, as the table in the README."""

import argparse
import inspect

from train.command import parser_of
from train.flags import named
from train.recipe import Recipe


def table(recipes: dict) -> str:
    """A Markdown table: name, net, epochs here, and the docstring as one cell. `recipes` maps names to functions."""
    rows = ["| recipe | net | what it is, and what was measured |", "| --- | --- | --- |"]
    for name, made in recipes.items():
        recipe: Recipe = made()
        rows.append(f"| `{name}` | {recipe.net} | {' '.join(inspect.getdoc(made).split())} |")
    return "\n".join(rows)


def parser() -> argparse.ArgumentParser:
    return parser_of("catalogue", __doc__)


def main(arguments: list[str]) -> None:
    parser().parse_args(arguments)
    print(table(named()))

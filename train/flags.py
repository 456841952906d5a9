"""A recipe as a command line: CLI flag = field name, and a recipe's function gives its name."""

import argparse
import dataclasses
import importlib
import inspect
from dataclasses import fields
from typing import Any

from pipelines.errors import InputError
from train import usage
from train.command import COMMANDS
from train.recipe import Recipe, flag


def named() -> dict:
    """The functions of `train/recipes.py`, by name."""
    recipes = importlib.import_module("train.recipes")
    return {name: made for name, made in inspect.getmembers(recipes, inspect.isfunction) if made.__module__ == recipes.__name__}


def plain(made, device: str) -> Recipe:
    """What a recipe's function returns where `device` is asked for."""
    return made(device) if inspect.signature(made).parameters else made()


def words(name: str, recipe: Recipe, recipes: dict) -> list[str]:
    """The command line that `parse` reads as this recipe."""
    start, found = (plain(recipes[name], recipe.device), [name]) if name in recipes else (Recipe(), [])
    for setting in fields(Recipe):
        value = getattr(recipe, setting.name)
        if value != getattr(start, setting.name):
            found += [f"--{flag(setting.name)}", str(value)] if setting.type is not bool else [f"--{'' if value else 'no-'}{flag(setting.name)}"]
    return found


def parse(arguments: list[str], recipes: dict) -> tuple[str, Recipe]:
    """(name, recipe) of a command line: `[RECIPE] --field value ...`; `recipes` maps names to functions.

    Raises `InputError` for an unknown recipe, setting or a value that cannot be; one of another type ends with exit code 2.
    """
    shown = next((word for word in arguments if word in recipes), "default")
    start = plain(recipes[shown], "auto")
    parser = usage.parser(recipes, COMMANDS, shown)
    for setting, group in usage.groups(parser, fields(Recipe)):
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": usage.explained(setting, getattr(start, setting.name))}
        if setting.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": setting.type, "choices": setting.metadata["choices"], "metavar": usage.metavar(setting)}
        group.add_argument(f"--{flag(setting.name)}", **options)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise InputError(
            f"{unknown[0]}: no such setting{usage.near(unknown[0], [f'--{flag(f.name)}' for f in fields(Recipe)])}: python -m train --help lists them"
        )
    given = vars(known)
    name = given.pop("recipe")
    if name not in recipes:
        raise InputError(f"{name}: neither a recipe ({', '.join(recipes)}) nor a command ({', '.join(COMMANDS)})")
    return name, dataclasses.replace(plain(recipes[name], given.get("device", "auto")), **given)

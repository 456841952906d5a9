"""What benchmarks look at in a command line before they measure: a recipe's settings that one has no use for, and files that are to be written."""

import importlib.util
from pathlib import Path

from pipelines.errors import InputError
from pipelines.files import check_writable
from train.recipe import flag
from train.run import make_folder


def sets(words: list[str], name: str) -> bool:
    """Whether a command line gives a setting of the recipe, be it the value that it has without."""
    return any(word.split("=")[0] in (f"--{flag(name)}", f"--no-{flag(name)}") for word in words)


def leave_out(words: list[str], remedy: str, *names: str) -> None:
    """Raise `InputError` where a command line gives one of these settings, which would change nothing. remedy: what to do instead."""
    for name in names:
        if sets(words, name):
            raise InputError(f"--{flag(name)}: not for this benchmark: {remedy}")


def check_files(json: str | None, chart: str | None = None) -> None:
    """Raise `InputError` where there can be no such file, or no picture at all: behind the last pass it would be too late."""
    if chart and not importlib.util.find_spec("matplotlib"):
        raise InputError("--chart: matplotlib is not installed: pip install matplotlib, or leave --chart out")
    for file in filter(None, (json, chart)):
        make_folder(Path(file).absolute().parent)
        check_writable(file)

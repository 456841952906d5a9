"""What benchmarks do with a command line: a recipe's settings that one of them has no use for."""

from pipelines.errors import InputError
from train.recipe import flag


def sets(words: list[str], name: str) -> bool:
    """Whether a command line gives a setting of the recipe, be it the value that it has without."""
    return any(word.split("=")[0] in (f"--{flag(name)}", f"--no-{flag(name)}") for word in words)


def leave_out(words: list[str], remedy: str, *names: str) -> None:
    """Raise `InputError` where a command line gives one of these settings, which would change nothing. remedy: what to do instead."""
    for name in names:
        if sets(words, name):
            raise InputError(f"--{flag(name)}: not for this benchmark: {remedy}")

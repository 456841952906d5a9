"""Errors that a person can mend: one line that names the thing and the remedy."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input or a missing part. The message is one line: what, where, and what to do about it."""

    def __str__(self) -> str:
        """One line even where a file's name or a library's reason has several."""
        return " ".join(super().__str__().splitlines())


class NotInstalled(InputError, ImportError):
    """A pipeline's own library is absent. The message says how to install it."""


def exit_code(command: Callable[[], None]) -> int:
    """Run a command line; an `InputError` becomes one line on stderr and exit code 2, Ctrl-C 130."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0

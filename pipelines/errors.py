"""Errors that a person can mend: one line that names the thing and the remedy."""

import errno
import os
import sys
from collections.abc import Callable


def plain(text: str) -> str:
    """A text from a file as it may be printed: what steers a terminal stands as its code."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class InputError(ValueError):
    """Bad input or a missing part. The message is one line: what, where, and what to do about it."""

    def __str__(self) -> str:
        """One line even where a file's name or a library's reason has several, and nothing that steers a terminal."""
        return plain(" ".join(super().__str__().splitlines()))


class NotInstalled(InputError, ImportError):
    """A pipeline's own library is absent. The message says how to install it."""


def reason(error: Exception) -> str:
    """What a library says of a failure, in a few words: its first line, or its kind where it says nothing."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{lines[0]:.200}".rstrip(":. ") if lines else type(error).__name__


def exit_code(command: Callable[[], None]) -> int:
    """Run a command line; an `InputError` becomes one line on stderr and exit code 2, as a full disk behind `> file` does, Ctrl-C 130, and a reader that
    left (`| head`) 1."""
    try:
        command()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        silence()
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        silence()
        print(f"error: standard output: cannot be written ({error.strerror}): free some room", file=sys.stderr)
        return 2
    return 0


def silence() -> None:
    """Have nothing more written to standard output, as Python would when it ends, and complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""python -m benchmarks gpu --out DIR --minutes M: everything there is to measure on a GPU, the most important first."""

import sys
import time

from pipelines.errors import InputError, exit_code


def main() -> None:
    begin = time.monotonic()  # what importing torch takes belongs to the minutes
    name, *given = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
    elif name == "gpu":
        from benchmarks.gpu import gpu

        gpu(given, begin)
    else:
        raise InputError(f"{name}: the command is gpu; benchmarks/README.md lists the others (python -m benchmarks.<file>)")


if __name__ == "__main__":
    sys.exit(exit_code(main))

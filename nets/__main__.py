"""python -m nets            all nets: parameters, multiply-adds, receptive field, output
python -m nets level1     one net, layer by layer

The receptive field is in input pixels, before the global pool; "all" after it.
"""

import argparse
import os
import sys

import nets
from nets.measure import SHAPE, layers, output_shape

MOST = 1_000_000  # classes: all nets are built for them


def table(header: tuple[str, ...], rows: list[tuple], left: int = 1) -> str:
    """Aligned plain text: numbers with thousands separators, the first `left` columns to the left."""
    cells = [header, *[tuple(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def size(shape: tuple[int, ...]) -> str:
    """(64, 8, 8) as 64x8x8."""
    return "x".join(map(str, shape))


def every_net(classes: int) -> str:
    rows = []
    for name in nets.names():
        net = nets.load(name, classes)
        rows.append((name, nets.parameters(net), nets.macs(net), nets.receptive_field(net), size(output_shape(net))))
    return table(("net", "parameters", "MACs", "receptive field", "output"), rows)


def one_net(name: str, classes: int) -> str:
    net = nets.load(name, classes)
    rows = [(f.name or "net", f.kind, size(f.shape), f.parameters, f.macs, f.sees or "all") for f in layers(net)]
    total = ("total", "", "", nets.parameters(net), nets.macs(net), "")
    return table(("layer", "kind", "output", "parameters", "MACs", "receptive field"), [*rows, total], left=2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nets", description=f"What the nets cost, for one image of {size(SHAPE)}.")
    parser.add_argument("net", nargs="?", help="show this net layer by layer")
    parser.add_argument("--classes", type=int, default=10, help="number of classes (default 10)")
    arguments = parser.parse_args()
    if not 1 <= arguments.classes <= MOST:
        print(f"error: --classes {arguments.classes}: give 1 to {MOST:,}", file=sys.stderr)
        return 2
    try:
        print(one_net(arguments.net, arguments.classes) if arguments.net else every_net(arguments.classes), flush=True)
    except nets.UnknownNet as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # a reader that left: | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more when it ends
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

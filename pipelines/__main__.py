"""python -m pipelines convert SOURCE OUT | inspect STORE | verify STORE"""

import argparse
import json
import sys
from pathlib import Path

from pipelines.convert import ENCODINGS, check, convert
from pipelines.errors import exit_code
from pipelines.sources import find
from pipelines.store import Store


def describe(store: Store) -> dict:
    """What a store holds, as plain values."""
    return {
        "path": str(store.path),
        "bytes": store.path.stat().st_size,
        "encoding": store.encoding,
        "height": store.height,
        "width": store.width,
        "channels": store.channels,
        "classes": list(store.classes),
        "images": {split: store.count(split) for split in store.splits},
        "mean": store.mean,
        "std": store.std,
        "source": store.source,
        "sha256": store.sha256,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description="Convert datasets to stores, and inspect and verify stores.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("convert", help="convert a source to a store")
    make.add_argument("source", help="cifar10, cifar100, svhn, shapes, or a path: archive, image folder or tar")
    make.add_argument("out", help="store to write, a .safetensors file")
    make.add_argument("--encoding", choices=ENCODINGS, default="raw", help="raw pixels, or the original JPEG data (default raw)")
    make.add_argument("--size", type=int, default=0, metavar="N", help="center-crop every image to a square and resize it to N x N pixels")
    for name, text in (("inspect", "print the metadata of a store as JSON"), ("verify", "check every byte of a store against its checksums")):
        commands.add_parser(name, help=text).add_argument("store")
    arguments = parser.parse_args()
    if arguments.command == "convert":
        check(Path(arguments.out), arguments.encoding, arguments.size)  # before a download
        source = find(arguments.source)
        convert(source, arguments.out, arguments.encoding, arguments.size)
        if source.note:
            print(source.note, file=sys.stderr)
        print(f"{arguments.out}: {Path(arguments.out).stat().st_size:,} bytes")
    elif arguments.command == "inspect":
        print(json.dumps(describe(Store(arguments.store)), indent=1))
    else:
        Store(arguments.store).verify()
        print(f"{arguments.store}: every tensor matches its checksum")


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""How long do the GPU kernels of a tiny net's block take, by launch configuration?

    python benchmarks/blocks.py [--channels 32 48 --sides 32 16] [--batch-size N] [--json FILE]

A block of so many channels on maps of so many pixels a side, bf16, forward and backward. For each kernel (`nets/gated_kernels.py`) the number of programs
per multiprocessor and of registers per thread is varied, and for the depthwise filters the values of a tile, one at a time;
all others keep their defaults. A figure is the median over rounds, in turns, of a CUDA graph of 20 times the whole block, so that one kernel's gain is
seen in the whole; "bytes" is what its maps take at the rate of a copy too large for any cache, measured in this run.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

import torch  # noqa: E402

from benchmarks.flags import check_files  # noqa: E402
from benchmarks.measure import table  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from pipelines.files import write_json  # noqa: E402
from train.machine import commit, hardware, versions  # noqa: E402
from train.recorded import Graphs  # noqa: E402

LAUNCHES, ROUNDS = 20, 15
LARGE = 2**27  # values of the copy, 256 MB
MAPS = 10  # that a block reads and writes: three forward, three to its depthwise convolution, four behind that
ROOMS = {
    "block": [(2, 255), (3, 168), (4, 128), (6, 80)],
    "back": [(2, 255), (3, 168), (4, 128)],
    "look": [(2, 255), (3, 168), (4, 128), (5, 96), (6, 80)],
}
VALUES = (256, 512, 1024, 2048)  # of a tile of the depthwise filters' kernel


def ways(channels: int, kernels) -> dict[str, dict]:
    """What is tried, by a name: the constants of `kernels` that differ. The first is as it is."""
    width = kernels.width_of(channels)
    found = {"as it is": {}}
    for name, rooms in ROOMS.items():
        now = kernels.room(name, width)
        for one in rooms:
            if one != now:
                found[f"{name}: {one[0]} programs, {one[1]} registers"] = {"ROOM": {**kernels.ROOM, name: {width: one}}}
    return found | {f"look: tiles of {values} values": {"LOOK_VALUES": values} for values in VALUES if values != kernels.LOOK_VALUES}


@contextmanager
def set_to(kernels, constants: dict) -> Iterator[None]:
    """With these constants of the module."""
    before = {name: getattr(kernels, name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(kernels, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(kernels, name, value)


def replay_of(work: Callable[[], None], graphs: Graphs) -> Callable[[], None]:
    """LAUNCHES times what `work` does, recorded."""

    def several(_) -> None:
        for _ in range(LAUNCHES):
            work()

    graphs.alone(several, None)  # kernels are compiled
    return graphs.record(several, None)[1]


def microseconds(replay: Callable[[], None]) -> float:
    """Of one of its launches."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end) / LAUNCHES


def measured(channels: int, side: int, batch: int) -> tuple[dict[str, list[float]], float]:
    """(µs of a block, forward and backward, in each round, by way; µs that its bytes take)."""
    from nets import gated_kernels as kernels

    images, gradient = (torch.randn(batch, channels, side, side, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last) for _ in range(2))
    sizes = (1, channels, 9), (1, channels), (1, channels), (1, 2 * channels, channels), (1, channels, channels), (1, channels)
    parameters = tuple(torch.randn(size, device="cuda") for size in sizes)

    def work() -> None:
        _, looked, vectors, matrices = kernels.forward(images, parameters, 1e-5)
        kernels.backward(gradient, images, looked, vectors, matrices, parameters, 1e-5)

    large, graphs = torch.empty(LARGE, device="cuda", dtype=torch.bfloat16), Graphs(images.device)
    replays = {"copy": replay_of(lambda: large.clone(), graphs)}
    for name, constants in ways(channels, kernels).items():
        with set_to(kernels, constants):
            replays[name] = replay_of(work, graphs)
    times: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(ROUNDS):
        for name, replay in replays.items():
            times[name].append(microseconds(replay))
    return times, median(times.pop("copy")) * MAPS / 2 * images.numel() / LARGE  # which reads and writes


def options(given: list[str] | None) -> argparse.Namespace:
    """Raises `InputError` for shapes that the kernels do not know, and where there is no GPU."""
    parser = argparse.ArgumentParser(prog="blocks.py", description=__doc__.split("\n")[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 24, 32, 48, 64])
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 16, 32, 16, 8], help="side of the maps for each number of channels, pixels")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args(given)
    if len(asked.channels) != len(asked.sides):
        raise InputError(f"--channels and --sides: {len(asked.channels)} and {len(asked.sides)}: give a side for each number of channels")
    if min(*asked.channels, *asked.sides, asked.batch_size) < 1 or max(asked.channels) > 64:
        raise InputError("--channels: give from 1 to 64, which the kernels know; --sides and --batch-size: 1 or more")
    check_files(asked.json)
    if not torch.cuda.is_available():
        raise InputError("no CUDA device here, and the kernels are for one")
    return asked


def main(given: list[str] | None = None) -> None:
    asked = options(given)
    device, shapes = torch.device("cuda"), []
    for channels, side in zip(asked.channels, asked.sides):
        times, floor = measured(channels, side, asked.batch_size)
        now = times["as it is"]
        cells = [[name, f"{median(values):.1f}", f"{median(a / b for a, b in zip(values, now)):.2f}"] for name, values in times.items()]
        print(f"\n{asked.batch_size} images of {channels} x {side} x {side}; bytes {floor:.1f} us")
        print(table(["a block, forward and backward", "us", "of as it is"], cells), flush=True)
        shapes.append({"channels": channels, "side": side, "bytes_us": floor, "us": times})
        if asked.json:
            machine = {"commit": commit(), "hardware": hardware(device), "versions": versions()}
            write_json(asked.json, {**machine, "batch_size": asked.batch_size, "launches": LAUNCHES, "shapes": shapes})


if __name__ == "__main__":
    sys.exit(exit_code(main))

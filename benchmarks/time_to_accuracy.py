"""Seconds to an accuracy, over independent seeds, by the field's clock and by the wall clock.

    python benchmarks/time_to_accuracy.py RECIPE --runs N --out DIR [--target A|peer] [--peer FOLDER/SCRIPT.py ...] [--field value ...]

seconds       the field's clock: training and the last test pass, from the first use of the training pixels in memory to the last
              prediction; compilation and warm-up are reported separately, as by the speed records
wall s a run  the wall clock of a seed's whole run, with set-up, compilation, files and plots; for a peer, from one result to the next
process s     of the process that ran all seeds, from its start to the last result, without measuring the matrix rate and the peers

Where there are peers (`adapter.py` says what a script must print), half of our seeds train before them and half after, in one process, so
that a machine that slows down is noticed. DIR keeps finished seeds and peers' finished runs, and result.json, written whenever a contestant
has finished: called again, the command continues. A diverged run is counted and named, and is part of no mean.

TFLOP/s: a training counts as three passes (forward, and two backward) of 2 x MACs for each image at the side that it is trained at; its
fraction is of a large matrix product in the same precision, measured in this run.
"""

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

BEGIN = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs by its path

import torch  # noqa: E402

import nets  # noqa: E402
from benchmarks.adapter import peer  # noqa: E402
from benchmarks.flags import leave_out  # noqa: E402
from benchmarks.measure import facts, field_seconds, table  # noqa: E402
from benchmarks.standings import chart, figures, header, lines, remarks  # noqa: E402
from pipelines import data  # noqa: E402
from pipelines.errors import InputError, exit_code  # noqa: E402
from pipelines.files import write_json  # noqa: E402
from pipelines.store import Store  # noqa: E402
from train.assembly import known  # noqa: E402
from train.device import DTYPES, device_of, precision_of  # noqa: E402
from train.flags import named, parse  # noqa: E402
from train.jobs import attempt, earlier, interrupted  # noqa: E402
from train.machine import hardware  # noqa: E402
from train.progressive import side  # noqa: E402
from train.recipe import Recipe  # noqa: E402
from train.resting import rest, resting  # noqa: E402
from train.run import Kept, make_folder  # noqa: E402
from train.split import split  # noqa: E402
from train.summary import dataset_name, tested_on  # noqa: E402


def since_start() -> float:
    """Seconds since the system started this process; where it does not tell (no Linux), since this module's first line."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # field 22: start, ticks since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - BEGIN


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of a large matrix product, the best of those that fit into some `seconds`: what the device gives at most."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait()
        begin = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def training_flop(recipe: Recipe, store: Store) -> float:
    """FLOP of one training, forward and backward (`nets.training_flop`), at the side that each epoch has, without what rests in it. Draws from torch's random
    stream."""
    _, ids = split(recipe, store.labels("train"))
    images = store.count("train") if ids is None else len(ids)
    net = nets.load(recipe.net, len(store.classes))
    sides = (side(epoch, recipe.epochs, recipe.first_side, store.height, recipe.grown) for epoch in range(recipe.epochs))
    flop = 0.0
    for (high, which), count in Counter((high, resting(net, recipe, epoch)) for epoch, high in enumerate(sides)).items():
        rest(net, which)
        flop += count * images * nets.training_flop(net, (store.channels, high, round(store.width * high / store.height)))
    return flop


def train_seeds(recipe: Recipe, seeds: range, name: str, store: Store, out: Path, kept: Kept, say) -> list[dict]:
    """What each seed's folder says of it (`train.runs`): its summary, or where it diverged. A finished seed is not trained again.

    Raises `InputError` where that was with other settings, on other images or on another device.
    """
    device, outcomes = device_of(recipe), []
    ours = {"data": {"sha256": store.sha256}, "hardware": hardware(device)}
    for seed in seeds:
        one, place = replace(recipe, seed=seed, runs=1), out / f"seed-{seed}"
        outcome = earlier(one, place)
        if outcome is None:
            interrupted(one, place)  # of other settings it is refused, as `earlier` does with a finished run
            (place / "checkpoint.pt").unlink(missing_ok=True)  # an interrupted seed begins again: its clock would have a gap
            outcome = {**attempt([(one, place)], device, name, say, kept)[0], "trained_now": True}
        elif elsewhere(ours | outcome, ours):  # of a seed that diverged less is known
            raise InputError(f"{place}: trained on other images or another device: remove it, or name another folder with --out")
        else:
            say(f"{place}: finished earlier, kept")
        outcomes.append(outcome)
    return outcomes


def elsewhere(outcome: dict, ours: dict) -> bool:
    """Whether a seed was trained on other images than ours, or on another device."""
    return outcome["data"]["sha256"] != ours["data"]["sha256"] or outcome["hardware"]["device"] != ours["hardware"]["device"]


def our_row(name: str, outcomes: list[dict], seconds: float, flop: float) -> dict:
    """Our row of the table. seconds: of the process, for the seeds that it trained; flop: of one training."""
    runs = []
    for summary in outcomes:
        if "diverged" in summary:
            continue
        times = summary["seconds"]
        shown = {"seed": summary["seed"], "accuracy": summary["test_accuracy"], "wall_seconds": times["total"]}
        shown["seconds"] = round(field_seconds(times), 3)
        runs.append({**shown, "train_seconds": times["train"], "images_per_second": summary["images_per_second"]})
    diverged = [{key: summary[key] for key in ("seed", "epoch", "step")} for summary in outcomes if "diverged" in summary]
    trained = sum("trained_now" in summary for summary in outcomes)
    row = {"who": f"Tenfold {name}", "runs": runs, "diverged": diverged, "missing": "", "flop": flop, "trained_now": trained}
    rate = flop / max(mean(run["train_seconds"] for run in runs), 1e-3) if runs else None  # the summaries have milliseconds
    return {**row, "flop_per_second": rate, "process_seconds": round(seconds, 3) if trained else None}


def contest(recipe: Recipe, name: str, store: Store, scripts: list[Path], out: Path, rate, say) -> Iterator[tuple[list[dict], float, list[str]]]:
    """(rows, ours first; matrix rate, FLOP/s; the order in which everything ran), whenever a contestant has ended. `rate` is called for the matrix rate."""
    seconds, flop, kept = since_start(), training_flop(recipe, store), Kept()
    matrix = rate()
    seeds = range(recipe.seed, recipe.seed + recipe.runs)
    half = math.ceil(recipe.runs / 2) if scripts else recipe.runs
    outcomes, order = [], []
    peers = [{"who": script.stem, "runs": [], "diverged": [], "missing": "not run yet", "process_seconds": 0.0} for script in scripts]
    for block in (seeds[:half], seeds[half:]):
        if not block:
            continue
        begin = time.perf_counter()
        outcomes += train_seeds(recipe, block, name, store, out, kept, say)
        seconds += time.perf_counter() - begin
        order.append(f"Tenfold {name}, " + (f"seeds {block[0]} to {block[-1]}" if len(block) > 1 else f"seed {block[0]}"))
        yield [our_row(name, outcomes, seconds, flop), *peers], matrix, order
        for i, script in enumerate(scripts if block[0] == seeds[0] else ()):
            torch.cuda.empty_cache()  # without a device it does nothing
            peers[i] = peer(script, store, recipe, out, say)
            order += [peers[i]["who"]] if peers[i]["runs"] else []
            yield [our_row(name, outcomes, seconds, flop), *peers], matrix, order


def options(given: list[str] | None) -> tuple[argparse.Namespace, str, Recipe]:
    """(own flags, the recipe's name, the recipe); `target` is "", "peer" or a number. Raises `InputError` for what cannot be run."""
    parser = argparse.ArgumentParser(
        prog="time_to_accuracy.py", description=__doc__.split("\n")[0], allow_abbrev=False, epilog="all other flags are settings of python -m train"
    )
    parser.add_argument(
        "--target", default="", metavar="A|peer", help="accuracy to test the mean against (p-value), a fraction; peer: the first peer's mean in this run"
    )
    parser.add_argument("--peer", action="append", default=[], metavar="SCRIPT", help="a peer's script in a folder of yours (repeatable)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results: result.json, result.png, seeds and peers")
    asked, rest = parser.parse_known_args(given)
    leave_out(rest, "seeds train one after another, as many as --runs says: leave it out", "sweep", "together")
    name, recipe = parse(rest, named())
    if asked.target not in ("", "peer"):
        try:
            asked.target = float(asked.target)
        except ValueError:
            asked.target = math.nan
        if not 0 < asked.target < 1:
            raise InputError("--target: give a fraction such as 0.94, or peer")
    asked.peer = [Path(script).resolve() for script in asked.peer]
    for script in asked.peer:
        if not script.is_file():
            raise InputError(f"{script}: no such script: name a peer's Python file with --peer")
    if asked.target == "peer" and not asked.peer:
        raise InputError("--target peer: name the peer's script with --peer")
    known(recipe)
    return asked, name, recipe


def read(file: Path) -> dict:
    """What an earlier call left; {} where that cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def trainings(result: dict) -> int:
    """How many a result has, of all contestants; none where it is not one."""
    try:
        return sum(len(row["runs"]) for row in result["rows"])
    except (KeyError, TypeError):
        return 0


def main(given: list[str] | None = None) -> None:
    asked, name, recipe = options(given)
    out, device = Path(asked.out), device_of(recipe)
    make_folder(out)
    store, precision = data.locate(recipe.data, recipe.size), precision_of(recipe, device)
    title = dataset_name(store)
    if asked.peer and (store.height, store.width, store.channels) != (32, 32, 3):
        raise InputError(f"--peer: the records' scripts take 32 x 32 x 3 pixels, and {title} has {store.height} x {store.width} x {store.channels}")
    about = facts(store, device, {"recipe": {"name": name, **asdict(recipe)}, "peers": [script.name for script in asked.peer]})
    left = read(out / "result.json")
    for rows, rate, order in contest(recipe, name, store, asked.peer, out, lambda: matrix_rate(device, DTYPES[precision]), print):
        target = asked.target or None
        if target == "peer":
            target = [run["accuracy"] for run in rows[1]["runs"]] or None
        sets_it = 1 if asked.target == "peer" else None  # whether its mean reaches itself is no question
        rows = [figures(row, None if number == sets_it else target) for number, row in enumerate(rows)]
        target = rows[0]["target"]
        about |= {"tested_on": tested_on(recipe), "precision": precision, "matrix_flop_per_second": rate, "order": order, "rows": rows}
        if trainings(about) >= trainings(left):  # each time, as a machine may be lent for minutes; but not less than an earlier call has left
            write_json(out / "result.json", about)
    write_json(out / "result.json", about)
    chart(rows, f"{title}, {about['hardware']['device']}", out / "result.png")
    print(f"\n{title}, tested on {tested_on(recipe)}; {precision}, matrix rate {rate / 1e12:.3g} TFLOP/s" + (f"; target {target:.4f}" if target else ""))
    print(table(header(title), lines(rows, rate, title)))
    print("\n".join([f"order: {'; '.join(order)}", *remarks(rows), str(out / "result.json")]))


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""python -m train --resume RUN: resume an interrupted run; the result is bit for bit that of a run that was never interrupted.

The checkpoint holds everything but the data: weights, optimiser, scaler, random state, and (seed, epoch, step), which is the
whole state of a pipeline. So another pipeline may continue, and the data may have moved.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pipelines.errors import InputError
from train.runs import train
from train.state import read, recipe_of


def main(arguments: list[str]) -> None:
    """The command line with --resume in it."""
    parser = argparse.ArgumentParser("python -m train", description=__doc__.split("\n\n")[0].split(": ", 1)[1].capitalize(), allow_abbrev=False)
    parser.add_argument("--resume", required=True, metavar="RUN", help="folder of an interrupted run")
    parser.add_argument("--data", help="new place of the data, if it has moved")
    parser.add_argument("--pipeline", help="continue with another pipeline; the pixels are the same")
    asked, others = parser.parse_known_args(arguments)
    if others:
        raise InputError(f"{others[0]}: --resume goes on with the run's own settings: only --data and --pipeline may change")
    out = Path(asked.resume)
    state = read(out)
    name, recipe = recipe_of(state, out)
    changed = {key: value for key, value in (("data", asked.data), ("pipeline", asked.pipeline)) if value is not None}
    train(replace(recipe, out=str(out), **changed), name, state=state)

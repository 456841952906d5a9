"""A training and its repetitions: `--runs K` trains K seeds in one process, each in a folder of its own; several processes share them out."""

import os
from pathlib import Path

from train import budget, ranks, result, sweep
from train.assembly import known
from train.device import device_of
from train.jobs import all_earlier, check_kind, interrupted, lacks_report, of_runs, seeds, summed_up, train_jobs
from train.recipe import Recipe
from train.run import Kept, folder, train_once
from train.state import check_data
from train.summary import on_what


def train(recipe: Recipe, name: str = "", say=print, state: dict | None = None) -> dict:
    """Train a recipe, `recipe.runs` times, and write its run folder. Gives back the (last) summary; of several processes, in the first.
    What the folder holds of the same training is kept where it is finished, and gone on with where it is not.

    state  of a checkpoint of this recipe, to go on from (`state.read`)

    Raises `InputError` for data, a net, a pipeline or a folder that cannot be used or holds another training, before training starts.
    """
    device = device_of(recipe)
    known(recipe)
    with ranks.joined(device, deal=recipe.runs > 1 or bool(recipe.sweep)) as mine, folder(recipe, mine) as out:
        kept = Kept(ranks=mine)
        device, say = mine.device(device), say if mine.writes else lambda *_: None
        check_kind(out, recipe)
        if recipe.minutes:
            recipe = budget.fitted(recipe, out, device, say, kept)
        kept.several = out if recipe.sweep or recipe.runs > 1 else None
        if recipe.sweep:
            return sweep.train(recipe, out, device, name, say, kept)
        if recipe.runs == 1:
            return train_one(recipe, out, device, name, say, kept, state)
        return train_many(recipe, out, device, name, say, kept)


def train_one(recipe: Recipe, out: Path, device, name: str, say, kept: Kept, state: dict | None) -> dict:
    """One seed, in `out`. What is finished there is not trained again, and what was interrupted goes on.

    Raises `InputError` where the folder holds another training.
    """

    def left() -> tuple[dict | None, bool]:
        """(what a training that ended left, whether there is one to go on with)."""
        if state is None:
            return all_earlier([(recipe, out)])[out], os.path.exists(out / "checkpoint.pt")
        known = os.path.exists(out / "summary.json") and not lacks_report(recipe, out)
        return result.summary(out) if known else None, True  # of this recipe, but perhaps by another pipeline

    outcome, begun = kept.ranks.same(left)
    if outcome and "diverged" not in outcome:
        if state is not None:
            check_data(state, kept.locate(recipe), out)
        say(f"{out}: finished earlier, kept: for another training name another folder with --out")
        return {} if kept.ranks.rank else outcome
    if state is None and begun:
        state = interrupted(recipe, out)
    return train_once(recipe, out, device, name, say, kept, state)


def train_many(recipe: Recipe, out: Path, device, name: str, say, kept: Kept) -> dict:
    """Seeds `seed`, `seed + 1`, ..., each in `out/seed-N`. A seed that is finished there is not trained again.

    A diverged seed is written to its folder's `diverged.json`, counted, and left out of no count; the accuracies
    are of the others. Raises `InputError` where the folder holds another experiment's seeds, or all diverged.
    """
    outcomes = train_jobs(seeds(recipe, out), recipe.together, device, name, say, kept)
    if kept.ranks.rank:
        return {}
    summary = summed_up(outcomes, out)
    lost = [o["diverged"] for o in outcomes if "diverged" in o]
    say(f"{recipe.runs} runs: test accuracy {of_runs(summary['runs'])}{on_what(summary)}" + "".join(f"; {said}" for said in lost))
    return summary

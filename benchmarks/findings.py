"""What the trials of `search.py` say: the table of what each setting does, the best settings by the fit, the picture.

A trial is a pair: its settings {name: value}, and what its run folder says of it, a summary or where it diverged.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.measure import field_seconds, table
from benchmarks.surface import Choice, Estimate, Range, Surface
from train.figures import TEST, log_scale, plt, save
from train.recipe import Recipe, flag

HEADER = ["setting", "drawn from", "the recipe's", "low → high, points", "middle, points", "train, points", "seconds", "best"]


def shown(estimate: Estimate, digits: int, unit: float = 1.0) -> str:
    """With its sign and half of its interval; bold where zero lies outside."""
    text = f"{unit * estimate.value:+.{digits}f} ± {unit * estimate.half:.{digits}f}"
    return f"**{text}**" if estimate.clear else text


def rows(ranges: list[Range | Choice], own: dict, best: dict, accuracy: Surface, train: Surface, seconds: Surface) -> list[list[str]]:
    """The table's cells: of a list, each word but the first against the first."""
    cells = []
    for one in ranges:
        ends = (
            [(f"{flag(one.name)}: {word}", one.values[0], word) for word in one.values[1:]]
            if isinstance(one, Choice)
            else [(flag(one.name), one.low, one.high)]
        )
        for label, low, high in ends:
            less, more = {**own, one.name: low}, {**own, one.name: high}
            middle = ""
            if isinstance(one, Range) and accuracy.curved and one.between:
                middle = shown(accuracy.middle(one), 2, 100)
            better = str(best[one.name]) if best[one.name] != own[one.name] else ""
            differ = (
                shown(accuracy.difference(more, less), 2, 100),
                middle,
                shown(train.difference(more, less), 2, 100),
                shown(seconds.difference(more, less), 3),
            )
            cells.append([label, str(one), str(own[one.name]), *differ, better])
    return cells


def found(recipe: Recipe, ranges: list[Range | Choice], done: list[tuple[dict, dict]], cost: float) -> tuple[str, dict, Surface | None]:
    """(what the trials say, the same as plain values, the fit of the accuracy). cost: points of accuracy that a second is worth."""
    good = [(trial, outcome) for trial, outcome in done if "diverged" not in outcome]
    reached = [outcome["test_accuracy"] for _, outcome in good]
    learnt = [outcome["train_accuracy"] for _, outcome in good]
    took = [field_seconds(outcome["seconds"]) for _, outcome in good]
    lost = [f"diverged: {' '.join(f'--{flag(k)} {v}' for k, v in trial.items())}: {o['diverged']}" for trial, o in done if "diverged" in o]
    trials = [trial for trial, _ in good]
    try:
        accuracy, fitting, seconds = (Surface(ranges, trials, figures) for figures in (reached, learnt, took))
        merit = Surface(ranges, trials, [a - cost / 100 * s for a, s in zip(reached, took)])
    except ValueError as error:
        return "\n".join([f"{error}: give more --trials", *lost]), {}, None
    own = {one.name: getattr(recipe, one.name) for one in ranges}
    best = merit.best(own)
    here, gain, longer = accuracy.at(own), accuracy.difference(best, own), seconds.difference(best, own)
    said = [
        table(HEADER, rows(ranges, own, best, accuracy, fitting, seconds)),
        f"\n{len(good)} trials, {'linear and squared' if accuracy.curved else 'linear'} terms; a trial differs from the fit by {100 * accuracy.deviation:.2f} points (sd)",
        f"at the recipe's own settings {100 * here.value:.2f} ± {100 * here.half:.2f}%",
        *lost,
    ]
    words = " ".join(f"--{flag(name)} {value}" for name, value in best.items() if value != own[name])
    priced = f" where a second is worth {cost:g} points" if cost else ""
    if words:
        said.append(
            f"best by the fit{priced}: {words}: {shown(gain, 2, 100)} points, {shown(longer, 3)} s. A fit's best flatters itself: train it anew, on other seeds"
        )
    else:
        said.append(f"nothing that is clearly better{priced}")
    plain = {"curved": accuracy.curved, "residual_deviation": accuracy.deviation, "own": own, "at_own": asdict(here)}
    return "\n".join(said), {**plain, "best": best, "gain": asdict(gain), "seconds_more": asdict(longer)}, accuracy


def chart(recipe: Recipe, ranges: list[Range | Choice], done: list[tuple[dict, dict]], fit: Surface, title: str, path: Path) -> None:
    """A panel a setting: the fit with its 95% interval where all others are the recipe's own, and every trial brought there by the fit, which leaves
    its residual; nothing without matplotlib."""
    if plt is None:
        return
    own = {one.name: getattr(recipe, one.name) for one in ranges}
    down = -(-len(ranges) // 4)
    across = -(-len(ranges) // down)
    figure, axes = plt.subplots(down, across, figsize=(3.2 * across + 1, 2.8 * down + 0.6), sharey=True, squeeze=False, layout="constrained")
    good = [(trial, 100 * (outcome["test_accuracy"] - fit.at(trial).value)) for trial, outcome in done if "diverged" not in outcome]
    for panel in axes.flat[len(ranges) :]:
        panel.set_axis_off()
    for panel, one in zip(axes.flat, ranges):
        listed = isinstance(one, Choice)
        values = list(one.values) if listed else list(dict.fromkeys(one.value(k / 40) for k in range(41)))
        at = list(range(len(values))) if listed else values
        places = [one.values.index(trial[one.name]) if listed else trial[one.name] for trial, _ in good]
        moved = [100 * fit.at({**own, one.name: trial[one.name]}).value + residual for trial, residual in good]
        panel.plot(places, moved, "o", ms=4, alpha=0.35, color="0.2", mec="none")
        levels = [fit.at({**own, one.name: value}) for value in values]
        middle, half = np.array([100 * e.value for e in levels]), np.array([100 * e.half for e in levels])
        if listed:
            panel.errorbar(at, middle, half, fmt="o", ms=5, capsize=3, color=TEST)
            panel.set_xticks(at, [str(value) for value in values])
            panel.margins(x=0.3)
        else:
            panel.plot(at, middle, color=TEST)
            panel.fill_between(at, middle - half, middle + half, color=TEST, alpha=0.2, lw=0)
            panel.axvline(own[one.name], color="0.4", lw=1, ls=":", zorder=0)
            if one.log:
                log_scale(panel)
        panel.set_xlabel(flag(one.name))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[:, 0]:
        panel.set_ylabel("accuracy (%)")
    figure.suptitle(
        f"{title}\nthe fit, with its 95% interval, where the other settings are the recipe's own (dotted); a dot a trial, brought there by the fit", fontsize=10
    )
    save(path, figure)

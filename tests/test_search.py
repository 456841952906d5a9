"""Trainings at settings drawn at random, and the fit of what came out: `search.py`, `findings.py`, `surface.py`."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import search
from benchmarks.entries import ENTRIES
from benchmarks.findings import found
from benchmarks.surface import Choice, Range, Surface, draws
from pipelines.errors import InputError
from train import jobs, report
from train.course import Diverged
from train.recipe import Recipe

SMALL = ["--epochs", "1", "--batch-size", "16", "--device", "cpu", "--precision", "fp32", "--net", "level1", "--held-out", "10"]
RANGES = [Range("lr", 0.01, 1.0, float), Range("label_smoothing", 0.0, 0.2, float), Range("epochs", 3, 6, int), Choice("muon_norm", ("filter", "row"))]
OWN = {"lr": 0.05, "label_smoothing": 0.1, "epochs": 4, "muon_norm": "filter"}


# What is drawn


def test_draws_fill_the_ranges_and_more_of_them_begin_with_the_same():
    some, more = draws(RANGES, 64, 3), draws(RANGES, 80, 3)
    assert more[:64] == some and draws(RANGES, 64, 4) != some
    for one in RANGES:
        values = [trial[one.name] for trial in more]
        assert all(map(one.holds, values))
        if isinstance(one, Range):
            counts, _ = np.histogram([one.place(v) for v in values], bins=4, range=(-1, 1))
            assert counts.min() >= 10 or one.kind is int
    assert {trial["epochs"] for trial in more} == {3, 4, 5, 6} and all(type(trial["epochs"]) is int for trial in more)
    assert 25 <= [trial["muon_norm"] for trial in more].count("row") <= 55
    assert 25 <= sum(trial["lr"] < 0.1 for trial in more) <= 55  # a wide range is drawn from on a log scale


def test_a_range_says_where_a_value_lies():
    wide, narrow = Range("lr", 0.01, 1.0, float), Range("lr", 0.1, 0.3, float)
    assert wide.log and not narrow.log and not Range("label_smoothing", 0.0, 0.2, float).log
    assert (wide.place(0.01), wide.place(0.1), wide.place(1.0)) == pytest.approx((-1, 0, 1)) and narrow.place(0.2) == pytest.approx(0)


# The fit


def truth(trial: dict) -> float:
    """Best at lr 0.1 and the most epochs; label smoothing does nothing."""
    return 0.8 - 0.02 * math.log10(trial["lr"] / 0.1) ** 2 + 0.01 * (trial["epochs"] - 4.5) / 1.5 + 0.005 * (trial["muon_norm"] == "row")


def test_without_noise_the_fit_is_the_truth():
    trials = draws(RANGES, 40, 0)
    fit = Surface(RANGES, trials, [truth(trial) for trial in trials])
    assert fit.curved and fit.deviation < 1e-9
    for one, other in zip(trials[:10], trials[10:20]):
        assert fit.difference(one, other).value == pytest.approx(truth(one) - truth(other)) and fit.at(one).value == pytest.approx(truth(one))
    best = fit.best(OWN)
    assert best["lr"] == pytest.approx(0.1, rel=0.1) and best["epochs"] == 6 and best["muon_norm"] == "row"


@pytest.mark.parametrize("high, cell", [(6, "**+4.50 ± 0.00**"), (5, "**+2.00 ± 0.00**"), (4, "")])
def test_the_middle_of_whole_numbers_is_above_the_ends_by_the_square(high, cell):
    """Of 3 to 6 it is 4.5, which no trial has; of two numbers there is none."""
    ranges = [Range("lr", 0.01, 1.0, float), Range("epochs", 3, high, int)]
    middle = (3 + high) / 2
    done = [(trial, outcome(trial, 0.8 - 0.02 * (trial["epochs"] - middle) ** 2)) for trial in draws(ranges, 40, 0)]
    text, _, _ = found(Recipe(lr=0.1, epochs=3), ranges, done, cost=0.0)
    row = next(line for line in text.splitlines() if line.startswith("| epochs"))
    assert row.split("|")[5].strip() == cell


def outcome(trial: dict, accuracy: float) -> dict:
    return {"test_accuracy": accuracy, "train_accuracy": 1 - accuracy, "seconds": {"train": trial["epochs"], "eval": 0.5}}


def test_the_interval_holds_the_truth_in_95_of_100():
    rng, trials = np.random.default_rng(0), draws(RANGES, 40, 0)
    wanted, held = truth({**OWN, "muon_norm": "row", "lr": 0.5}) - truth(OWN), 0
    for _ in range(400):
        fit = Surface(RANGES, trials, [truth(trial) + rng.normal(0, 0.01) for trial in trials])
        seen = fit.difference({**OWN, "muon_norm": "row", "lr": 0.5}, OWN)
        held += abs(seen.value - wanted) <= seen.half
        assert 0.005 < fit.deviation < 0.016
    assert 0.92 <= held / 400 <= 0.98


def test_what_does_nothing_stays_as_it_is():
    rng, trials, kept = np.random.default_rng(1), draws(RANGES, 40, 0), 0
    for _ in range(100):
        best = Surface(RANGES, trials, [truth(trial) + rng.normal(0, 0.003) for trial in trials]).best(OWN)
        kept += best["label_smoothing"] == OWN["label_smoothing"]
        assert best["epochs"] == 6
    assert kept >= 85  # the largest of some differences is clear by chance more often than one in twenty


@pytest.mark.parametrize("lost", ["filter", "row"])
def test_a_word_whose_trials_are_all_lost_has_no_effect_that_is_clear(lost):
    ranges = [Range("lr", 0.05, 0.2, float), Choice("muon_norm", ("filter", "row"))]
    trials = [trial for trial in draws(ranges, 24, 0) if trial["muon_norm"] != lost]
    own = {"lr": 0.1, "muon_norm": "filter"}
    surface = Surface(ranges, trials, [0.8 + trial["lr"] / 10 for trial in trials])
    effect = surface.difference({**own, "muon_norm": "row"}, own)
    assert effect.half == math.inf and not effect.clear and surface.best(own)["muon_norm"] == "filter"
    assert surface.difference({**own, "lr": 0.2}, own).half < 1e-3  # of the others it is as before


def test_few_trials_have_straight_lines_and_fewer_none():
    trials = draws(RANGES, 12, 0)
    figures = [truth(trial) for trial in trials]
    assert Surface(RANGES, trials[:11], figures[:11]).curved and not Surface(RANGES, trials[:10], figures[:10]).curved
    with pytest.raises(ValueError, match="7 trials of 4 settings: a fit takes 8"):
        Surface(RANGES, trials[:7], figures[:7])


def test_a_second_has_its_price():
    done = [(trial, outcome(trial, truth(trial))) for trial in draws(RANGES, 40, 0)]
    recipe = Recipe(**OWN)
    text, plain, _ = found(recipe, RANGES, done, cost=0.0)
    assert plain["best"]["epochs"] == 6 and plain["seconds_more"]["value"] == pytest.approx(2) and "--epochs 6" in text and "--label-smoothing" not in text
    text, plain, _ = found(recipe, RANGES, done, cost=3.0)  # an epoch gives two thirds of a point and takes a second
    assert plain["best"]["epochs"] == 3 and "where a second is worth 3 points" in text
    assert all(f"**{sign}" in text for sign in ("+2.00 ± 0.00**", "-2.00 ± 0.00**", "+3.000 ± 0.000**"))  # of the epochs: test, train, seconds


# The command


@pytest.fixture
def flags(store, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", None)  # no trial has a page
    vary = ["lr=0.001..0.1", "label_smoothing=0..0.2"]
    return ["level1", "--data", str(store.path), "--out", str(tmp_path / "out"), "--vary", *vary, *SMALL]


def test_a_search_goes_on_and_keeps_what_is_finished(flags, tmp_path, monkeypatch, capsys):
    once, trained = jobs.train_once, []

    def counted(recipe, *rest):
        trained.append(recipe)
        if recipe.seed == 2:
            raise Diverged(2, 1, 1, math.nan)
        return once(recipe, *rest)

    monkeypatch.setattr(jobs, "train_once", counted)
    search.main([*flags, "--trials", "3"])
    assert "2 trials of 2 settings: a fit takes 6: give more --trials" in capsys.readouterr().out
    search.main([*flags, "--trials", "9"])
    assert [recipe.seed for recipe in trained] == list(range(9)) and len({recipe.lr for recipe in trained}) == 9
    assert all((recipe.held_out, recipe.eval_every, recipe.report, recipe.compiled) == (10, 0, False, False) for recipe in trained)
    out = tmp_path / "out"
    page, said = (out / "search.md").read_text(), capsys.readouterr().out
    values = json.loads((out / "search.json").read_text())
    for text in (page, said):
        assert "8 trials, linear and squared terms" in text and "diverged: --lr" in text and "| lr" in text and "10 images held out of train" in text
    summary = json.loads((out / "trial-0004" / "summary.json").read_text())
    assert values["trials"][4]["lr"] == summary["recipe"]["lr"] == trained[4].lr and values["trials"][4]["test_accuracy"] == summary["test_accuracy"]
    assert values["trials"][2]["diverged"] and values["trials"][2]["seconds"] is None and values["fit"]["own"] == {"lr": 0.01, "label_smoothing": 0.0}
    assert (out / "search.png").stat().st_size > 10_000
    search.main([*flags, "--trials", "3"])  # fewer than are there
    assert len(json.loads((out / "search.json").read_text())["trials"]) == 9 and len(trained) == 9
    assert not list(out.glob("trial-*/*.safetensors")) and not list(out.glob("trial-*/checkpoint.pt"))


def test_a_search_begins_nothing_after_its_time(flags, capsys):
    search.main([*flags, "--trials", "5", "--stop-after", "0.0001"])
    assert "trial 1/5" in (said := capsys.readouterr().out) and "trial 2/5" not in said


def test_trials_go_together(flags, tmp_path):
    search.main([*flags, "--trials", "8", "--together", "3"])
    seen = [json.loads((tmp_path / "out" / f"trial-{i:04d}" / "summary.json").read_text()) for i in range(8)]
    assert [one["together"] for one in seen] == [3, 3, 3, 3, 3, 3, 2, 2] and [one["seed"] for one in seen] == list(range(8))


def test_without_a_word_on_it_a_tenth_is_held_out(store):
    assert search.on_held_out(Recipe(), store).held_out == 3 and search.on_held_out(Recipe(held_out=7), store).held_out == 7


@pytest.mark.parametrize(
    "vary, more, words",
    [
        (["lr"], [], "--vary lr: give FIELD=VALUE"),
        (["rate=0..1"], [], "with a setting such as lr"),
        (["seed=1..5"], [], "with a setting such as lr"),
        (["lr=a..b"], [], "lr takes values of type float"),
        (["lr=0.1..0.01"], [], "two numbers, the lower first"),
        (["muon_norm=filter..row"], [], "two numbers"),
        (["muon_norm=filter,column"], [], "choose one of filter, row"),
        (["net=level1,level9"], [], "net 'level9'"),
        (["lr=0.001..0.1", "lr=0.001..0.2"], [], "each setting once"),
        (["lr=0.01,0.01"], [], "two values or more"),
        (["lr=0.1..0.2"], [], "the recipe has 0.01: take it in"),
        (["epochs=1..3"], ["--together", "2"], "cannot go together"),
        (["label_smoothing=0..0.2"], ["--trials", "0"], "--trials: give 1 or more"),
        (["label_smoothing=0..0.2"], ["--runs", "2"], "a trial is one training"),
    ],
)
def test_what_cannot_be_searched_is_said(flags, tmp_path, vary, more, words):
    at = flags.index("--vary")
    with pytest.raises(InputError, match=words):
        search.main([*flags[: at + 1], *vary, *SMALL, *more])
    assert not (tmp_path / "out").exists()


def test_a_compiled_recipe_is_recorded_instead(flags):
    _, _, recipe = search.options(flags[1:])
    _, _, compiled = search.options(["speed", "--vary", "muon_lr=0.1..0.3", "--out", "x"])
    assert (recipe.compiled, recipe.recorded) == (False, False) and (compiled.compiled, compiled.recorded) == (False, True)


def test_the_list_for_a_gpu_searches_settings_that_share_a_recorded_step(tmp_path):
    """A lease has minutes, and a step recorded anew takes longer than a training."""
    entry = next(entry for entry in ENTRIES if entry.name == "search")
    asked, _, recipe = search.options([*entry.full.split(), "--out", str(tmp_path)])
    trials = [replace(recipe, **trial) for trial in draws(asked.ranges, 64, 0)]
    assert len({str(trial.program()) for trial in trials}) == 1 < len({str(trial.experiment()) for trial in trials})

"""`--runs`: interrupted and gone on with, diverged and counted, and the interval it prints."""

import gc
import json
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.errors import InputError
from train import jobs, loop, result, runs
from train.course import Diverged
from train.interval import Interval, difference, distribution, p_at_least, quantile
from train.recipe import HOSTS, Recipe
from train.run import Kept, Run, train_once
from train.teacher import teacher

SMALL = dict(net="level1", epochs=1, batch_size=16, lr=0.01, device="cpu", runs=3, seed=5)


def quiet(*_):
    pass


def test_interrupted_runs_lose_no_finished_seed(store, tmp_path, monkeypatch):
    recipe = Recipe(**SMALL, data=str(store.path), out=str(tmp_path))
    once, trained = jobs.train_once, []

    def interrupted(one, *rest):
        if one.seed == 7 and 7 not in trained:
            trained.append(7)
            raise KeyboardInterrupt
        trained.append(one.seed)
        return once(one, *rest)

    monkeypatch.setattr(jobs, "train_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.train(recipe, "", quiet)
    files = {seed: (tmp_path / f"seed-{seed}" / "summary.json").stat().st_mtime_ns for seed in (5, 6)}
    summary = runs.train(recipe, "", quiet)
    assert trained == [5, 6, 7, 7] and summary["runs"]["seeds"] == [5, 6, 7]
    assert files == {seed: (tmp_path / f"seed-{seed}" / "summary.json").stat().st_mtime_ns for seed in (5, 6)}
    with pytest.raises(InputError, match="another lr: remove it"):
        runs.train(Recipe(**{**SMALL, "lr": 0.02}, data=str(store.path), out=str(tmp_path)), "", quiet)


def test_a_diverged_seed_is_counted_and_never_averaged(store, tmp_path, monkeypatch):
    once = jobs.train_once

    def diverging(one, *rest):
        if one.seed == 6:
            raise Diverged(6, 1, 3, math.nan)
        return once(one, *rest)

    monkeypatch.setattr(jobs, "train_once", diverging)
    said = []
    for _ in range(2):  # the second call keeps what the first one wrote, the divergence included
        summary = runs.train(Recipe(**SMALL, data=str(store.path), out=str(tmp_path)), "", said.append)
        assert summary["runs"]["seeds"] == [5, 7] and summary["runs"]["n"] == 2
        assert summary["runs"]["diverged"] == [{"seed": 6, "epoch": 1, "step": 3}]
        assert "seed 6 diverged: the loss of epoch 1, step 3 is nan" in said[-1]
        monkeypatch.setattr(jobs, "train_once", None)
    assert json.loads((tmp_path / "summary.json").read_text())["runs"] == summary["runs"]


def test_all_diverged_is_an_error(store, tmp_path):
    with pytest.raises(InputError, match="all 2 runs diverged .seed 5 diverged"):
        runs.train(Recipe(**{**SMALL, "lr": 1e30, "epochs": 9, "runs": 2}, data=str(store.path), out=str(tmp_path)), "", quiet)


BROKEN = dict(lr=1e30, batch_size=37, schedule="constant")  # a single step, whose loss is a number, after which nothing is


@pytest.mark.parametrize("together", [1, 2])
def test_a_net_that_its_last_step_broke_has_no_accuracy(store, tmp_path, together):
    """Nor is it saved, as the best of a sweep or for others to learn from."""
    said = []
    recipe = Recipe(
        **{**SMALL, **BROKEN, "lr": 0.01, "runs": 1}, sweep="lr=0.01,1e30", together=together, data=str(store.path), out=str(tmp_path), report=False
    )
    low, high = runs.train(recipe, "", said.append)["values"]
    assert low["n"] == 1 and "seed 5 diverged: the test loss behind epoch 1, step 1 is nan: try a lower --lr" in high["diverged"][0]
    assert not (tmp_path / "lr-1e+30" / "model.safetensors").exists() and not (tmp_path / "lr-1e+30" / "checkpoint.pt").exists()


def test_the_rate_to_lower_is_the_one_that_most_weights_have(store, tmp_path):
    with pytest.raises(InputError, match="try a lower --muon-lr"):
        runs.train(Recipe(**{**SMALL, "runs": 1, "epochs": 9}, optimiser="muon", muon_lr=1e39, data=str(store.path), out=str(tmp_path)), "", quiet)


def test_each_value_of_a_sweep_of_several_seeds_is_a_run_of_several_seeds(store, tmp_path):
    settings = {**SMALL, "runs": 2}
    ends = runs.train(Recipe(**settings, sweep="lr=0.01,0.02", data=str(store.path), out=str(tmp_path), report=False), "", quiet)["values"]
    for end in ends:
        summary = result.summary(tmp_path / f"lr-{end['lr']}")
        assert summary["runs"]["test_accuracies"] == end["test_accuracies"] and summary["recipe"]["lr"] == end["lr"]
        assert len(teacher(str(tmp_path / f"lr-{end['lr']}"), store).nets) == 2
    before = sorted(tmp_path.glob("*/*"))
    with pytest.raises(InputError, match="lr-0.02: holds several seeds"):
        runs.train(Recipe(**{**settings, "runs": 1}, sweep="lr=0.02", data=str(store.path), out=str(tmp_path), report=False), "", quiet)
    assert sorted(tmp_path.glob("*/*")) == before


@pytest.mark.parametrize("sweep, words", [("cutout=0,40", "cutout 40"), ("limit=10,40", "--limit 40"), ("first_side=16,1", "cannot take images of 1x1 pixels")])
def test_a_value_that_the_data_do_not_allow_is_refused_before_any_is_trained(store, tmp_path, sweep, words):
    recipe = Recipe(**{**SMALL, "runs": 1}, sweep=sweep, data=str(store.path), out=str(tmp_path / "sweep"), report=False)
    with pytest.raises(InputError, match=words):
        runs.train(recipe, "", quiet)
    assert not (tmp_path / "sweep").exists()


def test_settings_that_do_nothing_are_said(store, tmp_path):
    for i, (settings, words) in enumerate(
        ((dict(rotate=15.0, scale=0.1), "note: without --affine-p no image has the scale, rotate"), (dict(warmup=2.0), "note: the rate still rises"))
    ):
        said = []
        runs.train(Recipe(**{**SMALL, "runs": 1}, **settings, data=str(store.path), out=str(tmp_path / str(i)), report=False), "", said.append)
        assert any(words in line for line in said)
    runs.train(Recipe(**{**SMALL, "runs": 1}, data=str(store.path), out=str(tmp_path / "none"), report=False), "", said.append)
    assert sum("note" in line and "few" not in line for line in said) == 1


def test_student_is_the_tables():
    for freedom, value in ((1, 12.7062), (2, 4.3027), (9, 2.2622), (49, 2.0096)):
        assert quantile(0.975, freedom) == pytest.approx(value, abs=1e-4)
    assert distribution(0, 5) == pytest.approx(0.5) and distribution(-2.0, 7) == pytest.approx(1 - distribution(2.0, 7))


def test_interval_and_p_value():
    interval = Interval.of([0.85, 0.86, 0.87])
    assert (interval.low, interval.high) == pytest.approx((0.86 - 4.3027 * 0.01 / 3**0.5, 0.86 + 4.3027 * 0.01 / 3**0.5), abs=1e-5)
    assert str(Interval.of([0.85])) == "0.8500 (n 1)" and "95% interval" in str(interval)
    assert p_at_least([0.85, 0.86, 0.87], 0.86) == pytest.approx(0.5)
    assert p_at_least([0.85, 0.86, 0.87], 0.80) < 0.01 < 0.99 < p_at_least([0.85, 0.86, 0.87], 0.92)
    assert p_at_least([0.85] * 2, 0.85) == 0 and math.isnan(p_at_least([0.9], 0.8))


@pytest.mark.parametrize("sizes", [(3, 8), (50, 25), (2, 2)])
def test_difference_of_two_means_is_scipys(sizes):
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(sum(sizes))
    ours, theirs = (draw.normal(0.9, deviation, size).tolist() for deviation, size in zip((0.01, 0.002), sizes))
    found, expected = difference(ours, theirs), stats.ttest_ind(ours, theirs, equal_var=False)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-9)
    assert p_at_least(ours, theirs) == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False, alternative="greater").pvalue, abs=1e-9)
    for freedom in (1, 1.3, 2.6, 49.5, 20_000):
        assert [distribution(t, freedom) for t in (-30, -1, 0.3, 5)] == pytest.approx(stats.t.cdf((-30, -1, 0.3, 5), freedom).tolist(), abs=1e-8)


def test_difference_of_single_or_equal_values():
    assert math.isnan(difference([0.9], [0.8, 0.7]).low) and math.isnan(p_at_least([0.9, 0.8], [0.7]))
    same = difference([0.9, 0.9], [0.8, 0.8])
    assert same.low == same.mean == same.high == pytest.approx(0.1) and p_at_least([0.9] * 2, [0.8] * 2) == 0


def test_a_compiled_training_is_used_again_by_recipes_of_its_program_only(store, tmp_path):
    """Which has momentum and smoothing in it, but no rates."""
    kept, made = Kept(), []
    for i, own in enumerate((dict(seed=1), dict(seed=2), dict(seed=2, lr=0.5), dict(seed=2, lr=0.5, label_smoothing=0.1), dict(seed=2, momentum=0.8))):
        recipe = Recipe(net="level1", compiled=True, device="cpu", precision="fp32", data=str(store.path), **own)
        made.append(Run(recipe, tmp_path / str(i), torch.device("cpu"), "", lambda *_: None, kept).training)
        assert float(made[-1].optimiser.param_groups[0]["initial_lr"]) == recipe.lr
    assert made[0] is made[1] is made[2] and len({id(one) for one in made}) == 3


OTHERS = [
    dict(lr=0.03, head_lr=0.2, muon_lr=0.02, warmup=0.5, schedule="linear", floor=0.1),
    dict(epochs=3, first_side=16, grown=0.7, eval_every=2, views=2, views_share=0.3),
    dict(translate=1, flip="alternate", padding="reflect", cutout=4, limit=30, held_out=6, schedule="plateau", factor=0.5, patience=0),
]


def test_a_training_begun_again_by_another_recipe_of_its_program_is_as_a_fresh_one(store, tmp_path, monkeypatch):
    """Whatever the host decides, bit for bit, back to where it began."""
    plain = Recipe(**{**SMALL, "net": "quick", "runs": 1, "optimiser": "muon"}, limit=20, report=False, data=str(store.path))
    others = [*OTHERS, {"weights": str(tmp_path / "fresh-0")}]  # the first of these trainings, which is over by then
    made = [plain, *(replace(plain, **other) for other in others), plain]
    assert {name for other in others for name in other} | {"save_minutes", "events", "settle", "freeze", "step_epochs"} == set(HOSTS)
    fresh = [train_once(one, tmp_path / f"fresh-{i}", torch.device("cpu"), "", quiet, Kept()) for i, one in enumerate(made)]
    kept, used, built = Kept(), [], loop.build_step

    def build_step(training, recipe):
        built(training, recipe)
        training.built = True

    monkeypatch.setattr(loop, "build_step", build_step)
    for i, one in enumerate(made):
        again = train_once(one, tmp_path / f"again-{i}", torch.device("cpu"), "", quiet, kept)
        used.append(kept.trainings[0])
        assert (again["test_accuracy"], again["train_accuracy"]) == (fresh[i]["test_accuracy"], fresh[i]["train_accuracy"])
        both = [(tmp_path / f"{name}-{i}" / "steps.jsonl").read_text() for name in ("fresh", "again")]
        assert both[0] == both[1]
    assert len({id(one) for one in used}) == 1


def test_a_training_of_other_settings_is_let_go_of_before_the_next_is_made(store, tmp_path, monkeypatch):
    """A GPU's recorded steps hold gigabytes, and are tied to their training in a circle."""
    alive, made = [], []

    def build_step(training, recipe):
        training.built, training.work = True, training.work  # a bound method of its own
        alive.append(sum(one() is not None for one in made))
        made.append(weakref.ref(training))

    monkeypatch.setattr(loop, "build_step", build_step)
    gc.disable()
    try:
        runs.train(Recipe(**{**SMALL, "runs": 2}, sweep="momentum=0.7,0.8,0.9", data=str(store.path), out=str(tmp_path), report=False), "", quiet)
    finally:
        gc.enable()
    assert alive == [0, 0, 0]  # one for the two seeds of each value


def test_the_folder_of_an_interrupted_sweep_takes_no_other_command(store, tmp_path, monkeypatch):
    """Before its first training is saved, too; and its own goes on."""
    settings = {**SMALL, "runs": 1, "data": str(store.path), "out": str(tmp_path / "s"), "report": False}
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "train_once", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runs.train(Recipe(**settings, sweep="lr=0.01,0.02"), "", quiet)
    for other, said in (dict(sweep="momentum=0.5"), "a sweep of lr"), (dict(), "a sweep"), (dict(runs=2), "a sweep"):
        with pytest.raises(InputError, match=f"holds {said}: name another folder with --out"):
            runs.train(Recipe(**{**settings, **other}), "", quiet)
    made = runs.train(Recipe(**settings, sweep="lr=0.01,0.02"), "", quiet)
    assert [end["lr"] for end in made["values"]] == [0.01, 0.02]
    kept = (tmp_path / "s" / "sweep.json").read_bytes()
    with pytest.raises(InputError, match="another epochs"):
        runs.train(Recipe(**{**settings, "epochs": 2}, sweep="lr=0.01"), "", quiet)
    assert (tmp_path / "s" / "sweep.json").read_bytes() == kept
    with pytest.raises(InputError, match="no such file"):
        runs.train(Recipe(**{**settings, "data": "nowhere", "out": str(tmp_path / "n")}, sweep="lr=0.01"), "", quiet)
    assert not (tmp_path / "n").exists()


def test_what_several_reached_says_of_which_images(store, tmp_path):
    said, settings = [], {**SMALL, "runs": 2, "held_out": 10, "data": str(store.path), "report": False}
    runs.train(Recipe(**settings, out=str(tmp_path / "runs")), "", said.append)
    assert "(10 images held out of train) on random" in said[-1] and said[-1].startswith("2 runs: test accuracy")
    made = runs.train(Recipe(**settings, sweep="lr=0.01,0.02", out=str(tmp_path / "swept")), "", said.append)
    assert said[-1].count(" (10 images held out of train) on random") == 2 and made["values"][0]["tested_on"] == "10 images held out of train"
    runs.train(Recipe(**{**settings, "runs": 1, "held_out": 0}, sweep="views=1,2", out=str(tmp_path / "views")), "", said.append)
    assert said[-1].count(" on random") == 2 and said[-1].count("(test, the mean of 2 views)") == 1

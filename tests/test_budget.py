"""`--minutes`: epochs fitted to a time, found once, and the training is that of as many `--epochs`."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from test_failures import fails
from test_ranks import together
from test_surroundings import at_call

from benchmarks.points import Point
from pipelines.errors import InputError
from train import budget, runs
from train.assembly import assemble
from train.loop import Training
from train.progressive import side, sides
from train.recipe import Recipe
from train.rehearsal import sizes
from train.result import model
from train.stopwatch import Stopwatch

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = dict(net="quick", batch_size=16, lr=0.01, device="cpu", precision="fp32", first_side=16, grown=0.67)
STEP = {16: 1.0, 20: 2.0, 24: 3.0, 28: 4.0, 32: 5.0}  # seconds


def quiet(*_):
    pass


@given(epochs=st.integers(1, 200), first=st.integers(0, 40), grown=st.floats(0, 1, allow_subnormal=False))
def test_a_training_has_the_sides_that_are_timed(epochs, first, grown):
    had = [side(epoch, epochs, first, 32, grown) for epoch in range(epochs)]
    assert had == sorted(had) and set(had) <= set(sides(first, 32, grown))
    if epochs >= 100 and (grown == 0 or 0.1 < grown < 0.9):
        assert set(had) == set(sides(first, 32, grown))


def test_a_second_of_steps_is_timed_but_neither_few_nor_many():
    assert [budget.enough(seconds) for seconds in (0.0, 0.01, 0.1, 0.3, 60.0)] == [40, 40, 10, 4, 4]


def test_seconds_are_those_of_every_epoch_at_its_side():
    recipe = Recipe(first_side=16, grown=0.5)
    assert budget.training_seconds(recipe, 8, 10, 32, STEP) == 10 * (1 + 2 + 3 + 4 + 4 * 5)
    assert budget.training_seconds(Recipe(), 8, 10, 32, {32: 5.0}) == 400


@given(minutes=st.floats(0.2, 60, allow_subnormal=False), steps=st.integers(1, 9), first=st.sampled_from((0, 16, 24)))
def test_the_most_epochs_that_fit_are_found(minutes, steps, first):
    recipe = Recipe(minutes=minutes, first_side=first, grown=0.67)
    limit = 60 * minutes * (1 - budget.RESERVE)
    if budget.training_seconds(recipe, 1, steps, 32, STEP) > limit:
        with pytest.raises(InputError, match="--minutes .*give more minutes"):
            budget.most_epochs(recipe, steps, 32, STEP)
        return
    epochs = budget.most_epochs(recipe, steps, 32, STEP)
    assert budget.training_seconds(recipe, epochs, steps, 32, STEP) <= limit < budget.training_seconds(recipe, epochs + 1, steps, 32, STEP)


def test_the_training_is_that_of_as_many_epochs(store, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "timed", lambda training: dict(STEP))  # 3 steps an epoch: 4 epochs have 3 * (1 + 2 + 3 + 5) s, 5 have 45
    fitted = runs.train(Recipe(**SMALL, minutes=0.6, data=str(store.path), out=str(tmp_path / "fitted")), "", quiet)
    assert fitted["epochs"] == fitted["recipe"]["epochs"] == 4 and fitted["recipe"]["minutes"] == 0
    plain = runs.train(Recipe(**SMALL, epochs=4, data=str(store.path), out=str(tmp_path / "plain")), "", quiet)
    assert fitted["test_accuracy"] == plain["test_accuracy"]
    ours, theirs = (model(str(tmp_path / name)).net.state_dict() for name in ("fitted", "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "--minutes" not in fitted["command"]


def test_steps_are_timed_at_every_side(store, tmp_path, capsys):
    recipe = Recipe(**SMALL, minutes=0.5, runs=2, data=str(store.path), out=str(tmp_path))
    asked = budget.fitted(recipe, tmp_path, torch.device("cpu"), print, runs.Kept())
    found = json.loads((tmp_path / "budget.json").read_text())
    assert list(found["seconds_of_a_step"]) == ["16", "20", "24", "28", "32"] and all(s > 0 for s in found["seconds_of_a_step"].values())
    assert asked.epochs == found["epochs"] > 1 and asked.minutes == 0 and asked.runs == 2
    assert f"0.5 minutes hold {asked.epochs} epochs here" in capsys.readouterr().out


def test_steps_are_timed_as_they_were_rehearsed(store, monkeypatch):
    """By steps that are made once, those of another phase would be made on the clock; of phases of one side that with the least at rest."""
    recipe = Recipe(**{**SMALL, "net": "speednet", "batch_size": 11}, epochs=budget.MANY, settle=0.1, freeze=0.7, data=str(store.path))
    training, seen = assemble(recipe, store, torch.device("cpu"), Stopwatch(torch.device("cpu"))), []
    training.built = True

    def step(images, targets):
        seen.append((images.shape[-1], training.phase))

    monkeypatch.setattr(training, "prepare", lambda: None)
    monkeypatch.setattr(training, "warm_up", lambda: [seen.append((images.shape[-1], training.phase)) for images, _ in sizes(training)])
    monkeypatch.setattr(training, "step", step)
    monkeypatch.setattr(budget, "enough", lambda seconds: 1)
    budget.timed(training)
    rehearsed, timed = seen[: -5 * (budget.WARM + 1)], seen[-5 * (budget.WARM + 1) :]
    assert (32, (True, True)) in rehearsed and set(timed) <= set(rehearsed) and {side for side, _ in timed} == {16, 20, 24, 28, 32}
    assert dict(timed)[16] == (False, False) and dict(timed)[32] == (True, False)


def test_what_was_found_is_kept_for_the_same_settings_only(store, tmp_path, monkeypatch):
    times = iter([dict(STEP), {s: 2 * v for s, v in STEP.items()}, dict(STEP)])
    monkeypatch.setattr(budget, "timed", lambda training: next(times))

    def epochs(**changed) -> int:
        settings = {**SMALL, "minutes": 0.6, "data": str(store.path), "out": str(tmp_path), **changed}
        return budget.fitted(Recipe(**settings), tmp_path, torch.device("cpu"), quiet, runs.Kept()).epochs

    assert [epochs(), epochs(), epochs(seed=4, runs=3), epochs(epochs=7)] == [4, 4, 4, 4]
    assert epochs(lr=0.02) == 2  # timed anew, at half the speed
    (tmp_path / "budget.json").write_text('{"minutes": 0.6, "epochs": "4"')
    assert epochs() == 4
    assert next(times, None) is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_refused_command_times_nothing_and_leaves_the_budget_as_it_is(count, store, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "timed", lambda training: dict(STEP))
    recipe = Recipe(**SMALL, minutes=0.3, runs=count, report=False, data=str(store.path), out=str(tmp_path / "fitted"))
    made, plain = runs.train(recipe, "", quiet), replace(recipe, minutes=0.0, epochs=1, out=str(tmp_path / "plain"))
    runs.train(plain, "", quiet)
    monkeypatch.setattr(budget, "timed", None)
    for changes, said in ((dict(minutes=0.6), "minutes"), (dict(lr=0.02), "lr"), (dict(out=plain.out), "minutes"), (dict(runs=3 - count), "holds")):
        with pytest.raises(InputError, match=f"{said}.*name another folder with --out"):
            runs.train(replace(recipe, **changes), "", quiet)
    assert runs.train(recipe, "", quiet) == made and not (tmp_path / "plain" / "budget.json").exists()


@pytest.mark.parametrize("said", ["", "[]", "null", "{}", "[" * 100_000, '{"minutes": 0.6, "epochs": 4}'])
def test_what_is_no_budget_is_timed_anew(said, tmp_path):
    (tmp_path / "budget.json").write_text(said)
    assert budget.remembered(Recipe(minutes=0.6), tmp_path) is None


@pytest.mark.parametrize("epochs, taken", [(4, 4), (0, None), (-1, None), (True, None), (4.0, None), ("4", None), (None, None)])
def test_epochs_are_a_number_of_them(epochs, taken, tmp_path):
    recipe = Recipe(minutes=0.6)
    (tmp_path / "budget.json").write_text(json.dumps({"minutes": 0.6, "epochs": epochs, "recipe": budget.settings(recipe)}))
    assert budget.remembered(recipe, tmp_path) == taken


def test_no_memory_for_the_steps_says_what_to_set(store, tmp_path, monkeypatch):
    at_call(monkeypatch, Training, "step", 3, fails)
    with pytest.raises(InputError, match="out of memory at batch size 16 .*: set --batch-size 8"):
        runs.train(Recipe(**SMALL, minutes=0.6, data=str(store.path), out=str(tmp_path)), "", quiet)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["--minutes -1", "--minutes nan", "--minutes inf", "--minutes 1 --together 2 --runs 2", "--minutes 1 --sweep lr=0.1,0.2"])
def test_what_cannot_be_fitted_is_refused(wrong):
    from train.flags import named, parse

    with pytest.raises(InputError, match="--minutes"):
        parse(wrong.split(), named())


def test_where_nothing_fits_them_minutes_are_refused(store, tmp_path):
    with pytest.raises(InputError, match="--minutes: only python -m train .*give --epochs"):
        Point.train("one", Recipe(**SMALL, minutes=0.6, data=str(store.path)), tmp_path, quiet)


def shared(settings: dict) -> int:
    return runs.train(Recipe(**settings), "", quiet).get("epochs", 0)


@pytest.mark.parametrize("count", [1, 2], ids=["shared", "dealt out"])
def test_processes_train_as_many_epochs(store, tmp_path, count):
    settings = dict(SMALL, net="level1", first_side=0, runs=count, minutes=0.02, data=str(store.path), out=str(tmp_path))
    first, _ = together(2, shared, settings)
    assert first == json.loads((tmp_path / "budget.json").read_text())["epochs"]

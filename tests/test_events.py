"""TensorBoard's events: read back by TensorBoard itself."""

import shutil
import sys

import pytest

from pipelines.errors import InputError, NotInstalled
from train import events, result, saving
from train.recipe import Recipe
from train.runs import train
from train.state import read

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
EVERY = dict(tensors=0, scalars=0)


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar in an event folder."""
    found = accumulator.EventAccumulator(str(folder), size_guidance=EVERY)
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_events_hold_the_metrics(run_folder, tmp_path, capsys):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    for _ in range(2):  # the second time in place of the first
        events.main([str(folder)])
    found, metrics, steps = scalars(folder / "events"), result.lines(folder, "metrics.jsonl"), result.lines(folder, "steps.jsonl")
    assert found["accuracy/test"] == [(line["epoch"], pytest.approx(line["test_accuracy"])) for line in metrics]
    assert found["loss/step"] == [(i, pytest.approx(line["loss"])) for i, line in enumerate(steps, 1)]
    assert set(found) == {*events.SCALARS.values(), "loss/step"} and len(list((folder / "events").iterdir())) == 1
    assert f"--logdir {folder}" in capsys.readouterr().out


def test_a_training_with_events_writes_the_same(run_folder, store, tmp_path):
    settings = dict(net="level1", epochs=2, batch_size=16, lr=0.01, device="cpu", precision="fp32", data=str(store.path), eval_every=2, report=False)
    for _ in range(2):  # a second training in the same folder replaces them
        train(Recipe(**settings, events=True, out=str(tmp_path)), "", lambda *_: None)
    found, steps = scalars(tmp_path / "events"), result.lines(tmp_path, "steps.jsonl")
    assert [step for step, _ in found["accuracy/test"]] == [2] and [step for step, _ in found["lr"]] == [1, 2]
    assert found["loss/step"] == [(i, pytest.approx(line["loss"])) for i, line in enumerate(steps, 1)]


def test_a_training_that_goes_on_keeps_its_events(store, tmp_path, monkeypatch):
    settings = dict(net="level1", batch_size=16, lr=0.01, device="cpu", precision="fp32", data=str(store.path), events=True, out=str(tmp_path))
    recipe = Recipe(**settings, epochs=3, save_minutes=0.0)

    def stop(line, *_):
        if isinstance(line, dict) and line["epoch"] == 2:
            raise KeyboardInterrupt
        return real(line, *_)

    real = events.add
    monkeypatch.setattr(events, "add", lambda board, line, losses: stop(line) if line["epoch"] == 2 else real(board, line, losses))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, "", lambda *_: None)
    monkeypatch.undo()
    train(recipe, "", lambda *_: None, read(tmp_path))
    assert [step for step, _ in scalars(tmp_path / "events")["lr"]] == [1, 2, 3]


def test_events_of_epochs_that_come_again_are_there_once(store, tmp_path, monkeypatch):
    """Where the checkpoint is of an earlier epoch than the latest events."""
    settings = dict(net="level1", batch_size=16, lr=0.01, device="cpu", precision="fp32", data=str(store.path), events=True, out=str(tmp_path))
    recipe, real = Recipe(**settings, epochs=4), saving.Saver.on_epoch

    def on_epoch(self, last):
        if last:
            raise KeyboardInterrupt
        real(self, last)
        monkeypatch.setattr(saving, "SHORT", 1e9)

    monkeypatch.setattr(saving, "SHORT", 0.0)
    monkeypatch.setattr(saving.Saver, "on_epoch", on_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, "", lambda *_: None)
    monkeypatch.undo()
    state = read(tmp_path)
    assert state["epoch"] == 1 and [step for step, _ in scalars(tmp_path / "events")["lr"]] == [1, 2, 3]
    train(recipe, "", lambda *_: None, state)
    assert [step for step, _ in scalars(tmp_path / "events")["lr"]] == [1, 2, 3, 4]
    assert [step for step, _ in scalars(tmp_path / "events")["loss/step"]] == list(range(1, 13))


def test_seeds_have_a_folder_each_and_a_folder_without_a_run_is_refused(run_folder, tmp_path, capsys):
    for seed in (3, 4):
        shutil.copytree(run_folder, tmp_path / f"seed-{seed}")
    events.main([str(tmp_path)])
    assert all(list((tmp_path / f"seed-{seed}" / "events").iterdir()) for seed in (3, 4))
    with pytest.raises(InputError, match="no metrics.jsonl"):
        events.main([str(tmp_path / "seed-3" / "events")])


def test_without_tensorboard_it_says_what_to_install(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(NotInstalled, match="pip install"):
        train(Recipe(net="level1", epochs=1, device="cpu", data=str(store.path), events=True, report=False, out=str(tmp_path)), "", lambda *_: None)

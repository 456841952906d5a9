"""Short epochs whose figures are read together: on a GPU nothing waits between them. Here a processor plays its part."""

import signal

import pytest
import torch
from test_resume import bits, without_times

from train import saving
from train.course import Diverged, follow
from train.recipe import Recipe
from train.resume import main as resume
from train.run import Kept, Run

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = dict(net="level1", epochs=5, batch_size=8, limit=24, lr=0.01, device="cpu", precision="fp32", eval_every=3, report=False)


def made(store, folder, ahead: float, **settings) -> Run:
    recipe = Recipe(**{**SMALL, **settings}, data=str(store.path), out=str(folder))
    run = Run(recipe, folder, torch.device(recipe.device), "level1", lambda *_: None, Kept())
    run.training.ahead = ahead
    return run


def trained(run: Run) -> Run:
    follow(run.course(), run.training.step)
    run.finish()
    return run


def test_epochs_read_together_are_the_same_epochs(store, tmp_path):
    alone, together = (trained(made(store, tmp_path / name, ahead)) for name, ahead in (("alone", 0.0), ("together", 60.0)))
    assert bits(alone.out) == bits(together.out) and without_times(alone.out) == without_times(together.out)
    assert (alone.out / "steps.jsonl").read_text() == (together.out / "steps.jsonl").read_text()
    for run in (alone, together):
        seconds = [line["seconds"] for line in run.training.history]
        assert min(seconds) > 0 and sum(seconds) == pytest.approx(run.watch.seconds["train"], abs=0.05 + 0.002 * len(seconds))


def test_an_epoch_is_told_of_once_the_next_test_is_due(store, tmp_path):
    training, told, steps = made(store, tmp_path, 60.0).training, [], []
    training.run(lambda line, losses: told.append((line["epoch"], len(steps), training.progress.epoch)), lambda: steps.append(training.progress.epoch))
    # tested after the third and the last; `on_step` is for the first of epochs that wait, whose state can be taken, and when all are read
    assert steps == [0] * 3 + [3] + [3] * 3 + [5]
    assert told == [(1, 3, 3), (2, 3, 3), (3, 3, 3), (4, 7, 5), (5, 7, 5)]


def test_a_checkpoint_is_of_an_epoch_that_was_told_of(store, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SHORT", 0.0)
    real, saved = saving.Saver.save, []

    def save(self):
        saved.append((self.training.progress.epoch, len(self.training.history)))
        real(self)

    monkeypatch.setattr(saving.Saver, "save", save)
    trained(made(store, tmp_path, 60.0))
    assert saved == [(3, 3), (5, 5)]


@pytest.mark.parametrize("at", [5, 14])  # in the second of three epochs, in the last of all
def test_ctrl_c_in_an_epoch_that_waits_loses_nothing(store, tmp_path, at):
    whole = trained(made(store, tmp_path / "whole", 60.0))
    run, steps = made(store, tmp_path / "cut", 60.0), iter(range(1, 100))

    def step(*batch):
        if next(steps) == at:
            signal.raise_signal(signal.SIGINT)
        return run.training.step(*batch)

    with pytest.raises(KeyboardInterrupt):
        follow(run.course(), step)
    assert [line["epoch"] for line in without_times(run.out)] == [1, 2, 3, 4, 5][: 3 if at == 5 else 5]
    resume(["--resume", str(run.out)])
    assert bits(run.out) == bits(whole.out) and without_times(run.out) == without_times(whole.out)


def test_the_epoch_that_diverged_is_named(store, tmp_path):
    run, steps = made(store, tmp_path, 60.0), iter(range(1, 100))

    def step(*batch):
        loss, right = run.training.step(*batch)
        return (loss * float("nan") if next(steps) == 5 else loss), right

    with pytest.raises(Diverged) as error:
        follow(run.course(), step)
    assert (error.value.epoch, error.value.step) == (2, 2)


def test_a_processor_waits_for_each_epoch(store, tmp_path):
    told = []
    training = Run(Recipe(**SMALL, data=str(store.path)), tmp_path, torch.device("cpu"), "", lambda *_: None, Kept()).training
    training.run(lambda line, losses: told.append((line["epoch"], training.progress.epoch)))
    assert told == [(epoch, epoch) for epoch in range(1, 6)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_host_sync_until_the_end(store, tmp_path):
    """torch raises on any in what a short training does between its first step and its test pass."""
    run = made(store, tmp_path, 60.0, device="cuda", precision="bf16", eval_every=0, recorded=True)
    run.training.warm_up()
    course = run.training.stretch(lambda: None)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ended = follow(course, run.training.step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [each.epoch for each in ended] == list(range(5)) and all(each.read(0)[0] for each in ended)

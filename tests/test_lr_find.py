"""python -m train lr-find: what it suggests, and when it ends."""

import numpy as np
import pytest
from test_failures import fails
from test_surroundings import at_call

from pipelines.errors import InputError
from train import lr_find
from train.loop import Training
from train.lr_find import FAR, LAST, measure, smoothed, turns

FACTORS = np.geomspace(1e-3, 1e2, 400)


def test_the_turns_of_a_known_curve():
    """A loss that falls as a logistic curve around 0.1 and rises again behind 3."""
    decades = np.log10(FACTORS)
    losses = 2.3 - 1.5 / (1 + np.exp(-6 * (decades + 1))) + np.exp(8 * (decades - np.log10(3)))
    noisy = losses + np.random.default_rng(0).normal(0, 0.02, len(losses))
    steepest, least = turns(FACTORS[: len(noisy)], noisy)
    assert 0.07 < steepest < 0.14 and 0.5 < least < 1.5


def test_smoothing_does_not_lag_and_keeps_a_level():
    ramp = np.arange(100.0)
    assert np.allclose(smoothed(ramp)[15:-15], ramp[15:-15]) and np.allclose(smoothed(np.ones(7)), 1)


@pytest.mark.parametrize("losses", [np.ones(3), np.linspace(1, 2, 100), np.array([])])
def test_a_loss_that_does_not_fall_is_refused(losses):
    with pytest.raises(InputError, match="never fell"):
        turns(FACTORS, losses)


class Told:
    """A training whose losses are told beforehand."""

    def __init__(self, losses):
        self.losses, self.optimiser, self.rates = list(losses), self, []
        self.param_groups = [{"lr": 0.0, "initial_lr": 0.5}]

    def prepare(self):
        pass

    def batches(self, epoch):
        return ((epoch, i) for i in range(7))

    def step(self, images, targets):
        self.rates.append(self.param_groups[0]["lr"])
        return np.array(self.losses[len(self.rates) - 1]), None


def test_the_rate_grows_over_epochs_and_the_test_ends_far_above_the_least():
    training = Told([1.0] * 20 + [1.0 + FAR + 0.1 * i for i in range(30)])
    losses = measure(training, np.geomspace(0.1, 10, 50))
    assert 20 < len(losses) < 50 and np.mean(losses[-LAST:]) > FAR and np.allclose(training.rates, 0.5 * np.geomspace(0.1, 10, 50)[: len(losses)])
    assert len(measure(Told([1.0] * 50), np.geomspace(0.1, 10, 50))) == 50


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_it_ends_where_the_loss_is_no_number(bad):
    assert len(measure(Told([1.0] * 15 + [bad]), np.geomspace(0.1, 10, 50))) == 15


def test_the_command_prints_flags_and_draws(store, tmp_path, capsys, drawn):
    flags = ["--steps", "60", "--highest", "1000", "--data", str(store.path), "--batch-size", "16", "--device", "cpu", "--out", str(tmp_path)]
    lr_find.main(["cpu", *flags])
    said = capsys.readouterr().out
    assert (tmp_path / "lr-find.png").stat().st_size > 10_000 and "for the linear schedule: --muon-lr " in said and " --lr " in said.splitlines()[-1]
    assert {"0.001", "0.1", "10"} <= set(drawn) and not any("$" in text for text in drawn)


REFUSED = [["--steps", "9"], ["--lowest", "0"], ["--lowest", "2", "--highest", "1"], ["level1", "--lr", "0"], ["--net", "levle1"]]


@pytest.mark.parametrize("flags", REFUSED)
def test_what_cannot_be_is_refused(flags, store):
    with pytest.raises(InputError):
        lr_find.main([*flags, "--data", str(store.path)])


def test_no_memory_for_a_step_says_what_to_set(store, tmp_path, monkeypatch):
    at_call(monkeypatch, Training, "step", 3, fails)
    with pytest.raises(InputError, match="out of memory at batch size 16 .*: set --batch-size 8"):
        lr_find.main(["level1", "--batch-size", "16", "--device", "cpu", "--data", str(store.path), "--out", str(tmp_path)])

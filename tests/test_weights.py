"""Training that begins with another run's weights."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_store
from safetensors.torch import load_file

from pipelines.errors import InputError
from pipelines.store import Store
from train import resume, saving
from train.assembly import assemble, net_of
from train.recipe import Recipe
from train.runs import train
from train.stopwatch import Stopwatch

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = dict(net="level1", epochs=2, batch_size=16, lr=0.02, device="cpu", precision="fp32")
CPU = torch.device("cpu")


def quiet(*_):
    pass


def begun(recipe: Recipe, store: Store) -> dict[str, torch.Tensor]:
    """What a net has before its first step."""
    training = assemble(recipe, store, CPU, Stopwatch(CPU))
    training.prepare()
    return training.net.state_dict()


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict, other: dict) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if torch.equal(one[name], other[name])}


@pytest.fixture(scope="module")
def first(store, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("weights") / "first"
    train(Recipe(**SMALL, report=False, data=str(store.path), out=str(out)), "", quiet)
    return out


def test_training_begins_with_a_runs_weights_and_norms(store, first):
    recipe = Recipe(**SMALL, weights=str(first), seed=7)
    assert same(begun(recipe, store), saved(first)) == set(saved(first))
    fresh = net_of(recipe, store).state_dict()
    assert len(same(fresh, saved(first))) < len(fresh) / 2


def test_a_whitening_is_kept(store, tmp_path):
    """`speednet` fits it to the images before it learns; that of other weights stays."""
    settings = dict(SMALL, net="speednet", epochs=1, optimiser="muon", batch_size=37)
    train(Recipe(**settings, data=str(store.path), out=str(tmp_path / "first")), "", quiet)
    other = make_store(tmp_path / "other.safetensors", train=50)
    assert same(begun(Recipe(**settings, weights=str(tmp_path / "first")), other), saved(tmp_path / "first")) == set(saved(tmp_path / "first"))


def test_a_classifier_for_another_number_of_classes_begins_anew(first, tmp_path):
    other = make_store(tmp_path / "other.safetensors", classes=7)
    recipe = Recipe(**SMALL, weights=str(first), seed=7)
    torch.manual_seed(7)
    fresh, old, mine = net_of(recipe, other).state_dict(), saved(first), begun(recipe, other)
    anew = [name for name in mine if mine[name].shape != old[name].shape]
    assert anew and all(7 in mine[name].shape and torch.equal(mine[name], fresh[name]) for name in anew)
    assert all(torch.equal(mine[name], old[name]) for name in mine if name not in anew)


def test_what_is_drawn_later_does_not_depend_on_the_weights(store, first):
    draws = []
    for weights in ("", str(first)):
        assemble(Recipe(**SMALL, weights=weights, seed=7), store, CPU, Stopwatch(CPU))
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def test_every_seed_begins_so_and_is_marked(store, first, tmp_path):
    said = []
    recipe = Recipe(**{**SMALL, "lr": 0.0, "epochs": 1}, runs=2, weights=str(first), data=str(store.path), out=str(tmp_path / "two"))
    summary = train(recipe, "", said.append)
    assert summary["pretrained"] is True and summary["tested_on"] == "test, from another run's weights" and "from another run's weights" in said[-1]
    trained = {name for name, _ in net_of(recipe, store).named_parameters()}
    for seed in (0, 1):
        assert trained <= same(saved(tmp_path / "two" / f"seed-{seed}"), saved(first))


@pytest.mark.parametrize(
    "changes, remedy",
    [(dict(net="level2"), "than level2: add --net level1$"), (dict(norm="ghost"), "than level1 of --norm ghost: add --net level1 --norm batch$")],
)
def test_another_nets_weights_are_refused(store, first, tmp_path, changes, remedy):
    with pytest.raises(InputError, match=f"^--weights .*first: the weights of another net {remedy}"):
        train(Recipe(**{**SMALL, **changes}, weights=str(first), data=str(store.path), out=str(tmp_path / "out")), "", quiet)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there_are_refused_before_a_sweep_begins(store, first, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="nothing: no model.safetensors in it"):
        train(Recipe(**SMALL, sweep=f"weights={first},{tmp_path / 'nothing'}", data=str(store.path), out=str(out)), "", quiet)
    assert not out.exists()


def test_an_interrupted_training_needs_them_no_more(store, first, tmp_path, monkeypatch):
    """Its checkpoint has all; the bits are those of a training that was never interrupted."""
    lent = shutil.copytree(first, tmp_path / "lent")
    recipe = Recipe(**SMALL, weights=str(lent), save_minutes=0.0, data=str(store.path), out=str(tmp_path / "whole"))
    train(recipe, "", quiet)
    with monkeypatch.context() as patch:
        patch.setattr(saving.Saver, "on_epoch", lambda self, last: (self.save(), os.kill(os.getpid(), 2)))
        with pytest.raises(KeyboardInterrupt):
            train(replace(recipe, out=str(tmp_path / "cut")), "", quiet)
    shutil.rmtree(lent)
    resume.main(["--resume", str(tmp_path / "cut")])
    assert same(saved(tmp_path / "cut"), saved(tmp_path / "whole")) == set(saved(first))


def test_a_run_that_knows_the_held_out_images_is_told_of(store, first, tmp_path):
    said = []
    train(Recipe(**SMALL, held_out=10, weights=str(first), data=str(store.path), out=str(tmp_path / "out")), "", said.append)
    assert [line for line in said if line.startswith(f"note: {first} was trained on images that are held out here: train it with --held-out 10")]

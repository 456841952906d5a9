"""What a training does with a folder that is not empty: it goes on, keeps, or refuses, and writes over nothing."""

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import make_store
from test_resume import SMALL, Interrupted, bits, interrupt_after, quiet

from pipelines.errors import InputError
from pipelines.files import held
from train import compare, events, result, resume
from train.course import Diverged, follow
from train.recipe import Recipe
from train.run import Kept, Run
from train.runs import train

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_the_same_command_goes_on_or_keeps_what_is_finished(store, tmp_path, monkeypatch):
    recipe, said = Recipe(**SMALL, data=str(store.path), out=str(tmp_path / "cut")), []
    whole = train(replace(recipe, out=str(tmp_path / "whole")), "", quiet)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(Interrupted):
            train(recipe, "", quiet)
    train(recipe, "", said.append)
    assert any("goes on at epoch 2, step 3" in line for line in said) and bits(tmp_path / "cut") == bits(tmp_path / "whole")
    before = (tmp_path / "whole" / "model.safetensors").stat().st_mtime_ns
    assert train(replace(recipe, out=str(tmp_path / "whole")), "", said.append) == whole and "finished earlier, kept" in said[-1]
    assert (tmp_path / "whole" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_training_is_not_written_over(store, tmp_path, monkeypatch, finished):
    recipe = Recipe(**SMALL, data=str(store.path), out=str(tmp_path))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1000 if finished else 7)
        with nullcontext() if finished else pytest.raises(Interrupted):
            train(recipe, "", quiet)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for changes, name in ((dict(lr=0.02), "lr"), (dict(seed=3), "seed"), (dict(net="level2", epochs=4), "net, epochs")):
        with pytest.raises(InputError, match=f"run with another {name}: remove it, or name another folder with --out"):
            train(replace(recipe, **changes), "", quiet)
    for changes in (dict(runs=2), dict(sweep="lr=0.01,0.02")):
        with pytest.raises(InputError, match="holds a single training: name another folder"):
            train(replace(recipe, **changes), "", quiet)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_folders_of_several_trainings_are_not_mixed(store, tmp_path):
    recipe = Recipe(**{**SMALL, "epochs": 1}, report=False, data=str(store.path))
    train(replace(recipe, runs=2, out=str(tmp_path / "seeds")), "", quiet)
    train(replace(recipe, sweep="lr=0.01,0.02", out=str(tmp_path / "sweep")), "", quiet)
    for folder, changes, kind in (
        ("seeds", {}, "several seeds"),
        ("seeds", dict(sweep="lr=0.01"), "several seeds"),
        ("sweep", {}, "a sweep"),
        ("sweep", dict(runs=2), "a sweep"),
    ):
        with pytest.raises(InputError, match=f"holds {kind}: name another folder"):
            train(replace(recipe, out=str(tmp_path / folder), **changes), "", quiet)


def test_what_a_diverged_run_left_is_no_model_of_its_settings(store, tmp_path):
    """Nor is another's checkpoint, where whoever began the training did not ask what its folder holds."""
    recipe = Recipe(**{**SMALL, "epochs": 1}, data=str(store.path), out=str(tmp_path))
    train(recipe, "", quiet)
    other = Run(replace(recipe, lr=1e30, save_minutes=60.0), tmp_path, torch.device("cpu"), "", quiet, Kept())
    with pytest.raises(Diverged):
        follow(other.course(), other.training.step)
    assert not (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("kind", [{}, dict(runs=2, together=2), dict(sweep="lr=0.01,0.02")], ids=["one", "several", "sweep"])
def test_a_result_of_other_data_is_not_this_commands(store, tmp_path, kind):
    """Data that moved are the same by their checksums, and a result outlives its data."""
    here, moved, other = tmp_path / "here.safetensors", tmp_path / "moved.safetensors", make_store(tmp_path / "other.safetensors", train=40)
    shutil.copy(store.path, here)
    recipe = Recipe(**{**SMALL, "epochs": 1}, report=False, data=str(here), out=str(tmp_path / "run"), **kind)
    made = train(recipe, "", quiet)
    for data, said in ((other.path, f"a run of other data than {other.path}: .*--out"), (tmp_path / "mistyped", "mistyped")):
        with pytest.raises(InputError, match=said):
            train(replace(recipe, data=str(data)), "", quiet)
    here.rename(moved)
    assert train(replace(recipe, data=str(moved)), "", quiet) == train(recipe, "", quiet) == made


def test_a_diverged_seed_is_of_its_data_too(store, tmp_path):
    recipe = Recipe(**{**SMALL, "epochs": 2, "lr": 1e30}, runs=2, data=str(store.path), out=str(tmp_path / "run"))
    other = make_store(tmp_path / "other.safetensors", train=40)
    for data, said in ((store.path, "all 2 runs diverged"), (other.path, "other data"), (store.path, "all 2 runs diverged")):
        with pytest.raises(InputError, match=said):
            train(replace(recipe, data=str(data)), "", quiet)
    file = tmp_path / "run" / "seed-0" / "diverged.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "data"}))  # of an earlier version
    with pytest.raises(InputError, match="seed-0: a run of other data"):
        train(replace(recipe, data=str(other.path)), "", quiet)
    with pytest.raises(InputError, match="all 2 runs diverged"):
        train(recipe, "", quiet)


def test_commands_of_one_second_have_a_folder_each(store, tmp_path, monkeypatch):
    """One in which nothing was written is not left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.run.time.strftime", lambda _: "20261124-120000")
    recipe = Recipe(**{**SMALL, "epochs": 1}, report=False, data=str(store.path))
    for changes in ({}, dict(seed=3), dict(runs=2)):
        train(replace(recipe, **changes), "", quiet)
    with pytest.raises(InputError, match="mistyped"):
        train(replace(recipe, data="mistyped"), "", quiet)
    folders = [tmp_path / "runs" / f"20261124-120000-level1-resident{number}" for number in ("", "-2", "-3")]
    assert sorted((tmp_path / "runs").iterdir()) == folders
    assert [json.loads((folder / "summary.json").read_text())["seed"] for folder in folders] == [0, 3, 1]


def test_a_name_that_no_folder_can_have_is_refused_in_one_line(store, tmp_path):
    """As is a folder that one may not enter: `Path.exists` and `Path.glob` raise at both."""
    long, plain = str(tmp_path / ("a" * 300)), Recipe(**SMALL, data=str(store.path), out=str(tmp_path / "out"))
    for changes in (dict(out=long), dict(out=long, runs=2), dict(out=long, sweep="lr=0.01"), dict(out=long, minutes=1.0), dict(teacher=long)):
        with pytest.raises(InputError, match="a{300}.*name"):
            train(replace(plain, **changes), "", quiet)
    for command in (result.model, events.trainings, lambda run: resume.main(["--resume", run]), lambda run: compare.main([run])):
        with pytest.raises(InputError, match="a{300}.*: name"):
            command(long)


@pytest.mark.parametrize("asked", [True, False])
def test_a_report_that_is_asked_for_and_not_there_is_made_later(store, tmp_path, asked):
    """It was interrupted, or left out; from the checkpoint behind the last epoch, so that figures and bits stay."""
    recipe = Recipe(**SMALL, data=str(store.path), out=str(tmp_path), report=asked)
    first, model, page = train(recipe, "", quiet), bits(tmp_path), tmp_path / "report.html"
    assert page.exists() == asked and train(recipe, "", quiet) == first and page.exists() == asked
    page.unlink(missing_ok=True)
    resume.main(["--resume", str(tmp_path)]) if asked else train(replace(recipe, report=True), "", quiet)
    assert page.exists() and bits(tmp_path) == model and result.summary(tmp_path)["test_accuracy"] == first["test_accuracy"]


def test_what_changes_no_training_may_change(store, tmp_path, monkeypatch):
    recipe = Recipe(**SMALL, data=str(store.path), out=str(tmp_path / "cut"), runs=2, report=False)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 22)  # the second seed's seventh step
        with pytest.raises(Interrupted):
            train(recipe, "", quiet)
    train(replace(recipe, pipeline="reference", save_minutes=1.0), "", quiet)
    train(replace(recipe, out=str(tmp_path / "whole")), "", quiet)
    assert bits(tmp_path / "cut/seed-1") == bits(tmp_path / "whole/seed-1")


def test_two_processes_do_not_train_into_one_folder(store, tmp_path):
    recipe = Recipe(**SMALL, data=str(store.path), out=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    reader, writer = os.pipe()
    with held(tmp_path / "run"):
        with pytest.raises(InputError, match="run: another process is training into it"):
            train(recipe, "", quiet)
        child = os.fork()  # as a loader's worker, which may outlive its parent
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the parent closes its end
            os._exit(0)
    train(recipe, "", quiet)
    os.close(writer)
    os.close(reader)
    assert os.waitpid(child, 0)[1] == 0 and result.summary(tmp_path / "run")["epochs"] == 3


def test_paths_may_be_paths(store, tmp_path):
    train(Recipe(**SMALL, data=store.path, out=tmp_path / "run"), "", quiet)
    assert result.summary(tmp_path / "run")["recipe"]["data"] == str(store.path) and resume.read(str(tmp_path / "run"))["epoch"] == 3


def test_a_model_that_is_not_there_yet_is_to_come(store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(Interrupted):
            train(Recipe(**SMALL, data=str(store.path), out=str(tmp_path)), "", quiet)
    with pytest.raises(InputError, match=f"the training is not finished: python -m train --resume {tmp_path}"):
        result.model(tmp_path)

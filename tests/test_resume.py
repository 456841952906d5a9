"""A run that was interrupted ends with the bits of one that was not."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import an_empty_page, make_store
from safetensors.torch import load_file

import nets
import pipelines
from pipelines.errors import InputError, NotInstalled
from train import checkpoint, report, result, resume, saving
from train.flags import named, parse
from train.loop import Training
from train.recipe import Recipe
from train.runs import train
from train.state import read, recipe_of
from train.stopwatch import Stopwatch

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = dict(net="level1", epochs=3, batch_size=8, lr=0.01, device="cpu", precision="fp32", save_minutes=0.0)
KILLS = {"resident": 20, "dali": 5, "torchvision": 5, "ffcv": 5}  # the others take seconds to start, each time; --kills N for N of each
# what takes long to import; nothing that starts Numba's threads, which do not survive a fork
PRELOADED = ["train.runs", "train.resume", "pipelines.resident", "pipelines.torchvision", "scipy.linalg", "numba.np.arraymath"]


def quiet(*_):
    pass


def bits(folder: Path) -> dict[str, bytes]:
    """The saved model's tensors, as bytes."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch, steps: int) -> None:
    """Have training end abruptly once it has saved that often."""
    real, count = saving.Saver.on_step, iter(range(1, 10**6))

    def on_step(self):
        real(self)
        if next(count) == steps:
            raise Interrupted

    monkeypatch.setattr(saving.Saver, "on_step", on_step)


def without_times(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "pipeline")} for line in lines]


SETTINGS = {
    "plain": {},
    "muon growing": dict(optimiser="muon", first_side=16, schedule="linear", warmup=1.0),
    "dropout, stage and plateau": dict(net="level3", affine_p=0.5, rotate=10.0, schedule="plateau", patience=1),
    "whitening": dict(net="speednet", optimiser="muon", lr=1.0),
    "mean of weights, mixed": dict(optimiser="adamw", ema=0.9, mixup=0.5, cutmix=0.3, mix_ramp=2.0, sharpness=0.3, views=2, floor=0.1),
    "ghost norm, few tests": dict(norm="ghost", eval_every=0, nesterov=True),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_going_on_gives_the_same_bits(store, tmp_path, monkeypatch, settings):
    def recipe(name):
        return Recipe(**{**SMALL, **settings}, data=str(store.path), out=str(tmp_path / name))

    whole = train(recipe("whole"), "test", quiet)
    for steps in (1, 7, 10):  # the first, in the middle, at an epoch's end
        cut = f"cut{steps}"
        with monkeypatch.context() as patch:
            interrupt_after(patch, steps)
            with pytest.raises(Interrupted):
                train(recipe(cut), "test", quiet)
        assert not (tmp_path / cut / "summary.json").exists()
        state = read(tmp_path / cut)
        name, kept = recipe_of(state, tmp_path / cut)
        assert (name, kept) == ("test", recipe(cut)) and 5 * state["epoch"] + state["step"] == steps
        summary = train(kept, name, quiet, state=state)
        assert bits(tmp_path / cut) == bits(tmp_path / "whole") and summary["test_accuracy"] == whole["test_accuracy"]
        laps = summary["seconds"]
        assert laps["total"] >= laps["setup"] + laps["train"] + laps["eval"] - 0.01  # what was spent before the interruption is in both
        assert without_times(tmp_path / cut) == without_times(tmp_path / "whole")
        assert (tmp_path / cut / "steps.jsonl").read_text() == (tmp_path / "whole" / "steps.jsonl").read_text()


def victim(recipe: Recipe, started, stepping, errors) -> None:
    """The process to be killed: begins a run, or goes on with it. It says when it has started, and when it has made a step."""
    report.write = an_empty_page  # a new process, in which nothing was replaced yet
    real = saving.Saver.on_step
    saving.Saver.on_step = lambda self: (real(self), stepping.set())
    multiprocessing.set_start_method("fork", force=True)  # as the command line has it; else loaders' workers have a server that survives the kill
    try:
        out = Path(recipe.out)
        state = read(out) if (out / "checkpoint.pt").exists() else None
        train(recipe, "test", lambda *_: started.set(), state=state)
    except BaseException as error:
        errors.put(repr(error))
        raise


@pytest.mark.parametrize("short, epochs", [(0.0, [1, 2, 3]), (1e9, [3])], ids=["long epochs", "short epochs"])
def test_short_epochs_share_a_checkpoint(store, tmp_path, monkeypatch, short, epochs):
    saved, real = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: (saved.append(state["epoch"]), real(path, state)))
    monkeypatch.setattr(saving, "SHORT", short)
    train(Recipe(**{**SMALL, "save_minutes": 2.0}, data=str(store.path), out=str(tmp_path)), "", quiet)
    assert saved == epochs and read(tmp_path)["epoch"] == 3


@pytest.mark.parametrize("pipeline", KILLS)
def test_killed_at_random_moments(store, tmp_path, request, pipeline):
    try:
        pipelines.load(pipeline)
    except NotInstalled as missing:
        pytest.skip(str(missing))
    wanted = request.config.getoption("--kills") or KILLS[pipeline]
    whole, out, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    recipe = Recipe(**SMALL, pipeline=pipeline, data=str(store.path), out=str(out))
    train(Recipe(**{**asdict(recipe), "pipeline": "resident", "out": str(whole)}), "test", quiet)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    errors, kills, finished, where = server.Queue(), 0, 0, set()
    while kills < wanted or not finished:
        events = server.Event(), server.Event()
        process = server.Process(target=victim, args=(recipe, *events, errors))
        process.start()
        if kills < wanted:
            seen = events[kills % 2]  # some pipelines take seconds from the one to the other
            while process.is_alive() and not seen.wait(0.05):
                pass
            process.join(rng.uniform(0, 0.4))
            process.kill()
        process.join()
        assert errors.empty(), errors.get()
        if process.exitcode == -signal.SIGKILL and not (out / "summary.json").exists():
            kills += 1
            where.add((out / "checkpoint.pt").exists() and tuple(read(out)[key] for key in ("epoch", "step")))
            continue
        assert process.exitcode in (0, -signal.SIGKILL)
        assert bits(out) == bits(whole) and without_times(out) == without_times(whole)
        assert process.exitcode or not list(out.glob(".*"))  # a kill may leave what its next writer removes
        finished += 1
        shutil.rmtree(out)  # and from the start again, until it was killed often enough
    print(f"{pipeline}: {kills} kills, {len(where)} places to go on from, {finished} trainings finished, all of the same bits")


def test_another_pipeline_goes_on(store, tmp_path, monkeypatch):
    recipe = Recipe(**SMALL, data=str(store.path), out=str(tmp_path / "whole"))
    train(recipe, "", quiet)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(Interrupted):
            train(Recipe(**{**asdict(recipe), "out": str(tmp_path / "cut")}), "", quiet)
    resume.main(["--resume", str(tmp_path / "cut"), "--pipeline", "torchvision"])
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    made, lines = result.summary(tmp_path / "cut"), result.lines(tmp_path / "cut", "metrics.jsonl")
    assert made["pipeline"] == "resident, torchvision" and made["recipe"]["pipeline"] == "torchvision"  # whose speed it is
    assert [line["pipeline"] for line in lines] == ["resident", *["torchvision"] * (len(lines) - 1)]


def test_ctrl_c_saves_and_says_how_to_go_on(store, tmp_path):
    flags = "--net level1 --epochs 4 --batch-size 8 --lr 0.01 --device cpu --precision fp32 --save-minutes 60".split()
    name, recipe = parse([*flags, "--data", str(store.path), "--out", str(tmp_path / "whole")], named())
    train(recipe, name, quiet)
    code = (
        "import os, signal, sys; from train import saving; from train.__main__ import main; from pipelines.errors import exit_code\n"
        "real, count = saving.Saver.on_step, iter(range(99))\n"
        "saving.Saver.on_step = lambda self: (next(count) == 8 and os.kill(os.getpid(), signal.SIGINT), real(self))\n"
        "sys.exit(exit_code(main))"
    )
    command = [sys.executable, "-c", code, *flags, "--data", str(store.path), "--out", str(tmp_path / "cut")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert ended.returncode == 130 and f"python -m train --resume {tmp_path / 'cut'}" in ended.stdout
    state = read(tmp_path / "cut")
    assert (state["epoch"], state["step"]) == (1, 4)
    resume.main(["--resume", str(tmp_path / "cut")])
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_ctrl_c_in_the_last_test_pass_is_not_lost(store, tmp_path, monkeypatch):
    recipe = Recipe(**{**SMALL, "eval_every": 0}, runs=2, data=str(store.path), out=str(tmp_path / "cut"))
    whole = train(replace(recipe, out=str(tmp_path / "whole")), "", quiet)
    said, real = [], Training._test
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_test", lambda self, last: (os.kill(os.getpid(), signal.SIGINT), real(self, last)))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, "", said.append)
    assert not (tmp_path / "cut" / "seed-1").exists() and said[-1] == f"saved: to go on, give the same command with --out {tmp_path / 'cut'}"
    assert train(recipe, "", quiet)["runs"] == whole["runs"]


def test_seconds_before_an_interruption_count_once(store, tmp_path, monkeypatch):
    """However often an epoch is interrupted."""
    recipe = Recipe(**{**SMALL, "epochs": 1}, data=str(store.path), out=str(tmp_path))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            train(recipe, "", quiet)
    state = read(tmp_path)
    state["epoch_seconds"] = 1000.0
    for _ in range(2):
        with monkeypatch.context() as patch:
            interrupt_after(patch, 1)
            with pytest.raises(Interrupted):
                train(recipe, "", quiet, state=state)
        state = read(tmp_path)
        assert state["seconds"]["train"] < 500 < state["epoch_seconds"] < 1500
    assert 1000 < train(recipe, "", quiet, state=state)["seconds"]["train"] < 1500


@pytest.mark.parametrize("rank", [0, 1])
def test_nothing_is_left_behind_an_epochs_last_step(store, rank):
    """Of one of two processes, too, that has no part of the last batch: 33 images, 16 a step."""
    pipeline = pipelines.open("resident", store, batch_size=16, ids=np.arange(33), share=(rank, 2))
    training = Training(Recipe(**{**SMALL, "batch_size": 16}), nets.load("level1", 10), pipeline, None, torch.device("cpu"), Stopwatch())
    assert [len(list(training.batches(0, start))) for start in range(4)] == [3, 2, 1, 0]


def test_equal_models_are_equal_files(store, tmp_path):
    made = [train(Recipe(**{**SMALL, "epochs": 1}, data=str(store.path), out=str(tmp_path / str(i))), "", quiet) for i in range(3)]
    assert len({(tmp_path / str(i) / "model.safetensors").read_bytes() for i in range(len(made))}) == 1


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "muon"])
def test_a_checkpoint_goes_on_in_this_devices_way(store, tmp_path, monkeypatch, optimiser):
    """Not in that of the device that it comes from, as a GPU's records steps with other optimisers of the same state."""
    recipe = Recipe(**SMALL, optimiser=optimiser, data=str(store.path), out=str(tmp_path / "cut"), report=False)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(Interrupted):
            train(recipe, "", quiet)
    state = read(tmp_path / "cut")
    for group in state["optimiser"]["param_groups"]:
        group.update(fused=True, capturable=True, foreach=False)
    train(recipe, "", quiet, state=state)
    train(replace(recipe, out=str(tmp_path / "whole")), "", quiet)
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_a_finished_run_is_kept_as_it_is(store, tmp_path):
    """By another pipeline, too, whose name would stand beside a speed that it never had."""
    train(Recipe(**SMALL, data=str(store.path), out=str(tmp_path)), "", quiet)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    resume.main(["--resume", str(tmp_path), "--pipeline", "torchvision"])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_a_run_that_ended_before_its_summary_is_finished_again(store, tmp_path):
    recipe = Recipe(**SMALL, data=str(store.path), out=str(tmp_path))
    first = train(recipe, "", quiet)
    model = bits(tmp_path)
    (tmp_path / "summary.json").unlink()
    again = train(recipe, "", quiet, state=read(tmp_path))
    assert bits(tmp_path) == model and again["test_accuracy"] == first["test_accuracy"]


def test_an_interrupted_seed_goes_on(store, tmp_path, monkeypatch):
    recipe = Recipe(**SMALL, runs=2, data=str(store.path), out=str(tmp_path / "cut"))
    train(Recipe(**{**asdict(recipe), "out": str(tmp_path / "whole")}), "", quiet)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 22)  # the second seed's seventh step
        with pytest.raises(Interrupted):
            train(recipe, "", quiet)
    said = []
    train(recipe, "", said.append)
    assert any("goes on at epoch 2, step 3" in line for line in said)
    assert all(bits(tmp_path / "cut" / seed) == bits(tmp_path / "whole" / seed) for seed in ("seed-0", "seed-1"))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda state: state.pop("net"), "not a checkpoint to go on from"),
        (lambda state: state["recipe"].update(colour="red"), "not one of this version"),
        (lambda state: state["recipe"].update(epochs="3"), "mistyped setting epochs"),
        (lambda state: state["recipe"].update(lr=10**400), "not one of this version"),
        (lambda state: state["recipe"].update({"x" * 5000: 1}), "not one of this version"),
        (lambda state: state["recipe"].update(net="level4"), "does not fit its recipe"),
        (lambda state: state.update(epoch=99), "does not fit its recipe"),
        (lambda state: state.update(random={"cpu": torch.zeros(3)}), "does not fit its recipe"),
        (lambda state: state["optimiser"]["state"][0].update(momentum_buffer=torch.zeros(())), "of another kind"),
        (lambda state: state["optimiser"]["param_groups"][0].update(params=[0, 0]), "of another kind"),
        (lambda state: state["optimiser"]["param_groups"][0].update(momentum="0.9"), "of another kind"),
        (lambda state: state["plateau"].update(best=None), "of another kind"),
        (lambda state: state["history"].__setitem__(0, torch.zeros(2)), "does not fit its recipe"),
        (lambda state: state["history"][0].update(train_loss=float("nan")), "does not fit its recipe"),
        (lambda state: state.update(losses=[0.5]), "its counts"),
    ],
)
def test_what_cannot_be_gone_on_with_is_one_line(run_folder, tmp_path, spoil, reason):
    state = checkpoint.load(run_folder / "checkpoint.pt")
    spoil(state)
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    with pytest.raises(InputError, match=reason) as refused:
        resume.main(["--resume", str(tmp_path)])
    assert "checkpoint.pt" in str(refused.value) and len(str(refused.value)) < 500


def test_an_ordered_dict_takes_no_values_that_could_be_keys(run_folder, tmp_path):
    """Hashing a deep one would overflow the stack."""
    with zipfile.ZipFile(run_folder / "checkpoint.pt") as whole, zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as spoilt:
        for name in whole.namelist():
            code = b"\x80\x02ccollections\nOrderedDict\n]K\x01K\x02\x86a\x85R." if name.endswith("/data.pkl") else whole.read(name)
            spoilt.writestr(name, code)
    with pytest.raises(InputError, match="checkpoint.pt: not a readable checkpoint"):
        read(tmp_path)


def test_other_data_are_named_before_what_does_not_fit_them(store, run_folder, tmp_path):
    """Fewer images than the training's `--limit`, which nobody may change on the way."""
    shutil.copytree(run_folder, tmp_path / "cut", ignore=lambda *_: ["summary.json"])
    state = read(tmp_path / "cut")
    few, recipe = make_store(tmp_path / "few.safetensors", train=20), Recipe(**{**SMALL, "limit": 30})
    with pytest.raises(InputError, match="not the data that .*cut was trained on: name that with --data"):
        train(replace(recipe, data=str(few.path), out=str(tmp_path / "cut")), "", quiet, state=state)


def test_settings_do_not_change_on_the_way(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        resume.main(["--resume", str(tmp_path)])
    with pytest.raises(InputError, match="--lr"):
        resume.main(["--resume", str(tmp_path), "--lr", "0.1"])

"""Seconds to an accuracy: our seeds, a peer's script, and what is made of them. No test depends on how fast anything is."""

import json
import math
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import make_store

from benchmarks import adapter, gpu, standings, time_to_accuracy
from pipelines.errors import InputError
from train import jobs as train_jobs
from train.course import Diverged
from train.recipe import Recipe

# As the records print: airbench94_muon (a run's number in its first row alone), airbench96 (another clock, no warm-up named), speedrun (a
# line that ends in a carriage return, one column more).
MUON = """
---------------------------------------------------------------------------
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
---------------------------------------------------------------------------
|  warmup  |      0  |     0.4000  |   0.3000  |               |        0.9000  |
|          |   eval  |     0.4000  |   0.3000  |       0.3100  |       31.0000  |
|       0  |      0  |     0.9000  |   0.9200  |               |        2.4000  |
|          |      7  |     0.9000  |   0.9300  |               |        2.4000  |
|          |   eval  |     0.9000  |   0.9300  |       0.9400  |        2.5000  |
|       1  |      0  |     0.9100  |   0.9310  |               |        2.6000  |
|          |   eval  |     0.9100  |   0.9310  |       0.9420  |        2.7000  |
Mean: 0.9410    Std: 0.0014
"""
FASTER = """
|  run     |  epoch  |  train_loss  |  train_acc  |  val_acc  |  tta_val_acc  |  total_time_seconds  |
Training small proxy...
|       0  |   eval  |      1.0000  |     0.9000  |   0.9500  |       0.9600  |             90.5000  |
|       1  |   eval  |         nan  |     0.1000  |   0.1000  |       0.1000  |             27.5000  |
|       2  |   eval  |      1.0000  |     0.9000  |   0.9510  |       0.9610  |             27.6000  |
"""
SPEEDRUN = (
    "|  run     |  epoch  |  train_acc  |  val_acc  |  val_auroc  |  tta_val_acc  |  time_seconds  |\n"
    "|  warmup  |   eval  |     0.1128  |   0.1020  |     0.5000  |       0.0992  |       34.7171  |\n"
    "|       1  |   eval  |     0.9884  |   0.9349  |     0.9900  |       0.9428  |        1.9734  |\n"
    "Mean accuracy after 1 runs: 0.942800 | Mean time: 1.973436s\r"
    "|       2  |   eval  |     0.9885  |   0.9306  |     0.9900  |       0.9395  |        1.9739  |\n"
    "Mean accuracy after 2 runs: 0.941150 | Mean time: 1.973679s\r\n"
    "Accuracies: Mean: 0.941150    Std: 0.002333\n"
)
PEER = """
    import argparse, os, sys, torch
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--runs", type=int, default=1)
    asked = parser.parse_args()
    for path, count in ((asked.train, 37), (asked.test, 11)):
        data = torch.load(path)
        assert data["images"].dtype == torch.uint8 and data["images"].shape == (count, 32, 32, 3)
        assert data["labels"].dtype == torch.int64 and len(data["labels"]) == count and len(data["classes"]) == 10
    os.makedirs("logs")
    print("|  run  |  epoch  |  val_acc  |  tta_val_acc  |  time_seconds  |")
    for run in ["warmup", *range(asked.runs)]:
        shift = 0 if run == "warmup" else run
        print(f"|  {run}  |  0  |  0.1  |    |  0.5  |", flush=True)
        print(f"|    |  eval  |  0.{shift + 40}  |  0.{shift + 50}  |  {shift + 1}.5  |", flush=True)
"""
FLAGS = ["--net", "level1", "--epochs", "1", "--batch-size", "16", "--lr", "0.01", "--device", "cpu", "--eval-every", "0", "--first-side", "0"]
SMALL = Recipe(net="level1", epochs=1, batch_size=16, lr=0.01, device="cpu")


QUICK = """
    import sys
    # add_argument("--runs")
    print("|  run  |  epoch  |  val_acc  |  tta_val_acc  |  time_seconds  |")
    for run in ["warmup", *range(int(sys.argv[2]))]:
        print(f"|  {run}  |  eval  |  0.4  |  0.{0 if run == 'warmup' else run + 50}  |  1.5  |", flush=True)
"""


def script(folder, text, name="fast.py"):
    (folder / "record").mkdir(exist_ok=True)
    file = folder / "record" / name
    file.write_text(textwrap.dedent(text))
    return file


def quiet(*_):
    pass


# Peers


@pytest.mark.parametrize(
    ("text", "names", "accuracies", "seconds"),
    [
        (MUON, ["warmup", "0", "1"], [0.31, 0.94, 0.942], [31, 2.5, 2.7]),
        (FASTER, ["0", "1", "2"], [0.96, 0.1, 0.961], [90.5, 27.5, 27.6]),
        (SPEEDRUN, ["warmup", "1", "2"], [0.0992, 0.9428, 0.9395], [34.7171, 1.9734, 1.9739]),
    ],
)
def test_records_tables_are_read(text, names, accuracies, seconds):
    rows = list(adapter.results(text.splitlines()))
    assert [row["run"] for row in rows] == names and [row["accuracy"] for row in rows] == accuracies
    assert [row["seconds"] for row in rows] == seconds and [row["diverged"] for row in rows] == [text is FASTER and run == "1" for run in names]


def test_a_script_gets_the_flags_that_it_declares():
    assert adapter.arguments("print()", 3) == []
    assert adapter.arguments("p.add_argument('--runs', type=int)", 3) == ["--runs", "3"]
    assert adapter.arguments(PEER, 3) == ["--train", "cifar10/train.pt", "--test", "cifar10/test.pt", "--runs", "3"]


def test_only_scripts_that_take_cuda_for_granted_need_it():
    assert adapter.needs_cuda("model.cuda()") and not adapter.needs_cuda("'cuda' if torch.cuda.is_available() else 'cpu'")


@pytest.mark.parametrize(("chosen", "train", "test"), [({}, 37, 11), ({"held_out": 10}, 27, 10), ({"limit": 20}, 20, 11)])
def test_peers_get_the_images_that_we_train_and_test_on(store, tmp_path, chosen, train, test):
    recipe = Recipe(**chosen)
    adapter.write_data(store, recipe, tmp_path)
    made = {split: torch.load(tmp_path / f"{split}.pt") for split in ("train", "test")}
    assert len(made["train"]["images"]) == train and len(made["test"]["labels"]) == test and made["test"]["classes"] == list(store.classes)
    held, ids = adapter.split(recipe, store.labels("train"))
    expected = store.images("test") if held is None else store.images("train")[held]
    assert torch.equal(made["test"]["images"], torch.tensor(expected))
    assert torch.equal(made["train"]["labels"], torch.tensor(store.labels("train") if ids is None else store.labels("train")[ids]))


def test_the_first_run_is_a_warm_up_whatever_its_name_and_diverged_runs_are_named(store, tmp_path):
    file = script(tmp_path, f"print('''{FASTER}''')")
    row = adapter.peer(file, store, Recipe(runs=2), tmp_path / "out", quiet)
    assert [run["accuracy"] for run in row["runs"]] == [0.961] and row["diverged"] == [{"run": "1"}] and row["missing"] == ""


def test_an_interrupted_peer_goes_on_and_a_changed_one_is_refused(store, tmp_path):
    file = script(tmp_path, QUICK)
    out, said = tmp_path / "out", []
    one = adapter.peer(file, store, Recipe(runs=1), out, quiet)
    assert [run["accuracy"] for run in one["runs"]] == [0.5]
    three = adapter.peer(file, store, Recipe(runs=3), out, said.append)
    assert [run["accuracy"] for run in three["runs"]] == [0.5, 0.5, 0.51] and len(said) == 2
    assert three["process_seconds"] > one["process_seconds"] > 0
    again = adapter.peer(file, store, Recipe(runs=2), out, said.append)
    assert again["runs"] == three["runs"][:2] and "kept" in said[-1]
    for changed in (Recipe(runs=3, held_out=10), Recipe(runs=3, limit=20)):
        with pytest.raises(InputError, match="other images"):
            adapter.peer(file, store, changed, out, quiet)
    script(tmp_path, "print('another')")
    with pytest.raises(InputError, match="another script"):
        adapter.peer(file, store, Recipe(runs=3), out, quiet)


def test_a_script_that_ends_early_is_named_with_its_last_words(store, tmp_path):
    file = script(tmp_path, "raise SystemExit('out of memory')")
    row = adapter.peer(file, store, Recipe(runs=2), tmp_path / "out", quiet)
    assert row["runs"] == [] and "ended 2 runs early (out of memory)" in row["missing"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_peer_that_needs_cuda_is_said_not_to_have_run(store, tmp_path):
    said = []
    row = adapter.peer(script(tmp_path, "model.cuda()"), store, Recipe(runs=2), tmp_path, said.append)
    assert row["runs"] == [] and row["missing"] == adapter.NO_CUDA == "not run: no CUDA device" and len(said) == 1
    shown = standings.lines([standings.figures(row, 0.9)], 1.0, "shapes")[0]
    assert shown[:3] == ["fast", "0", adapter.NO_CUDA] and len(shown) == len(standings.header("shapes"))


# Ours


@pytest.mark.usefixtures("no_pictures")
def test_ours_beside_a_peer_interleaved_and_resumed(store, tmp_path, capsys):
    file, out = script(tmp_path, PEER), tmp_path / "out"
    command = ["default", "--runs", "2", "--out", str(out), "--peer", str(file), "--target", "peer", "--data", str(store.path), *FLAGS]
    time_to_accuracy.main(command)
    result = json.loads((out / "result.json").read_text())
    mine, theirs = result["rows"]
    assert result["order"] == ["Tenfold default, seed 0", "fast", "Tenfold default, seed 1"]
    assert [run["accuracy"] for run in theirs["runs"]] == [0.50, 0.51] and theirs["seconds_interval"]["mean"] == pytest.approx(2)
    assert [run["seed"] for run in mine["runs"]] == [0, 1] and mine["target"] == pytest.approx(0.505) and theirs["target"] is None
    summary = json.loads((out / "seed-1" / "summary.json").read_text())
    assert 0.98 < mine["flop"] / (6 * summary["macs"] * 37) < 1  # the first layer has no gradient of its input
    assert mine["flop_per_second"] > 0 and mine["runs"][1]["accuracy"] == summary["test_accuracy"]
    assert mine["runs"][1]["seconds"] == pytest.approx(summary["seconds"]["train"] + summary["seconds"]["final_eval"])
    assert all(run["seconds"] < run["wall_seconds"] for run in mine["runs"])
    assert mine["process_seconds"] > sum(run["wall_seconds"] for run in mine["runs"]) and result["matrix_flop_per_second"] > 0
    assert (out / "result.png").stat().st_size > 0 and not list((out / "peers").rglob("*.pt"))
    shown = capsys.readouterr().out
    assert "order: Tenfold default" in shown and "sd; 95% interval" in shown and "| fast " in shown
    (out / "seed-1" / "summary.json").unlink()  # as if interrupted: its checkpoint is not gone on from, as a clock with a gap says nothing
    time_to_accuracy.main(command)
    assert "(1 of 2 runs)" in capsys.readouterr().out
    mine = json.loads((out / "result.json").read_text())["rows"][0]
    time_to_accuracy.main(command)
    again = json.loads((out / "result.json").read_text())
    assert [row["runs"] for row in again["rows"]] == [mine["runs"], theirs["runs"]] and again["rows"][0]["process_seconds"] is None
    assert capsys.readouterr().out.count("kept") == 4  # two seeds, a peer, and the table
    other = make_store(tmp_path / "other.safetensors", train=38)
    with pytest.raises(InputError, match="trained on other images"):
        time_to_accuracy.main([*command, "--data", str(other.path)])


@pytest.mark.usefixtures("no_pictures")
def test_a_contest_that_is_cut_off_leaves_what_has_ended(store, tmp_path, monkeypatch):
    monkeypatch.setattr(time_to_accuracy, "peer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    peer = ["--peer", str(script(tmp_path, "")), "--target", "peer"]
    command = ["default", "--runs", "2", "--out", str(tmp_path / "o"), *peer, "--data", str(store.path), *FLAGS]
    with pytest.raises(KeyboardInterrupt):
        time_to_accuracy.main(command)
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    ours, theirs = result["rows"]
    assert len(ours["runs"]) == 1 and ours["target"] is None and theirs["missing"] == "not run yet" and result["order"] == ["Tenfold default, seed 0"]
    whole = {**result, "rows": [ours, {**theirs, "runs": ours["runs"]}]}
    (tmp_path / "o" / "result.json").write_text(json.dumps(whole))  # as an earlier call, which was not cut off, would have left it
    with pytest.raises(KeyboardInterrupt):
        time_to_accuracy.main(command)
    assert json.loads((tmp_path / "o" / "result.json").read_text()) == whole


def test_a_diverged_seed_is_counted_and_named_and_in_no_mean(store, tmp_path, monkeypatch, capsys):
    once = train_jobs.train_once

    def diverging(one, *rest):
        if one.seed == 1:
            raise Diverged(1, 1, 3, math.nan)
        return once(one, *rest)

    monkeypatch.setattr(train_jobs, "train_once", diverging)
    time_to_accuracy.main(["default", "--runs", "2", "--out", str(tmp_path / "out"), "--target", "0.5", "--data", str(store.path), *FLAGS])
    row = json.loads((tmp_path / "out" / "result.json").read_text())["rows"][0]
    assert row["accuracy_interval"]["n"] == 1 and row["diverged"] == [{"seed": 1, "epoch": 1, "step": 3}] and row["p_at_least_target"] is None
    shown = capsys.readouterr().out
    assert "1 + 1 diverged" in shown and "seed 1 diverged in epoch 1, step 3" in shown
    monkeypatch.setattr(train_jobs, "train_once", lambda one, *rest: (_ for _ in ()).throw(Diverged(one.seed, 1, 1, math.inf)))
    time_to_accuracy.main(["default", "--runs", "1", "--seed", "7", "--out", str(tmp_path / "lost"), "--data", str(store.path), *FLAGS])
    assert "all diverged" in capsys.readouterr().out
    other = make_store(tmp_path / "other.safetensors", train=38)
    with pytest.raises(InputError, match="seed-7: trained on other images"):  # where none has finished, either
        time_to_accuracy.main(["default", "--runs", "1", "--seed", "7", "--out", str(tmp_path / "lost"), "--data", str(other.path), *FLAGS])


def test_an_interrupted_training_of_other_settings_is_not_removed(store, run_folder, tmp_path):
    (tmp_path / "seed-0").mkdir()
    kept = shutil.copy(run_folder / "checkpoint.pt", tmp_path / "seed-0")
    with pytest.raises(InputError, match="seed-0: an interrupted run with another"):
        time_to_accuracy.main(["default", "--runs", "1", "--out", str(tmp_path), "--data", str(store.path), *FLAGS])
    assert Path(kept).exists()


def test_flop_follow_the_side_that_an_epoch_is_trained_at(store):
    full = time_to_accuracy.training_flop(SMALL, store)
    small = time_to_accuracy.training_flop(Recipe(net="level1", epochs=2, first_side=16, grown=0.5), store)
    assert full < small < 1.3 * full  # an epoch at half the side costs about a quarter
    assert time_to_accuracy.training_flop(Recipe(net="level1", epochs=1, limit=20), store) == pytest.approx(full * 20 / 37)


def test_process_clock_began_before_this_test():
    first = time_to_accuracy.since_start()
    assert 0 < first <= time_to_accuracy.since_start()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--target", "94"], "give a fraction such as 0.94"),
        (["--target", "nan"], "give a fraction such as 0.94"),
        (["--target", "peer"], "name the peer's script"),
        (["--peer", "nowhere.py"], "no such script"),
        (["--net", "nothing"], "choose one of"),
    ],
)
def test_what_cannot_be_run_is_one_line_before_anything_trains(flags, match, tmp_path):
    with pytest.raises(InputError, match=match):
        time_to_accuracy.main(["default", *flags, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# What is shown


def row_of(accuracies, seconds, **more):
    made = [{"accuracy": a, "seconds": s, "wall_seconds": 2 * s, "images_per_second": 10.0} for a, s in zip(accuracies, seconds)]
    return {"who": "x", "runs": made, "diverged": [], "missing": "", "process_seconds": 9.0, **more}


def test_figures_are_those_by_hand():
    made = standings.figures(row_of((0.90, 0.92), (1.0, 3.0)), 0.90)
    half = 12.7062 * math.sqrt(2e-4) / math.sqrt(2)  # Student's 97.5% point with one degree of freedom
    assert made["accuracy_interval"]["deviation"] == pytest.approx(math.sqrt(2e-4))
    assert (made["accuracy_interval"]["low"], made["accuracy_interval"]["high"]) == pytest.approx((0.91 - half, 0.91 + half), abs=1e-5)
    assert made["p_at_least_target"] == pytest.approx(0.25)  # t = 1: 1/2 - atan(1) / pi
    assert made["seconds_interval"]["mean"] == 2 and made["wall_seconds_interval"]["mean"] == 4
    assert standings.figures(row_of((0.9,), (1.0,)), 0.9)["p_at_least_target"] is None


def test_a_peers_accuracies_are_a_target_with_a_spread_of_its_own():
    """By hand: errors 0.01 a side, so 0.01 * sqrt(2) for the difference, with two degrees of freedom, whose 97.5% point is 4.3027."""
    made = standings.figures(row_of((0.90, 0.92), (1.0, 3.0)), [0.93, 0.95])
    apart, half = made["less_target_interval"], 4.3027 * 0.01 * math.sqrt(2)
    assert made["target"] == pytest.approx(0.94) and (apart["low"], apart["mean"], apart["high"]) == pytest.approx(
        (-0.03 - half, -0.03, -0.03 + half), abs=1e-5
    )
    assert made["p_at_least_target"] == pytest.approx(0.9160, abs=1e-4)  # t = -2.1213: 1/2 - t / (2 sqrt(2 + t^2))
    assert standings.remarks([made]) == ["x: -3.00 points from the target's mean (95% interval -9.08 to +3.08)"]
    assert "one run" in standings.remarks([standings.figures(row_of((0.9,), (1.0,)), [0.93, 0.95])])[0]


def test_table_and_remarks():
    row = row_of((0.90, 0.92), (1.0, 3.0), flop_per_second=1e12, diverged=[{"seed": 3, "epoch": 1, "step": 2}], trained_now=1)
    shown = standings.lines([standings.figures(row, 0.9)], 2e12, "CIFAR-10 (JPEG q75)")[0]
    named = dict(zip(standings.header("CIFAR-10 (JPEG q75)"), shown))
    assert shown[1] == "2 + 1 diverged" and named["accuracy on CIFAR-10 (JPEG q75)"] == "0.9100" and named["p (>= target)"] == "0.25"
    assert named["TFLOP/s (of matrix rate)"] == "1 (50.0%)" and named["process s"] == "9.0 (1 of 3 runs)" and len(named) == len(shown) - 1
    gone = row_of((), (), who="peer", missing="ended 2 runs early")
    assert standings.remarks([row, gone]) == ["x: seed 3 diverged in epoch 1, step 2", "peer: ended 2 runs early"]


def test_chart_of_any_rows(tmp_path):
    rows = [row_of((0.9, 0.91), (1.0, 1.1)), row_of((0.92,), (60.0,)), row_of((), (), missing=adapter.NO_CUDA)]
    for target in (None, 0.9):
        standings.chart([standings.figures(row, target) for row in rows], "data", tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 0


def test_gpu_command_races_against_the_peers_that_it_is_given(tmp_path):
    by_name = {step.name: step.command for step in gpu.steps(tmp_path, "", "cuda", False, ("a/b.py",))}
    assert by_name["speed"][-4:] == ("--target", "peer", "--peer", "a/b.py")
    assert "--target" not in {step.name: step.command for step in gpu.steps(tmp_path, "", "cuda", False)}["speed"]

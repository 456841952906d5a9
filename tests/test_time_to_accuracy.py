"""Seconds to an accuracy: our seeds, a peer's script, and what is made of them."""

import json
import textwrap

import pytest
import torch

from benchmarks import time_to_accuracy
from benchmarks.adapter import results, run_peer, write_data
from pipelines.errors import InputError

TABLE = """
---------------------------------------------------------------------------
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
---------------------------------------------------------------------------
|  warmup  |     0   |     0.4000  |   0.3000  |               |        0.9000  |
|  warmup  |  eval   |     0.4000  |   0.3000  |       0.3100  |        1.0000  |
|       0  |     7   |     0.9000  |   0.9300  |               |        2.4000  |
|       0  |  eval   |     0.9000  |   0.9300  |       0.9400  |        2.5000  |
|          |  eval   |     0.9000  |   0.9300  |       0.9400  |        2.5000  |
|       1  |  eval   |     0.9100  |   0.9310  |       0.9420  |        2.7000  |
"""
PEER = """
    import torch
    for split in ("train", "test"):
        data = torch.load(f"cifar10/{split}.pt")
        assert data["images"].dtype == torch.uint8 and data["images"].shape[1:] == (32, 32, 3) and len(data["labels"]) == len(data["images"])
    print("|  run  |  epoch  |  val_acc  |  time_seconds  |")
    for run in range(100):
        print(f"|  {run}  |  eval  |  0.{run + 50}  |  {run + 1}.5  |", flush=True)
"""
FLAGS = ["--net", "level1", "--epochs", "1", "--batch-size", "16", "--lr", "0.01", "--device", "cpu", "--eval-every", "0"]


def test_a_records_table_is_read_without_its_warm_up():
    rows = list(results(TABLE.splitlines()))
    assert [row["accuracy"] for row in rows] == [0.94, 0.942] and [row["seconds"] for row in rows] == [2.5, 2.7]
    assert rows[0]["plain_accuracy"] == 0.93


def test_data_is_what_the_records_read(store, tmp_path):
    write_data(store, tmp_path)
    made = torch.load(tmp_path / "test.pt")
    assert torch.equal(made["images"], torch.from_numpy(store.images("test").copy())) and made["classes"] == list(store.classes)


def test_a_script_without_a_result_is_an_error_with_its_last_words(store, tmp_path):
    (tmp_path / "broken.py").write_text("raise SystemExit('no GPU found')")
    with pytest.raises(InputError, match="no GPU found"):
        run_peer(tmp_path / "broken.py", store, 2, tmp_path / "work")


def test_ours_beside_a_peer_and_resumed(store, tmp_path, capsys):
    script = tmp_path / "record" / "fast.py"
    script.parent.mkdir()
    script.write_text(textwrap.dedent(PEER))
    command = ["default", "--runs", "2", "--out", str(tmp_path / "out"), "--peer", str(script), "--target", "peer", "--data", str(store.path), *FLAGS]
    time_to_accuracy.main(command)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    mine, theirs = result["rows"]
    assert [run["accuracy"] for run in theirs["runs"]] == [0.50, 0.51] and theirs["seconds_interval"]["mean"] == 2.0
    assert mine["accuracy_interval"]["n"] == 2 and mine["target"] == pytest.approx(0.505) and mine["flop_per_second"] > 0
    assert all(run["seconds"] < run["wall_seconds"] for run in mine["runs"])
    assert (tmp_path / "out" / "result.png").stat().st_size > 0
    shown = capsys.readouterr().out
    assert "record/fast" in shown and "standard deviation" in shown and "wall clock" in shown
    script.write_text("raise SystemExit('must not run again')")
    time_to_accuracy.main(command)
    again = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [row["runs"] for row in again["rows"]] == [mine["runs"], theirs["runs"]] and "kept" in capsys.readouterr().out


def test_a_peer_that_needs_cuda_is_said_not_to_have_run(store, tmp_path):
    script = tmp_path / "gpu.py"
    script.write_text("model.cuda()")
    row = time_to_accuracy.peer(script, store, 2, tmp_path, torch.device("cpu"))
    assert row["runs"] == [] and "CUDA" in row["missing"]
    assert time_to_accuracy.lines([row], 1.0)[0][1] == row["missing"]


@pytest.mark.parametrize("target", ["94", "high", "nan"])
def test_a_bad_target_is_one_clear_line(target, tmp_path):
    with pytest.raises(InputError, match="give a fraction such as 0.94"):
        time_to_accuracy.main(["default", "--target", target, "--out", str(tmp_path)])


def test_diverged_seeds_are_named_and_in_no_mean():
    row = {"who": "x", "runs": [{"seconds": s, "accuracy": a, "images_per_second": 10} for s, a in ((1, 0.9), (2, 0.92))]}
    row |= {"diverged": [{"seed": 3, "epoch": 1, "step": 2}], "flop_per_second": 1e12}
    made = time_to_accuracy.figures(row, 0.90)
    shown = time_to_accuracy.lines([made], 2e12)[0]
    assert shown[5] == "2 + 1 diverged" and shown[1] == "0.9100" and shown[8] == "1 (50%)"
    assert made["p_at_least_target"] == pytest.approx(0.25)  # t = 1 with one degree of freedom

"""What is read of a run folder: right where it is whole, one line where it is not."""

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipelines.errors import InputError
from train import result


def copied(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


def test_a_model_knows_its_classes_and_size(run_folder, store):
    model = result.model(run_folder)
    assert model.classes == store.classes and (model.height, model.width) == (32, 32) and model.mean == store.mean
    right = model.logits(store.images("test")).argmax(1).numpy() == store.labels("test")
    assert right.mean() == result.summary(run_folder)["test_accuracy"]


def test_a_line_that_is_being_written_is_left_away(run_folder, tmp_path):
    folder = copied(run_folder, tmp_path)
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "lr"')
    assert [line["epoch"] for line in result.lines(folder, "metrics.jsonl")] == [1, 2]


BAD_SUMMARIES = {
    "text": "no JSON",
    "deep": "[" * 100_000,
    "list": "[]",
    "infinite": {"test_accuracy": float("inf")},
    "huge": {"parameters": 10**400},
    "truth": {"test_accuracy": True},
    "path": {"runs": {"seeds": ["../../elsewhere"], "diverged": []}},
    "no seeds": {"runs": {"seeds": [], "diverged": []}},
    "no seconds": {"seconds": {"train": 1.0}},
    "no name": {"data": {"encoding": "raw"}},
    "recipe": {"recipe": "level1"},
}


@pytest.mark.parametrize("case", BAD_SUMMARIES)
def test_a_bad_summary_is_one_line(case, run_folder, tmp_path):
    folder, bad = copied(run_folder, tmp_path), BAD_SUMMARIES[case]
    text = bad if isinstance(bad, str) else json.dumps({**result.summary(folder), **bad})
    (folder / "summary.json").write_text(text)
    with pytest.raises(InputError, match="summary.json: not a run's summary") as refused:
        result.seeds(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("line", ["{", "3", '{"epoch": 1}', '{"epoch": 1, "lr": NaN}', "[" * 100_000])
def test_a_bad_line_of_metrics_is_one_line(line, run_folder, tmp_path):
    folder = copied(run_folder, tmp_path)
    (folder / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="metrics.jsonl: damaged"):
        result.lines(folder, "metrics.jsonl")


BAD_MODELS = {
    "classes": {"classes": "[1, 2]"},
    "many classes": {"classes": json.dumps([str(i) for i in range(20_000)])},  # level1's head alone would take 1.6 GB
    "mean": {"mean": "[0.5]"},
    "std": {"std": "[0, 0, 0]"},
    "size": {"height": "100000"},
    "a size the net does not take": {"height": "1"},
    "net": {"net": "../evil"},
    "norm": {"norm": "none"},
    "other net": {"net": "level4"},
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_model_whose_header_lies_is_one_line(case, run_folder, tmp_path):
    path = tmp_path / "model.safetensors"
    with safe_open(run_folder / "model.safetensors", framework="pt") as file:
        header = file.metadata()
    save_file(load_file(run_folder / "model.safetensors"), path, {**header, **BAD_MODELS[case]})
    with pytest.raises(InputError, match="model.safetensors") as refused:
        result.model(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_run_says_what_to_name(tmp_path):
    (tmp_path / "seed-3").mkdir()
    for read, said in ((result.model, "seed-3"), (result.summary, "name the folder")):
        with pytest.raises(InputError, match=said):
            read(tmp_path)

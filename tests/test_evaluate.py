"""python -m train evaluate: what trained nets say of the images that they were tested on, and of others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_store

from pipelines import store as stores
from pipelines.errors import InputError
from train import evaluate, result
from train.recipe import Recipe
from train.runs import train
from train.testing import seen

RECORDS = Path(__file__).parents[1] / "benchmarks" / "records"
pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = dict(net="level1", epochs=1, batch_size=16, lr=0.01, device="cpu", precision="fp32")


def quiet(*_):
    pass


def asked(tmp_path, *words) -> list[dict]:
    """What the command writes of each net."""
    evaluate.main([*map(str, words), "--json", str(tmp_path / "found.json"), "--device", "cpu"])
    return json.loads((tmp_path / "found.json").read_text())["nets"]


def subset(store, path, classes: list[str], changed=lambda images: images):
    """A store of the test images of these classes, in this order of them, and nothing to train on."""
    labels = np.array([store.classes.index(name) for name in classes])
    images, old = np.asarray(store.images("test")), np.asarray(store.labels("test"))
    here = np.isin(old, labels)
    new = np.array([list(labels).index(label) for label in old[here]], np.int64)
    tensors = {"test.images": changed(images[here]), "test.labels": new}
    about = dict(encoding="raw", height=32, width=32, channels=3, classes=classes, mean=[0.1] * 3, std=[0.9] * 3, source="another")
    stores.write(path, tensors, **about)
    return stores.Store(path)


@pytest.mark.parametrize("settings", [{}, dict(held_out=10), dict(views=6, views_share=0.5)], ids=["test", "held out", "views"])
def test_a_run_is_tested_as_it_was(store, tmp_path, capsys, settings):
    summary = train(Recipe(**SMALL, **settings, data=str(store.path), out=str(tmp_path / "run")), "", quiet)
    (found,) = asked(tmp_path, tmp_path / "run")
    assert found["accuracy"] == summary["test_accuracy"] and found["loss"] == result.lines(tmp_path / "run", "metrics.jsonl")[-1]["test_loss"]
    said = capsys.readouterr().out
    assert f"{summary['test_accuracy']:.2%}" in said and summary["tested_on"] in said.replace("\n", " ")
    assert np.trace(found["confusion"]) == summary["test_accuracy"] * np.sum(found["confusion"])


def test_settings_change_it(store, run_folder, tmp_path):
    """Six views, held-out images, other precision: as computed here."""
    model = result.model(run_folder)
    with torch.no_grad():
        logits = seen(model.net, model.inputs(store.images("test")), 6)
    labels = torch.from_numpy(np.array(store.labels("test")))
    (six,) = asked(tmp_path, run_folder, "--views", 6)
    assert six["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean())) and six["loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5
    )
    (held,) = asked(tmp_path, run_folder, "--held-out", 20)
    assert np.sum(held["confusion"]) == 20
    (train,), (every,) = (asked(tmp_path, run_folder, "--split", name) for name in ("train", "all"))
    assert np.sum(train["confusion"]) == 37 and every["loss"] == pytest.approx((37 * train["loss"] + 11 * asked(tmp_path, run_folder)[0]["loss"]) / 48)
    assert np.trace(every["confusion"]) == pytest.approx(48 * every["accuracy"])
    (half,) = asked(tmp_path, run_folder, "--precision", "bf16")
    (whole,) = asked(tmp_path, run_folder)
    assert half["loss"] != whole["loss"] and half["loss"] == pytest.approx(whole["loss"], rel=0.05)


def test_other_images_are_seen_as_the_net_learnt_them_and_classes_go_by_name(store, run_folder, tmp_path, capsys):
    """Whatever the statistics of the others, and in any order of some of the classes."""
    model = result.model(run_folder)
    labels = np.asarray(store.labels("test"))
    some = [store.classes[k] for k in (7, 2, 9) if k in labels]
    other = subset(store, tmp_path / "other.safetensors", some)
    logits = model.logits(np.asarray(other.images("test")))
    true = torch.tensor([model.classes.index(other.classes[k]) for k in other.labels("test")])
    (found,) = asked(tmp_path, run_folder, "--data", other.path)
    assert found["classes"][: len(some)] == some and sorted(found["classes"]) == sorted(store.classes)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == true).float().mean()))
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, true)), rel=1e-5)
    said = capsys.readouterr().out
    assert all(name in said for name in some)
    assert asked(tmp_path, run_folder, "--data", other.path, "--split", "all") == [found]  # what there is


def test_a_split_that_is_asked_for_is_tested_whatever_the_run_held_out(store, tmp_path, capsys):
    train(Recipe(**SMALL, held_out=10, data=str(store.path), out=str(tmp_path / "run")), "", quiet)
    for words, said in (
        ((), "10 images: 10 images held out of train"),
        (("--split", "test"), "11 images: test,"),
        (("--split", "all"), "48 images: train and test,"),
    ):
        asked(tmp_path, tmp_path / "run", *words)
        assert capsys.readouterr().out.startswith(said)


def test_several_seeds_have_their_mean_and_an_ensemble(store, tmp_path, capsys):
    summary = train(Recipe(**SMALL, runs=2, data=str(store.path), out=str(tmp_path / "two")), "", quiet)
    first, second, both = asked(tmp_path, tmp_path / "two")
    assert np.mean([first["accuracy"], second["accuracy"]]) == pytest.approx(summary["test_accuracy"])
    models = [result.model(tmp_path / "two" / f"seed-{seed}") for seed in (0, 1)]
    logits = sum(model.logits(np.asarray(store.images("test"))) for model in models) / 2
    labels = torch.from_numpy(np.array(store.labels("test")))
    assert both["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean())) and both["parameters"] == 2 * first["parameters"]
    said = capsys.readouterr().out
    assert "mean of their logits" in said and "(n 2, standard deviation" in said


def test_a_run_that_is_named_twice_counts_twice(store, run_folder, tmp_path):
    train(Recipe(**SMALL, seed=3, data=str(store.path), out=str(tmp_path / "other")), "", quiet)
    first, second, both = asked(tmp_path, run_folder, tmp_path / "other", tmp_path / "other")
    models = [result.model(folder) for folder in (run_folder, tmp_path / "other")]
    one, other = (model.logits(np.asarray(store.images("test"))) for model in models)
    labels = torch.from_numpy(np.array(store.labels("test")))
    assert both["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy((one + 2 * other) / 3, labels)), rel=1e-5)


def test_a_model_alone_is_enough(store, run_folder, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(run_folder / "model.safetensors", tmp_path / "alone")
    (alone,) = asked(tmp_path, tmp_path / "alone", "--data", store.path, "--precision", "fp32")
    (whole,) = asked(tmp_path, run_folder)
    assert alone | {"run": ""} == whole | {"run": ""}


def test_what_a_net_was_taught_by_is_told(store, run_folder, tmp_path, capsys):
    train(Recipe(**SMALL, teacher=str(run_folder), weights=str(run_folder), data=str(store.path), out=str(tmp_path / "taught")), "", quiet)
    plain, taught, _ = asked(tmp_path, run_folder, tmp_path / "taught")
    assert plain["kind"] == "" and taught["kind"] == "pretrained, taught" and "pretrained, taught" in capsys.readouterr().out


def changed(run_folder, place, **settings):
    """A run of other settings, as its summary tells."""
    shutil.copytree(run_folder, place)
    summary = json.loads((place / "summary.json").read_text())
    (place / "summary.json").write_text(json.dumps(summary | {"recipe": summary["recipe"] | settings}))
    return place


def test_what_cannot_be_tested_is_one_line(store, run_folder, tmp_path):
    strange = make_store(tmp_path / "strange.safetensors", classes=11)
    large = make_store(tmp_path / "large.safetensors", height=40, width=40)
    gone = changed(run_folder, tmp_path / "moved", data=str(tmp_path / "gone.safetensors"))
    for words, message in (
        ([run_folder, "--data", strange.path], "strange.safetensors: .* is none of the 10 classes that the net knows"),
        ([run_folder, "--data", large.path], "large.safetensors: images of 40x40 pixels, the net learnt 32x32: add --size 32"),
        ([gone], "gone.safetensors: .*moved had its images there, and there are none: name them with --data"),
        ([tmp_path / "nothing"], "nothing: no model.safetensors in it"),
        ([run_folder, "--held-out", 99], "--held-out 99 leaves none of 37 images"),
        ([run_folder, "--held-out", 9, "--split", "train"], "--held-out: .* leave --split out"),
        ([run_folder, "--views-share", 0], "--views-share 0"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main([*map(str, words), "--json", str(tmp_path / "found.json")])
    assert not (tmp_path / "found.json").exists()


def test_where_its_figures_cannot_be_written_nothing_is_tested(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "tested", lambda *_: pytest.fail("tested"))
    for place, message in ((tmp_path, "is a folder: name a file in it"), (tmp_path / "none" / "found.json", "cannot be written .*: .* name another folder")):
        with pytest.raises(InputError, match=message):
            evaluate.main([str(run_folder), "--json", str(place)])
    assert not [*tmp_path.iterdir()]


def test_there_are_models_in_records():
    assert kept_models()


def kept_models() -> list[Path]:
    return sorted(place.parent for place in RECORDS.glob("*/model.safetensors"))


@pytest.mark.parametrize("record", kept_models(), ids=lambda place: place.name)
def test_a_model_in_a_record_has_the_accuracy_that_it_states(record, real_jpeg, tmp_path):
    """On CIFAR-10 (JPEG q75)'s test images; other processors round otherwise, which is a matter of a few images."""
    summary = result.summary(record)
    (found,) = asked(tmp_path, record, "--data", real_jpeg.path)
    assert found["accuracy"] == pytest.approx(summary["test_accuracy"], abs=1e-3)
    assert (found["net"], found["parameters"]) == (summary["net"], summary["parameters"])

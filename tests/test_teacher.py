"""The nets that another learns from: one, or several seeds as one."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_store

import nets
from pipelines.errors import InputError
from train.objective import distillation
from train.progressive import resize
from train.recipe import Recipe
from train.result import lines, model
from train.run import Kept, Run
from train.runs import train
from train.teacher import Ensemble, teacher

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = dict(net="level1", epochs=2, batch_size=16, lr=0.01, device="cpu", precision="fp32")


def quiet(*_):
    pass


def test_a_teacher_is_learnt_from(store, tmp_path):
    """With all of the loss from the teacher and none from the labels, the net comes to say what the teacher says."""
    taught = train(Recipe(**SMALL, data=str(store.path), out=str(tmp_path / "teacher")), "", quiet)
    assert taught["taught"] is False
    common = dict(SMALL, epochs=30, lr=0.05, momentum=0.9, teacher=str(tmp_path / "teacher"), teacher_share=1.0, flip="none", translate=0, data=str(store.path))
    said = []
    summary = train(Recipe(**common, seed=3, out=str(tmp_path / "student")), "", said.append)
    assert summary["taught"] is True and summary["tested_on"] == "test, taught by another net" and "(test, taught by another net)" in said[-1]
    teacher, student = model(tmp_path / "teacher"), model(tmp_path / "student")
    images = np.asarray(store.images("train"))
    apart = distillation(student.logits(images), teacher.logits(images), 1.0)
    before = distillation(model_with_other_weights(student).logits(images), teacher.logits(images), 1.0)
    assert apart < before / 2


def model_with_other_weights(made):
    torch.manual_seed(9)
    return replace(made, net=nets.load(made.name).eval())


def test_a_teacher_of_other_classes_or_none_is_refused(store, tmp_path):
    other = make_store(tmp_path / "other.safetensors", classes=7)
    train(Recipe(**{**SMALL, "epochs": 1}, data=str(other.path), out=str(tmp_path / "teacher")), "", quiet)
    with pytest.raises(InputError, match="teacher.*other classes"):
        train(Recipe(**SMALL, teacher=str(tmp_path / "teacher"), data=str(store.path), out=str(tmp_path / "student")), "", quiet)
    with pytest.raises(InputError, match="no such folder|no model"):
        train(Recipe(**SMALL, teacher=str(tmp_path / "nothing"), data=str(store.path), out=str(tmp_path / "student")), "", quiet)
    with pytest.raises(InputError, match=f"--teacher {os.pathsep}: names no folder"):
        train(Recipe(**SMALL, teacher=os.pathsep, data=str(store.path), out=str(tmp_path / "student")), "", quiet)


def test_several_seeds_teach_their_mean(store, tmp_path):
    """A folder of several seeds stands for the mean of the logits of all that finished; a step learns from that mean, and from nothing else."""
    made = train(Recipe(**SMALL, runs=2, seed=5, data=str(store.path), out=str(tmp_path / "several")), "", quiet)
    assert made["runs"]["seeds"] == [5, 6]
    both = teacher(str(tmp_path / "several"), store)
    assert isinstance(both, Ensemble) and not isinstance(teacher(str(tmp_path / "several" / "seed-5"), store), Ensemble)
    models = [model(tmp_path / "several" / f"seed-{seed}") for seed in (5, 6)]
    images = np.asarray(store.images("test"))
    said = [m.logits(images) for m in models]
    assert (said[0] - said[1]).abs().max() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(both(models[0].inputs(images)), (said[0] + said[1]) / 2)
    common = dict(SMALL, epochs=1, teacher_share=1.0, flip="none", translate=0, data=str(store.path))
    learnt = train(Recipe(**common, teacher=str(tmp_path / "several"), out=str(tmp_path / "student")), "", quiet)
    losses = [float(line["train_loss"]) for line in lines(tmp_path / "student", "metrics.jsonl")]
    other = train(Recipe(**common, teacher=str(tmp_path / "several" / "seed-5"), out=str(tmp_path / "other")), "", quiet)
    assert learnt["taught"] and other["taught"] and losses != [float(line["train_loss"]) for line in lines(tmp_path / "other", "metrics.jsonl")]


@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.5}])
def test_a_teacher_sees_whole_images_while_the_net_sees_small_ones(store, tmp_path, mixed):
    """The same ones, mixed alike."""
    train(Recipe(**SMALL, data=str(store.path), out=str(tmp_path / "teacher")), "", quiet)
    common = dict(SMALL, epochs=2, first_side=16, grown=0.5, teacher=str(tmp_path / "teacher"), data=str(store.path))
    run = Run(Recipe(**common, **mixed), tmp_path / "student", torch.device("cpu"), "", quiet, Kept())
    looks = {"teacher": [], "net": []}
    for name, net in (("teacher", run.training.teacher), ("net", run.training.net)):
        net.register_forward_pre_hook(lambda _, given, name=name: looks[name].append(given[0].clone()))
    for epoch in range(2):
        run.training.epoch(epoch)
    steps = len(run.training.train)
    assert [images.shape[-1] for images in looks["net"]] == [16] * steps + [32] * steps
    assert {images.shape[-2:] for images in looks["teacher"]} == {(32, 32)} and len(looks["teacher"]) == 2 * steps
    for whole, small in zip(looks["teacher"], looks["net"]):
        torch.testing.assert_close(resize(whole, small.shape[-1]), small)


def test_nets_of_several_folders_teach_together(store, tmp_path):
    """Each net counts once, however many its folder has."""
    train(Recipe(**SMALL, runs=2, data=str(store.path), out=str(tmp_path / "several")), "", quiet)
    train(Recipe(**{**SMALL, "net": "tiny10k"}, data=str(store.path), out=str(tmp_path / "alone")), "", quiet)
    folders = [str(tmp_path / name) for name in ("several", "alone")]
    images = np.asarray(store.images("test"))
    said = [model(folder).logits(images) for folder in (*(tmp_path / "several" / f"seed-{seed}" for seed in (0, 1)), folders[1])]
    together = teacher(os.pathsep.join(folders), store)
    with torch.no_grad():
        torch.testing.assert_close(together(model(folders[1]).inputs(images)), sum(said) / 3)
    with pytest.raises(InputError, match="no such folder|no model"):
        teacher(os.pathsep.join([*folders, str(tmp_path / "nothing")]), store)


def test_a_teacher_that_knows_the_held_out_images_is_told_of(store, tmp_path):
    common, said = dict(SMALL, epochs=1, data=str(store.path)), {}
    for held_out in (0, 10):
        train(Recipe(**common, held_out=held_out, out=str(tmp_path / f"teacher{held_out}")), "", quiet)
    for teachers in ([0], [10], [10, 0]):
        lines = []
        folders = os.pathsep.join(str(tmp_path / f"teacher{held_out}") for held_out in teachers)
        train(Recipe(**common, held_out=10, teacher=folders, out=str(tmp_path / f"by{len(said)}")), "", lines.append)
        said[tuple(teachers)] = [line for line in lines if "trained on images that are held out here" in line]
    assert [len(lines) for lines in said.values()] == [1, 0, 1] and "teacher0" in said[10, 0][0]


def test_a_run_of_several_seeds_that_is_not_over_is_no_teacher(store, tmp_path):
    train(Recipe(**{**SMALL, "epochs": 1}, runs=2, data=str(store.path), out=str(tmp_path / "several")), "", quiet)
    (tmp_path / "several" / "summary.json").unlink()
    with pytest.raises(InputError, match="name one of its seeds, such as .*seed-0"):
        teacher(str(tmp_path / "several"), store)


def test_a_teacher_that_is_named_twice_counts_twice(store, tmp_path):
    folders = [str(tmp_path / f"seed{seed}") for seed in (5, 6)]
    for seed, folder in zip((5, 6), folders):
        train(Recipe(**SMALL, seed=seed, data=str(store.path), out=folder), "", quiet)
    images = np.asarray(store.images("test"))
    one, other = (model(folder).logits(images) for folder in folders)
    made = teacher(os.pathsep.join([folders[0], folders[1], folders[1]]), store)
    assert len(made.nets) == 2  # it looks once
    with torch.no_grad():
        torch.testing.assert_close(made(model(folders[0]).inputs(images)), (one + 2 * other) / 3)

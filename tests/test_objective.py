"""What a batch is trained towards, and what is tested in the end: mixed and taught targets, the mean of the weights, views."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipelines
from pipelines.errors import InputError
from pipelines.mixing import Targets
from pipelines.plan import PLAIN
from train import summary
from train.average import Average
from train.checkpoint import load
from train.flags import named, parse
from train.objective import cross_entropy, distillation
from train.optim import optimiser
from train.recipe import Recipe
from train.result import model
from train.runs import train
from train.schedule import schedule
from train.testing import evaluate, fitting, seen

SMALL = dict(net="level1", epochs=2, batch_size=16, lr=0.01, device="cpu", precision="fp32")


def quiet(*_):
    pass


def test_mixed_cross_entropy_is_that_of_soft_labels():
    torch.manual_seed(0)
    logits, labels, partners, share = torch.randn(6, 10), torch.arange(6), torch.arange(6) + 3, torch.rand(6)
    soft = (1 - share)[:, None] * F.one_hot(labels, 10) + share[:, None] * F.one_hot(partners, 10)
    for smoothing in (0.0, 0.2):
        ours = cross_entropy(logits, Targets(labels, partners, share), smoothing)
        torch.testing.assert_close(ours, F.cross_entropy(logits, soft, label_smoothing=smoothing))
    torch.testing.assert_close(cross_entropy(logits, Targets(labels), 0.1), F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_distillation_is_nought_for_the_teachers_own_logits():
    torch.manual_seed(0)
    logits, taught = torch.randn(6, 10, requires_grad=True), torch.randn(6, 10)
    assert abs(distillation(taught + 5.0, taught, 2.0)) < 1e-6
    student, teacher = (logits / 3).softmax(1), (taught / 3).softmax(1)
    expected = 9 * (teacher * (teacher.log() - student.log())).sum(1).mean()
    torch.testing.assert_close(distillation(logits, taught, 3.0), expected)


def test_the_running_mean_is_torchs_after_its_start():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = Average(net, 0.5)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for i in range(20):
        net(torch.randn(2, 3, 5, 5))
        with torch.no_grad():
            net[0].weight.add_(1.0)
        average.update()
        decay = min(0.5, (1 + i) / (10 + i))
        for name, value in net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for name, value in average.net.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    other = Average(net, 0.5)
    other.load_state_dict(average.state_dict())
    assert other.updates == 20 and all(torch.equal(a, b) for a, b in zip(other.net.parameters(), average.net.parameters()))


def test_views_are_means_of_moved_images():
    torch.manual_seed(0)
    weights = torch.randn(3 * 64, 5)
    images = torch.randn(4, 3, 8, 8)

    def net(batch):
        return batch.flatten(1) @ weights

    two = (net(images) + net(images.flip(-1))) / 2
    torch.testing.assert_close(seen(net, images, 1), net(images))
    torch.testing.assert_close(seen(net, images, 2), two)
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"))
    moved = [padded[:, :, i : i + 8, i : i + 8] for i in (0, 2)]
    shifted = sum(net(m) + net(m.flip(-1)) for m in moved) / 4
    torch.testing.assert_close(seen(net, images, 6), (two + shifted) / 2)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_the_least_confident_images_have_more_views(store, share):
    torch.manual_seed(0)
    net, test = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), pipelines.open("resident", store, "test", batch_size=4, policy=PLAIN)
    images, labels = (torch.cat(parts) for parts in zip(*test.epoch(0)))
    with torch.no_grad():
        plain, mirrored = (seen(net, images, views) for views in (1, 2))
    best = plain.softmax(1).sort(1).values
    unsure = (best[:, -1] - best[:, -2]).argsort()[: math.ceil(share * len(images))]
    expected = plain.clone()
    expected[unsure] = mirrored[unsure]
    outcome = evaluate(net, test, partial(fitting, net), 2, share)
    assert outcome.loss == pytest.approx(nn.functional.cross_entropy(expected, labels).item(), rel=1e-5)
    assert outcome.predicted.tolist() == expected.argmax(1).tolist()
    assert share == 1 or outcome.loss != pytest.approx(nn.functional.cross_entropy(mirrored, labels).item(), rel=1e-5)


def test_adamw_is_torchs_without_decay_for_norms():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    made = optimiser(net, Recipe(optimiser="adamw", lr=0.003, weight_decay=0.1, beta=0.98))
    assert isinstance(made, torch.optim.AdamW) and made.defaults["betas"] == (0.9, 0.98)
    assert [(len(g["params"]), g["weight_decay"], g["initial_lr"]) for g in made.param_groups] == [(1, 0.1, 0.003), (3, 0.0, 0.003)]


def test_muon_leaves_depthwise_filters_to_the_rest():
    net = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Linear(8, 2, bias=False))
    groups = optimiser(net, Recipe(optimiser="muon")).param_groups
    assert [[tuple(p.shape) for p in g["params"]] for g in groups] == [[(8, 1, 3, 3), (2, 8)], [(8, 4, 1, 1)]]


def test_schedules_end_at_their_floor():
    for kind in ("linear", "cosine"):
        made = schedule(Recipe(schedule=kind, epochs=10, warmup=2, floor=0.1))
        assert made(10) == pytest.approx(0.1) and made(2) == pytest.approx(1) and made(1) == pytest.approx(0.5, abs=0.05)
        assert made(6) == pytest.approx(0.55)


def test_the_mean_of_the_weights_is_what_is_saved_and_tested(store, tmp_path):
    made = train(Recipe(**SMALL, ema=0.5, views=2, data=str(store.path), out=str(tmp_path / "a")), "", quiet)
    state, saved = load(tmp_path / "a" / "checkpoint.pt"), model(tmp_path / "a")
    assert all(torch.equal(value, state["average"]["net"][name]) for name, value in saved.net.state_dict().items())
    assert not torch.equal(state["net"]["stem.0.0.weight"], state["average"]["net"]["stem.0.0.weight"])
    assert made["tested_on"] == "test, the mean of 2 views"
    assert (
        summary.tested_on(Recipe(views=6, views_share=0.25, held_out=5000)) == "5,000 images held out of train, the mean of 6 views of the least confident 25%"
    )
    images = saved.inputs(np.asarray(store.images("test")))
    with torch.no_grad():
        right = seen(saved.net, images, 2).argmax(1).numpy() == store.labels("test")
    assert made["test_accuracy"] == pytest.approx(right.mean())


@pytest.mark.parametrize(
    "wrong",
    [{"ema": 1.5}, {"floor": -0.1}, {"teacher_share": 2.0}, {"temperature": 0.0}, {"views": 3}, {"views_share": 0.0}, {"views_share": 1.5}, {"mixup": 0.7}],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(InputError):
        Recipe(**wrong)


@pytest.mark.parametrize("wrong", [{"batch_size": 4.0}, {"device": None}, {"lr": "0.1"}, {"epochs": True}, {"compiled": 1}, {"views": 2.0}])
def test_settings_of_another_kind_are_one_line(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} {value!r}: give (a whole number|a number|True or False|text)$"):
        Recipe(**wrong)


def test_numbers_of_numpy_are_settings():
    made = Recipe(seed=np.int64(3), lr=np.float32(0.5), compiled=False)
    assert (type(made.seed), type(made.lr), made.lr) == (int, float, 0.5)


@pytest.mark.parametrize(
    "flags",
    [
        *("lr=-1", "lr=nan", "weight_decay=-0.1", "weight_decay=inf", "warmup=-1", "warmup=nan", "patience=-1", "factor=-1", "momentum=1", "muon_momentum=1.5"),
        *("beta=1", "label_smoothing=2", "label_smoothing=-0.1", "grown=1.5", "affine_p=50", "erase_p=-1", "grey_p=7", "scale=2", "brightness=-3", "shift=nan"),
        *("sharpness=nan", "erase=-3", "mix_ramp=-1", "save_minutes=-1", "save_minutes=nan", "temperature=0", "temperature=nan", "temperature=inf"),
    ],
)
def test_settings_out_of_their_range_are_one_line(flags):
    name, value = flags.split("=")
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} .*: give .*0"):
        parse([f"--{name.replace('_', '-')}", value], named())

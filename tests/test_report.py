"""The page of a run: that it stands alone, and that its pictures show what they say."""

import math
import shutil
from copy import copy
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import make_store
from torch import nn

import nets
import pipelines
from pipelines.errors import InputError
from train import figures, loop, page, report, result
from train.charts import Line, chart, thinned, ticks
from train.command import counted
from train.gallery import explained, mistakes, seen, sheet, sheet_of, tinted
from train.gradcam import heat, last_map
from train.recipe import Recipe
from train.runs import train
from train.testing import Outcome

SMALL = dict(net="level1", epochs=2, batch_size=16, lr=0.01, device="cpu")
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a browser would ask for, and whether every tag that is opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.wanted, self.open, self.tags = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.wanted += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """(folder, summary) of a small run."""
    out = tmp_path_factory.mktemp("run") / "out"
    settings = dict(SMALL, data=str(store.path), out=str(out), affine_p=0.5, rotate=10.0, first_side=16)
    return out, train(Recipe(**settings), "", lambda *_: None)


def test_a_test_loss_that_is_no_number_leaves_the_accuracy(drawn, store, tmp_path, monkeypatch):
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *given, **more: replace(evaluate(*given, **more), loss=math.inf))
    summary = train(Recipe(**SMALL, data=str(store.path), out=str(tmp_path)), "", lambda *_: None)
    assert f"test, last {summary['test_accuracy']:.1%}" in drawn and (tmp_path / "report.html").exists()


def outcome_of(true, predicted) -> Outcome:
    return Outcome(np.array(predicted), np.array(true), 0.0)


def test_the_page_stands_alone_and_says_how_to_repeat_the_run(run, store):
    out, summary = run
    text = (out / "report.html").read_text(encoding="utf-8")
    made = Page(text)
    assert made.wanted and all(value.startswith("data:") for value in made.wanted)
    assert "script" not in made.tags and "url(" not in text and "@import" not in text
    for wanted in (summary["command"], summary["data"]["sha256"]["train.images"], str(summary["versions"]["torch"]), "Learning curves", "Grad-CAM", "epoch 2"):
        assert wanted in text, wanted


def test_names_from_outside_cannot_write_html():
    names = ("<script>alert(1)</script>", 'a"b', "c&d")
    text = page.confusion(outcome_of([0, 1, 2, 0], [1, 1, 0, 0]), names)
    assert "script" not in Page(text).tags and "c&amp;d" in text


def test_the_page_shows_every_lap_and_what_is_left():
    text = page.times({"setup": 1.0, "compile": 0.5, "train": 6.0, "eval": 2.0, "final_eval": 1.0, "total": 10.0})
    Page(text)
    assert all(f'<th class=n><span class=key style="color:{colour}"></span>{name}</th>' in text for name, (_, colour, _) in page.LAPS.items())
    assert "0.50 s" in text and "60.0%" in text and page.times(None) == ""


def test_one_epoch_is_no_epochs():
    assert [counted(number, "epoch") for number in (0, 1, 22)] == ["0 epochs", "1 epoch", "22 epochs"]


def test_many_classes_are_a_picture():
    names = tuple(f"class{i}" for i in range(100))
    made = Page(page.confusion(outcome_of(np.arange(100), np.arange(100)), names))
    assert made.tags.count("img") == 1 and "td" not in made.tags


def test_a_net_without_mistakes_has_a_page(run, store, tmp_path):
    out, summary = run
    right = store.labels("test")
    same = outcome_of(right, right)
    assert explained(same, store.images("test"), result.model(out)) == [] and "None." in mistakes(same, [])
    report.write(shutil.copytree(out, tmp_path / "run"), summary, result.lines(out, "metrics.jsonl"), same, store, store.images("test"))
    assert "None." in (tmp_path / "run" / "report.md").read_text() and not (tmp_path / "run" / "mistakes.png").exists()


def test_percentages_are_said_to_be_of_one_view_where_several_decided(run, store):
    out, summary = run
    wrong = outcome_of(store.labels("test"), (store.labels("test") + 1) % len(store.classes))
    found = explained(wrong, store.images("test"), result.model(out))
    assert "percentages from one" in mistakes(wrong, found, views=6) and "percentages" not in mistakes(wrong, found)


class Flat(nn.Module):
    """A net that has no feature maps."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images_NCHW):
        return self.linear(images_NCHW.flatten(1))


def test_a_net_without_feature_maps_has_a_page(run, store):
    out, _ = run
    model = replace(result.model(out), net=Flat().eval())
    wrong = outcome_of(store.labels("test"), (store.labels("test") + 1) % 10)
    found = explained(wrong, store.images("test"), model)
    assert Page(mistakes(wrong, found)).tags.count("img") == len(found) == 11 and "no feature maps" in mistakes(wrong, found)
    figures.plt.close(figures.reasons(found))


def test_any_class_name_can_be_drawn(run, store, tmp_path, capsys, recwarn):
    out, summary = run
    names = ("$a$", "$\\frac$", "a|b", "<b>", "猫", "\x1b[31m", *"efgh")
    named = copy(store)
    named.classes = names
    wrong = outcome_of(store.labels("test"), (store.labels("test") + 1) % 10)
    report.write(shutil.copytree(out, tmp_path / "run"), summary, result.lines(out, "metrics.jsonl"), wrong, named, store.images("test"))
    assert "猫" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8") and "<b>" not in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert not capsys.readouterr().err and not recwarn.list


def test_without_matplotlib_the_page_is_still_written(run, store, tmp_path, monkeypatch, capsys):
    out, summary = run
    for name in ("model.safetensors", "steps.jsonl"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    monkeypatch.setattr(figures, "plt", None)
    wrong = (store.labels("test") + 1) % 10
    report.write(tmp_path, summary, result.lines(out, "metrics.jsonl"), outcome_of(store.labels("test"), wrong), store, store.images("test"))
    assert "matplotlib" in capsys.readouterr().err and "![" not in (tmp_path / "report.md").read_text()
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


# Pictures


class Averaged(nn.Module):
    """Features, their mean over the pixels, a linear layer: where Grad-CAM is known in closed form."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh()), nn.Linear(5, 4)

    def forward(self, images_NCHW):
        return self.head(self.features(images_NCHW).mean((2, 3)))


def test_without_a_report_all_figures_are_there_and_no_page_of_an_earlier_run(run_folder, store, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run_folder, out)
    (out / "summary.json").unlink()  # as if it had not been finished
    train(replace(Recipe(**SMALL), precision="fp32", data=str(store.path), out=str(out), report=False), "", lambda *_: None)
    assert {p.name for p in out.iterdir()} == {"checkpoint.pt", "metrics.jsonl", "model.safetensors", "steps.jsonl", "summary.json"}
    theirs, ours = (result.summary(folder) for folder in (run_folder, out))
    assert ours.keys() == theirs.keys() and ours["test_accuracy"] == theirs["test_accuracy"]


def test_grad_cam_is_cam_where_the_head_is_linear():
    """The paper's theorem: with a global average pool and a linear layer, the weights are the layer's (up to a factor)."""
    torch.manual_seed(0)
    net, images, classes = Averaged().eval(), torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.no_grad():
        maps = torch.einsum("nk,nkhw->nhw", net.head.weight[classes], net.features(images)).relu()
    assert torch.allclose(heat(net, images, classes), maps / maps.amax((1, 2), keepdim=True), atol=1e-5)
    assert not images.requires_grad and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["level1", "level4", "quick", "speednet"])
def test_grad_cam_of_every_kind_of_net(name):
    torch.manual_seed(0)
    maps = heat(nets.load(name, 10).eval(), torch.randn(3, 3, 32, 32), torch.tensor([1, 2, 3]))
    assert maps.shape == (3, 32, 32) and torch.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize("name, side", [("level1", 4), ("level4", 4), ("tiny10k", 8)])
def test_grad_cam_looks_at_a_map_of_at_least_four_pixels_a_side(name, side):
    features, gradients = last_map(nets.load(name, 10).eval(), torch.randn(2, 3, 32, 32), torch.tensor([1, 2]))
    assert features.shape == gradients.shape and features.shape[-2:] == (side, side)


def test_a_net_without_feature_maps_is_refused():
    with pytest.raises(InputError, match="Grad-CAM"):
        heat(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2), torch.tensor([0]))


def test_heat_is_laid_over_the_image():
    image, mask = np.full((2, 2, 3), 100, np.uint8), np.array([[0.0, 1.0], [0.5, 0.0]])
    out = tinted(image, mask, (255, 0, 0))
    assert out.dtype == np.uint8 and (out[0, 0] == 75).all() and out[0, 1, 0] > 200 and out[0, 1, 1] < 20


def test_the_sheet_shows_the_pixels_of_the_training(store):
    recipe = Recipe(**SMALL, seed=3, flip="random", translate=4, cutout=8, grey_p=0.5)
    ids = np.array([5, 30, 2])
    shown = seen(recipe, store, ids, 1)
    trained = pipelines.open("reference", store, policy=recipe.policy(), seed=3, batch_size=store.count("train"))
    from pipelines.stage import stage

    images, _ = next(iter(stage(trained, recipe.extra(store.mean), store).epoch(1)))
    order = trained.plan.order(1).tolist()
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (store.mean, store.std))
    for k, i in enumerate(ids):
        pixels = np.rint(np.clip(images[order.index(i)].numpy() * std + mean, 0, 1) * 255)
        assert np.array_equal(shown[k], pixels.transpose(1, 2, 0))
    plain = seen(Recipe(**SMALL, flip="none", translate=0, cutout=0), store, ids, 0)
    assert np.array_equal(plain, store.images("train")[ids])
    assert seen(Recipe(**SMALL, first_side=16), store, ids, 0).shape == (3, 16, 16, 3)


def test_the_sheet_shows_what_was_mixed(store):
    ids = np.arange(4)
    plain, mixed = (seen(Recipe(**SMALL, flip="none", translate=0, cutout=0, mixup=share), store, ids, 0).astype(int) for share in (0.0, 0.5))
    assert (np.abs(plain - mixed) > 2).any((1, 2, 3)).sum() >= 3
    pairs = mixed - plain  # each moved towards its neighbour
    assert all(
        np.sign(pairs[i][np.abs(pairs[i]) > 2] * (plain[i ^ 1] - plain[i])[np.abs(pairs[i]) > 2]).min() >= 0 for i in range(4) if (np.abs(pairs[i]) > 2).any()
    )


def test_the_sheet_shows_only_what_was_trained_on(run, tmp_path):
    _, summary = run
    small = make_store(tmp_path / "s.safetensors", 4, 2)
    text = sheet(sheet_of({**summary, "recipe": {**summary["recipe"], "limit": 2, "held_out": 1}}, small))
    assert Page(text).tags.count("img") == 2 * 3


# Charts


@pytest.mark.parametrize("points", [[], [(1, 0.5)], [(1, math.nan), (2, 1.0)], [(1, 2.0), (2, 2.0)], [(i, i * i) for i in range(500)]])
def test_a_chart_of_any_points(points):
    text = chart("title", [Line("a", "train", points), Line("b", "test", points[:1])], "x", "y")
    Page(text)
    assert "nan" not in text and "title" in text


@pytest.mark.parametrize("low,high", [(0, 1), (0.1, 0.1003), (1, 16), (-3, 3), (0, 1e5), (1e-6, 5e-6)])
def test_ticks_are_round_and_inside(low, high):
    values = ticks(low, high)
    assert 2 <= len(values) <= 7 and low - 1e-9 <= values[0] and values[-1] <= high + 1e-9
    assert np.allclose(np.diff(values), values[1] - values[0])


def test_thinning_keeps_means():
    assert thinned([(float(i), 2.0 * i) for i in range(1000)], 10)[0] == (49.5, 99.0)
    assert thinned([(1.0, 2.0)]) == [(1.0, 2.0)] and thinned([]) == []

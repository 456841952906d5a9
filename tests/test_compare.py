"""python -m train compare: the figures of runs, what they differ in, and the page."""

import json
import shutil
from html import unescape

import pytest
from test_report import Page

from pipelines.errors import InputError
from train import compare, result
from train.compare import Run, apart, differing, html, text
from train.interval import difference
from train.recipe import Recipe
from train.runs import train


def changed(run_folder, tmp_path, name: str, **changes):
    """A copy of the run with other values in its summary; those of "recipe" beside the recipe's own."""
    folder = shutil.copytree(run_folder, tmp_path / name)
    summary = result.summary(folder)
    changes["recipe"] = {**summary["recipe"], **changes.get("recipe", {})}
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))
    return folder


@pytest.fixture(scope="module")
def several(store, tmp_path_factory):
    """Three seeds of one recipe."""
    out = tmp_path_factory.mktemp("seeds") / "k"
    train(Recipe(net="level1", epochs=1, batch_size=16, lr=0.01, device="cpu", data=str(store.path), runs=3, report=False, out=str(out)), "", lambda *_: None)
    return out


def test_only_what_differs_is_shown(run_folder, tmp_path):
    other = changed(run_folder, tmp_path, "b", recipe={"lr": 0.5, "out": "elsewhere"}, test_accuracy=0.125)
    runs = [Run.read(run_folder), Run.read(other)]
    assert differing(runs) == [("lr", "0.01", "0.5")]
    printed = text(runs).splitlines()
    assert printed[0].split()[:3] == ["run", "accuracy", "n"] and printed[3].split()[:3] == [str(other), "0.1250", "1"] and "note" not in text(runs)
    assert "All settings are the same." in text([runs[0], runs[0]])


def test_no_teacher_is_a_setting_and_what_another_version_lacks_is_none(run_folder, tmp_path):
    older, other = result.summary(run_folder), changed(run_folder, tmp_path, "b", recipe={"teacher": "runs/a"}, commit="abc", precision="bf16")
    del older["recipe"]["warmup"], older["commit"], older["precision"], older["hardware"]["device"]
    lacking = shutil.copytree(run_folder, tmp_path / "older")
    (lacking / "summary.json").write_text(json.dumps(older))
    assert differing([Run.read(lacking), Run.read(other)]) == [("teacher", "", "runs/a")]


def test_a_whole_number_is_the_float_that_it_stands_for(run_folder, tmp_path):
    runs = [Run.read(changed(run_folder, tmp_path, str(i), recipe={"warmup": value})) for i, value in enumerate((1, 1.0))]
    assert not differing(runs)


def test_several_seeds_are_one_row_with_their_spread(several, run_folder):
    run = Run.read(several)
    seeds = result.summary(several)["runs"]
    assert run.row()[1:5] == (f"{seeds['mean']:.4f}", 3, f"{seeds['deviation']:.4f}", f"{seeds['low']:.4f} to {seeds['high']:.4f}")
    assert run.settings()["seed"] == "0 1 2" and len(run.metrics) == 3


def test_other_test_images_are_said_to_be_no_comparison(run_folder, tmp_path):
    data = result.summary(run_folder)["data"]
    others = [changed(run_folder, tmp_path, "a", tested_on="7 images held out of train")]
    others += [changed(run_folder, tmp_path, "b", data={**data, "sha256": {**data["sha256"], "test.images": "0"}})]
    for other in others:
        assert "compare them with care" in text([Run.read(run_folder), Run.read(other)])
    both = [Run.read(run_folder), Run.read(others[0])]
    said = f"Accuracy on {data['name']}, test and on {data['name']}, 7 images held out of train; of the last epoch."
    assert said in text(both) and said in html(both) and f"Accuracy on {data['name']}, test; of the last epoch." in text(both[:1])


def test_two_runs_of_several_seeds_have_their_difference(several, run_folder, tmp_path):
    other = shutil.copytree(several, tmp_path / "other")
    for number, folder in enumerate(result.seeds(other)):
        summary = result.summary(folder)
        (folder / "summary.json").write_text(json.dumps({**summary, "test_accuracy": summary["test_accuracy"] + 0.01 + 0.001 * number}))
    ours, theirs = ([result.summary(place)["test_accuracy"] for place in result.seeds(folder)] for folder in (other, several))
    found = difference(ours, theirs)
    expected = f"other less first: {100 * found.mean:+.2f} points (95% interval {100 * found.low:+.2f} to {100 * found.high:+.2f}, Welch's)"
    runs = [Run.read(several, "first"), Run.read(other, "other"), Run.read(run_folder, "single")]
    assert found.mean > 0.009 and apart(runs) == [expected]
    assert expected in text(runs) and expected in unescape(html(runs))


def test_diverged_seeds_are_counted(several, tmp_path):
    folder = shutil.copytree(several, tmp_path / "k")
    summary = result.summary(folder)
    summary["runs"]["diverged"] = [{"seed": 9, "epoch": 1, "step": 1}]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "1 more seed diverged" in text([Run.read(folder)])


def test_the_page_stands_alone_and_draws_every_seed(several, run_folder, tmp_path, capsys):
    compare.main([str(several), str(run_folder), "--html", str(tmp_path / "c.html")])
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    made = Page(page)
    assert all(value.startswith("data:") for value in made.wanted) and "script" not in made.tags
    assert made.tags.count("svg") == 4 and page.count('<path class="line') == 4 * 4 and str(tmp_path / "c.html") in capsys.readouterr().out


def test_a_run_of_another_version_and_hostile_names(run_folder, tmp_path):
    hostile = "\x1b[31m<script>alert(1)</script>"
    recipe = {"new_setting": hostile, "seed": [1, [2]]}
    other = changed(run_folder, tmp_path, "b", recipe=recipe, hardware={"device": hostile}, command=hostile, tested_on=hostile)
    runs = [Run.read(run_folder), Run.read(other)]
    assert "\x1b" not in text(runs) and "script" not in Page(html(runs)).tags


def test_runs_are_called_by_their_folders():
    assert compare.names(["runs/a", "runs/b/"]) == ["a", "b"] and compare.names(["x/a", "y/a"]) == ["x/a", "y/a"]


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        compare.main([str(tmp_path / "nothing")])

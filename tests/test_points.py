"""The benchmarks of many trainings: `points.py`, `pareto.py`, `ladder.py`, `together.py`."""

import json
from dataclasses import dataclass, replace

import pytest
from makers import encoded, image_source, picture, write_folder

from benchmarks import ladder, pareto, points, time_to_accuracy, together
from benchmarks.entries import ENTRIES
from benchmarks.labels import Label, place
from pipelines.errors import InputError
from train import report
from train.interval import Interval
from train.recipe import Recipe

SMALL = ["--epochs", "1", "--batch-size", "16", "--device", "cpu", "--precision", "fp32", "--eval-every", "1"]


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    monkeypatch.setattr(report, "write", lambda *_: None)


@pytest.fixture
def trained(monkeypatch):
    """The recipes that were trained, as (net, seed)."""
    seen, real = [], points.train_jobs

    def counted(jobs, *rest):
        seen.extend((recipe.net, recipe.seed) for recipe, place in jobs if not (place / "summary.json").exists())
        return real(jobs, *rest)

    monkeypatch.setattr(points, "train_jobs", counted)
    return seen


def test_pareto_has_a_point_a_net_and_goes_on(store, tmp_path, trained, capsys):
    flags = ["--data", str(store.path), "--out", str(tmp_path), "--nets", "tiny10k", "level1", *SMALL]
    pareto.main(["modern", *flags])
    assert trained == [("tiny10k", 0), ("level1", 0)]
    pareto.main(["modern", *flags, "--runs", "2"])
    assert trained[2:] == [("tiny10k", 1), ("level1", 1)]
    point = json.loads((tmp_path / "tiny10k.json").read_text())
    seeds = [json.loads((tmp_path / "tiny10k" / f"seed-{i}" / "summary.json").read_text())["test_accuracy"] for i in (0, 1)]
    assert point["commit"] == json.loads((tmp_path / "tiny10k" / "seed-1" / "summary.json").read_text())["commit"]
    assert point["runs"]["test_accuracies"] == seeds and point["parameters"] == 9_738 and point["macs"] > 0
    page, printed = (tmp_path / "pareto.md").read_text(), capsys.readouterr().out
    for said in (page, printed):
        assert "| tiny10k |" in said.replace("  ", "") and f"{50 * sum(seeds):.2f}%" in said
    assert "published, on original pixels" in page and "97,530" in page and "random" in page
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_pareto_refuses_a_net_that_there_is_not(tmp_path):
    with pytest.raises(InputError, match="net 'tiny9k'"):
        pareto.main(["--out", str(tmp_path), "--nets", "tiny9k"])


def test_pictures_of_two_sizes_are_brought_to_one(tmp_path):
    own, out = image_source(tmp_path / "own", each=8, side=32), tmp_path / "out"
    write_folder(own, {"train/bee/large.png": encoded(picture(side=40))})
    flags = ["modern", "--data", str(own), "--size", "24", *SMALL, "--batch-size", "2"]
    pareto.main([*flags, "--out", str(out), "--nets", "tiny10k"])
    together.main([*flags, "--net", "tiny10k", "--sizes", "1", "--steps", "2", "--passes", "1", "--json", str(out / "together.json")])
    assert (out / "tiny10k.json").exists() and (out / "together.json").exists()


@dataclass
class Dot:
    values: dict
    accuracy: Interval


def test_the_frontier_has_what_no_other_beats():
    dots = [Dot({"parameters": size}, Interval.of([a])) for size, a in ((30, 0.9), (10, 0.5), (20, 0.4), (10, 0.3), (40, 0.9))]
    assert [(d.values["parameters"], d.accuracy.mean) for d in pareto.frontier(dots, "parameters")] == [(10, 0.5), (30, 0.9)]


def test_names_in_the_picture_cover_neither_one_another_nor_the_dots():
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(4, 3))
    dots = [(0.0, 0.0), (0.5, 0.5), (0.52, 0.52), (0.55, 0.48), (1.0, 1.0)]
    axes.plot(*zip(*dots), "o")
    place(axes, [Label(f"net {i}", x, y, "red") for i, (x, y) in enumerate(dots)])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 5
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*axes.transData.transform(dot)) for dot in dots)
        assert axes.get_window_extent().containsx(box.x0) and axes.get_window_extent().containsx(box.x1)
    plt.close(figure)


def test_ladder_sets_the_recipes_side_by_side(store, tmp_path, trained):
    flags = ["--data", str(store.path), "--out", str(tmp_path), "--levels", "1", "3", "--changes", *SMALL]
    ladder.main(flags)
    assert [net for net, _ in trained] == ["level1", "level1", "level3", "level3", "level3", "level3", "level2", "level3"]
    page = (tmp_path / "ladder.md").read_text()
    author = json.loads((tmp_path / "level1-author.json").read_text())
    assert author["settings"]["recipe"]["lr"] == 0.01 and author["settings"]["recipe"]["epochs"] == 1
    assert "cut to 1 epochs" in page and "train 97.4%, test 78.7%" in page and "| --optimiser |" in page.replace("  ", "")
    assert f"{100 * author['runs']['mean']:.2f}%" in page and "Level 3 with a neutral square" in page
    ladder.main(flags)
    assert len(trained) == 8


def test_ladder_takes_the_settings_that_are_given_and_no_others(monkeypatch):
    """Without a recipe's name a command line means one of the GPU's or one of the processor's."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    _, settings, _ = ladder.options(["--out", "x", "--device", "cpu", "--epochs=3", "--no-report"])
    assert settings == {"device": "cpu", "epochs": 3, "report": False}


def test_ladder_tells_what_the_figures_say():
    @dataclass
    class Said(Dot):
        recipe: Recipe = None

    def point(train, test):
        return Said({"train_accuracy": train}, Interval.of([test]))

    heart, modern = point(0.97, 0.75), point(0.90, 0.86)
    (said,) = ladder.told({"level 1, its author's recipe": heart, "level 1, modern recipe": modern})
    assert "97.0%" in said and "by heart" in said and "+11.0 points" in said
    (said,) = ladder.told({"level 3, its author's recipe": point(0.60, 0.72)})
    assert "too hard" in said and "by heart" not in said


@pytest.mark.parametrize("flags, words", [(["--modern", "old"], "--modern old"), (["level1"], "--modern")])
def test_ladder_refuses_what_it_cannot_train(tmp_path, flags, words):
    with pytest.raises(InputError, match=words):
        ladder.main([*flags, "--out", str(tmp_path)])


def test_ladder_takes_a_switch_back_that_its_modern_recipe_has():
    for words, expected in ((["--no-compiled"], False), ([], True)):
        _, settings, modern = ladder.options(["--out", "x", "--modern", "speed", *words])
        assert replace(modern, **settings).compiled == expected


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (ladder, ["--net quick", "--sweep lr=1,2"]),
        (pareto, ["--net quick", "--net=quick", "--sweep lr=1,2"]),
        (time_to_accuracy, ["--sweep lr=1,2", "--together 2"]),
        (together, ["--runs 2", "--together 2", "--sweep lr=1,2", "--out x"]),
    ],
    ids=lambda of: getattr(of, "__name__", ""),
)
def test_a_setting_that_would_be_passed_over_is_refused(tmp_path, command, flags):
    own = [] if command is together else ["--out", str(tmp_path / "out")]
    for words in map(str.split, flags):
        with pytest.raises(InputError, match=f"{words[0].split('=')[0]}: not for this benchmark: "):
            command.main([*own, *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["default", "speed --first-side 0", "modern --freeze 0.5", "modern --settle 0"])
def test_together_refuses_a_recipe_whose_epochs_differ(words):
    with pytest.raises(InputError, match="add --first-side 0 --settle 1 --freeze 1"):
        together.options(words.split())


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.module == "benchmarks.together"], ids=lambda entry: entry.name)
def test_together_takes_the_recipes_that_the_list_for_a_gpu_has(entry):
    assert together.options(entry.full.split()) and together.options(entry.quick.split())
    assert together.options("speed --first-side 0 --settle 1 --freeze 1".split())


def test_together_measures_groups_in_turns(store, tmp_path, capsys):
    flags = ["--data", str(store.path), "--net", "level1", *SMALL, "--batch-size", "4", "--steps", "2", "--passes", "2", "--json", str(tmp_path / "t.json")]
    together.main(["modern", "--sizes", "1", "2", *flags])
    alone, both = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert (alone["together"], both["together"], both["one_program"]) == (1, 2, False) and alone["of_one_at_a_time"]["median"] == 1
    assert both["trainings_an_hour"]["n"] == 2 and both["images_per_second"]["least"] > 0
    together.main(["modern", "--sizes", "2", "--as-one", *flags])
    assert json.loads((tmp_path / "t.json").read_text())["rows"][0]["one_program"]
    assert "2, one program" in capsys.readouterr().out
    with pytest.raises(InputError, match="give at most 6"):
        together.main(["modern", "--sizes", "1", *flags, "--steps", "7"])

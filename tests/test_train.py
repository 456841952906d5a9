"""The command line, the run folder, and the loop, on small stores."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_store

import nets
import pipelines
from pipelines.errors import InputError, NotInstalled
from train import recipes
from train.__main__ import main
from train.checkpoint import load, load_model
from train.course import Diverged
from train.flags import named, parse, words
from train.optim import Plateau, optimiser
from train.recipe import Recipe
from train.runs import train
from train.schedule import schedule
from train.summary import asked
from train.testing import Outcome

SMALL = dict(net="level1", epochs=2, batch_size=16, lr=0.01, device="cpu", report=False)
KEYS = "schema command commit hardware versions data net parameters macs pipeline recipe seed epochs train_accuracy test_accuracy images_per_second seconds"


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """(folder, summary) of a small run."""
    out = tmp_path_factory.mktemp("run") / "out"
    return out, train(Recipe(**{**SMALL, "report": True}, data=str(store.path), out=str(out)), "test", quiet)


def test_run_folder_holds_what_the_design_says(run):
    out, summary = run
    for name in (
        "metrics.jsonl",
        "checkpoint.pt",
        "model.safetensors",
        "curves.png",
        "mistakes.png",
        "confusion.png",
        "reasons.png",
        "seen.png",
        "report.md",
        "report.html",
    ):
        assert (out / name).stat().st_size > 0, name
    written = json.loads((out / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary)) and set(KEYS.split()) <= set(written)
    assert set(written["seconds"]) == {"setup", "compile", "train", "eval", "final_eval", "total"}
    assert written["parameters"] == 83_368 and 0 <= written["test_accuracy"] <= 1
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and lines[-1]["test_accuracy"] == written["test_accuracy"]
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert len(steps) == 2 * 3 and not list(out.glob(".*"))


def test_saved_model_gives_the_same_predictions(run, store):
    out, summary = run
    net = load_model(out / "model.safetensors", nets.load("level1", 10)).eval()
    right = 0
    with torch.no_grad():
        for images, labels in pipelines.open("reference", store, "test", batch_size=11).epoch(0):
            right += (net(images).argmax(1) == labels).sum().item()
    assert right / store.count("test") == summary["test_accuracy"]


def test_checkpoint_holds_plain_values(run):
    out, _ = run
    state = load(out / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == (2, 0) and state["recipe"]["net"] == "level1" and set(state["net"]) == set(nets.load("level1", 10).state_dict())


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="checkpoint.pt") as refused:
        load(tmp_path / "checkpoint.pt")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [n for n in pipelines.names() if n != "reference"])
def test_every_pipeline_trains_the_same_net(name, store, tmp_path):
    """The losses of every step, dropout and the batch stage included, are the reference's."""
    losses = {}
    for pipeline in ("reference", name):
        settings = dict(
            SMALL, net="level3", affine_p=0.5, rotate=10.0, erase_p=0.5, erase=8, grey_p=0.5, contrast=0.2, mixup=0.3, cutmix=0.2, data=str(store.path)
        )
        try:
            train(Recipe(**settings, pipeline=pipeline, out=str(tmp_path / pipeline)), "", quiet)
        except NotInstalled as missing:
            pytest.skip(str(missing))
        losses[pipeline] = [json.loads(line)["loss"] for line in (tmp_path / pipeline / "steps.jsonl").read_text().splitlines()]
    assert losses[name] == losses["reference"]


def test_the_same_seed_gives_the_same_net_and_another_does_not(store, tmp_path):
    def weights(seed, out):
        train(Recipe(**SMALL, seed=seed, data=str(store.path), out=str(tmp_path / out)), "", quiet)
        return load(tmp_path / out / "checkpoint.pt")["net"]

    first, second, other = weights(7, "a"), weights(7, "b"), weights(8, "c")
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_runs_gives_mean_and_deviation(store, tmp_path):
    settings = {**SMALL, "epochs": 1, "runs": 2, "seed": 5}
    summary = train(Recipe(**settings, data=str(store.path), out=str(tmp_path / "k")), "", quiet)
    each = [json.loads((tmp_path / "k" / f"seed-{s}" / "summary.json").read_text())["test_accuracy"] for s in (5, 6)]
    assert summary["runs"]["test_accuracies"] == each and summary["runs"]["mean"] == pytest.approx(sum(each) / 2)
    assert json.loads((tmp_path / "k" / "summary.json").read_text())["runs"] == summary["runs"]
    assert summary["test_accuracy"] == summary["runs"]["mean"]  # and not that of the last seed


def test_limit_takes_balanced_images_and_tests_on_all(tmp_path):
    store = make_store(tmp_path / "s.safetensors", 200, 30)
    summary = train(Recipe(**{**SMALL, "epochs": 1}, limit=50, data=str(store.path), out=str(tmp_path / "o")), "", quiet)
    steps = (tmp_path / "o" / "steps.jsonl").read_text().splitlines()
    assert len(steps) == 4 and (summary["test_accuracy"] * 30) % 1 < 1e-9


def test_a_diverged_run_names_its_step_and_seed(store, tmp_path):
    with pytest.raises(Diverged, match=r"seed 3 diverged: .*step"):
        train(Recipe(**{**SMALL, "lr": 1e30, "epochs": 9}, seed=3, data=str(store.path), out=str(tmp_path / "o")), "", quiet)


def test_bf16_autocast_trains_on_the_cpu(store, tmp_path):
    settings = {**SMALL, "epochs": 1, "precision": "bf16"}
    summary = train(Recipe(**settings, data=str(store.path), out=str(tmp_path / "o")), "", quiet)
    assert summary["precision"] == "bf16" and 0 <= summary["test_accuracy"] <= 1


# The command line


def command(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "train", *arguments], capture_output=True, text=True, **options)


def test_command_line_trains(store, tmp_path):
    flags = ["--data", str(store.path), "--net", "level1", "--epochs", "1", "--batch-size", "16", "--out", str(tmp_path / "o")]
    done = command("level1", *flags)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["recipe"]["name"] == "level1" and summary["command"].startswith("python -m train level1 --data")
    assert "test accuracy" in done.stdout


REFUSED = {
    "device": (["--device", "cuda"], "no CUDA device"),
    "net": (["--net", "level9"], "level1"),
    "recipe": (["levle1"], "level1"),
    "pipeline": (["--pipeline", "dalli"], "dali"),
    "data": (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
    "limit": (["--limit", "1000000"], "1000000"),
    "out": (["--out", "/proc/tenfold"], "/proc/tenfold"),
    "epochs": (["--epochs", "0"], "--epochs"),
    "cutout": (["--cutout", "40"], "cutout 40"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line_and_exit_code_2(case, store):
    flags, named_in = REFUSED[case]
    if case == "device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    flags = flags if "--data" in flags else [*flags, "--data", str(store.path)]
    done = command(*flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and named_in in done.stderr, done.stderr


def damaged(kind, folder):
    """A path that cannot be trained on, and what the message must name."""
    path = folder / "s.safetensors"
    if kind == "empty folder":
        return folder
    if kind == "text named tar":
        (folder / "text.tar").write_text("hello")
        return folder / "text.tar"
    make_store(path)
    data = bytearray(path.read_bytes())
    if kind == "flipped byte":
        data[-100] ^= 1
    elif kind == "newer version":
        data, changes = re.subn(rb'("version": ?)"1"', rb'\1"9"', bytes(data))
        assert changes == 1
    else:
        data = data[: len(data) // 2]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["empty folder", "text named tar", "flipped byte", "newer version", "half a store"])
def test_damaged_data_is_refused_before_training(kind, tmp_path):
    path = damaged(kind, tmp_path)
    with pytest.raises(InputError) as refused:
        train(Recipe(**SMALL, data=str(path), out=str(tmp_path / "out")), "", quiet)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_absent_library_is_one_line_that_says_what_to_do(store):
    hide = "import sys; sys.modules['ffcv'] = None; sys.argv = ['train', '--pipeline', 'ffcv', '--data', sys.argv[1]]; "
    code = hide + "from pipelines.errors import exit_code; from train.__main__ import main; sys.exit(exit_code(main))"
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "make ffcv" in done.stderr


def test_a_reader_that_leaves_is_no_error_message():
    done = subprocess.run(f"{sys.executable} -u -m train catalogue | head -c 1", shell=True, capture_output=True, text=True)
    assert done.stdout == "|" and not done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_one_line():
    done = subprocess.run(f"{sys.executable} -m train catalogue > /dev/full", shell=True, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: standard output: cannot be written (No space left on device): free some room\n"


def test_unknown_flag_is_an_error():
    with pytest.raises(InputError, match="--bach-size: no such setting .did you mean --batch-size"):
        parse(["--bach-size", "3"], named())
    with pytest.raises(InputError, match="levle1: neither a recipe .*level1.* nor a command .*predict"):
        parse(["levle1"], named())


def test_the_words_of_a_recipe_give_it_again(monkeypatch):
    for name, made in named().items():
        recipe = replace(made(), compiled=not made().compiled, lr=0.0123, data="a b", seed=7)
        assert parse(words(name, recipe, named()), named()) == (name, recipe)
    monkeypatch.setattr(sys, "argv", ["train", "--resume", "runs/a"])
    assert asked("level1", replace(recipes.level1(), epochs=3)) == ["level1", "--epochs", "3"]
    monkeypatch.setattr(sys, "argv", ["train", "--epochs", "3"])
    assert asked("default", Recipe()) == ["--epochs", "3"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/pareto.py", "modern", "--nets", "tiny10k"])
    assert asked("tiny10k", replace(recipes.modern(), net="tiny10k", epochs=3)) == ["modern", "--net", "tiny10k", "--epochs", "3"]


# Recipes, schedules, optimiser


def test_every_field_is_a_flag_and_every_recipe_is_valid():
    assert {"default", "cpu", "speed", "speed95", "speed96", "level1", "level2", "level3", "level4"} <= set(named())
    for name in named():
        _, recipe = parse([name], named())
        assert recipe == getattr(recipes, name)() and recipe.net in nets.names()
        assert getattr(recipes, name).__doc__
    _, changed = parse(["level1", "--batch-size", "7", "--nesterov", "--flip", "alternate"], named())
    assert (changed.batch_size, changed.nesterov, changed.flip) == (7, True, "alternate")
    assert all(f.metadata["help"] for f in fields(Recipe))


def test_schedules_at_known_points():
    def factor(t, **settings):
        return schedule(Recipe(epochs=10, **settings))(t)

    assert [factor(t, schedule="constant") for t in (0, 9.9)] == [1, 1]
    assert [factor(t, schedule="linear") for t in (0, 5, 10)] == [1, 0.5, 0]
    assert factor(5, schedule="cosine") == pytest.approx(0.5) and factor(10, schedule="cosine") == pytest.approx(0)
    assert [factor(t, schedule="step", step_epochs=4) for t in (3.9, 4, 8)] == pytest.approx([1, 0.1, 0.01])
    assert [factor(t, schedule="linear", warmup=2) for t in (0, 1, 2, 6, 10)] == [0, 0.5, 1, 0.5, 0]


def test_plateau_falls_after_patience_is_over():
    plateau = Plateau(factor=0.5, patience=2)
    values = []
    for loss in (1.0, 0.9, 0.9, 0.9, 0.9, 0.5, 0.6, 0.6, 0.6):
        plateau.step(loss)
        values.append(plateau.value)
    assert values == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_plateau_is_torchs():
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs_on = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs_on, factor=0.1, patience=3)
    ours = Plateau(0.1, 3)
    for loss in np.random.default_rng(0).random(25):
        ours.step(loss)
        theirs.step(loss)
        assert ours.value == pytest.approx(theirs_on.param_groups[0]["lr"])


def test_norms_and_biases_do_not_decay():
    made = optimiser(nets.load("level1", 10), Recipe(weight_decay=0.1))
    assert [g["weight_decay"] for g in made.param_groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in made.param_groups[0]["params"]) and all(p.ndim == 1 for p in made.param_groups[1]["params"])


def test_confusion_counts_true_by_row():
    outcome = Outcome(predicted=np.array([0, 1, 1, 2]), true=np.array([0, 0, 1, 2]), loss=0.0)
    assert outcome.confusion(3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]] and outcome.accuracy == 0.75


def test_held_out_images_are_left_out_of_training(store, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("train.assembly.Training", lambda recipe, net, loader, test, *_, **__: seen.update(train=loader.plan.ids, test=test.plan.ids))
    from train.assembly import assemble
    from train.split import tested_images

    recipe = Recipe(**SMALL, held_out=10, limit=20)
    assemble(recipe, store, torch.device("cpu"), None)
    assert len(seen["test"]) == 10 and len(seen["train"]) == 20 and not set(seen["test"]) & set(seen["train"])
    assert np.array_equal(tested_images(recipe, store), store.images("train")[seen["test"]])
    with pytest.raises(InputError, match="--limit 99: there are 32 images to train on"):
        assemble(Recipe(**SMALL, held_out=5, limit=99), store, torch.device("cpu"), None)
    with pytest.raises(InputError, match="leaves none"):
        assemble(Recipe(**SMALL, held_out=37), store, torch.device("cpu"), None)


def test_epochs_without_a_test_pass_say_so(store, tmp_path):
    lines = []
    summary = train(Recipe(**{**SMALL, "epochs": 3}, eval_every=2, held_out=7, data=str(store.path), out=str(tmp_path / "out")), "test", lines.append)
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["test_accuracy"] is None for line in metrics] == [True, False, False]
    assert summary["tested_on"] == "7 images held out of train" and "held out" in lines[-1] and "test" not in lines[1]
    assert summary["seconds"]["final_eval"] <= summary["seconds"]["eval"]


def test_the_readmes_table_of_recipes_is_made_from_their_docstrings(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "catalogue"])
    main()
    assert capsys.readouterr().out in (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

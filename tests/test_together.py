"""Several trainings as one program give what each gives alone."""

import json
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

import nets
from pipelines.errors import InputError
from train import assembly, jobs, saving
from train.checkpoint import load, load_model
from train.course import Diverged
from train.recipe import Recipe
from train.run import Kept, Run
from train.runs import train
from train.sweep import read
from train.together import Together, own_norm, side_by_side, stacked

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = dict(net="tiny10k", epochs=2, batch_size=16, lr=0.1, device="cpu", precision="fp32")


def quiet(*_):
    pass


def finished(store, out, settings: dict, several: list[dict], batched: bool) -> list[dict]:
    """The summaries of several trainings that go together."""
    made = [Recipe(**{**SMALL, **settings, **own}, data=str(store.path), out=str(out / str(i))) for i, own in enumerate(several)]
    each = [Run(recipe, out / str(i), torch.device("cpu"), "test", quiet, Kept()) for i, recipe in enumerate(made)]
    errors = Together([run.training for run in each], batched).follow([run.course() for run in each])
    assert errors == [None] * len(several)
    return [run.finish() for run in each]


def alone(store, out, settings: dict, several: list[dict]) -> list[dict]:
    return [train(Recipe(**{**SMALL, **settings, **own}, data=str(store.path), out=str(out / f"alone-{i}")), "test", quiet) for i, own in enumerate(several)]


def losses(folder) -> torch.Tensor:
    return torch.tensor([json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()])


# Pools and ReLU choose: what differs by a rounding of 1e-6 may differ by 1e-3 within six steps, and with `level1` at ten times this rate by 1e-2
ROUGH = ("level1", "speednet")
SETTINGS = {
    "plain": ({}, [{"seed": s} for s in range(3)]),
    "a ladder's": (dict(net="level1", lr=0.002), [{"seed": s} for s in range(2)]),
    "muon growing": (dict(net="quick", optimiser="muon", muon_lr=0.02, first_side=16, schedule="linear", warmup=1.0), [{"seed": s} for s in range(2)]),
    "filters used again": (dict(net="tiny_8-16x2_1-1_2", optimiser="muon", muon_lr=0.02), [{"seed": s} for s in range(2)]),
    "whitening": (dict(net="speednet", optimiser="muon", lr=0.1, head_lr=0.1, muon_lr=0.01), [{"seed": s} for s in range(2)]),
    "adamw, mean of weights, mixed": (dict(optimiser="adamw", lr=1e-4, ema=0.9, mixup=0.5, label_smoothing=0.1), [{"seed": s} for s in range(2)]),
    "other rates and losses": (dict(momentum=0.5), [{"lr": 0.05}, {"lr": 0.2}, {"label_smoothing": 0.2}, {"weight_decay": 0.1}]),
    "other schedules": ({}, [{"schedule": "linear"}, {"schedule": "constant"}, {"warmup": 2.0}, {"schedule": "step", "step_epochs": 1}]),
    "some mixed": ({}, [{"mixup": 0.0}, {"mixup": 0.5}]),
    "mixed and not": ({}, [{"mixup": 0.5}, {"mixup": 0.0}]),
    "plateau": (dict(schedule="plateau", patience=0), [{"seed": 1}, {"lr": 0.0}]),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_norms_of_several_nets_keep_half_precision():
    """The kernels of what follows are for it alone."""
    norm, images = torch.nn.BatchNorm2d(4, device="cuda"), torch.randn(3, 2, 4, 5, 5, device="cuda").to(torch.bfloat16)
    torch.nn.init.normal_(norm.weight)
    weights = {name: torch.stack([value] * 3) for name, value in norm.state_dict().items()}
    norm.forward = partial(own_norm, norm)
    several = torch.func.vmap(lambda w, x: torch.func.functional_call(norm, w, (x,)))(weights, images)
    assert several.dtype == torch.bfloat16
    expected = [torch.nn.functional.batch_norm(each.float(), None, None, norm.weight, norm.bias, True) for each in images]
    torch.testing.assert_close(several.float(), torch.stack(expected), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("settings, several", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("batched", [True, False])
def test_each_is_as_it_is_alone(store, tmp_path, settings, several, batched):
    ours, theirs = finished(store, tmp_path, settings, several, batched), alone(store, tmp_path, settings, several)
    limit = 0.0 if not batched else 2e-3 if settings.get("net") in ROUGH else 1e-5
    for i, (a, b) in enumerate(zip(ours, theirs)):
        torch.testing.assert_close(losses(tmp_path / str(i)), losses(tmp_path / f"alone-{i}"), rtol=limit, atol=limit)
        assert a["test_accuracy"] == pytest.approx(b["test_accuracy"], abs=0.2 if batched else 0)  # 11 images
        net = nets.load(a["net"], 10)
        first, second = (load_model(tmp_path / name / "model.safetensors", net).state_dict() for name in (str(i), f"alone-{i}"))
        for name, value in second.items():
            torch.testing.assert_close(first[name], value, rtol=2e-2, atol=2e-2)
    assert len({tuple(losses(tmp_path / str(i)).tolist()) for i in range(len(several))}) == len(several)  # they are not one another


def test_a_teacher_looks_once_for_all_that_it_teaches(store, tmp_path, monkeypatch):
    """As one program its logits are of all batches at once, in the order of their nets, whose images may be smaller; one of other settings has a look of its own."""
    train(Recipe(**{**SMALL, "lr": 0.05}, data=str(store.path), out=str(tmp_path / "teacher")), "", quiet)
    settings, several = (
        dict(teacher=str(tmp_path / "teacher"), teacher_share=0.9, temperature=4.0, translate=0, first_side=16, grown=0.5),
        [{"seed": s} for s in range(2)],
    )
    looks, load = [], assembly.teacher

    def watched(folder, store):
        net = load(folder, store)
        net.register_forward_pre_hook(lambda _, given: looks.append(given[0].shape))
        return net

    monkeypatch.setattr(assembly, "teacher", watched)
    finished(store, tmp_path, settings, several, batched=True)
    assert {shape[0] for shape in looks} == {32, 2 * (len(store.labels("train")) % 16)} and len(looks) == 2 * -(-len(store.labels("train")) // 16)
    assert all(torch.Size(shape[1:]) == (3, 32, 32) for shape in looks)
    alone(store, tmp_path, settings, several)
    for i in range(2):
        torch.testing.assert_close(losses(tmp_path / str(i)), losses(tmp_path / f"alone-{i}"), rtol=1e-5, atol=1e-5)
    finished(store, tmp_path / "other", settings, [{"seed": 0}, {"seed": 1, "temperature": 2.0}], batched=True)
    torch.testing.assert_close(losses(tmp_path / "other" / "0"), losses(tmp_path / "alone-0"), rtol=1e-5, atol=1e-5)


def test_slices_share_memory_and_gradients():
    made = [torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    before = [m.weight.clone() for m in made]
    whole = stacked([dict(m.named_parameters()) for m in made])
    assert all(torch.equal(m.weight, w) and torch.equal(whole["weight"][i], w) for i, (m, w) in enumerate(zip(made, before)))
    assert whole["weight"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    (whole["weight"] ** 2).sum().backward()
    assert all(torch.equal(m.weight.grad, 2 * m.weight) for m in made)
    with torch.no_grad():
        made[1].weight.fill_(7.0)
    assert (whole["weight"][1] == 7).all() and torch.equal(whole["weight"][0], before[0])


def test_images_stand_side_by_side_without_a_copy():
    images = [torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last) for _ in range(4)]
    placed = side_by_side(images)
    assert placed.shape == (5, 4, 3, 8, 8) and all(torch.equal(placed[:, i], image) for i, image in enumerate(images))
    folded = placed.reshape(5, 12, 8, 8)
    assert folded.data_ptr() == placed.data_ptr() and folded.is_contiguous(memory_format=torch.channels_last)


def test_one_diverges_and_the_others_go_on(store, tmp_path):
    made = [Recipe(**{**SMALL, "lr": lr, "seed": 3}, data=str(store.path)) for lr in (SMALL["lr"], 1e30)]
    each = [Run(recipe, tmp_path / str(i), torch.device("cpu"), "", quiet, Kept()) for i, recipe in enumerate(made)]
    errors = Together([run.training for run in each], True).follow([run.course() for run in each])
    assert errors[0] is None and isinstance(errors[1], Diverged)
    alone(store, tmp_path, {}, [{"seed": 3}])
    torch.testing.assert_close(losses(tmp_path / "0"), losses(tmp_path / "alone-0"), rtol=1e-5, atol=1e-5)


def test_the_first_diverges_and_the_others_rates_go_on(store, tmp_path):
    """Seeds of one schedule have one rate in the program, which is nobody's in particular."""
    each = [Run(Recipe(**SMALL, seed=seed, data=str(store.path)), tmp_path / str(seed), torch.device("cpu"), "", quiet, Kept()) for seed in range(3)]
    group = Together([run.training for run in each], True)
    with torch.no_grad():
        next(each[0].training.net.parameters()).fill_(torch.nan)
    assert [type(error) for error in group.follow([run.course() for run in each])] == [Diverged, type(None), type(None)]
    alone(store, tmp_path, {}, [{"seed": seed} for seed in range(3)])
    for seed in (1, 2):
        torch.testing.assert_close(losses(tmp_path / str(seed)), losses(tmp_path / f"alone-{seed}"), rtol=1e-5, atol=1e-5)


def test_runs_together_are_the_runs(store, tmp_path):
    """From the command's side: the same folders, the same figures, and a finished seed is kept."""
    settings = dict(SMALL, runs=3, data=str(store.path))
    apart = train(Recipe(**settings, out=str(tmp_path / "apart")), "", quiet)
    train(Recipe(**{**settings, "runs": 1}, out=str(tmp_path / "seed" / "seed-0")), "", quiet)
    said = []
    close = train(Recipe(**settings, together=2, out=str(tmp_path / "seed")), "", said.append)
    assert any("finished earlier" in line for line in said)
    assert close["runs"]["seeds"] == [0, 1, 2] and close["runs"]["test_accuracies"] == apart["runs"]["test_accuracies"]
    ones = [json.loads((tmp_path / "seed" / f"seed-{s}" / "summary.json").read_text()) for s in range(3)]
    assert [one["together"] for one in ones] == [1, 2, 2]


def test_a_group_goes_on_with_other_seeds(store, tmp_path):
    """Restarted in place, as compiled trainings are, whose programs know their tensors by address."""
    alone(store, tmp_path, {}, [{"seed": seed} for seed in range(4)])
    group = None
    for seeds in ((0, 1), (2, 3)):
        recipes = [Recipe(**SMALL, seed=seed, data=str(store.path)) for seed in seeds]
        fresh = [Run(recipe, tmp_path / str(recipe.seed), torch.device("cpu"), "", quiet, Kept()) for recipe in recipes]
        if group:
            for run, training in zip(fresh, group.trainings):
                new = run.training
                run.training = training.restart(run.recipe, new.net, new.train, new.test, run.watch)
        group = group or Together([run.training for run in fresh], True)
        assert group.holds([run.training for run in fresh]) and not group.holds([fresh[0].training])
        assert group.follow([run.course() for run in fresh]) == [None, None]
    for i in range(4):
        torch.testing.assert_close(losses(tmp_path / str(i)), losses(tmp_path / f"alone-{i}"), rtol=1e-5, atol=1e-5)


class Interrupted(Exception):
    pass


def test_an_interruption_goes_on_together(store, tmp_path, monkeypatch):
    settings = dict(SMALL, runs=2, together=2, save_minutes=0.0, data=str(store.path))
    whole = train(Recipe(**settings, out=str(tmp_path / "whole")), "", quiet)
    real, count = saving.Saver.on_step, iter(range(1, 1000))

    def on_step(self):
        real(self)
        if next(count) == 8:  # both behind their fourth step
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(saving.Saver, "on_step", on_step)
        with pytest.raises(Interrupted):
            train(Recipe(**settings, out=str(tmp_path / "cut")), "", quiet)
    started = []
    monkeypatch.setattr(jobs, "go_together", lambda some, states, *rest: started.append(states) or REAL(some, states, *rest))
    again = train(Recipe(**settings, out=str(tmp_path / "cut")), "", quiet)
    assert [(state["epoch"], state["step"]) for state in started[0]] == [(1, 1), (1, 1)]
    assert again["runs"] == whole["runs"]
    for seed in (0, 1):
        one, other = (load(tmp_path / name / f"seed-{seed}" / "checkpoint.pt")["net"] for name in ("whole", "cut"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def same_in_the_end(store, tmp_path, settings: dict, whole: dict) -> None:
    """A cut command, given again, ends as one that was not."""
    assert train(Recipe(**settings, out=str(tmp_path / "cut")), "", quiet)["runs"] == whole["runs"]
    for seed in (0, 1):
        assert torch.equal(losses(tmp_path / "whole" / f"seed-{seed}"), losses(tmp_path / "cut" / f"seed-{seed}"))


@pytest.mark.parametrize("when", [1, 3, 5], ids=["first step", "epoch's end", "second epoch"])
def test_ctrl_c_waits_for_a_step_of_all(store, tmp_path, monkeypatch, when):
    """All are saved behind the same step, and the command to go on with is said."""
    settings, said = dict(SMALL, runs=2, together=2, data=str(store.path)), []
    whole = train(Recipe(**settings, out=str(tmp_path / "whole")), "", quiet)
    with monkeypatch.context() as patch:
        at_step(patch, when, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(Recipe(**settings, out=str(tmp_path / "cut")), "", said.append)
    states = [load(tmp_path / "cut" / f"seed-{seed}" / "checkpoint.pt") for seed in (0, 1)]
    assert [(state["epoch"], state["step"]) for state in states] == [divmod(when, 3)] * 2
    assert said[-1] == f"saved: to go on, give the same command with --out {tmp_path / 'cut'}"
    same_in_the_end(store, tmp_path, settings, whole)


def test_an_interruption_within_a_step_writes_over_nothing(store, tmp_path, monkeypatch):
    """A second Ctrl-C does not wait, and comes where weights have moved that no course has been told of."""
    settings = dict(SMALL, runs=2, together=2, save_minutes=0.0, data=str(store.path))
    whole = train(Recipe(**settings, out=str(tmp_path / "whole")), "", quiet)

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_step(patch, 4, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(Recipe(**settings, out=str(tmp_path / "cut")), "", quiet)
    same_in_the_end(store, tmp_path, settings, whole)


def test_ctrl_c_behind_the_last_step_is_not_lost(store, tmp_path, monkeypatch):
    settings = dict(SMALL, runs=2, together=2, data=str(store.path))
    whole = train(Recipe(**settings, out=str(tmp_path / "whole")), "", quiet)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(Recipe(**settings, out=str(tmp_path / "cut")), "", quiet)
    same_in_the_end(store, tmp_path, settings, whole)


def at_step(patch, number: int, what) -> None:
    """Have something happen when the nets have moved for the `number`th time, before their courses are told."""
    real, count = Together.step, iter(range(1, 1000))

    def step(self, *given):
        results = real(self, *given)
        if next(count) == number:
            what()
        return results

    patch.setattr(Together, "step", step)


def test_dropout_is_that_of_each_alone(store, tmp_path):
    """One after another, each draws from a stream of its own, also when it goes on; in one program draws are others."""
    several = [{"seed": s} for s in range(2)]
    finished(store, tmp_path, dict(net="level4"), several, batched=False)
    alone(store, tmp_path, dict(net="level4"), several)
    for i in range(2):
        assert torch.equal(losses(tmp_path / str(i)), losses(tmp_path / f"alone-{i}"))


def test_a_checkpoint_of_one_of_several_holds_its_own_weights_alone(store, tmp_path):
    runs = [Run(Recipe(**SMALL, seed=i, data=str(store.path)), tmp_path / str(i), torch.device("cpu"), "", quiet, Kept()) for i in range(4)]
    assert Together([run.training for run in runs], batched=True).follow([run.course() for run in runs]) == [None] * 4
    alone(store, tmp_path, {}, [{"seed": 0}])
    ours, theirs = ((tmp_path / name / "checkpoint.pt").stat().st_size for name in ("0", "alone-0"))
    assert ours < 1.2 * theirs


REAL = jobs.go_together


def test_an_interruption_at_different_steps_goes_on_one_after_another(store, tmp_path, monkeypatch):
    settings = dict(SMALL, runs=2, together=2, data=str(store.path))
    whole = train(Recipe(**settings, out=str(tmp_path / "whole")), "", quiet)
    one = Recipe(**{**settings, "runs": 1, "together": 1, "epochs": 2})
    course = Run(one, tmp_path / "cut" / "seed-0", torch.device("cpu"), "", quiet, Kept())
    going, training = course.course(), course.training
    batch = next(going)
    for _ in range(4):
        batch = going.send(training.step(*batch))
    course.saver.save()
    going.close()
    monkeypatch.setattr(jobs, "go_together", None)
    assert train(Recipe(**settings, out=str(tmp_path / "cut")), "", quiet)["runs"] == whole["runs"]


def test_a_sweep_trains_each_value(store, tmp_path):
    said = []
    settings = dict(SMALL, epochs=1, sweep="lr=0.01,0.03,0.01", together=2, data=str(store.path))
    summary = train(Recipe(**settings, out=str(tmp_path / "s")), "", said.append)
    assert [end["lr"] for end in summary["values"]] == [0.01, 0.03] and json.loads((tmp_path / "s" / "sweep.json").read_text()) == summary
    assert json.loads((tmp_path / "s" / "lr-0.03" / "summary.json").read_text())["recipe"]["lr"] == 0.03
    assert "0.03" in said[-1] and "0.01" in said[-1]
    with pytest.raises(InputError, match="s: holds a sweep of lr: name another folder with --out"):
        train(Recipe(**{**settings, "sweep": "momentum=0.5,0.6"}, out=str(tmp_path / "s")), "", quiet)
    several = train(Recipe(**{**settings, "runs": 2, "sweep": "lr=0.01,1e30"}, out=str(tmp_path / "d")), "", said.append)
    assert several["values"][0]["n"] == 2 and several["values"][1].keys() == {"lr", "diverged"} and "diverged" in said[-1]
    with pytest.raises(InputError, match="e: all 2 runs diverged"):
        train(Recipe(**{**settings, "sweep": "lr=1e30,2e30"}, out=str(tmp_path / "e")), "", said.append)


@pytest.mark.parametrize(
    "sweep", ["lr", "lr=", "nothing=1", "lr=a", "seed=1,2", "momentum=2,x", "flip=up", "nesterov=yes", "net=level1,levle2", "net=tiny_8_1,tiny_8_1_0"]
)
def test_sweeps_that_cannot_be(sweep):
    with pytest.raises(InputError):
        read(Recipe(sweep=sweep))
    assert read(Recipe(sweep="nesterov=true,false")) == ("nesterov", [True, False])
    assert read(Recipe(sweep="first-side=16,20")) == ("first_side", [16, 20])
    assert read(Recipe(sweep="teacher=,RUN")) == ("teacher", ["", "RUN"])  # without one, and with it


def test_shapes_do_not_go_together(store, tmp_path):
    with pytest.raises(InputError, match="cannot go together"):
        train(Recipe(**SMALL, sweep="batch_size=8,16", together=2, data=str(store.path), out=str(tmp_path / "s")), "", quiet)
    assert replace(Recipe(), together=2).together == 2


def test_half_precision_as_one_program_on_a_cpu_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="--precision fp32"):
        finished(store, tmp_path, {"precision": "bf16"}, [{"seed": 0}, {"seed": 1}], batched=True)

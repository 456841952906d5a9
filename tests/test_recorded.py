"""A recorded step: what it is replayed into is as if every step had been taken anew."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import make_store

import pipelines
from nets import aside
from pipelines.mixing import Targets
from pipelines.plan import PLAIN
from train import recipes
from train.compiled import keep_rates
from train.course import follow
from train.device import device_of
from train.flags import named, parse, words
from train.recipe import Recipe
from train.recorded import FIRST, Graphs, Recorded, RecordedLook
from train.run import Kept, Run
from train.runs import train
from train.state import put, taken
from train.testing import evaluate
from train.together import Together

SMALL = dict(net="level1", epochs=4, batch_size=16, lr=0.01, device="cpu", precision="fp32")
SETTINGS = {
    "plain": {},
    "muon growing": dict(net="quick", optimiser="muon", muon_lr=0.02, first_side=16, schedule="linear", warmup=1.0),
    "mixed, mean of weights": dict(optimiser="adamw", lr=1e-3, ema=0.9, mixup=0.5, cutmix=0.5),
}


class StandIn:
    """A device without graphs: its replay does the work again, and writes over the results as a graph does."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def alone(self, work, batches):
        return work(batches)

    def record(self, work, batches):
        self.recorded += 1
        if torch.is_tensor(batches):  # of a test pass
            results = torch.full((len(batches), 10), torch.nan)
        else:
            results = torch.full((len(batches),), torch.nan), torch.zeros(len(batches), dtype=torch.int64)

        def replay():
            self.replayed += 1
            new = work(batches)
            for kept, one in zip([results], [new]) if torch.is_tensor(results) else zip(results, new):
                kept.copy_(one)

        return results, replay


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_replayed_steps_are_steps(tmp_path, settings):
    """Bit for bit, the smaller last batch, which has a recording of its own, included."""
    store = make_store(tmp_path / "uneven.safetensors", train=40)
    each, devices = [], []
    for name in ("plain", "recorded"):
        recipe = Recipe(**{**SMALL, **settings, "epochs": 8}, data=str(store.path), out=str(tmp_path / name))
        run = Run(recipe, tmp_path / name, device_of(recipe), "", lambda *_: None, Kept())
        if name == "recorded":
            devices.append(StandIn())
            run.training.work = Recorded(run.training.work, devices[0])
        run.training.run(lambda *_: None)
        each.append(run.training)
    for name, value in each[0].finished.state_dict().items():
        assert torch.equal(each[1].finished.state_dict()[name], value), name
    assert [line["train_loss"] for line in each[0].history] == [line["train_loss"] for line in each[1].history]
    assert devices[0].recorded == 2 and devices[0].replayed > 4


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_replayed_test_passes_are_test_passes(tmp_path, share):
    """Of a net that has moved since, in batches of two sizes, of one view and of several."""
    store = make_store(tmp_path / "uneven.safetensors", train=16, test=70)
    recipe = Recipe(**SMALL, views=2, views_share=share, data=str(store.path))
    training = Run(recipe, tmp_path / "run", torch.device("cpu"), "", lambda *_: None, Kept()).training
    training.test = pipelines.open("resident", store, "test", batch_size=8, policy=PLAIN)
    plain, device = training.look, StandIn()
    training.look = RecordedLook(plain, device)
    for _ in range(2):
        ours, theirs = (evaluate(training.net, training.test, look, 2, share) for look in (training.look, plain))
        assert ours.loss == theirs.loss and (ours.predicted == theirs.predicted).all()
        training.epoch(0)
    assert device.recorded == (2 if share < 1 else 1) and device.replayed > 4


def test_groups_are_recorded_alike(store, tmp_path):
    """The losses of several nets, each held until its epoch ends."""
    for name in ("plain", "recorded"):
        recipes = [Recipe(**SMALL, seed=seed, data=str(store.path)) for seed in (0, 1)]
        runs = [Run(recipe, tmp_path / name / str(recipe.seed), torch.device("cpu"), "", lambda *_: None, Kept()) for recipe in recipes]
        group = Together([run.training for run in runs], batched=True)
        if name == "recorded":
            group.work = Recorded(group.work, StandIn())
        assert group.follow([run.course() for run in runs]) == [None, None]
    for seed in "01":
        assert losses(tmp_path / "plain" / seed) == losses(tmp_path / "recorded" / seed)


def test_a_step_whose_gradients_were_copied_is_recorded_again_without_a_branch(monkeypatch):
    monkeypatch.setattr(aside.Open, "refused", False)

    class Copying(StandIn):
        def record(self, work, batches):
            if not aside.Open.refused:
                raise aside.Copied("1 of 6")
            return super().record(work, batches)

    device, images = Copying(), torch.ones(3, 1)
    recorded = Recorded(lambda batches: (sum(images.sum() for images, _ in batches)[None], torch.ones(1, dtype=torch.int64)), device)
    with pytest.warns(UserWarning, match="without a second branch"):
        losses = [float(recorded([(k * images, Targets(torch.zeros(3)))])[0]) for k in range(6)]
    assert losses == [0.0, 3.0, 6.0, 9.0, 12.0, 15.0] and device.recorded == 1
    assert aside.branch_of(torch.device("cuda")) is None


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "muon"])
def test_a_state_is_put_where_a_recording_reads_it(store, tmp_path, optimiser):
    """Momenta and rates of a resumed training, by address."""
    recipe = Recipe(**{**SMALL, "epochs": 2, "lr": 1e-3}, optimiser=optimiser, data=str(store.path))
    first, second = (Run(recipe, tmp_path, torch.device("cpu"), "", lambda *_: None, Kept()).training for _ in range(2))
    keep_rates(second.optimiser, torch.device("cpu"))
    states = []
    first.run(lambda *_: states.append(deepcopy(taken(first))))
    second.epoch(0)
    there = [group["lr"] for group in second.optimiser.param_groups]
    there += [value for values in second.optimiser.state.values() for value in values.values() if torch.is_tensor(value)]
    put(second, states[0])
    now = [group["lr"] for group in second.optimiser.param_groups]
    now += [value for values in second.optimiser.state.values() for value in values.values() if torch.is_tensor(value)]
    assert len(there) > 4 and all(a is b for a, b in zip(there, now, strict=True))
    follow(second.course(lambda *_: None), second.step)
    for name, value in first.net.state_dict().items():
        torch.testing.assert_close(second.net.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize(
    "way", [dict(compiled=True), dict(recorded=True), dict(recorded=True, precision="fp16")], ids=["compiled", "recorded", "recorded fp16"]
)
@pytest.mark.parametrize(
    "optimiser", [dict(optimiser="muon", muon_lr=0.02), dict(nesterov=True), dict(optimiser="adamw", lr=1e-3)], ids=["muon", "sgd", "adamw"]
)
def test_a_graph_learns_what_eager_steps_do(tmp_path, optimiser, way, together):
    """Losses of two seeds, the second in the first's recording, or both in one."""
    store = make_store(tmp_path / "even.safetensors", train=40)
    recipe = Recipe(**{**SMALL, "device": "cuda", "net": "quick", **optimiser}, runs=2, together=together, report=False, data=str(store.path))
    for name, one in (("eager", recipe), ("graph", replace(recipe, **way))):
        train(replace(one, out=str(tmp_path / name)), "", lambda *_: None)
    for seed in ("seed-0", "seed-1"):
        torch.testing.assert_close(losses(tmp_path / "graph" / seed), losses(tmp_path / "eager" / seed), rtol=1e-2, atol=1e-2)


def test_without_a_gpu_recorded_steps_are_the_plain_ones(tmp_path):
    store = make_store(tmp_path / "even.safetensors", train=40)
    recipe = Recipe(**SMALL, runs=2, data=str(store.path), report=False)
    for recorded in (False, True):
        train(replace(recipe, recorded=recorded, out=str(tmp_path / str(recorded))), "", lambda *_: None)
    for seed in ("seed-0", "seed-1"):
        assert losses(tmp_path / "True" / seed) == losses(tmp_path / "False" / seed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_reads_what_it_is_given():
    """New batches, and weights that something else has moved."""
    device = torch.device("cuda")
    weight = torch.ones((), device=device)

    def work(batches):
        ((images, (labels, *_)),) = batches
        return (images.sum() * weight)[None], labels.sum()[None]

    recorded = Recorded(work, Graphs(device))
    for step in range(FIRST + 4):
        weight.fill_(step)
        batch = torch.full((2, 3, 4, 4), float(step), device=device), Targets(torch.full((2,), step, device=device))
        loss, right = recorded([batch])
        assert (loss.item(), right.item()) == (96.0 * step * step, 2 * step)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_of_a_test_pass_reads_what_it_is_given():
    """New images, weights that have moved, and logits that are kept."""
    device = torch.device("cuda")
    weight = torch.ones((), device=device)
    look, kept = RecordedLook(lambda images, views: images.sum((1, 2, 3))[:, None] * weight * views, Graphs(device)), []
    with torch.no_grad():
        for step in range(FIRST + 4):
            weight.fill_(step)
            kept.append(look(torch.full((2, 3, 4, 4), float(step), device=device), 2))
    assert [logits.flatten().tolist() for logits in kept] == [[96.0 * step * step] * 2 for step in range(FIRST + 4)]


def test_a_gpu_trains_the_default_by_recorded_steps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = recipes.default()
    assert (made.net, made.compiled, made.recorded) == ("speednet", False, True)


def test_on_the_processor_of_a_gpu_machine_a_recipe_is_that_of_a_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for given, expected in ((["default"], replace(recipes.cpu(), device="cpu")), (["tiny"], replace(recipes.tiny(), compiled=False, device="cpu"))):
        name, recipe = parse([*given, "--device", "cpu"], named())
        assert recipe == expected and parse(words(name, recipe, named()), named()) == (name, recipe)
    assert parse([], named())[1] == recipes.default() and parse(["tiny", "--device", "cpu", "--compiled"], named())[1].compiled

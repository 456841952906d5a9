"""Several processes that train one net do what one process does. They talk through gloo, on CPUs."""

import json
import multiprocessing
import os
import signal
import socket
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import an_empty_page
from test_resume import PRELOADED, bits, without_times
from torch import nn

import nets
from pipelines.errors import InputError
from train import jobs, ranks, report, resume, saving
from train.loop import Training
from train.ranks import Ranks
from train.recipe import Recipe
from train.runs import train
from train.state import read
from train.synced import synced

pytestmark = pytest.mark.usefixtures("no_pictures")
# lr: at these batches of 16 random images, a larger one multiplies any rounding by ten in a few steps
SMALL = dict(net="level1", epochs=2, batch_size=16, lr=0.001, device="cpu", precision="fp32", save_minutes=0.0)


def quiet(*_):
    pass


@pytest.fixture
def one_thread():
    """As each of several processes has: sums over more are other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def process(function, environment: dict, arguments: tuple, results) -> None:
    """One of several: what torchrun sets, and what the function gave or raised."""
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)
    report.write = an_empty_page
    torch.set_num_threads(1)
    try:
        results.put((int(environment["RANK"]), function(*arguments), None))
    except BaseException as error:
        results.put((int(environment["RANK"]), None, (type(error).__name__, str(error), traceback.format_exc())))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(count: int, function, *arguments, fail: bool = False) -> list:
    """What `function(*arguments)` gives in each of `count` processes that find one another; with `fail`, what it raises."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    results, found = server.Queue(), {}
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    each = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    processes = [server.Process(target=process, args=(function, environment, arguments, results)) for environment in each]
    for one in processes:
        one.start()
    while len(found) < count and (any(one.is_alive() for one in processes) or not results.empty()):
        if not results.empty():
            rank, *found[rank] = results.get()
            if found[rank][1] and not fail:  # the others might wait for what it never sends
                for one in processes:
                    one.kill()
        else:
            processes[0].join(0.05)
    for one in processes:
        one.join()
    if fail:
        return [found.get(rank, [None, None])[1] for rank in range(count)]
    assert all(error is None for _, error in found.values()), found
    return [found[rank][0] for rank in range(count)]


# The parts


def batch_norms(sizes: tuple[int, ...]) -> None:
    """Batch norm over parts of these sizes against torch's over all of it: outputs, gradients, running statistics."""
    torch.manual_seed(0)
    whole = torch.randn(sum(sizes), 3, 4, 5).mul_(3).add_(100)  # far from zero, where sums of squares lose digits
    pull = torch.randn_like(whole)
    with ranks.joined(torch.device("cpu")) as mine:
        plain = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3))
        nn.init.normal_(plain[0].weight), nn.init.normal_(plain[0].bias)
        shared = synced(nn.Sequential(nn.BatchNorm2d(3, momentum=0.3)), mine)
        shared.load_state_dict(plain.state_dict())
        first = sum(sizes[: mine.rank])
        part = whole[first : first + sizes[mine.rank]].clone().requires_grad_()
        all_of_it = whole.clone().requires_grad_()
        for _ in range(2):
            (plain(all_of_it) * pull).sum().backward()
            (shared(part) * pull[first : first + len(part)]).sum().backward()
        close = dict(rtol=1e-4, atol=1e-4)
        assert torch.allclose(part.grad, all_of_it.grad[first : first + len(part)], **close)
        for ours, theirs in zip(shared.parameters(), plain.parameters()):
            assert torch.allclose(ranks.total(ours.grad.clone()), theirs.grad, rtol=1e-4, atol=1e-2)
        for name, theirs in plain.state_dict().items():
            assert torch.allclose(shared.state_dict()[name], theirs, rtol=1e-5), name
        shared.eval(), plain.eval()
        assert torch.equal(shared(whole), shared[0](whole)) and torch.allclose(shared(whole), plain(whole), **close)
        half = shared.train()(part.detach().bfloat16())
        assert half.dtype == torch.bfloat16 and half.shape == part.shape


@pytest.mark.parametrize("sizes", [(4, 3), (2, 0, 1)], ids=str)
def test_batch_norm_of_parts_is_that_of_the_whole(sizes):
    together(len(sizes), batch_norms, sizes)


def test_what_cannot_be_shared_is_refused(store):
    with pytest.raises(InputError, match="GhostBatchNorm .*choose --norm batch"):
        synced(nets.load("level1", 10, norm="ghost"), Ranks(0, 2))
    net = nets.load("level1", 10)
    assert synced(net, Ranks()) is net and not any("Synced" in type(module).__name__ for module in net.modules())
    assert Ranks(1, 3).whole(1000) == 996 and Ranks(1, 3).whole(4) == 6 and Ranks().whole(1000) == 1000


# The whole


SETTINGS = {
    "plain": {},
    "mixed and averaged": dict(mixup=0.4, cutmix=0.3, ema=0.9, label_smoothing=0.1, affine_p=0.5, rotate=10.0, views=2, views_share=0.5),
    "growing, adamw, layer norm": dict(first_side=16, schedule="plateau", optimiser="adamw", norm="layer", lr=1e-4),
    "held out, tested once": dict(held_out=7, eval_every=0, batch_size=12, nesterov=True, pipeline="torchvision", epochs=1),
}


def train_all(recipes: list[Recipe], ports: list[int]) -> None:
    """One training after another. Each has a port of its own: the first process may still hold the last one's."""
    for recipe, port in zip(recipes, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        train(recipe, "", quiet)


def trained(count: int, recipes: list[Recipe]) -> None:
    """Have `count` processes train each of the recipes."""
    together(count, train_all, recipes, [free_port() for _ in recipes])


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def assert_same_run(ours: Path, theirs: Path, tolerance: float = 1e-4) -> None:
    """The losses of all steps, the counts and the metrics of two runs, within float tolerance."""
    assert losses(ours) == pytest.approx(losses(theirs), rel=tolerance)
    for a, b in zip(without_times(ours), without_times(theirs), strict=True):
        assert a == {key: value if value is None else pytest.approx(value, rel=tolerance, abs=1e-6) for key, value in b.items()}


@pytest.mark.parametrize("count, batch_size", [(2, 16), (3, 12)])  # the last batch of 37 images has 5, or 1, which only the first gets
def test_the_losses_of_several_are_those_of_one(store, tmp_path, count, batch_size):
    kept = SETTINGS if count == 2 else {"plain": {}, "mixed": dict(mixup=0.4, ema=0.9)}
    settings = {name: {**SMALL, "batch_size": batch_size, **some} for name, some in kept.items()}
    recipes = {name: Recipe(**some, data=str(store.path), out=str(tmp_path / name / "one")) for name, some in settings.items()}
    trained(count, [replace(recipe, out=str(tmp_path / name / "several")) for name, recipe in recipes.items()])
    for name, recipe in recipes.items():
        train(recipe, "", quiet)
        assert_same_run(tmp_path / name / "several", tmp_path / name / "one")
        several, one = (json.loads((tmp_path / name / which / "summary.json").read_text()) for which in ("several", "one"))
        assert several["hardware"]["processes"] == count and one["hardware"]["processes"] == 1
        assert sorted(p.name for p in (tmp_path / name / "several").iterdir()) == sorted(p.name for p in (tmp_path / name / "one").iterdir())


def test_whitening_and_muon_see_the_whole_batch(store, tmp_path):
    """Muon makes equal what differs by rounding only where gradients vanish: the first step's update is compared, by the loss of the second."""
    recipe = Recipe(**{**SMALL, "net": "speednet", "optimiser": "muon", "lr": 0.1, "epochs": 1}, data=str(store.path), out=str(tmp_path / "one"))
    trained(2, [replace(recipe, out=str(tmp_path / "several"))])
    train(recipe, "", quiet)
    assert losses(tmp_path / "several")[:2] == pytest.approx(losses(tmp_path / "one")[:2], rel=1e-4)


# What befalls them


def die(recipe: Recipe, rank: int, step: int) -> None:
    """Train, but one of the processes is killed before a step."""
    real, count = Training.step, iter(range(1, 10**6))

    def until(self, *batch):
        if next(count) == step and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *batch)

    Training.step = until
    train(recipe, "", quiet)


def test_one_that_dies_ends_the_others_and_all_go_on(store, tmp_path):
    """With dropout, whose draws differ from those of one process, but not from those of a run that was not cut."""
    recipe = Recipe(**{**SMALL, "net": "level3"}, data=str(store.path), out=str(tmp_path / "whole"))
    trained(2, [recipe])
    out = tmp_path / "cut"
    errors = together(2, die, replace(recipe, out=str(out)), 0, 5, fail=True)
    assert errors[0] is None and errors[1][0] == "InputError" and "another process of this training has ended" in errors[1][1]
    assert (read(out)["epoch"], read(out)["step"]) == (1, 1)
    together(2, resume.main, ["--resume", str(out)])
    assert bits(out) == bits(tmp_path / "whole") and without_times(out) == without_times(tmp_path / "whole")


def fail_in_first(recipe: Recipe) -> None:
    if os.environ["RANK"] == "0":
        saving.Saver.save = lambda self: read(Path("/nonexistent"))  # an InputError of its own
    train(recipe, "", quiet)


def test_an_error_of_one_is_said_by_it_and_ends_all(store, tmp_path):
    errors = together(2, fail_in_first, Recipe(**SMALL, data=str(store.path), out=str(tmp_path)), fail=True)
    assert [error[0] for error in errors] == ["InputError"] * 2
    assert "no checkpoint" in errors[0][1] and "another process" in errors[1][1]


def refused(recipes: list[Recipe], ports: list[int]) -> list[str]:
    said = []
    for recipe, port in zip(recipes, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with pytest.raises(InputError) as error:
            train(recipe, "", quiet)
        said.append(str(error.value))
    return said


def test_settings_that_several_cannot_share(store, tmp_path):
    common = dict(SMALL, data=str(store.path), out=str(tmp_path))
    bad = [dict(compiled=True), dict(norm="ghost"), dict(batch_size=18), dict(limit=3)]
    words = ("--compiled", "GhostBatchNorm", "a multiple of 4", "a multiple of 4")
    for said in together(2, refused, [Recipe(**{**common, **some}) for some in bad], [free_port() for _ in bad]):
        assert all(word in line for word, line in zip(words, said, strict=True)), said


def deal(recipes: list[Recipe], ports: list[int]) -> list[list[str]]:
    """What this process says of each, and which seeds it trained."""
    real, said = jobs.attempt, []
    for recipe, port in zip(recipes, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        said.append([])
        jobs.attempt = lambda jobs, *rest: said[-1].append([one.seed for one, _ in jobs]) or real(jobs, *rest)
        train(recipe, "", quiet)
    return said


def test_runs_are_dealt_out(store, tmp_path, one_thread):
    """Seeds that are dealt out to processes are those of one process, bit for bit; what is finished is kept, whoever trained it."""
    recipe = Recipe(**{**SMALL, "epochs": 1}, runs=3, seed=5, data=str(store.path), out=str(tmp_path / "one"))
    train(recipe, "", quiet)
    several = replace(recipe, out=str(tmp_path / "several"))
    again = replace(several, runs=4)
    paired = replace(recipe, out=str(tmp_path / "paired"), together=2)
    swept = replace(recipe, out=str(tmp_path / "swept"), runs=1, sweep="lr=0.001,1e30,0.002", epochs=2)
    tried = [several, again, paired, swept]
    first, second = together(2, deal, tried, [free_port() for _ in tried])
    assert first == [[[5], [7]], [[8]], [[5, 6]], [[5], [5]]] and second == [[[6]], [], [[7]], [[5]]]
    one, other = (json.loads((tmp_path / name / "summary.json").read_text())["runs"] for name in ("one", "paired"))
    assert other == one and one["seeds"] == [5, 6, 7]
    assert json.loads((tmp_path / "several" / "summary.json").read_text())["runs"]["test_accuracies"][:3] == one["test_accuracies"]
    for name, seed in [(name, seed) for name in ("several", "paired") for seed in (5, 6, 7)]:
        assert bits(tmp_path / name / f"seed-{seed}") == bits(tmp_path / "one" / f"seed-{seed}")
    values = json.loads((tmp_path / "swept" / "sweep.json").read_text())["values"]
    assert [end["lr"] for end in values] == [0.001, 1e30, 0.002] and [bool(end["diverged"]) for end in values] == [False, True, False]

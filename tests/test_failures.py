"""Memory that runs out and workers that die end in one line that says what to set, and what was trained goes on."""

import os
import signal
import time
from functools import partial

import psutil
import pytest
import torch
from test_surroundings import SMALL, at_call, goes_on_to_the_same_bits, quiet

from pipelines import reference
from pipelines.errors import InputError
from train import jobs, saving, testing
from train.failures import smaller
from train.loop import Training
from train.recipe import Recipe
from train.runs import train

pytestmark = pytest.mark.usefixtures("no_pictures")

# Memory


def fails():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize("convolution, kept", [(14, False), (45, True)], ids=["warm-up", "training"])  # the first 13: whether the net takes such images
def test_no_memory_for_a_batch_says_what_to_set(convolution, kept, store, run_folder, tmp_path, monkeypatch):
    out, said = tmp_path / "out", []
    with monkeypatch.context() as patch:
        at_call(patch, torch.nn.functional, "conv2d", convolution, fails)
        with pytest.raises(InputError, match=r"cpu: out of memory at batch size 16 .CUDA out of memory.*: set --batch-size 8 --lr 0.005 "):
            train(Recipe(**SMALL, data=str(store.path), out=str(out)), "", said.append)
    assert (out / "checkpoint.pt").exists() == kept == ("--resume" in said[-1])
    if kept:  # where another process had taken the memory
        goes_on_to_the_same_bits(out, run_folder)


def test_half_a_batch_has_rates_to_match():
    assert smaller(Recipe(batch_size=512, lr=0.4, optimiser="sgd")) == "--batch-size 256 --lr 0.2"
    assert smaller(Recipe(batch_size=512, lr=0.4, optimiser="adamw")) == "--batch-size 256 --lr 0.283"
    assert smaller(Recipe(batch_size=9, lr=0.1, muon_lr=0.2, head_lr=3.0, optimiser="muon")) == "--batch-size 4 --muon-lr 0.141 --lr 0.05 --head-lr 1.5"


def test_no_memory_on_the_host_says_so_too(store, tmp_path, monkeypatch):
    def no_more():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    at_call(monkeypatch, Training, "step", 1, no_more)
    with pytest.raises(InputError, match="out of memory at batch size 1 .*smaller --net"):
        train(Recipe(**{**SMALL, "batch_size": 1}, data=str(store.path), out=str(tmp_path)), "", quiet)


def test_the_test_pass_takes_what_fits(store):
    class Net(torch.nn.Module):
        """Has memory for `most` images."""

        def __init__(self, most: int):
            super().__init__()
            self.most = most

        def forward(self, images):
            if len(images) > self.most:
                fails()
            return images.flatten(1)[:, :10]

    test = reference.open(store, "test", batch_size=11)
    narrow, wide = (testing.evaluate(net, test, partial(testing.fitting, net)) for net in map(Net, (3, 11)))
    with pytest.raises(torch.OutOfMemoryError):
        testing.evaluate(Net(0), test, partial(testing.fitting, Net(0)))
    assert (narrow.predicted == wide.predicted).all() and (narrow.true == wide.true).all() and narrow.loss == pytest.approx(wide.loss)


# Workers


def test_a_worker_that_dies_ends_the_run_in_one_line_and_it_goes_on(store, run_folder, tmp_path, monkeypatch):
    out, said, me = tmp_path / "out", [], psutil.Process()
    before = {child.pid for child in me.children()}

    def kill_one():
        workers = [child for child in me.children() if child.pid not in before]
        assert workers
        os.kill(workers[0].pid, signal.SIGKILL)
        time.sleep(30)  # until torch raises, here and not where Python swallows what is raised

    with monkeypatch.context() as patch:
        at_call(patch, saving.Saver, "on_step", 4, kill_one)
        with pytest.raises(
            InputError, match="pipeline torchvision: a worker process died .DataLoader worker .*: free some memory, or take --pipeline resident"
        ):
            train(Recipe(**SMALL, pipeline="torchvision", data=str(store.path), out=str(out)), "", said.append)
    assert f"python -m train --resume {out}" in said[-1]
    goes_on_to_the_same_bits(out, run_folder, pipeline="resident")


def test_what_is_no_such_failure_stays_what_it_is(store, tmp_path, monkeypatch):
    def breaks():
        raise RuntimeError("shapes do not match")

    at_call(monkeypatch, Training, "step", 1, breaks)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(Recipe(**SMALL, data=str(store.path), out=str(tmp_path)), "", quiet)
    assert jobs.interrupted(Recipe(**SMALL), tmp_path) is None


# Batches


def test_a_last_batch_that_a_net_cannot_train_by_is_refused_before_the_first(store, tmp_path):
    """Of one image `speednet` has a single value of each channel at 16 pixels, of which there are no statistics; at 32 pixels, and of two images, there are."""
    settings = dict(net="speednet", epochs=1, lr=0.01, device="cpu", precision="fp32", report=False, data=str(store.path))
    with pytest.raises(
        InputError, match="speednet cannot train by a batch of one image, as the last one is .*: give another --batch-size than 12, or another --limit"
    ):
        train(Recipe(**settings, batch_size=12, first_side=16, out=str(tmp_path / "one")), "", quiet)
    assert not (tmp_path / "one").exists()
    for name, fits in (("whole", dict(batch_size=12)), ("two", dict(batch_size=35, first_side=16)), ("other", dict(batch_size=12, first_side=16, net="quick"))):
        assert train(Recipe(**{**settings, **fits}, out=str(tmp_path / name)), "", quiet)["epochs"] == 1

"""`torchrun` itself: its processes, its signals, and what is said when one of them ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_ranks import SMALL, assert_same_run, quiet

from pipelines.errors import InputError
from train import ranks
from train.recipe import Recipe
from train.runs import train
from train.state import read

pytestmark = pytest.mark.usefixtures("no_pictures")


def asked_to_end(noticed: bool) -> str:
    """What a process says that torchrun's SIGTERM reaches while it trains, or twice when it has `noticed` another's end by itself."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(InputError) as error, ranks.told(first=True, between_calls=True):
            try:
                if noticed:
                    raise InputError("another process of this training has ended")
            finally:
                signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # when its line is still to be printed
    finally:
        signal.signal(signal.SIGTERM, before)
    return str(error.value)


def test_a_process_that_ends_says_why_whenever_torchrun_asks_it_to():
    assert asked_to_end(noticed=True) == "another process of this training has ended"
    assert asked_to_end(noticed=False).startswith("torchrun ends this process")


DRIVER = """
import glob, os, signal, sys, time
from pipelines.errors import exit_code
from train import report
from train.__main__ import main
from train.loop import Training
report.write, real, count = (lambda *_: None), Training.step, iter(range(1, 10**6))
def step(self, *batch):
    if next(count) == 5 and os.environ["RANK"] == os.environ.get("WHO"):
        if os.environ["DOES"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        came = []
        before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
        os.kill(os.getppid(), signal.SIGINT)  # torchrun's, which passes it on, to whichever thread of this process
        while not came:
            time.sleep(0.001)
        signal.signal(signal.SIGINT, before)
        signal.raise_signal(signal.SIGINT)
    return real(self, *batch)
Training.step = step
code = exit_code(main)
print("of gloo's threads", sum("gloo" in open(name).read() for name in glob.glob("/proc/self/task/*/comm")), "are left", file=sys.stderr)
sys.exit(code)
"""


def torchrun(store, out: Path, tmp_path: Path, **environment) -> subprocess.CompletedProcess:
    """`torchrun --nproc-per-node 2`, of the command line with what the environment asks for."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    flags = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    flags += ["--optimiser", "sgd", "--first-side", "0", "--data", str(store.path), "--out", str(out)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(driver), "level1", *flags]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=300)


def test_torchrun_trains_as_one_process_does(store, tmp_path):
    ended = torchrun(store, tmp_path / "several", tmp_path)
    assert ended.returncode == 0 and ended.stdout.count("epoch 2/2") == 1, ended.stderr  # one of them speaks
    assert ended.stderr.count("of gloo's threads 0 are left") == 2, ended.stderr  # or they may abort a process that ends
    summary = json.loads((tmp_path / "several" / "summary.json").read_text())
    train(Recipe(**{**{k: v for k, v in summary["recipe"].items() if k != "name"}, "out": str(tmp_path / "one")}), "", quiet)
    assert_same_run(tmp_path / "several", tmp_path / "one")


def test_torchrun_ends_with_a_clear_message_when_one_dies(store, tmp_path):
    ended = torchrun(store, tmp_path / "out", tmp_path, WHO="1", DOES="die")
    # it notices by itself, or torchrun is faster to tell it; in either case it says so once
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode != 0 and len(said) == 1, ended.stderr
    assert said[0].startswith(("error: another process of this training has ended", "error: torchrun ends this process: another has failed"))
    assert f"when that is mended: python -m train --resume {tmp_path / 'out'}" in ended.stdout
    assert (read(tmp_path / "out")["epoch"], read(tmp_path / "out")["step"]) == (1, 1)


def test_ctrl_c_under_torchrun_saves_and_says_how_to_go_on(store, tmp_path):
    ended = torchrun(store, tmp_path / "out", tmp_path, WHO="0", DOES="ask")
    assert ended.stderr.count("interrupted") == 2 and "error: " not in ended.stderr, ended.stderr
    assert ended.returncode != 0 and f"saved: to go on, python -m train --resume {tmp_path / 'out'}" in ended.stdout
    assert (read(tmp_path / "out")["epoch"], read(tmp_path / "out")["step"]) == (1, 2)

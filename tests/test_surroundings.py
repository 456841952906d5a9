"""Full disks, folders that cannot be written, files that change under a reader: each has a right outcome."""

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numba.core.caching as caching
import numpy as np
import pytest
from conftest import make_store
from test_resume import bits, without_times

from pipelines import data
from pipelines.convert import convert
from pipelines.errors import InputError
from pipelines.files import replacing
from pipelines.kernels_cpu import kernel
from pipelines.sources import find
from pipelines.store import Store
from train import checkpoint, report, resume, run, saving
from train.loop import Training
from train.recipe import Recipe
from train.runs import train
from train.state import read

SMALL = dict(net="level1", epochs=2, batch_size=16, lr=0.01, device="cpu", precision="fp32", save_minutes=0.0)


def quiet(*_):
    pass


def goes_on_to_the_same_bits(out: Path, whole: Path, finished: bool = False, **flags) -> None:
    """A run that ended early has nothing half written in its folder, and is resumed to the whole run. Only what is finished has a summary."""
    assert not [p for p in out.iterdir() if p.name.endswith(".part")] and (out / "summary.json").exists() == finished
    resume.main(["--resume", str(out), *(word for key, value in flags.items() for word in (f"--{key}", str(value)))])
    assert bits(out) == bits(whole) and without_times(out) == without_times(whole)
    assert (out / "steps.jsonl").read_bytes() == (whole / "steps.jsonl").read_bytes()


def at_call(monkeypatch, owner, name: str, call: int, event) -> None:
    """Have `event` happen before that call (from 1) of a function."""
    real, count = getattr(owner, name), iter(range(1, 10**6))

    def called(*arguments, **options):
        if next(count) == call:
            event()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, called)


# Full disks


@contextmanager
def full_disk():
    """Yield a function after which no file of this process can grow: the system refuses it as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = {  # what is written first when the disk is full, and the file that the message must name
    "a checkpoint": ((checkpoint, "save", 5), "checkpoint.pt"),
    "the losses": ((saving.Lines, "add", 3), "steps.jsonl"),
    "the metrics": ((saving.Lines, "add", 4), "metrics.jsonl"),
    "the model": ((checkpoint, "save_model", 1), "model.safetensors"),
    "the report": ((report, "write", 1), "curves.png"),
    "the summary": ((run, "write_json", 1), "summary.json"),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on(what, store, run_folder, tmp_path, monkeypatch, capsys):
    place, file = FULL[what]
    if what != "the report":
        monkeypatch.setattr(report, "write", quiet)
    out, said = tmp_path / "out", []
    with monkeypatch.context() as patch, full_disk() as fill:
        at_call(patch, *place, fill)
        with pytest.raises(InputError, match=f"{file}: cannot be written .File too large") as refused:
            train(Recipe(**SMALL, data=str(store.path), out=str(out)), "", said.append)
    assert str(out) in str(refused.value)
    if place[0] in (saving.Lines, checkpoint) and file != "model.safetensors":
        assert f"python -m train --resume {out}" in said[-1]
    goes_on_to_the_same_bits(out, run_folder, finished=what == "the report")  # which is all that is missing then


# Folders that cannot be written


@contextmanager
def read_only(folder: Path):
    """Nothing can be written into `folder`, by root either."""
    if os.geteuid():
        folder.chmod(0o555)
        undo = ["chmod", "755", folder]
    else:
        undo = ["umount", "--lazy", folder]
        for options in (["--bind", folder], ["-o", "remount,ro,bind"]):
            if not shutil.which("mount") or subprocess.run(["mount", *options, folder], capture_output=True).returncode:
                pytest.skip("root writes everywhere, and no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(undo, check=True)


def test_read_only_folders(tmp_path, monkeypatch, no_pictures):
    """Data are trained on where they lie; what would be written there is refused in one line, and what is there stays."""
    folder = tmp_path / "folder"
    folder.mkdir()
    store = make_store(folder / "a.safetensors")
    settings = dict(SMALL, epochs=1, data=str(folder))
    train(Recipe(**settings, out=str(folder / "run")), "", quiet)
    (folder / "run" / "summary.json").unlink()  # or there would be nothing to write any more
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with read_only(folder):
        summary = train(Recipe(**settings, out=str(tmp_path / "out")), "", quiet)
        assert summary["data"]["sha256"] == store.sha256
        for attempt in (
            lambda: train(Recipe(**settings, out=str(folder / "new")), "", quiet),
            lambda: resume.main(["--resume", str(folder / "run")]),
            lambda: convert(find("shapes", tmp_path), folder / "b.safetensors"),
            lambda: convert(find("shapes", tmp_path), folder / "a.safetensors"),
        ):
            with pytest.raises(InputError, match="cannot be written") as refused:
                attempt()
            assert str(folder) in str(refused.value)
        monkeypatch.setenv("TENFOLD_CACHE", str(folder / "cache"))
        with pytest.raises(InputError, match="TENFOLD_CACHE"):
            data.locate("shapes")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_kernels_need_no_place_on_disk(monkeypatch):
    """In a read-only installation, with no home, Numba has nowhere to keep what it compiles."""

    def nowhere(self):
        raise OSError(30, "Read-only file system")

    for locator in vars(caching).values():
        if isinstance(locator, type) and issubclass(locator, caching._CacheLocator):
            monkeypatch.setattr(locator, "ensure_cache_path", nowhere)
    assert kernel()(one_more)(3) == 4


def one_more(x):
    return x + 1


# Two at once, and one that was killed


@pytest.fixture
def pictures(tmp_path):
    """A folder of sixteen pictures in two classes."""
    from PIL import Image

    for i in range(16):
        file = tmp_path / "pictures" / ("train", "test")[i // 8] / ("ant", "bee")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(file)
    return tmp_path / "pictures"


def test_two_convert_the_same_set_at_once(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    both, made = threading.Barrier(2), []

    def together(source, out, **options):
        both.wait(60)  # neither has found the other's
        convert(source, out, **options)
        made.append(out)

    monkeypatch.setattr(data, "convert", together)
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(data.locate, [str(pictures)] * 2))
    assert len(made) == 2 and stores[0].path == stores[1].path
    for store in stores:
        store.verify()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [stores[0].path.name]
    monkeypatch.setattr(data, "convert", None)  # a third finds it
    assert data.locate(str(pictures)).sha256 == stores[0].sha256


def killed_while_writing(path: Path) -> Path:
    """What a process that was killed in the middle of writing `path` left."""
    child = os.fork()
    if not child:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = path.parent.glob(".*.part")
    return left


def test_what_a_kill_leaves_is_no_store_and_the_next_conversion_removes_it(pictures, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "a [1].safetensors"  # a name with a pattern's characters
    left = killed_while_writing(path)
    assert not path.exists()
    convert(find(str(pictures)), path)
    assert data.locate(str(folder)).path == path and [p.name for p in folder.iterdir()] == [path.name] and not left.exists()
    with replacing(path) as living:
        living.write_bytes(b"mine")
        convert(find(str(pictures)), path)  # another writer does not take a living one's
        assert living.read_bytes() == b"mine"
        Store(path).verify()


# Files that change under a trainer


def test_a_store_that_is_replaced_goes_on_as_it_was(run_folder, store, tmp_path, monkeypatch, no_pictures):
    path, other = tmp_path / "a.safetensors", make_store(tmp_path / "b.safetensors", train=38)
    shutil.copy(store.path, path)
    with monkeypatch.context() as patch:
        at_call(patch, Training, "step", 3, lambda: os.replace(other.path, path))
        train(Recipe(**SMALL, data=str(path), out=str(tmp_path / "out")), "", quiet)
    assert bits(tmp_path / "out") == bits(run_folder) and json.loads((tmp_path / "out" / "summary.json").read_text())["data"]["sha256"] == store.sha256
    assert Store(path).count("train") == 38
    with pytest.raises(InputError, match="not the data"):  # resumed, it would be another training
        resume.main(["--resume", str(tmp_path / "out")])


def test_a_store_that_is_written_into_ends_the_run_before_it_is_kept(run_folder, store, tmp_path, monkeypatch, no_pictures):
    path, out, good = tmp_path / "a.safetensors", tmp_path / "out", store.path.read_bytes()
    path.write_bytes(good)

    def write_into():
        with path.open("r+b") as file:
            file.seek(-2000, os.SEEK_END)
            file.write(b"\0" * 1000)

    with monkeypatch.context() as patch:
        at_call(patch, Training, "step", 3, write_into)
        with pytest.raises(InputError, match="written into"):
            train(Recipe(**SMALL, data=str(path), out=str(out)), "", quiet)
    assert read(out)["step"] == 2  # the checkpoint of before
    with pytest.raises(InputError, match="does not match its checksum"):
        resume.main(["--resume", str(out)])
    path.write_bytes(good)
    goes_on_to_the_same_bits(out, run_folder)


def test_seeds_of_different_data_are_not_averaged(store, tmp_path, no_pictures):
    recipe = Recipe(**{**SMALL, "epochs": 1}, runs=2, data=str(store.path), out=str(tmp_path / "out"))
    train(recipe, "", quiet)
    shutil.rmtree(tmp_path / "out" / "seed-1")
    other = make_store(tmp_path / "b.safetensors", train=38)
    with pytest.raises(InputError, match="seed-0: a run of other data"):
        train(Recipe(**{**asdict(recipe), "data": str(other.path)}), "", quiet)
    assert not (tmp_path / "out" / "seed-1").exists()

"""benchmarks/loaders.py: every row does the work it says, and says so where it cannot. No timing is asserted."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import make_store

from benchmarks import charts, loaders, measure, peers, whole_epoch
from benchmarks.loaders import NAMES, PEERS, Row, figures, lines
from benchmarks.peers import CUTOUT, TRANSLATE, Task
from pipelines.errors import InputError

CPU = torch.device("cpu")
QUICK = [name for name in NAMES if name not in ("ffcv", "ffcv-docs", "record-gather")]  # those compile for many seconds


def task(store, dtype=torch.float32, batch_size=8, ids=None) -> Task:
    return Task(store, np.arange(store.count("train")) if ids is None else ids, batch_size, CPU, dtype)


def pixels(store, images: torch.Tensor) -> np.ndarray:
    """uint8[B,H,W,C] from a normalised batch; a cut square is the mean, rounded."""
    values = images.double().permute(0, 2, 3, 1).numpy() * np.array(store.std) + np.array(store.mean)
    return np.rint(values * 255).astype(np.uint8)


def windows(store, mode: str) -> np.ndarray:
    """uint8[N, flips * shifts, H, W, C]: all that a shift and a flip can make of each train image."""
    images, reach = store.images("train"), TRANSLATE
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode)
    height, width = images.shape[1:3]
    shifted = [padded[:, y : y + height, x : x + width] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    return np.stack([*shifted, *(s[:, :, ::-1] for s in shifted)], axis=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """13 train images, of random pixels: no shift of one is like a shift of another."""
    return make_store(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", train=13)


def assert_augmented(store, loader, mode: str) -> None:
    """Every image of three epochs is a source, shifted and flipped, outside one square of the mean; each source comes once an epoch."""
    made, labels = zip(*((images, labels) for epoch in range(3) for images, labels in loader.epoch(epoch)))
    made, labels, possible = pixels(store, torch.cat(made)), torch.cat(labels).numpy(), windows(store, mode)
    fill, sources, flips = np.rint(np.array(store.mean) * 255), [], 0
    for image, label in zip(made, labels):
        wrong = (possible[..., 0] != image[..., 0]).sum((-1, -2))
        source, way = np.unravel_index(wrong.argmin(), wrong.shape)
        bad = (possible[source, way] != image).any(-1)
        rows, columns = np.flatnonzero(bad.any(1)), np.flatnonzero(bad.any(0))
        assert bad.any() and np.ptp(rows) < CUTOUT and np.ptp(columns) < CUTOUT
        assert (np.abs(image[bad] - fill) <= 1).all() and bad.sum() > CUTOUT**2 / 2
        assert store.labels("train")[source] == label
        sources.append(source)
        flips += way >= possible.shape[1] // 2
    assert sorted(sources) == sorted(3 * list(range(store.count("train")))) and 0 < flips < len(sources)


@pytest.fixture
def eager(monkeypatch):
    """The compiled gather without its compilation."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize("name", QUICK + ["record-gather"])
def test_every_row_gives_all_images(store, eager, name):
    row = Row(name, task(store))
    row.attempt(row.prepare, 0.01)
    if row.missing.startswith("not installed"):
        pytest.skip(row.missing)
    assert not row.missing and row.setup > 0
    batches = list(row.loader.epoch(3))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 8, 5] and len(row.loader) == 5
    for images, labels in batches:
        assert images.shape[1:] == (3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.is_contiguous(memory_format=torch.channels_last) or len(images) == 1
    seen = torch.cat([labels for _, labels in batches]).sort().values
    assert torch.equal(seen, torch.from_numpy(store.labels("train")).sort().values)
    assert sum(len(labels) for _, labels in row.loader.epoch(4, 3)) == 13 == row.expected(2)
    row.attempt(row.time, 100)
    assert not row.missing and len(row.speeds) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["torchvision-docs", "dali-docs", "record-masks", "record-gather"])
def test_half_precision_or_why_not(store, eager, name, dtype):
    row = Row(name, task(store, dtype, batch_size=20))
    row.attempt(row.prepare, 0.01)
    if name == "dali-docs" and dtype == torch.bfloat16:
        assert row.missing.startswith(("cannot: DALI has no bfloat16", "not installed"))
    else:
        assert not row.missing or row.missing.startswith("not installed")


@pytest.mark.parametrize("peer", [whole_epoch.Masks, whole_epoch.Gather])
def test_the_records_ways_shift_flip_and_cut(tiny, eager, peer):
    assert_augmented(tiny, peer(task(tiny)), "reflect")


@pytest.mark.parametrize("name", ["torchvision-docs", "torchvision-pil-docs", "dali-docs"])
def test_the_documented_ways_shift_flip_and_cut(tiny, name):
    try:
        loader = PEERS[name](task(tiny))
    except ImportError as error:
        pytest.skip(str(error))
    assert_augmented(tiny, loader, "constant")


def test_a_subset_is_what_is_loaded(store):
    ids = np.array([3, 5, 8, 30])
    row = Row("record-masks", task(store, ids=ids))
    row.attempt(row.prepare, 0.01)
    assert row.seen == 4
    (_, labels), *_ = row.loader.epoch(0)
    assert sorted(labels.tolist()) == sorted(store.labels("train")[ids].tolist())


def test_a_row_that_cannot_is_a_line(store, monkeypatch):
    def absent(_):
        raise ImportError("no such library")

    def broken(_):
        raise ValueError("first line\nsecond line")

    monkeypatch.setitem(PEERS, "dali-docs", absent)
    monkeypatch.setitem(PEERS, "record-masks", broken)
    rows, bandwidth = loaders.measure(["dali-docs", "record-masks", "resident"], task(store), 1, 0.01, say=lambda _: None)
    results = figures(rows, bandwidth)
    assert [r.get("missing") for r in results] == ["not installed: no such library", "failed: ValueError: first line", None]
    assert [line[3] for line in lines(results)[:2]] == ["not installed", "failed"]


def test_threads_are_given_back(store):
    before = torch.get_num_threads()
    row = Row("reference", task(store))
    row.attempt(torch.set_num_threads, before + 1)
    assert torch.get_num_threads() == before


def test_a_batch_of_another_kind_is_refused(store):
    good = torch.zeros(5, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(5, dtype=torch.int64)
    loaders.check(task(store), good, labels)
    for images, wanted in ((good.contiguous(), labels), (good.half(), labels), (good[:4], labels), (good, labels.int())):
        with pytest.raises(RuntimeError):
            loaders.check(task(store), images, wanted)


def test_figures_within_a_pass(store):
    fast = Row("resident", task(store), seen=37, speeds=[300.0, 100.0, 200.0])
    slow = Row("dali", task(store), seen=37, speeds=[30.0, 20.0, 10.0])
    results = figures([fast, slow], [1e6, 2e6, 4e6])
    assert results[0]["bytes_an_image"] == 3072 * 5 and results[1]["resident_is"] == measure.Spread(10.0, 5.0, 20.0, 3)
    assert results[0]["of_copy_bound"].largest == pytest.approx(300 * 15360 / 1e6)


def test_command(store, tmp_path, monkeypatch, capsys, drawn):
    out, picture = tmp_path / "l.json", tmp_path / "l.png"
    monkeypatch.setattr(loaders, "COPIED", {"cpu": 1 << 16, "cuda": 1 << 16})
    monkeypatch.setattr(sys, "argv", ["loaders.py"])
    given = ["--data", str(store.path), "--device", "cpu", "--batch-sizes", "8", "64"]
    given += ["--passes", "2", "--seconds", "10", "--limit", "20"]
    loaders.main([*given, "--only", "resident", "record-masks", "--json", str(out), "--chart", str(picture)])
    written = json.loads(out.read_text())
    assert [(r["loader"], r["batch_size"], r["dtype"]) for r in written["rows"]] == [
        (name, size, "float32") for size in (8, 64) for name in ("resident", "record-masks")
    ]
    assert all(r["images_per_second"]["n"] == 2 and r["images_a_pass"] == 20 and r["of_copy_bound"] for r in written["rows"])
    assert len(written["copies"]) == 2 and {"command", "commit", "hardware", "versions", "data", "settings"} <= written.keys()
    assert picture.stat().st_size > 5000 and "| record-masks" in capsys.readouterr().out
    assert "10,000" in drawn and not any("$" in text for text in drawn)


def test_mistakes_are_named(store):
    with pytest.raises(InputError, match="--passes"):
        loaders.main(["--data", str(store.path), "--device", "cpu", "--passes", "0"])
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA"):
            loaders.main(["--data", str(store.path), "--device", "cuda"])


def test_every_row_has_a_label_in_the_chart():
    assert set(charts.LABELS) == set(NAMES) and peers.cores() >= 1


def test_three_digits():
    short = {7: "7", 999.2: "999", 999.6: "1k", 1234: "1.23k", 56_780: "56.8k", 999_499: "999k", 999_500: "1M", 3.5e6: "3.5M"}
    assert {n: charts.short(n) for n in short} == short

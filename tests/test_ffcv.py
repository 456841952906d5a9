"""What is FFCV's own: the file it reads, what it refuses, and the marks it leaves on the process."""

import threading

import numba
import numpy as np
import pytest
import torch
from conftest import make_store
from PIL import Image

import pipelines
from pipelines.convert import convert
from pipelines.errors import InputError
from pipelines.plan import PLAIN
from pipelines.sources import find
from pipelines.store import Store, write

ffcv = pytest.importorskip("pipelines.ffcv", reason="pipeline ffcv is not installed", exc_type=ImportError)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder that does not exist yet."""
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "kept" / "here"))
    return tmp_path / "kept" / "here"


def whole(name, store, **options):
    """One epoch as (images, labels)."""
    images, labels = zip(*pipelines.open(name, store, **options).epoch(0))
    return torch.cat(images), torch.cat(labels)


def assert_alike(ours, theirs):
    assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[0], theirs[0])


def test_file_is_written_once_for_each_content(cache, store, tmp_path):
    first = ffcv.beton(store, "train")
    written = first.stat().st_mtime_ns
    assert ffcv.beton(Store(store.path), "train") == first and first.stat().st_mtime_ns == written
    others = make_store(tmp_path / "wide.safetensors", height=16, width=64), make_store(tmp_path / "more.safetensors", classes=11)
    names = {first, ffcv.beton(store, "test"), *(ffcv.beton(other, "train") for other in others)}
    assert len(names) == 4 and set(cache.iterdir()) == names


def test_failed_writing_leaves_no_file(cache, store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ffcv.Writer, "finalize", full)
    with pytest.raises(InputError, match="No space left"):
        ffcv.beton(store, "train")
    assert not list(cache.iterdir())


def test_labels_above_a_byte(tmp_path):
    store = make_store(tmp_path / "many.safetensors", train=300, height=4, width=6, classes=70_000)
    assert store.labels("train").max() > 65_535
    options = dict(batch_size=64, policy=PLAIN)
    assert_alike(whole("ffcv", store, **options), whole("reference", store, **options))


def test_jpeg_store_gives_pillows_pixels(store, tmp_path):
    for split in ("train", "test"):
        for i, image in enumerate(store.images(split)):
            path = tmp_path / "folder" / split / f"class{i % 3}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    convert(find(tmp_path / "folder", tmp_path), tmp_path / "jpeg.safetensors", "jpeg")
    options = dict(batch_size=16, ids=range(0, 30, 2), seed=5)
    assert_alike(*(whole(name, tmp_path / "jpeg.safetensors", **options) for name in ("ffcv", "reference")))


def test_ids_that_are_a_view_and_a_seed_of_32_bits(store):
    options = dict(batch_size=4, ids=np.arange(37)[::-3], seed=2**32 - 1, policy=PLAIN)
    assert_alike(whole("ffcv", store, **options), whole("reference", store, **options))


def test_what_ffcv_cannot_do_is_refused_in_one_line(store, tmp_path):
    grey = make_store(tmp_path / "grey.safetensors", channels=1)
    refused = [(grey, {}), (store, dict(dtype=torch.float64)), (store, dict(device="cuda:99")), (store, dict(device="meta"))]
    tensors = {f"train.{name}": getattr(store, name)("train") for name in ("images", "labels")}
    shape = {k: str(getattr(store, k)) for k in ("height", "width", "channels")}
    write(tmp_path / "bare.safetensors", tensors, encoding="raw", **shape, classes=store.classes, mean=store.mean, std=store.std, source="")
    bare = Store(tmp_path / "bare.safetensors")
    bare.sha256.clear()
    for given, options in [*refused, (bare, {})]:
        with pytest.raises(InputError) as error:
            pipelines.open("ffcv", given, **options)
        assert "\n" not in str(error.value)


def test_an_error_in_ffcvs_thread_reaches_the_caller(store):
    ours = pipelines.open("ffcv", store, batch_size=8)
    ours.augment.fused.colours = None
    before = threading.active_count()
    with pytest.raises(numba.TypingError):
        list(ours.epoch(0))
    assert threading.active_count() == before


def test_thread_counts_are_left_alone(store):
    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        torch.set_num_threads(1)
        list(pipelines.open("ffcv", store, batch_size=8).epoch(0))
        assert torch.get_num_threads() == 1 and numba.get_num_threads() == before[1]
    finally:
        torch.set_num_threads(before[0])


def test_what_is_compiled_is_shared(store):
    list(pipelines.open("ffcv", store, batch_size=8).epoch(0))
    count = len(ffcv._compiled)
    list(pipelines.open("ffcv", store, "test", batch_size=3, seed=7, dtype=torch.bfloat16).epoch(4))
    assert len(ffcv._compiled) == count
    assert all(len(code.signatures) <= 1 for code in ffcv._compiled.values())
    assert vars(ffcv.Compiler)["compile"].__func__.__qualname__ == "Compiler.compile"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("epoch", (0, 1))
def test_batches_on_a_gpu_stay_as_they_are_under_a_backlog(store, epoch):
    """Long work queued on the GPU lets FFCV's thread run ahead; no batch may be written over."""
    options = dict(batch_size=2, seed=6)
    ours, work, held = pipelines.open("ffcv", store, device="cuda", **options), torch.rand(4096, 4096, device="cuda"), []
    for batch in ours.epoch(epoch):
        held.append(batch)
        for _ in range(20):
            work = (work @ work).clamp(0, 1)
    for (images, labels), (expected, truth) in zip(held, pipelines.open("reference", store, **options).epoch(epoch), strict=True):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert_alike((images.cpu(), labels.cpu()), (expected, truth))

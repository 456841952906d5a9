"""What DALI adds to the contract: JPEGs, other sizes, buffers that it may recycle, and what it refuses."""

import gc
import itertools
import sys
import tarfile
import weakref

import numpy as np
import pytest
import torch
from conftest import make_store
from PIL import Image

import pipelines
from pipelines import sources
from pipelines.convert import convert
from pipelines.errors import InputError, NotInstalled
from pipelines.plan import PADDINGS, Policy
from pipelines.store import Store, write

pytest.importorskip("nvidia.dali")

JPEGS = [dict(quality=q, subsampling=s) for q in (30, 75, 95) for s in (0, 1, 2)] + [dict(quality=75, progressive=True)]


def picture(rng, height, width) -> Image.Image:
    """A smooth picture with noise, as photographs have it."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8))


def jpeg_store(folder, height=32, width=32) -> Store:
    """A jpeg store of 2 x 11 train and 2 x 1 test files of several encoders, one grey and one turned by EXIF among them."""
    rng = np.random.default_rng(height + width)
    for split, kinds in (("train", JPEGS), ("test", [])):
        for name in ("cat", "dog"):
            place = folder / "pictures" / split / name
            place.mkdir(parents=True)
            for i, options in enumerate(kinds):
                picture(rng, height, width).save(place / f"{i}.jpg", **options)
            exif = Image.Exif()
            exif[274] = 3  # orientation: upside down
            picture(rng, height, width).convert("L" if name == "cat" else "RGB").save(place / "last.jpg", exif=exif)
    convert(sources.find(str(folder / "pictures")), folder / "jpeg.safetensors", encoding="jpeg")
    return Store(folder / "jpeg.safetensors")


def assert_agree(store, device="cpu", **options):
    """DALI's epoch is the reference's: to the last bit on a CPU, on a GPU within one rounding of numbers as large as mean / std."""
    ours, theirs = (list(pipelines.open(name, store, device=device, **options).epoch(1)) for name in ("dali", "reference"))
    assert len(ours) == len(theirs)
    for (a, y), (b, z) in zip(ours, theirs):
        assert torch.equal(y, z)
        assert a.is_contiguous(memory_format=torch.channels_last)
        rounding = torch.finfo(a.dtype).eps if device != "cpu" else 0
        torch.testing.assert_close(a, b, rtol=rounding, atol=2 * rounding)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (17, 40, 3), (40, 17, 3), (5, 5, 3), (16, 16, 4), (1, 7, 2)], ids=str)
def test_other_sizes_and_channels(shape, padding, tmp_path):
    height, width, channels = shape
    store = make_store(tmp_path / "small.safetensors", 13, 2, height, width, channels)
    side = min(height, width)
    assert_agree(store, batch_size=5, policy=Policy(padding=padding, translate=min(4, side - 1), cutout=min(side, 6)))


def test_the_largest_shift_and_cutout(store):
    for padding in PADDINGS:
        assert_agree(store, batch_size=16, policy=Policy(padding=padding, translate=31, cutout=32))
        assert_agree(store, batch_size=16, policy=Policy(padding=padding, translate=31, cutout=0))


@pytest.mark.parametrize("size", [(32, 32), (33, 47)], ids=str)
def test_jpegs_are_decoded_to_pillows_pixels(size, tmp_path):
    store = jpeg_store(tmp_path, *size)
    assert store.count("train") == 22
    for padding in PADDINGS:
        assert_agree(store, batch_size=8, policy=Policy(padding=padding), seed=2)
    assert_agree(store, split="test")
    assert_agree(store, batch_size=2, ids=[20, 3, 7])


@pytest.mark.real
def test_real_jpegs_are_decoded_to_pillows_pixels(real_source, tmp_path):
    place = tmp_path / "pictures"
    with tarfile.open(real_source / "test.tar.xz") as tar:
        files = (m for m in tar if m.isfile() and m.name.endswith(".jpg"))
        for i, member in enumerate(itertools.islice(files, 300)):
            folder = place / ("test" if i < 20 else "train") / "any"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.jpg").write_bytes(tar.extractfile(member).read())
    convert(sources.find(str(place)), tmp_path / "jpeg.safetensors", encoding="jpeg")
    assert_agree(Store(tmp_path / "jpeg.safetensors"), batch_size=128)


def damaged(store: Store, path) -> Store:
    """The store with the headers of its train images overwritten by zeros."""
    tensors = dict(store._tensors)
    tensors["train.headers"] = np.zeros_like(tensors["train.headers"])
    shape = {"height": str(store.height), "width": str(store.width), "channels": "3"}
    write(path, tensors, encoding="jpeg", **shape, classes=store.classes, mean=store.mean, std=store.std, source="damaged")
    return Store(path)


def test_a_damaged_jpeg_is_refused_in_one_line_each_time(tmp_path):
    ours = pipelines.open("dali", damaged(jpeg_store(tmp_path), tmp_path / "damaged.safetensors"), batch_size=4)
    for epoch in range(3):
        with pytest.raises(InputError, match="damaged.safetensors: damaged, DALI cannot decode") as refused:
            list(ours.epoch(epoch))
        assert "\n" not in str(refused.value)


def test_a_batch_outlives_its_epoch_and_its_pipeline(store):
    ours = pipelines.open("dali", store, batch_size=4)
    held = list(ours.epoch(0))
    copies = [(x.clone(), y.clone()) for x, y in held]
    assert len({x.data_ptr() for x, _ in held}) == len(held)
    for epoch in range(1, 6):
        for images, labels in ours.epoch(epoch):
            images.fill_(7), labels.fill_(7)  # what the caller owns, it may write to
    del ours
    gc.collect()
    others = list(pipelines.open("dali", store, batch_size=4).epoch(3))
    assert len(others) == len(held)
    for (x, y), (x_was, y_was) in zip(held, copies):
        assert torch.equal(x, x_was) and torch.equal(y, y_was)
    assert not (store.labels("train") == 7).all()


def test_a_new_epoch_while_another_is_unfinished(store):
    ours, theirs = (pipelines.open(name, store, batch_size=8) for name in ("dali", "reference"))
    left = ours.epoch(0)
    next(left)
    for (a, y), (b, z) in zip(ours.epoch(1, 2), theirs.epoch(1, 2), strict=True):
        assert torch.equal(a, b) and torch.equal(y, z)
    left.close()


def test_nothing_keeps_a_dropped_pipeline(store):
    ours = pipelines.open("dali", store, batch_size=8)
    next(ours.epoch(0))
    gone = weakref.ref(ours.pipe)
    del ours
    assert gone() is None


def test_what_dali_cannot_do_is_refused(store):
    for options in (dict(dtype=torch.float64), dict(device="meta"), dict(device="cuda:99")):
        with pytest.raises(InputError, match="pipeline dali") as refused:
            pipelines.open("dali", store, **options)
        assert "\n" not in str(refused.value)


def test_an_absent_dali_is_named(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "pipelines.dali")
    with pytest.raises(NotInstalled, match="nvidia-dali-cuda120"):
        pipelines.open("dali", store)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
def test_gpu_batches_are_the_references(padding, dtype, store):
    assert_agree(store, device="cuda", batch_size=8, policy=Policy(padding=padding), dtype=dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_jpegs_are_near_pillows_pixels(tmp_path):
    store = jpeg_store(tmp_path)
    ours, theirs = (next(pipelines.open(name, store, "test", device="cuda").epoch(0))[0] for name in ("dali", "reference"))
    assert ((ours - theirs).abs() * max(store.std) * 255).max() < 8

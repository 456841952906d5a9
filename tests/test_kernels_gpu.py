"""The Triton kernels and the pipeline on them, against the reference: interpreted where there is no GPU."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

pytest.importorskip("triton", reason="Triton is not installed")
from conftest import make_store

import pipelines
from pipelines import kernels_gpu, placement, plan, reference
from pipelines.plan import FLIPS, PADDINGS, PLAIN, Plan, Policy
from pipelines.resident_gpu import ResidentGPU

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PLENTY = 2**40
WORDS = st.integers(0, plan.MASK)
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")


def augmented(images, labels, ids, policy, colours, seed, epoch, dtype, first=0, size=None):
    """(images [B,C,H,W], labels) on the CPU, from positions [first, first + size) of the order `ids`."""
    images, labels, ids = (torch.from_numpy(np.ascontiguousarray(a)).to(DEVICE) for a in (images, labels, ids))
    size = len(ids) if size is None else size
    out, behind = torch.full((2 * size, *images.shape[1:]), torch.nan, dtype=dtype, device=DEVICE).split(size)
    classes = torch.full((size,), -1, device=DEVICE)
    state = torch.tensor([seed, epoch, first], device=DEVICE)
    kernels_gpu.augment(images, ids, ids, labels, state, out, classes, policy, colours)
    assert behind.isnan().all()  # what lies behind the batch is left alone
    return out.permute(0, 3, 1, 2).cpu(), classes.cpu()


def expected(images, ids, policy, mean, std, fill, seed, epoch, dtype):
    """What the reference makes of uint8[N,H,W,C], by its own arithmetic."""
    choices = zip(ids, *plan.augmentation(policy, seed, epoch, ids, *images.shape[1:3]))
    pixels = np.stack([reference.augment(images[i], policy, fill, *rest) for i, *rest in choices])
    values = (pixels.astype(np.float32) - mean) * (np.float32(1) / std)
    return torch.from_numpy(values).to(dtype).permute(0, 3, 1, 2)


@st.composite
def cases(draw):
    """A policy that fits a random image size, and all else that decides a batch."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    side = min(height, width)
    flip, padding = draw(st.sampled_from(FLIPS)), draw(st.sampled_from(PADDINGS))
    policy = Policy(flip, draw(st.integers(0, side - 1)), padding, draw(st.integers(0, side)))
    return height, width, draw(st.integers(1, 4)), policy, draw(WORDS), draw(WORDS), draw(st.sampled_from(DTYPES))


@given(cases())
@settings(max_examples=300 if CUDA else 30)
def test_batch_is_the_references(case):
    height, width, channels, policy, seed, epoch, dtype = case
    check(height, width, channels, policy, seed, epoch, dtype, ids=np.array([3, 0, 4]))


def check(height, width, channels, policy, seed, epoch, dtype, ids):
    rng = np.random.default_rng(height * 41 + width)
    images = rng.integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    labels, fill = rng.integers(0, 100_000, 5), rng.integers(0, 256, channels, dtype=np.uint8)
    mean, std = (rng.uniform(40, 200, channels).astype(np.float32) for _ in range(2))
    packed = int(np.pad(fill, (0, 4 - channels)).view("<i4")[0])
    colours = kernels_gpu.Colours(tuple(mean.tolist()), tuple((np.float32(1) / std).tolist()), packed)
    ours, classes = augmented(images, labels, ids, policy, colours, seed, epoch, dtype)
    assert torch.equal(ours, expected(images, ids, policy, mean, std, fill, seed, epoch, dtype))
    assert classes.tolist() == labels[ids].tolist()


LARGE = [(64, 48, 3), (256, 256, 4)] if CUDA else [(64, 48, 3), (256, 256, 1)]


@pytest.mark.parametrize("size", LARGE, ids=str)
def test_large_images(size):
    check(*size, Policy("random", 9, "reflect", 20), 7, 3, torch.float16, ids=np.array([1]))


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_every_mode_in_a_launch_of_many_images(flip, padding, monkeypatch):
    monkeypatch.setattr(kernels_gpu, "SMALL", 0)  # two images, and two blocks of rows, a program
    check(19, 9, 3, Policy(flip, 4, padding, 5), plan.MASK, 5, torch.bfloat16, ids=np.array([2, 2, 0]))


@pytest.mark.parametrize("height", [48, 40, 64])
def test_no_row_outside_of_an_image_is_written(height, monkeypatch):
    """An odd number of whole tiles, one of which is no whole one, and an even number, in a launch of many images."""
    monkeypatch.setattr(kernels_gpu, "SMALL", 0)
    check(height, 64, 3, Policy("random", 3, "zero", 6), 7, 1, torch.float32, ids=np.array([4, 0, 2]))


@given(WORDS, WORDS, st.integers(1, 3000))
@settings(max_examples=20)
def test_order_is_the_plans(seed, epoch, n):
    ours = kernels_gpu.order(torch.tensor([seed, epoch, 0], device=DEVICE), n)
    assert ours.dtype == torch.int64 and ours.tolist() == plan.order(seed, epoch, n).tolist()


def test_an_images_choices_follow_its_id_and_not_its_row(store):
    state = torch.tensor([5, 2, 0], device=DEVICE)
    ids, rows = torch.tensor([30, 8], device=DEVICE), torch.tensor([1, 0], device=DEVICE)
    images, labels = (torch.from_numpy(a[[8, 30]]).to(DEVICE) for a in (store.images("train"), store.labels("train")))
    out, classes = torch.empty((2, 32, 32, 3), device=DEVICE), torch.empty(2, dtype=torch.int64, device=DEVICE)
    kernels_gpu.augment(images, rows, ids, labels, state, out, classes, Policy(), kernels_gpu.Colours.of(store))
    pixels = reference.pixels(store, Plan.of(store, "train", Policy(), 5, 2), "train", 2, np.array([30, 8]))
    assert torch.equal(out.cpu(), reference.table(store, torch.float32)[torch.from_numpy(pixels).long(), torch.arange(3)])
    assert classes.tolist() == store.labels("train")[[30, 8]].tolist()


def test_what_lies_past_the_epochs_end_is_left_alone(store):
    args = store.images("train"), store.labels("train"), np.arange(5), PLAIN, kernels_gpu.Colours.of(store), 0, 0, torch.float32
    images, classes = augmented(*args, first=3, size=4)
    assert images[2:].isnan().all() and not images[:2].isnan().any()
    assert classes.tolist() == store.labels("train")[3:5].tolist() + [-1, -1]


def opened(store, split="train", free=PLENTY, dtype=torch.float32, policy=None, seed=0, batch_size=8, ids=None, drop_last=False, share=(0, 1)):
    schedule = Plan.of(store, split, policy, seed, batch_size, ids, drop_last, share)
    return ResidentGPU(store, split, schedule, DEVICE, dtype, free)


def same(ours, theirs):
    for (a, y), (b, z) in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.cpu(), b) and torch.equal(y.cpu(), z)
        assert a.is_contiguous(memory_format=torch.channels_last) or a.shape[2:] == (1, 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """23 train and 5 test images of 9x7x3 in 400 classes: the interpreter is slow."""
    return make_store(tmp_path_factory.mktemp("small") / "small.safetensors", 23, 5, 9, 7, 3, classes=400)


SMALL = dict(policy=Policy("alternate", 2, "reflect", 3), seed=11, batch_size=4)
FREE = {"device": PLENTY, "host": 1}  # bytes of device memory that the pipeline is told are free


@pytest.mark.parametrize("free", FREE.values(), ids=FREE)
@pytest.mark.filterwarnings("ignore:resident")
class TestPipeline:
    """Both placements keep the contract; with one byte free, a chunk is one batch and the images stay on the host."""

    def test_batches_are_the_references(self, free, small):
        ours, theirs = opened(small, free=free, **SMALL), pipelines.open("reference", small, **SMALL)
        assert ours.place == ("device" if free > 1 else "pinned") and len(ours) == len(theirs) == 6
        for epoch in (0, 1, 0):
            same(list(ours.epoch(epoch)), list(theirs.epoch(epoch)))

    def test_a_subset_resumed_with_the_last_batch_dropped(self, free, small):
        options = dict(SMALL, ids=np.array([20, 3, 7, 11, 1, 19]), drop_last=True)
        ours, theirs = opened(small, free=free, **options), pipelines.open("reference", small, **options)
        assert len(ours) == 1
        same(list(ours.epoch(2)), list(theirs.epoch(2)))
        assert list(ours.epoch(2, start=1)) == []
        options |= dict(drop_last=False, batch_size=2)
        same(list(opened(small, free=free, **options).epoch(1, 1)), list(pipelines.open("reference", small, **options).epoch(1, 1)))

    def test_the_parts_of_several_processes(self, free, small):
        nine = dict(SMALL, ids=np.arange(9))  # the last batch has one image, which the first of two gets
        for split, rank, options in (("train", 1, SMALL), ("train", 0, nine), ("train", 1, nine), ("test", 1, dict(batch_size=4))):
            ours = opened(small, split, free=free, share=(rank, 2), **options)
            theirs = pipelines.open("reference", small, split, share=(rank, 2), **options)
            for start in (0, 1):
                same(list(ours.epoch(1, start)), list(theirs.epoch(1, start)))

    def test_the_test_split_and_iteration(self, free, small):
        ours, theirs = opened(small, "test", free=free, batch_size=64), pipelines.open("reference", small, "test", batch_size=64)
        for epoch in range(2):
            same(list(ours), list(theirs.epoch(epoch)))

    def test_leaving_early(self, free, small):
        ours = opened(small, free=free, **SMALL)
        for _ in ours.epoch(3):
            break
        same(list(ours.epoch(4, 5)), list(pipelines.open("reference", small, **SMALL).epoch(4, 5)))


def test_one_image(small):
    options = dict(SMALL, ids=np.array([3]), batch_size=64)
    same(list(opened(small, **options).epoch(0)), list(pipelines.open("reference", small, **options).epoch(0)))


def test_a_chunk_is_whole_batches_and_is_not_written_twice(small, monkeypatch):
    monkeypatch.setattr("pipelines.resident_gpu.CHUNK", 2 * 4 * 9 * 7 * 3 * 4 + 5)
    ours = opened(small, **SMALL)
    assert ours.steps == 2 and ours._bounds(1) == [(4, 8), (12, 8), (20, 3)]
    same(list(ours.epoch(1)), list(pipelines.open("reference", small, **SMALL).epoch(1)))


def test_places():
    assert placement.places(50, 100) == ("device", "pinned", "mapped")
    assert placement.places(51, 100) == ("pinned", "mapped")


def refusing(**errors):
    """A builder that raises what is given for a place."""

    def build(place):
        if place in errors:
            raise errors[place]
        return place.upper()

    return build


def test_where_memory_lacks_the_next_place_is_taken_and_said_once():
    lacking = torch.OutOfMemoryError("CUDA out of memory")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert placement.settle(placement.PLACES, refusing()) == ("device", "DEVICE")
    for errors, place in ((dict(device=lacking), "pinned"), (dict(device=lacking, pinned=RuntimeError("cudaHostAlloc")), "mapped")):
        with pytest.warns(UserWarning, match="resident: the images do not fit") as said:
            assert placement.settle(placement.PLACES, refusing(**errors)) == (place, place.upper())
        assert len(said) == 1 and "\n" not in str(said[0].message)
    with pytest.raises(RuntimeError, match="another"):
        placement.settle(placement.PLACES, refusing(device=RuntimeError("another")))
    with pytest.raises(torch.OutOfMemoryError):
        placement.settle(placement.PLACES[2:], refusing(mapped=lacking))


def test_running_out_of_memory_in_an_epoch_is_no_crash(small, monkeypatch):
    theirs = list(pipelines.open("reference", small, **SMALL).epoch(1))
    ours, make, failures = opened(small, **SMALL), ResidentGPU._made, [False, True, True]

    def made(self, chunk):
        if failures and failures.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(self, chunk)

    monkeypatch.setattr(ResidentGPU, "_made", made)
    ours.steps = 2
    with pytest.warns(UserWarning, match="resident") as said:
        same(list(ours.epoch(1)), theirs)
    assert (ours.place, ours.steps, len(said)) == ("pinned", 1, 1)
    failures[:] = [True]
    with pytest.raises(torch.OutOfMemoryError):
        list(ours.epoch(1))


COMPILE = """
import json, re, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:
    get_current_device = get_current_stream = lambda self, *_: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

driver.set_active(Hopper())
from pipelines import kernels_gpu
from pipelines.plan import Policy

compiled, run = [], kernels_gpu.augment_kernel.run
kernels_gpu.augment_kernel.run = lambda *a, grid, warmup, **k: compiled.append(run(*a, grid=grid, warmup=True, **k))
words = lambda n: torch.empty(n, dtype=torch.int64)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    out = torch.empty((50000, 32, 32, 3), dtype=dtype, device="meta")
    out.data_ptr = lambda: 0
    colours = kernels_gpu.Colours((1.5, 2.5, 3.5), (0.5, 0.25, 0.3), 7)
    images = torch.empty((2, 32, 32, 3), dtype=torch.uint8)
    kernels_gpu.augment(images, words(9), words(9), words(9), words(3), out, words(9), Policy(), colours)
    ptx = compiled[-1].asm["ptx"]
    seen = re.findall(r"fma\\S*|\\.shared|\\.local|cvt\\.rn\\.\\w+\\.f32|st\\.global\\.v\\d\\.b\\d+|st\\.global\\.b32", ptx)
    print(json.dumps([str(dtype)[6:], sorted(set(seen))]))
"""


def test_compiles_for_hopper_without_a_gpu_and_contracts_nothing(tmp_path):
    """Through Triton's own compiler and ptxas, to sm_90: no FMA, nothing through shared memory, rounding to nearest, paired stores."""
    environment = dict(os.environ, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, env=environment, capture_output=True, text=True)
    if "ptxas" in done.stderr and "not found" in done.stderr.lower():
        pytest.skip("this Triton comes without ptxas")
    assert done.returncode == 0, done.stderr[-2000:]
    assert dict(json.loads(line) for line in done.stdout.splitlines()) == {
        "float32": ["st.global.v2.b32"],
        "float16": ["cvt.rn.f16x2.f32", "st.global.b32"],
        "bfloat16": ["cvt.rn.bf16x2.f32", "st.global.b32"],
    }


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_gives_the_cpus_pixels_in_every_placement(dtype, store):
    theirs = list(pipelines.open("resident", store, batch_size=16, seed=3, dtype=dtype).epoch(1))
    for free in (PLENTY, 1):
        ours = opened(store, free=free, dtype=dtype, batch_size=16, seed=3)
        for _ in range(3):
            same(list(ours.epoch(1)), theirs)


@pytest.mark.gpu
@needs_gpu
def test_the_host_never_waits_in_an_epoch(store):
    ours = opened(store, batch_size=4)
    list(ours.epoch(0))  # compiles
    state = torch.tensor([1, 2, 0], device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels_gpu.order(state, 50_000)  # torch sorts so many in another way than a small store's
        for epoch in (1, 2, 7):
            for _ in ours.epoch(epoch):
                pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_replayed_from_a_cuda_graph_the_position_advances(store):
    batch, policy, colours = 5, Policy(), kernels_gpu.Colours.of(store)
    images, labels = (torch.from_numpy(a.copy()).to(DEVICE) for a in (store.images("train"), store.labels("train")))
    state = torch.tensor([9, 4, 0], device=DEVICE)
    ids = kernels_gpu.order(state, len(images))
    out = torch.empty((batch, 32, 32, 3), dtype=torch.float16, device=DEVICE)
    classes = torch.empty(batch, dtype=torch.int64, device=DEVICE)

    def step():
        kernels_gpu.augment(images, ids, ids, labels, state, out, classes, policy, colours)
        state[2:].add_(batch)

    step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    theirs = pipelines.open("reference", store, batch_size=batch, seed=9, dtype=torch.float16)
    for epoch in (4, 5):
        state.copy_(torch.tensor([9, epoch, 0]))
        ids.copy_(kernels_gpu.order(state, len(images)))
        for expected_images, expected_labels in theirs.epoch(epoch):
            graph.replay()
            n = len(expected_labels)  # 37 images: the last batch has 2, and the rest of `out` is the batch before it
            same([(out[:n].permute(0, 3, 1, 2), classes[:n])], [(expected_images, expected_labels)])

"""The contract, for every pipeline that is installed: the reference's pixels, and nothing else."""

import gc
import threading

import numpy as np
import psutil
import pytest
import torch

import pipelines
from pipelines import torchvision
from pipelines.errors import InputError, NotInstalled
from pipelines.plan import FLIPS, PADDINGS, PLAIN, Policy
from pipelines.stage import Extra, stage

LOADERS = [name for name in pipelines.names() if name != "reference"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POLICIES = [Policy(flip, 4, padding, 8) for flip, padding in zip(FLIPS, PADDINGS)] + [Policy(padding="reflect", translate=2, cutout=0), PLAIN]


def opened(name, store, split="train", **options):
    """The pipeline, or a skip with the loader's own reason."""
    try:
        return pipelines.open(name, store, split, **options)
    except NotInstalled as missing:
        pytest.skip(str(missing))


def assert_same(ours, theirs, dtype=torch.float32):
    """Equal to the last bit, normalisation included."""
    assert len(ours) == len(theirs)
    for (a, y), (b, z) in zip(ours, theirs):
        assert a.dtype == b.dtype == dtype and y.dtype == torch.int64
        assert torch.equal(y, z) and torch.equal(a, b)


def held(pipeline, epoch=0, start=0):
    """All batches at once: a loader that recycles its buffers under the caller would be seen."""
    return list(pipeline.epoch(epoch, start))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", LOADERS)
def test_pixels_labels_and_order_are_the_references(name, policy, store):
    ours = opened(name, store, batch_size=8, policy=policy, seed=3)
    theirs = pipelines.open("reference", store, batch_size=8, policy=policy, seed=3)
    assert len(ours) == len(theirs) == 5
    for epoch in (0, 1, 5):
        assert_same(held(ours, epoch), held(theirs, epoch))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOADERS)
def test_dtype_and_memory_format(name, dtype, store):
    options = dict(batch_size=16, seed=1, dtype=dtype)
    batches = held(opened(name, store, **options))
    assert_same(batches, held(pipelines.open("reference", store, **options)), dtype)
    for images, _ in batches:
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", LOADERS)
def test_last_batch_is_kept_or_dropped(name, store):
    assert [len(y) for _, y in opened(name, store, batch_size=16).epoch(0)] == [16, 16, 5]
    dropping = opened(name, store, batch_size=16, drop_last=True)
    assert [len(y) for _, y in dropping.epoch(0)] == [16, 16] and len(dropping) == 2


@pytest.mark.parametrize("name", LOADERS)
def test_resumes_in_the_middle_of_an_epoch(name, store):
    ours = opened(name, store, batch_size=8, seed=9)
    whole = held(ours, 2)
    assert_same(held(ours, 2, start=3), whole[3:])
    assert held(ours, 2, start=5) == []


@pytest.mark.parametrize("name", LOADERS)
def test_two_epochs_differ(name, store):
    ours = opened(name, store, batch_size=37)
    (first, _), (second, _) = next(iter(ours.epoch(0))), next(iter(ours.epoch(1)))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", LOADERS)
def test_iterating_gives_one_epoch_after_another(name, store):
    ours, theirs = opened(name, str(store.path), batch_size=16), pipelines.open("reference", store, batch_size=16)
    for epoch in range(3):
        assert_same(list(ours), held(theirs, epoch))


@pytest.mark.parametrize("name", LOADERS)
def test_leaving_early_leaks_nothing_and_the_next_epoch_is_right(name, store):
    ours = opened(name, store, batch_size=4)
    theirs = pipelines.open("reference", store, batch_size=4)
    process = psutil.Process()

    def leave(epoch):
        for _ in ours.epoch(epoch):
            break
        gc.collect()

    for epoch in range(3):  # whatever the loader keeps, it has by now
        leave(epoch)
        assert_same(held(ours, epoch), held(theirs, epoch))
    before = threading.active_count(), len(process.children()), process.num_fds()
    for epoch in range(8):
        leave(epoch)
    assert_same(held(ours, 1), held(theirs, 1))
    gc.collect()
    after = threading.active_count(), len(process.children()), process.num_fds()
    assert all(now <= then for now, then in zip(after, before)), (before, after)


@pytest.mark.parametrize("name", LOADERS)
def test_global_random_streams_are_left_alone(name, store):
    ours = opened(name, store, batch_size=8)
    held(ours)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    held(opened(name, store, batch_size=8))
    held(ours, 1)
    assert torch.equal(torch.get_rng_state(), torch_before) and (np.random.get_state()[1] == numpy_before).all()


@pytest.mark.parametrize("name", LOADERS)
def test_a_subset_keeps_each_samples_augmentation(name, store):
    ids = np.array([30, 2, 17, 5, 11])
    ours = opened(name, store, batch_size=2, ids=ids, seed=4)
    assert_same(held(ours, 1), held(pipelines.open("reference", store, batch_size=2, ids=ids, seed=4), 1))


@pytest.mark.parametrize("ranks, batch_size", [(2, 8), (3, 12)])  # of 37 images the last batch has 5, and 1, which only the first gets
@pytest.mark.parametrize("name", LOADERS)
def test_the_parts_of_several_processes_are_the_batches_of_one(name, ranks, batch_size, store):
    extra = Extra(erase_p=0.5, erase=8, grey_p=0.5, contrast=0.3)
    whole = held(stage(pipelines.open("reference", store, batch_size=batch_size, seed=3), extra, store), 1)
    parts = [stage(opened(name, store, batch_size=batch_size, seed=3, share=(rank, ranks)), extra, store) for rank in range(ranks)]
    for start in (0, 1, len(whole) - 1):
        yielded = [held(part, 1, start) for part in parts]
        for step, batch in enumerate(whole[start:]):
            pieces = [batches[step] for batches in yielded if step < len(batches)]
            assert_same([[torch.cat(tensors) for tensors in zip(*pieces)]], [batch])
    assert {len(part) for part in parts} == {len(whole)}


@pytest.mark.parametrize("name", LOADERS)
def test_the_test_split_comes_as_it_is_in_the_stores_order(name, store):
    batches = held(opened(name, store, "test", batch_size=4))
    assert torch.equal(torch.cat([y for _, y in batches]), torch.from_numpy(store.labels("test")))
    assert_same(batches, held(pipelines.open("reference", store, "test", batch_size=4, policy=PLAIN)))


@pytest.mark.parametrize("name", LOADERS)
def test_one_image_and_a_batch_larger_than_the_set(name, store):
    ours = opened(name, store, batch_size=64, ids=[3])
    assert_same(held(ours), held(pipelines.open("reference", store, batch_size=64, ids=[3])))


def test_what_cannot_be_is_refused_in_one_line(store):
    for options in (
        dict(batch_size=6, share=(0, 2)),
        dict(share=(2, 2)),
        dict(batch_size=8, share=(0, 2), ids=[1, 2, 3]),
        dict(batch_size=0),
        dict(seed=-1),
        dict(policy=Policy(cutout=33)),
        dict(policy=Policy(translate=32)),
        dict(ids=[99]),
    ):
        with pytest.raises(InputError) as refused:
            pipelines.open("reference", store, **options)
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="torchvision"):
        pipelines.open("tensorflow", store)


@pytest.mark.parametrize("name", LOADERS)
def test_every_pipeline_refuses_what_none_can_do(name, store, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, words in ((dict(dtype=torch.int32), "float32"), (dict(device="cuda"), "choose cpu"), (dict(device="gpu"), "torch knows none")):
        with pytest.raises(InputError, match=f"pipeline {name}: .*{words}"):
            opened(name, store, **options)
    with pytest.raises(InputError, match="start -1: give a step from 0 on"):
        next(iter(opened(name, store, batch_size=16).epoch(0, start=-1)))
    for epoch in (-1, 2**32):  # of which kernels and NumPy would make two
        with pytest.raises(InputError, match=f"epoch {epoch}: give an integer from 0 to 4294967295"):
            next(iter(opened(name, store, batch_size=16).epoch(epoch)))


def test_workers_are_as_many_as_the_process_may_use_cores(store, monkeypatch):
    """Not as many as the machine has: a container or a batch system lends some of them."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert [torchvision.open(store, share=share).loader.num_workers for share in ((0, 1), (1, 2))] == [6, 3]

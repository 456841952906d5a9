"""Mixup and CutMix: what the plan draws, whatever the pipeline."""

import numpy as np
import pytest
import torch

import pipelines
from pipelines.errors import InputError
from pipelines.mixing import Mixing, Targets, mix, partner, rectangles


def batch(count: int = 37):
    torch.manual_seed(0)
    images = torch.randn(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    return images, torch.arange(count), np.arange(count) * 3


def test_partners_come_in_pairs():
    assert partner(5).tolist() == [1, 0, 3, 2, 4]
    for count in (1, 2, 7, 64):
        others = partner(count)
        assert (others[others] == np.arange(count)).all()


def test_mixup_is_the_stated_share_of_the_partner():
    images, labels, ids = batch()
    mixed, targets = mix(images, labels, ids, Mixing(mixup=0.5), seed=1, epoch=2)
    others = torch.from_numpy(partner(37))
    assert torch.equal(targets.labels, labels) and torch.equal(targets.partners, labels[others])
    assert 0 <= targets.share.min() and targets.share.max() <= 0.5 and targets.share.std() > 0.1
    share = targets.share[:, None, None, None]
    torch.testing.assert_close(mixed, images * (1 - share) + images[others] * share, rtol=1e-5, atol=1e-5)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    half, weak = mix(images, labels, ids, Mixing(mixup=0.5), 1, 2, strength=0.5)
    torch.testing.assert_close(weak.share, targets.share / 2)


def test_cutmix_takes_whole_pixels_and_counts_them():
    images, labels, ids = batch()
    mixed, targets = mix(images, labels, ids, Mixing(cutmix=0.6), seed=1, epoch=2)
    theirs = images[torch.from_numpy(partner(37))]
    taken = (mixed == theirs).all(1)
    assert torch.equal(torch.where(taken[:, None], theirs, images), mixed)
    last = torch.ones(37, dtype=bool).scatter(0, torch.tensor([36]), False)  # it is its own partner
    torch.testing.assert_close(taken.float().mean((1, 2))[last], targets.share[last])
    assert 8 < (targets.share > 0).sum() < 34


def test_both_mix_each_image_once():
    images, labels, ids = batch()
    both, targets = mix(images, labels, ids, Mixing(0.5, 0.5), 3, 1)
    cut, cut_targets = mix(images, labels, ids, Mixing(0, 0.5), 3, 1)
    chosen = (both == cut).all((1, 2, 3)) & (cut_targets.share > 0)
    assert 5 < chosen.sum() < 32 and torch.equal(targets.share[chosen], cut_targets.share[chosen])
    assert (targets.share[~chosen] <= 0.5).all()


def test_draws_follow_the_image_and_not_its_place(store):
    """An image that keeps its partner is mixed alike in any batch; other seeds and epochs mix otherwise."""
    images, labels, ids = batch(8)
    whole = mix(images, labels, ids, Mixing(0.5, 0.3), 1, 2)
    part = mix(images[2:6], labels[2:6], ids[2:6], Mixing(0.5, 0.3), 1, 2)
    assert torch.equal(whole[0][2:6], part[0]) and torch.equal(whole[1].share[2:6], part[1].share)
    for seed, epoch in ((2, 2), (1, 3)):
        assert not torch.equal(mix(images, labels, ids, Mixing(0.5, 0.3), seed, epoch)[1].share, whole[1].share)


def test_rectangles_keep_the_proportions_and_the_border():
    inside = rectangles(np.array([0.25, 0.25, 1.0]), np.array([0.5, 0.0, 0.5]), np.array([0.5, 0.5, 0.5]), 32, 16)
    assert inside.shape == (3, 32, 16) and inside.sum((1, 2)).tolist() == [128, 64, 512]


def test_targets_are_cut_together():
    targets = Targets(torch.arange(5), torch.arange(5) + 1, torch.ones(5), torch.ones(5, 3, 4, 4)).first(2)
    assert [len(t) for t in targets] == [2, 2, 2, 2]
    assert Targets(torch.arange(5)).first(2).partners is None


@pytest.mark.parametrize("shares", [(0.6, 0), (-0.1, 0), (0, 1.5)])
def test_shares_that_cannot_be(shares):
    with pytest.raises(InputError, match="mixup takes"):
        Mixing(*shares)


def test_every_pipeline_is_mixed_alike(store):
    def first(name):
        loader = pipelines.open(name, store, batch_size=8)
        images, labels = next(iter(loader.epoch(0)))
        return mix(images, labels, next(loader.plan.batches(0)), Mixing(0.5, 0.5), 0, 0)[0]

    assert torch.equal(first("resident"), first("torchvision"))

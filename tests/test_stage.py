"""The batch stage: exact where it can be, and the plan's choices."""

import numpy as np
import pytest
import torch
from conftest import make_store

import pipelines
from pipelines import colour, plan
from pipelines.errors import InputError
from pipelines.mixing import Mixing, mix
from pipelines.plan import PLAIN
from pipelines.stage import Extra, stage, thetas_B23


def pair(store, extra, batch_size=37):
    """(the plain batch, the same batch behind the stage, the stage)."""
    plain = pipelines.open("reference", store, batch_size=batch_size, policy=PLAIN)
    made = stage(plain, extra, store)
    (before, _), (after, _) = next(iter(plain.epoch(2))), next(iter(made.epoch(2)))
    return before, after, made


def test_nothing_to_do_is_the_pipeline_itself(store):
    plain = pipelines.open("reference", store, policy=PLAIN)
    assert stage(plain, Extra(), store) is plain and stage(plain, Extra(erase_p=0.5, erase=0), store) is plain


def test_identity_affine_changes_nothing(store):
    before, after, _ = pair(store, Extra(affine_p=1.0))
    torch.testing.assert_close(after, before, rtol=0, atol=2e-4)


def test_a_whole_pixel_shift_is_a_reflected_shift(store):
    """Shift alone, its draw replaced by three pixels: NumPy's reflect padding."""
    before, _, made = pair(store, Extra(affine_p=1.0, shift=0.1))
    theta = torch.tensor([[[1.0, 0.0, -2 * 3 / 31], [0.0, 1.0, 0.0]]]).expand(37, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(before.shape), align_corners=True)
    moved = torch.nn.functional.grid_sample(before, grid, padding_mode="reflection", align_corners=True)
    expected = np.pad(before.numpy(), ((0, 0), (0, 0), (0, 0), (3, 0)), mode="reflect")[..., :32]
    np.testing.assert_allclose(moved.numpy(), expected, atol=2e-4)
    limit = 2 * 0.1 * 32 / 31
    assert np.abs(thetas_B23(made.plan, made.extra, 0, np.arange(1000))[:, :, 2]).max() <= limit + 1e-6


def test_rotation_of_an_odd_shaped_image_keeps_angles(store):
    """theta maps pixel distances: a turned step of one pixel stays one pixel long, whatever the sides."""
    made = type(pair(store, Extra(affine_p=1.0))[2].plan)(PLAIN, 0, np.arange(10), 5, height=20, width=40)
    theta = thetas_B23(made, Extra(rotate=90.0), 0, np.arange(10))
    half = np.array([39 / 2, 19 / 2])
    pixels = theta[:, :, :2] * half[None, :, None] / half[None, None, :]
    np.testing.assert_allclose(pixels @ pixels.transpose(0, 2, 1), np.broadcast_to(np.eye(2), (10, 2, 2)), atol=1e-5)


def test_the_square_is_whole_and_of_the_stated_value(store):
    before, after, _ = pair(store, Extra(erase_p=0.5, erase=16, erase_fill=(1.0, 2.0, 3.0)))
    changed = (before != after).any(1)
    hit = changed.flatten(1).any(1)
    assert 5 < hit.sum() < 32
    for image, mask in zip(after[hit], changed[hit]):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        top, left = rows.min(), columns.min()
        assert rows.max() - top < 16 and columns.max() - left < 16
        square = image[:, rows.max() - 15 : rows.max() + 1, columns.max() - 15 : columns.max() + 1]
        assert (square == torch.tensor([1.0, 2.0, 3.0])[:, None, None]).float().mean() > 0.99


def test_grey_has_one_value_a_pixel(store):
    _, after, made = pair(store, Extra(grey_p=1.0))
    mean, std = made.scaling
    pixels = after * std + mean
    assert (pixels - pixels[:, :1]).abs().max() < 1e-5


def test_same_choices_in_any_batch_size_dtype_and_memory_format(store):
    extra = Extra(affine_p=0.5, shift=0.1, scale=0.1, rotate=20.0, erase_p=0.5, erase=8, grey_p=0.5)
    _, whole, _ = pair(store, extra)
    plain = pipelines.open("reference", store, batch_size=5, policy=PLAIN, dtype=torch.bfloat16)
    parts = [images for images, _ in stage(plain, extra, store).epoch(2)]
    assert all(p.dtype == torch.bfloat16 and p.is_contiguous(memory_format=torch.channels_last) for p in parts)
    torch.testing.assert_close(torch.cat(parts).float(), whole, rtol=0.02, atol=0.02)


def test_what_cannot_be_is_refused(store):
    with pytest.raises(InputError, match="erase 40"):
        pair(store, Extra(erase_p=1.0, erase=40))
    with pytest.raises(InputError, match="erase_fill has 1 values, the images 3 channels"):
        pair(store, Extra(erase_p=1.0, erase=4, erase_fill=(0.0,)))


@pytest.mark.parametrize("shape", [(12, 10), (2, 10)])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_colours_are_torchvisions(name, shape):
    from torchvision.transforms.v2 import functional as V

    torch.manual_seed(0)
    images, factors = torch.rand(5, 3, *shape), torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0])
    ours = getattr(colour, name)(images, factors)
    theirs = torch.stack([getattr(V, f"adjust_{name}")(image, float(factor)) for image, factor in zip(images, factors)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)  # torchvision's luma has four digits


def test_colour_changes_are_the_plans(store):
    """As large as stated, other ones for every image, and in the stated order."""
    changes = dict(brightness=0.3, contrast=0.2, saturation=0.4, sharpness=0.5)
    before, after, made = pair(store, Extra(**changes))
    pixels = made._pixels(before)
    for name, change in changes.items():
        factors = 1 + change * (2 * made._draw(getattr(plan, name.upper()), 2, np.arange(37)) - 1)
        assert abs(factors - 1).max() <= change and factors.std() > change / 4
        pixels = getattr(colour, name)(pixels, torch.from_numpy(factors))
    torch.testing.assert_close(after, made._normalised(pixels, torch.float32))
    assert not torch.equal(before, after)


def test_one_channel_has_no_saturation(tmp_path):
    grey = make_store(tmp_path / "grey.safetensors", channels=1)
    with pytest.raises(InputError, match="three channels"):
        pair(grey, Extra(saturation=0.1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_host_waits_for_no_batch_and_the_pixels_are_the_cpus(store):
    extra = Extra(affine_p=0.5, rotate=15.0, erase_p=0.5, erase=8, grey_p=0.2, brightness=0.1, contrast=0.1, saturation=0.1, sharpness=0.3)
    expected, made = (stage(pipelines.open("resident", store, batch_size=12, device=device), extra, store) for device in ("cpu", "cuda"))
    mixing = Mixing(mixup=0.4, cutmix=0.5)

    def batches(loader, epoch):
        for ids, (images, labels) in zip(loader.plan.batches(epoch), loader.epoch(epoch)):
            yield mix(images, labels, ids, mixing, 0, epoch)[0]

    list(batches(made, 0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        images = list(batches(made, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(images, batches(expected, 1), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)

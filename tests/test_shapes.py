"""The embedded shapes: the same set every time, balanced, and of figures that can be told apart."""

import numpy as np
import pytest

from pipelines import shapes
from pipelines.sources import find


@pytest.fixture(scope="module")
def drawn():
    return {split: shapes.draw(split) for split in ("train", "test")}


def test_the_same_set_twice(drawn):
    for split, (pictures, labels) in drawn.items():
        again, same = shapes.draw(split)
        assert np.array_equal(pictures, again) and np.array_equal(labels, same)


def test_ten_balanced_classes_of_colour_pictures(drawn):
    for split, (pictures, labels) in drawn.items():
        count = shapes.COUNTS[split]
        assert pictures.shape == (count, 32, 32, 3) and pictures.dtype == np.uint8 and labels.dtype == np.int64
        assert np.bincount(labels).tolist() == [count // 10] * 10
    assert len(set(shapes.CLASSES)) == 10 and list(shapes.CLASSES) == sorted(shapes.CLASSES) and set(shapes.FIGURES) == set(shapes.CLASSES)


def test_pictures_use_the_whole_range_and_none_comes_twice(drawn):
    train, test = drawn["train"][0], drawn["test"][0]
    assert train.min() == 0 and train.max() == 255 and 110 < train.mean() < 145
    assert len({p.tobytes() for p in np.concatenate([train, test])}) == 12_000  # nor is a test picture in train


def area(name: str, side: int = 64) -> np.ndarray:
    """bool[side,side]: where a figure of radius 1 is, upright, in a frame from -1.2 to 1.2."""
    grid = np.linspace(-1.2, 1.2, side, dtype=np.float32)
    return shapes.FIGURES[name](grid[None, :], grid[:, None]) < 0


def test_figures_differ_and_stay_within_their_radius():
    areas = {name: area(name) for name in shapes.CLASSES}
    for name, mine in areas.items():
        assert 0.1 < mine.mean() < 0.6 and not mine[0].any() and not mine[-1].any()
        for other in shapes.CLASSES:
            if other != name:
                union = (mine | areas[other]).sum()
                assert (mine & areas[other]).sum() / union < 0.85, (name, other)


def test_every_figure_can_be_seen(drawn):
    """Ink and paper differ in every picture: its brightest and darkest quarters do not look alike."""
    pictures, _ = drawn["test"]
    contrast = np.sort(pictures.reshape(len(pictures), -1, 3).astype(int), axis=1)
    spread = (contrast[:, -40:].mean(1) - contrast[:, :40].mean(1)).max(1)
    assert spread.min() > 70


def test_the_source_shapes():
    source = find("shapes")
    count, items = source.splits["test"]
    first = next(iter(items()))
    assert (source.name, count, first.place, first.label) == ("shapes", 2000, 0, 0) and first.picture.shape == (32, 32, 3)

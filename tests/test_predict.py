"""python -m train predict: pictures of any size, and what is printed of them."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import InputError
from pipelines.pictures import fitted
from train import predict, result


def test_every_test_image_is_given_the_class_that_the_run_gave_it(run_folder, store, tmp_path, capsys):
    """A PNG of the training size is taken pixel by pixel."""
    images = store.images("test")
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    predict.main([str(run_folder), "--top", "1", *map(str, paths)])
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    right = np.mean([words[-1] == store.classes[label] for words, label in zip(said, store.labels("test"))])
    assert [words[0] for words in said] == list(map(str, paths)) and right == result.summary(run_folder)["test_accuracy"]


def test_shares_are_the_softmax_and_fall(run_folder, store, tmp_path, capsys):
    Image.fromarray(store.images("test")[0]).save(tmp_path / "a.png")
    predict.main([str(run_folder), str(tmp_path / "a.png"), "--top", "99"])
    shares = [float(word[:-1]) / 100 for word in capsys.readouterr().out.split() if word.endswith("%")]
    expected = result.model(run_folder).logits(store.images("test")[:1]).softmax(1)[0].sort(descending=True).values
    assert len(shares) == 10 and np.allclose(shares, expected, atol=6e-4)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_wide_picture_is_cut_to_its_middle():
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, :100], wide[:, 200:], wide[:, 100:200] = (255, 0, 0), (0, 0, 255), (0, 200, 0)
    assert (fitted(encoded(Image.fromarray(wide)), 32, 32)[:, 2:-2] == (0, 200, 0)).all()  # at its edges, the neighbours are seen


def test_a_large_photograph_is_brought_to_size_as_without_the_jpegs_short_cut():
    """A JPEG that is decoded at a fraction of its size looks as one that is decoded whole."""
    y, x = np.mgrid[0:1200, 0:1600] / 1600
    smooth = (np.stack([0.5 + 0.4 * np.sin(9 * x), y, 1 - x * y], -1) * 255).astype(np.uint8)
    jpeg = encoded(Image.fromarray(smooth), "JPEG", quality=95)
    whole = fitted(encoded(Image.open(io.BytesIO(jpeg))), 32, 32)
    assert np.abs(fitted(jpeg, 32, 32).astype(int) - whole).max() <= 3


def test_a_picture_is_turned_as_its_camera_noted():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    noted = Image.Exif()
    noted[0x0112] = 6  # the top is at the right
    assert np.array_equal(fitted(encoded(image, "PNG", exif=noted), 32, 32), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "eps", "16 bits", "half", "zero bytes"])
def test_what_is_no_picture_is_one_line(kind, run_folder, tmp_path):
    path = tmp_path / "a.png"
    good = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
        deep = encoded(Image.fromarray(np.zeros((4, 4), np.uint16)))
        path.write_bytes({"text": b"hello", "eps": eps, "16 bits": deep, "half": good[: len(good) // 2], "zero bytes": b""}[kind])
    with pytest.raises(InputError, match="a.png: not a picture") as refused:
        predict.main([str(run_folder), str(path)])
    assert "\n" not in str(refused.value)


def test_of_several_pictures_those_that_can_be_read_are_answered(run_folder, store, tmp_path, capsys):
    Image.fromarray(np.asarray(store.images("test"))[0]).save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    paths = [str(tmp_path / name) for name in ("empty.png", "good.png", "none.png", "good.png")]
    with pytest.raises(InputError, match="empty.png: not a picture.*; and 1 more"):
        predict.main([str(run_folder), *paths])
    assert capsys.readouterr().out.count("good.png") == 2


def test_fewer_classes_than_one(run_folder):
    with pytest.raises(InputError, match="1 or more"):
        predict.main([str(run_folder), "a.png", "--top", "0"])

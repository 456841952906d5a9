"""Other data: SVHN's and Tiny-ImageNet's layouts, folders of one's own pictures, and training on them with the same commands."""

import io
import sys
import zipfile

import numpy as np
import pytest
import scipy.io as io_of_scipy  # the writer, and so the oracle
from makers import cifar100, encoded, gathered, images, picture, write_folder, write_tar

from pipelines import data, matlab, svhn
from pipelines.__main__ import main as pipelines_main
from pipelines.convert import convert
from pipelines.errors import InputError
from pipelines.sources import find
from pipelines.store import Store
from train import predict, result
from train.recipe import Recipe
from train.runs import train

# MATLAB files and SVHN


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(uint8[32,32,3,N], uint8[N,1] from 1 to 10), as SVHN has them."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), rng.integers(1, 11, (count, 1), dtype=np.uint8)


def mat(**arrays) -> bytes:
    file = io.BytesIO()
    compressed = arrays.pop("compressed", True)
    io_of_scipy.savemat(file, arrays, do_compression=compressed)
    return file.getvalue()


def svhn_folder(path, counts=(12, 5), kind=np.uint8):
    path.mkdir()
    for name, count in zip(svhn.FILES.values(), counts):
        X, y = digits(count, count)
        (path / name).write_bytes(mat(X=X, y=y.astype(kind), extra=np.arange(3.0)))
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", "i8"])
def test_arrays_are_what_scipy_wrote(dtype, compressed, tmp_path):
    arrays = {"a": np.arange(24).reshape(2, 3, 4).astype(dtype), "bc": np.array([[1, 2]], dtype), "empty": np.zeros((0, 3), dtype), "other": np.eye(2)}
    (tmp_path / "a.mat").write_bytes(mat(**arrays, compressed=compressed))
    found = matlab.read(tmp_path / "a.mat", ("a", "bc", "empty"))
    assert set(found) == {"a", "bc", "empty"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_svhn_is_read_as_scipy_reads_it(kind, tmp_path):
    source = find(svhn_folder(tmp_path / "svhn", kind=kind))
    assert source.classes == tuple("0123456789") and source.name == "svhn"
    for split in ("train", "test"):
        pixels, labels = gathered(source)[split]
        theirs = io_of_scipy.loadmat(tmp_path / "svhn" / svhn.FILES[split])
        np.testing.assert_array_equal(pixels, theirs["X"].transpose(3, 0, 1, 2))
        np.testing.assert_array_equal(labels, theirs["y"][:, 0] % 10)


def nested(depth: int) -> bytes:
    """A file of cells in cells, which overflows SciPy's stack at some ten thousand."""

    def element(kind, content):
        return kind.to_bytes(4, "little") + len(content).to_bytes(4, "little") + content + bytes(-len(content) % 8)

    def matrix(kind, content, name=b""):
        return element(6, kind.to_bytes(8, "little")) + element(5, (1).to_bytes(4, "little") * 2) + element(1, name) + content

    inside = matrix(6, element(9, bytes(8)))
    for i in range(depth):
        inside = matrix(1, element(14, inside), b"X" if i == depth - 1 else b"")
    return b"MATLAB 5.0".ljust(124) + b"\0\x01IM" + element(14, inside)


def test_bad_matlab_files_are_one_line(tmp_path, refused):  # noqa: F811
    X, y = digits(6)
    good = {"train": mat(X=X, y=y), "test": mat(X=X, y=y)}
    bad = {
        "text": b"hello",
        "half": good["train"][: len(good["train"]) // 2],
        "hdf5": b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n",
        "cells": mat(X=np.array([[1, "a"]], object), y=y),
        "struct": mat(X={"a": 1}, y=y),
        "complex": mat(X=X + 1j, y=y),
        "no y": mat(X=X),
        "labels": mat(X=X, y=y + 20),
        "half digits": mat(X=X, y=y / 2 + 0.25),
        "count": mat(X=X, y=y[:-1]),
        "grey": mat(X=X[:, :, :1], y=y),
        "floats": mat(X=X / 255, y=y),
        "swells": mat(X=np.zeros((32, 32, 3, 4000), np.uint8), y=np.ones((4000, 1))),
        "deep": nested(40_000),
    }
    for name, content in bad.items():
        folder = tmp_path / name
        folder.mkdir()
        for split, file in svhn.FILES.items():
            (folder / file).write_bytes(content if split == "train" else good[split])
        refused(folder, folder / "train_32x32.mat")


# Tiny-ImageNet


def tiny_imagenet(path, classes=("n02", "n01", "n03"), each=4, side=64):
    """The layout as it is unpacked; pixels of a training image say its class."""
    word = {"n01": "goldfish, Carassius auratus", "n02": "crane", "n03": "crane, Grus"}
    for k, name in enumerate(classes):
        files = {f"train/{name}/images/{name}_{i}.JPEG": encoded(np.full((side, side, 3), 60 * k + i, np.uint8), "JPEG") for i in range(each)}
        write_folder(path, files | {f"train/{name}/{name}_boxes.txt": b"x\t0\t0\t1\t1\n"})
    write_folder(path, {f"val/images/val_{i}.JPEG": encoded(picture(i, side), "JPEG") for i in range(6)})
    lines = "".join(f"val_{i}.JPEG\t{sorted(classes)[i % 3]}\t0\t32\t44\t62\n" for i in range(6))
    write_folder(path, {"val/val_annotations.txt": lines.encode(), "test/images/test_0.JPEG": encoded(picture(side=side), "JPEG")})
    write_folder(path, {"words.txt": "".join(f"{a}\t{b}\n" for a, b in word.items()).encode(), "wnids.txt": "\n".join(classes).encode()})
    return path


def test_tiny_imagenet(tmp_path):
    source = find(tiny_imagenet(tmp_path / "tiny-imagenet-200"))
    assert source.classes == ("goldfish", "crane (n02)", "crane (n03)") and source.name == "tiny-imagenet"
    train, test = gathered(source)["train"], gathered(source)["test"]
    assert train[0].shape == (12, 64, 64, 3) and test[0].shape == (6, 64, 64, 3) and test[1].tolist() == [0, 1, 2, 0, 1, 2]
    assert train[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4 and train[0][:, 0, 0, 0].tolist() == [60, 61, 62, 63, 0, 1, 2, 3, 120, 121, 122, 123]


BAD_ANNOTATIONS = {
    "missing": "val_9.JPEG\tn01\n",
    "outside": "../../train/n01/images/n01_0.JPEG\tn01\n",
    "no class": "val_0.JPEG\n",
    "other class": "val_0.JPEG\tn99\nval_1.JPEG\tn01\nval_2.JPEG\tn02\nval_3.JPEG\tn03\n",
    "binary": "\udcff\udcfe",
    "empty": "",
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_bad_annotations_are_one_line(case, tmp_path, refused):  # noqa: F811
    folder = tiny_imagenet(tmp_path / "t")
    (folder / "val/val_annotations.txt").write_bytes(BAD_ANNOTATIONS[case].encode(errors="surrogateescape"))
    refused(folder, folder / "val")


# Folders of one's own


def test_class_folders_without_a_split_are_split_the_same_way_each_time(tmp_path, capsys):
    write_folder(tmp_path / "pets", images(each=11) | {"ant/more/x.png": encoded(picture(99)), ".git/y.png": b"no image", "notes.txt": b"x"})
    source = find(tmp_path / "pets")
    assert {split: count for split, (count, _) in source.splits.items()} == {"train": 19, "test": 4} and "one in 5" in source.note and "held out" in source.name
    where = {split: {item.where for item in items()} for split, (_, items) in source.splits.items()}
    again = {split: {item.where for item in items()} for split, (_, items) in find(tmp_path / "pets").splits.items()}
    assert where == again and not where["train"] & where["test"] and len(where["train"] | where["test"]) == 23
    assert gathered(source)["test"][1].tolist() == [0, 0, 1, 1]
    tar = write_tar(tmp_path / "pets.tar", images(each=11))
    assert [count for count, _ in find(tar).splits.values()] == [18, 4]
    lone = write_folder(tmp_path / "lone/train", images(each=5))
    assert [count for count, _ in find(lone.parent).splits.values()] == [8, 2]


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    """As in CIFAR-100, which has trains."""
    pets = write_folder(tmp_path / "pets", images(("bus", "train", "test"), each=5))
    assert find(pets).classes == find(write_tar(tmp_path / "pets.tar", images(("bus", "train", "test"), each=5))).classes == ("bus", "test", "train")


def test_test_images_without_classes_are_no_split(tmp_path):
    files = {f"train/{name}": data for name, data in images().items()} | {"test/0.png": encoded(picture())}
    lone = find(
        write_folder(tmp_path / "lone", {name: data for name, data in files.items() if not name.endswith("2.png")} | {"train/ant/x.png": encoded(picture(5))})
    )
    assert "one in 5" in lone.note
    files |= {f"val/{name}": data for name, data in images(first=50).items()}
    for source in (write_folder(tmp_path / "d", files), write_tar(tmp_path / "d.tar", files)):
        assert {split: count for split, (count, _) in find(source).splits.items()} == {"train": 6, "test": 6}


def test_images_beside_those_of_train_are_not_left_out_without_a_word(tmp_path, refused):  # noqa: F811
    inside, beside = ({f"{folder}/{name}": data for folder in folders for name, data in images().items()} for folders in (["train"], ["Test"]))
    for name, files, said in (("nearly", inside | beside, "Test, beside train"), ("more", inside | images(("car", "bus")), "(bus, car)")):
        for source in (write_folder(tmp_path / name, files), write_tar(tmp_path / f"{name}.tar", files)):
            refused(source, source, said)


def test_too_few_to_split_are_refused(tmp_path, refused):  # noqa: F811
    write_folder(tmp_path / "a", images(each=1))
    refused(tmp_path / "a", "one image")
    write_folder(tmp_path / "b", images(("ant",), each=5))
    refused(tmp_path / "b", "one class only")
    write_folder(tmp_path / "c", {f"test/{name}": file for name, file in images().items()})
    refused(tmp_path / "c", "no train images")


def test_a_zip_is_to_be_unpacked(tmp_path, refused):  # noqa: F811
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a", "a")
    refused(tmp_path / "a.zip", "unpack it")


def photographs(path, sizes=((90, 60), (40, 70), (700, 50))):
    """Class folders of pictures of many sizes, one larger than any small image."""
    files = {}
    for k, name in enumerate(("cat", "dog")):
        for i in range(6):
            width, height = sizes[i % len(sizes)]
            rng = np.random.default_rng(10 * k + i)
            files[f"{name}/{i}.png"] = encoded(rng.integers(100 * k, 100 * k + 60, (height, width, 3), dtype=np.uint8))
    return write_folder(path, files)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_pictures_of_many_sizes_are_brought_to_one(encoding, tmp_path, refused, monkeypatch, capfd):  # noqa: F811
    folder = photographs(tmp_path / "own")
    refused(folder, "--size")
    monkeypatch.setattr(sys, "argv", ["pipelines", "convert", str(folder), str(tmp_path / "own.safetensors"), "--size", "24", "--encoding", encoding])
    pipelines_main()
    store = Store(tmp_path / "own.safetensors")
    assert (store.height, store.width) == (24, 24) and "one in 5" in capfd.readouterr().err
    first = predict.read(str(folder / "cat/5.png"), 24, 24)  # as the net will be asked about it
    stored = np.concatenate([store.images(split) for split in store.splits]).astype(int)
    assert np.abs(stored - first).mean((1, 2, 3)).min() <= (0 if encoding == "raw" else 4)


@pytest.mark.parametrize("size", [-1, 513])
def test_a_size_that_cannot_be_is_refused(size, tmp_path):
    with pytest.raises(InputError, match="size"):
        convert(find("shapes"), tmp_path / "a.safetensors", size=size)
    assert not list(tmp_path.iterdir())


def test_a_size_belongs_to_the_cached_store_and_not_to_a_given_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    folder = photographs(tmp_path / "own")
    small, large = data.locate(str(folder), 16), data.locate(str(folder), 20)
    assert (small.height, large.height) == (16, 20) and data.locate(str(folder), 16).path == small.path
    assert data.locate(str(small.path), 16).path == small.path
    with pytest.raises(InputError, match="16x16"):
        data.locate(str(small.path), 20)


# Training on them


def layout(kind, path):
    if kind == "cifar100":
        return write_folder(path, cifar100()[0])
    return {"svhn": svhn_folder, "tiny-imagenet": tiny_imagenet, "pictures": photographs}[kind](path)


KINDS = {"cifar100": ("level1", 32, 2), "svhn": ("cpu", 32, 10), "tiny-imagenet": ("cpu", 64, 3), "pictures": ("level1", 48, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_trains_with_the_same_command(kind, tmp_path, capsys, monkeypatch):
    from train.__main__ import main

    recipe, size, classes = KINDS[kind]
    folder = layout(kind, tmp_path / kind)
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    sized = ["--size", "48"] if kind == "pictures" else []
    if size == 32:  # reports of such images are test_report.py's
        monkeypatch.setattr("train.report.write", lambda *_: None)
    flags = ["--data", str(folder), "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--out", str(tmp_path / "out"), *sized]
    monkeypatch.setattr(sys, "argv", ["train", recipe, *flags])
    main()
    model = result.model(tmp_path / "out")
    assert (model.height, model.width, len(model.classes)) == (size, size, classes)
    said = capsys.readouterr().out
    assert (
        " few: for so few images give more --epochs" in said
        and {"cifar100": "CIFAR-100", "svhn": "SVHN", "tiny-imagenet": "Tiny-ImageNet", "pictures": "held out"}[kind] in said
    )
    (tmp_path / "a.png").write_bytes(encoded(picture(side=40)))
    predict.main([str(tmp_path / "out"), str(tmp_path / "a.png")])
    answer = capsys.readouterr().out
    assert any(name in answer for name in model.classes)


@pytest.mark.parametrize("net,side,said", [("level1", 8, "8x8 pixels"), ("quick", 4, "4x4 pixels")])
def test_images_that_a_net_cannot_take_are_one_line(net, side, said, tmp_path):
    write_folder(tmp_path / "own", images(each=5, side=side))
    with pytest.raises(InputError, match=said) as refused_:
        train(Recipe(net=net, epochs=1, translate=0, data=str(tmp_path / "own"), device="cpu", out=str(tmp_path / "out")), "", lambda *_: None)
    assert "\n" not in str(refused_.value) and not (tmp_path / "out").exists()

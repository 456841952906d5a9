"""What `--data` means: stores, sources kept in the cache, and what happens where there is nothing."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import make_store
from PIL import Image

from pipelines import data, official
from pipelines.errors import InputError
from pipelines.store import cache_folder


def pictures(folder, count=3):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                colour = np.full((8, 8, 3), 20 * i + 100 * (name == "cat"), np.uint8)
                Image.fromarray(colour).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_store_is_used_where_it_lies(cache, tmp_path):
    made = make_store(tmp_path / "here.safetensors")
    assert data.locate(str(made.path)).path == made.path and not cache.exists()


def test_a_folder_with_one_store_means_that_store(cache, tmp_path):
    (tmp_path / "data").mkdir()
    made = make_store(tmp_path / "data" / "s.safetensors")
    assert data.locate().path.resolve() == made.path.resolve()


def test_a_folder_with_several_stores_is_not_taken_for_pictures(cache, tmp_path):
    for name in ("a", "b"):
        make_store(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"2 stores in it \(a.safetensors, b.safetensors\): name one with --data"):
        data.locate(str(tmp_path))


def test_a_source_is_converted_once_and_again_when_it_changes(cache, tmp_path, monkeypatch):
    folder = pictures(tmp_path / "own")
    first = data.locate(str(folder))
    assert first.path.parent == cache and first.classes == ("cat", "dog") and first.count("train") == 6
    monkeypatch.setattr(data, "convert", lambda *_: pytest.fail("converted again"))
    assert data.locate(str(folder)).path == first.path
    monkeypatch.undo()
    monkeypatch.setenv("TENFOLD_CACHE", str(cache))
    (folder / "train" / "cat" / "0.png").unlink()
    assert data.locate(str(folder)).count("train") == 5


def test_what_links_lead_to_is_part_of_the_source(cache, tmp_path):
    """Class folders that lie elsewhere, and pictures in a pool, of which a class is only links."""
    for owner in ("one", "two"):
        pictures(tmp_path / "disk" / owner)
        (tmp_path / owner / "own").mkdir(parents=True)
        for split in ("train", "test"):
            (tmp_path / owner / "own" / split).symlink_to(tmp_path / "disk" / owner / split)
    (tmp_path / "disk/two/train/cat/2.png").unlink()
    one, two = (data.locate(str(tmp_path / owner / "own")) for owner in ("one", "two"))
    assert (one.count("train"), two.count("train")) == (6, 5)
    (tmp_path / "disk/one/train/dog/2.png").unlink()
    assert data.locate(str(tmp_path / "one" / "own")).count("train") == 5
    pool = tmp_path / "disk/two/test"
    for i, name in enumerate(("cat", "cat", "dog", "dog")):
        (tmp_path / "linked" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "linked" / name / f"{i}.png").symlink_to(pool / name / f"{i % 2}.png")
    assert data.locate(str(tmp_path / "linked")).classes == ("cat", "dog")
    (tmp_path / "linked" / "cat").rename(tmp_path / "linked" / "ant")
    assert data.locate(str(tmp_path / "linked")).classes == ("ant", "dog")


def test_a_folder_of_any_name_is_converted(cache, tmp_path):
    for name in (b"caf\xe9", b"n" * 230, "ü".encode() * 120, b"a\nb"):
        assert data.locate(os.fsdecode(bytes(tmp_path) + b"/" + name) if pictures(tmp_path / os.fsdecode(name)) else "").count("train") == 6
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop", "a\0b"):
        with pytest.raises(InputError, match="no such file or folder"):
            data.locate(name)


def test_copies_that_macos_leaves_are_no_stores(cache, tmp_path):
    made = make_store(tmp_path / "data.safetensors")
    (tmp_path / "._data.safetensors").write_bytes(b"?")
    assert data.locate(str(tmp_path)).sha256 == made.sha256


def test_a_cache_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, path in (("", ".cache/tenfold"), ("~/x", "x")):
        monkeypatch.setenv("TENFOLD_CACHE", given)
        assert cache_folder() == tmp_path / path
    monkeypatch.setenv("TENFOLD_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(InputError, match="name a folder with TENFOLD_CACHE"):
        cache_folder()


def test_the_environment_names_the_data(cache, tmp_path, monkeypatch):
    made = make_store(tmp_path / "named.safetensors")
    monkeypatch.setenv("TENFOLD_DATA", str(made.path))
    assert data.locate().path == made.path


def test_without_data_or_network_shapes_are_trained_on_and_it_says_so(cache, monkeypatch, capsys):
    Path("data").mkdir()  # in which there is nothing
    nowhere = official.ARCHIVES["cifar10"].__class__(**{**vars(official.ARCHIVES["cifar10"]), "url": "file:///nowhere/cifar-10-python.tar.gz"})
    monkeypatch.setitem(official.ARCHIVES, "cifar10", nowhere)
    store = data.locate()
    assert store.source == "shapes" and store.count("train") == 10_000
    said = capsys.readouterr().err
    assert "shapes" in said and "nothing about CIFAR-10" in said


def test_a_named_source_that_cannot_be_had_is_an_error(cache):
    with pytest.raises(InputError, match="nowhere"):
        data.locate("nowhere")


def test_a_path_that_may_not_be_looked_at_is_one_line(cache, tmp_path, monkeypatch):
    def closed(path, *, follow_symlinks=True):  # as root every folder can be read, so this one only says that it cannot
        if Path(path).parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return looked(path, follow_symlinks=follow_symlinks)

    looked = os.stat
    pictures(tmp_path / "closed")
    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(InputError, match="closed/train: no such file or folder"):
        data.locate(str(tmp_path / "closed" / "train"))


def test_a_cache_that_cannot_be_made_is_named(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="TENFOLD_CACHE"):
        data.locate(str(pictures(tmp_path / "own")))

"""The official archives: as tar, as folder and by download; pickles that would do harm run nothing."""

import hashlib
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from makers import cifar10, cifar100, gathered, python2_pickle, python3_pickle, write_folder, write_tar

from pipelines import official
from pipelines.sources import find


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("make, name, folder", [(cifar10, "cifar10", "cifar-10-batches-py"), (cifar100, "cifar100", "cifar-100-python")])
def test_official_archive_as_tar_and_as_folder(make, name, folder, dump, tmp_path):
    files, pixels, labels = make(dump)
    tar = write_tar(tmp_path / f"{folder}.tar.gz", files, "w:gz")
    inside = write_folder(tmp_path / "unpacked", files)
    for source in (find(tar), find(inside / folder), find(inside)):
        assert source.name == name
        assert source.classes == (("airplane", "automobile", "bird") if name == "cifar10" else ("apple", "aquarium_fish"))
        found = gathered(source)
        np.testing.assert_array_equal(np.concatenate([found["train"][0], found["test"][0]]), pixels)
        np.testing.assert_array_equal(np.concatenate([found["train"][1], found["test"][1]]), labels)


def test_an_array_pickled_by_columns_is_not_garbled(tmp_path):
    files, pixels, _ = cifar100(lambda v: python3_pickle({k: np.asfortranarray(x) if k == b"data" else x for k, x in v.items()}))
    found = gathered(find(write_tar(tmp_path / "c.tar", files)))
    np.testing.assert_array_equal(found["train"][0], pixels[:4])


class Runs:
    """Pickles to a call."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def test_hostile_pickles_run_nothing(tmp_path, refused):
    ran = tmp_path / "ran"
    shell, code = f"touch {ran}", f"open({str(ran)!r}, 'w').close()"
    hostile = {
        "system": python3_pickle({b"data": Runs(os.system, shell)}),
        "eval": python3_pickle(Runs(eval, code)),
        "exec": python3_pickle([Runs(exec, code)]),
        "popen": b"csubprocess\nPopen\n((S'touch'\nS'" + str(ran).encode() + b"'\nltR.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        "mutates the admitted": b"\x80\x02c_codecs\nencode\nN}U\x0b__defaults__Ns\x86b.",
        "objects": python3_pickle({b"data": np.array([[1, "x"]], object), b"labels": [0]}),
        "floats": python3_pickle({b"data": np.zeros((1, 3072)), b"labels": [0]}),
        "huge": python3_pickle({b"data": Runs(np.ndarray, (1 << 40, 3072), "u1"), b"labels": [0]}),
        "short": python2_pickle({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 4})[:-4000],
        "wide": python2_pickle({b"data": np.zeros((4, 3073), np.uint8), b"labels": [0] * 4}),
        "labels": python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 3]}),
        "more labels": python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1, 1]}),
        "no dict": python3_pickle([1, 2]),
        "no pickle": b"hello",
        "nothing": b"",
    }
    files, _, _ = cifar10()
    for data in hostile.values():
        for name in ("data_batch_3", "batches.meta"):
            tar = write_tar(tmp_path / "c.tar", files | {f"cifar-10-batches-py/{name}": data})
            refused(tar, f"{tar}/{name}")
    assert not ran.exists()


def test_names_that_are_no_names_and_batches_that_are_missing(tmp_path, refused):
    files, _, _ = cifar10()
    for names in (5, [], [b"\xff", b"x", b"y"], [1, 2, 3], None):
        meta = {"cifar-10-batches-py/batches.meta": python3_pickle({b"label_names": names})}
        refused(write_tar(tmp_path / "c.tar", files | meta), "batches.meta")
    none = {"cifar-10-batches-py/test_batch": python2_pickle({b"data": np.empty((0, 3072), np.uint8), b"labels": []})}
    refused(write_tar(tmp_path / "c.tar", files | none), "test_batch: not a CIFAR batch")
    del files["cifar-10-batches-py/data_batch_4"]
    refused(write_tar(tmp_path / "c.tar", files), "data_batch_4")
    link = tarfile.TarInfo("cifar-10-batches-py/batches.meta")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    refused(write_tar(tmp_path / "links.tar", {}, extra=[link]), "links.tar")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """An "official" archive behind a file:// address; gives (cache folder, its pixels)."""
    files, pixels, _ = cifar10()
    remote = write_tar(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
    spec = replace(official.ARCHIVES["cifar10"], url=remote.as_uri(), md5=hashlib.md5(remote.read_bytes()).hexdigest())
    monkeypatch.setitem(official.ARCHIVES, "cifar10", spec)
    return tmp_path / "cache" / "deeper", pixels


def test_download_is_checked_and_kept(served, tmp_path):
    cache, pixels = served
    np.testing.assert_array_equal(gathered(find("cifar10", cache))["train"][0], pixels[:20])
    assert [p.name for p in cache.iterdir()] == ["cifar-10-python.tar.gz"]
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    assert find("cifar10", cache).name == "cifar10"  # from the cache, the remote is gone


def test_an_archive_that_may_not_be_read_is_named(served, tmp_path, monkeypatch, refused):
    cache, _ = served
    monkeypatch.setenv("TENFOLD_CACHE", str(cache))
    find("cifar10")

    def closed(path):  # as root every file can be read, so this one only says that it cannot
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(official, "_md5", closed)
    refused("cifar10", cache / "cifar-10-python.tar.gz", "Permission denied", "TENFOLD_CACHE")


def test_download_that_fails_leaves_nothing(served, tmp_path, monkeypatch, refused):
    cache, _ = served
    monkeypatch.setenv("TENFOLD_CACHE", str(cache))
    good = official.ARCHIVES["cifar10"]
    monkeypatch.setitem(official.ARCHIVES, "cifar10", replace(good, md5="0" * 32))
    refused("cifar10", "md5")
    monkeypatch.setitem(official.ARCHIVES, "cifar10", replace(good, url="file:///nowhere/c.tar.gz"))
    refused("cifar10", "file:///nowhere/c.tar.gz")
    assert not cache.exists() or not list(cache.iterdir())
    monkeypatch.setitem(official.ARCHIVES, "cifar10", good)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "file"))
    refused("cifar10", tmp_path / "file")

"""Folders and tars of images: what is read is right, and what is bad is refused in one line that names it, with nothing left behind."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from makers import OPENERS, encoded, image_source, images, is_sample_images, picture, write_folder, write_tar

from pipelines import sources
from pipelines.__main__ import main
from pipelines.convert import convert
from pipelines.errors import InputError, exit_code
from pipelines.sources import find
from pipelines.store import Store

REPOSITORY = Path(__file__).parents[1]


# Image folders and tars


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_image_folder(kind, split, tmp_path):
    write_folder(tmp_path / "train", images(kind=kind) | {"ant/notes.txt": b"x", "ant/._0.png": b"x", ".git/0.png": b"x"})
    write_folder(tmp_path / split, images(first=50, kind=kind))
    is_sample_images(find(tmp_path), kind)


@pytest.mark.parametrize("ending", OPENERS)
def test_tars_of_class_folders_in_any_order(ending, tmp_path):
    shuffled = dict(sorted(images().items(), key=lambda kv: kv[0][::-1]))
    write_tar(tmp_path / f"train{ending}", {f"./{n}": d for n, d in shuffled.items()}, OPENERS[ending])
    write_tar(tmp_path / f"test{ending}", images(first=50), OPENERS[ending])
    is_sample_images(find(tmp_path))


def test_a_folder_and_a_tar(tmp_path):
    write_folder(tmp_path / "train", images())
    write_tar(tmp_path / "val.tar.gz", images(first=50), "w:gz")
    is_sample_images(find(tmp_path))


@pytest.mark.parametrize("around, split", [("", "test"), ("pets/", "validation")])
def test_one_tar_of_splits(around, split, tmp_path):
    files = {f"{around}{split}/{n}": d for n, d in images(first=50).items()} | {f"{around}train/{n}": d for n, d in images().items()}
    is_sample_images(find(write_tar(tmp_path / "pets.tar.xz", files, "w:xz")))
    assert find(tmp_path / "pets.tar.xz").name == "pets"


@pytest.mark.parametrize("around", ["", "pets/", "./a/b/"])
@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_a_tar_has_the_images_of_its_folder(around, splits, tmp_path):
    """Those of folders in a class's folder, and a class called as a split, too."""
    files = {f"{split}{name}": data for i, split in enumerate(splits) for name, data in images(first=50 * i).items()}
    for split in splits:
        files |= {f"{split}bee/more/{name}": picture for name, picture in (("8.png", files[f"{split}bee/0.png"]), ("9.png", files[f"{split}bee/1.png"]))}
        if split:
            files |= {f"{split}train/0.png": files[f"{split}bee/0.png"], f"{split}train/1.png": files[f"{split}bee/1.png"]}
    write_folder(tmp_path / "d", files)
    write_tar(tmp_path / "d.tar", {around + name: data for name, data in files.items()})
    folder, tar = find(tmp_path / "d"), find(tmp_path / "d.tar")
    assert tar.classes == folder.classes and {s: v[0] for s, v in tar.splits.items()} == {s: v[0] for s, v in folder.splits.items()}
    for split in ("train", "test"):
        ours, theirs = ({(item.label, item.picture) for item in source.splits[split][1]()} for source in (tar, folder))
        assert ours == theirs


def test_pictures_that_nothing_decodes_are_counted_and_no_class_is_lost(tmp_path, refused):
    files = {f"train/{n}": d for n, d in images().items()} | {f"test/{n}": d for n, d in images(first=50).items()}
    files |= {"train/bee/x.HEIC": b"?", "test/bee/y.avif": b"?", "train/bee/notes.txt": b"?"}
    for place in (write_folder(tmp_path / "d", files), write_tar(tmp_path / "d.tar", files)):
        found = find(place or tmp_path / "d")
        is_sample_images(found)
        assert found.note == "2 pictures of kinds that are not read here (.avif, .heic) are left out: make JPEG or PNG files of them"
    refused(write_tar(tmp_path / "e.tar", files | {"train/cow/0.heic": b"?", "test/cow/0.heic": b"?"}), "cow", "make JPEG or PNG files of them")


def test_what_is_left_out_is_said(tmp_path):
    files = images() | {"0.png": b"?", "cover.jpg": b"?", "ant/more/0.jfif": encoded(picture(), "JPEG"), "bee/0.pgm": encoded(picture()[:, :, 0], "PPM")}
    (write_folder(tmp_path / "d", files) / "cow").mkdir()
    write_tar(tmp_path / "d.tar", files)
    for place in ("d", "d.tar"):
        found = find(tmp_path / place)
        assert sum(count for count, _ in found.splits.values()) == 8 and found.classes == ("ant", "bee")
        said = [f"2 pictures beside the class folders are left out, such as {tmp_path / place}/0.png"]
        assert found.note.splitlines()[1:] == said + [f"{tmp_path}/d/cow: no pictures in it, and so no class"] * (place == "d")
    splits = {f"{split}/{name}": data for split in ("train", "val", "test") for name, data in images().items()}
    for place in (write_folder(tmp_path / "s", splits), write_tar(tmp_path / "s.tar", splits)):
        assert find(place).note == f"{place}: val left out, as there is another place of the same split"


def test_links_to_folders_are_gone_through_once(tmp_path):
    elsewhere = write_folder(tmp_path / "elsewhere", images())
    source = write_folder(tmp_path / "s", images(first=50))
    (source / "ant/more").symlink_to(elsewhere / "ant")
    (source / "cow").symlink_to(elsewhere / "bee")
    (source / "bee/loop").symlink_to(source / "bee")
    (elsewhere / "bee/around").symlink_to(tmp_path)  # through which all of it would be found without an end
    found = find(source)
    assert found.classes == ("ant", "bee", "cow")
    read = sorted(item.where for _, items in found.splits.values() for item in items() if "/around/" not in item.where)
    assert read == sorted(f"{source}/{name}/{i}.png" for name in ("ant", "ant/more", "bee", "cow") for i in range(3))


def test_links_and_devices_in_a_tar_are_no_images(tmp_path):
    extra = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo(f"cow/{kind.decode()}.png")
        member.type, member.linkname = kind, "/etc/passwd"
        extra.append(member)
    write_tar(tmp_path / "train.tar", images(), extra=extra)
    write_folder(tmp_path / "test", images(first=50))
    is_sample_images(find(tmp_path))


def test_a_name_twice_in_a_tar_counts_once_and_the_last_is_it(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for files in (images(first=70), images()):
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write_folder(tmp_path / "test", images(first=50))
    is_sample_images(find(tmp_path))


def test_names_that_are_not_utf8(tmp_path, refused):
    source = image_source(tmp_path / os.fsdecode(b"caf\xe9"))
    (source / "train/ant/0.png").rename(source / "train/ant" / os.fsdecode(b"\xff.png"))
    out = tmp_path / "s.safetensors"
    convert(find(source), out)
    assert Store(out).source == r"caf\udce9" and Store(out).count("train") == 6
    (source / "test/ant/0.png").write_bytes(b"no image")
    refused(source, "0.png")
    with pytest.raises(InputError, match="UTF-8"):
        convert(find("shapes"), tmp_path / os.fsdecode(b"\xfe.safetensors"))


# What is refused


def test_places_that_hold_no_images(tmp_path, refused):
    refused(tmp_path / "missing", tmp_path / "missing")
    refused("x" * 5000, "no such file")
    refused("a\nb", "a b")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "empty", "train/<class>")
    write_folder(tmp_path / "flat", {"train/0.png": encoded(picture())})
    refused(tmp_path / "flat", tmp_path / "flat")
    refused(write_tar(tmp_path / "none.tar", {}), "none.tar")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", tmp_path / "pipe")
    refused("/dev/null", "/dev/null")


def test_what_is_no_archive_is_not_called_a_damaged_one(tmp_path, refused):
    (tmp_path / "a.safetensors").write_bytes(b"x" * 600)
    refused(tmp_path / "a.safetensors", "a store, not what one is made of")
    (tmp_path / "a.PNG").write_bytes(encoded(picture()))
    refused(tmp_path / "a.PNG", "one picture: name the folder around")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("ant/0.png", encoded(picture()))
    refused(tmp_path / "a.zip", "a zip archive: unpack it")
    last = write_tar(tmp_path / "a.tar", images(each=5) | {"last.zip": (tmp_path / "a.zip").read_bytes()})
    assert zipfile.is_zipfile(last) and find(last).classes == ("ant", "bee")


@pytest.mark.parametrize("splits", [("Training", "Testing"), ("TRAIN", "Val")])
def test_splits_by_other_names_are_no_classes(splits, tmp_path, refused):
    files = {f"{split}/{name}": data for split in splits for name, data in images().items()}
    for source in (write_folder(tmp_path / "pets", files), write_tar(tmp_path / "pets.tar", files)):
        refused(source, source, *splits, "rename them to train and test")


def test_folders_that_may_not_be_read(tmp_path, monkeypatch, refused):
    source, listed = image_source(tmp_path / "s"), Path.iterdir

    def closed(path):  # as root every folder can be read, so this one only says that it cannot
        if path == source:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    assert "Permission denied" in refused(source, source)


def test_classes_must_be_the_same_in_both_splits(tmp_path, refused):
    write_folder(tmp_path / "s/train", images(("ant", "bee")))
    write_folder(tmp_path / "s/test", images(("ant", "cow")))
    assert "'bee'" in refused(tmp_path / "s", tmp_path / "s")
    image_source(tmp_path / "odd", classes=("ant", os.fsdecode(b"b\xffe")))
    refused(tmp_path / "odd", tmp_path / "odd/train", "rename")


def damaged_tars(folder: Path, files: dict[str, bytes]):
    """Yield tars that are text, cut, or with a flipped byte in a header or, where compressed, in the checksum."""
    for ending, mode in {".tar": "w", ".tar.gz": "w:gz", ".tar.xz": "w:xz"}.items():
        whole = write_tar(folder / f"whole{ending}", files, mode).read_bytes()
        text = b"This is no archive.\n" * 100
        cuts = [text, b"", whole[: len(whole) // 2], whole[: len(whole) // 2 // 512 * 512], whole[:-9] if ending != ".tar" else whole[:700]]
        flips = [512 * (1 + -(-len(next(iter(files.values()))) // 512)) + 3] if ending == ".tar" else [len(whole) // 2, len(whole) - 6]
        for at in flips:
            cuts.append(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for data in cuts:
            yield ending, data


def test_damaged_tars(tmp_path, refused):
    files = {f"{split}/{n}": d for split in ("train", "test") for n, d in images(each=12, side=16).items()}
    for ending, data in damaged_tars(tmp_path, files):
        path = tmp_path / f"bad{ending}"
        path.write_bytes(data)
        refused(path, path)
        path.unlink()
    split = tmp_path / "split"
    write_folder(split / "test", images())
    for ending, data in damaged_tars(tmp_path, images(each=12, side=16)):
        (split / f"train{ending}").write_bytes(data)
        refused(split, split / f"train{ending}")
        (split / f"train{ending}").unlink()


def test_a_plain_tar_cut_anywhere_is_refused_or_whole(tmp_path):
    files = {f"{split}/{n}": d for split in ("train", "test") for n, d in images(each=1).items()}
    whole = write_tar(tmp_path / "whole.tar", files).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in range(0, len(whole), 256):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        try:
            assert find(tmp_path / "cut.tar").splits["train"][0] == 2 and size >= end
        except InputError as error:
            assert "cut.tar" in str(error) and size < end + 1024


def test_members_that_lead_outside(tmp_path, refused):
    files = {f"{split}/{n}": d for split in ("train", "test") for n, d in images().items()}
    for name in ("../evil.png", "/etc/evil.png", "train/../../evil.png"):
        assert "leads outside" in refused(write_tar(tmp_path / "evil.tar", files | {name: b"x"}), "evil.tar", name)


def claiming(png: bytes, side: int) -> bytes:
    """A PNG that says it is side x side pixels, its header's checksum right."""
    head = png[12:16] + side.to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]


def test_images_that_cannot_be_used(tmp_path, refused):
    jpeg, png = encoded(picture(), "JPEG"), encoded(picture())
    bad = {
        "text.png": b"no image",
        "nothing.png": b"",
        "half.jpeg": jpeg[: len(jpeg) // 2],
        "last.jpeg": jpeg[:-20],
        "half.png": png[: len(png) // 2],
        "flipped.png": png[:40] + bytes([png[40] ^ 255]) + png[41:],
        "bomb.png": claiming(png, 30_000),  # Pillow refuses to open it
        "warned.png": claiming(png, 10_000),  # Pillow opens it with a warning
        "large.png": encoded(picture(side=513)),
        "sixteen.png": encoded(np.zeros((8, 8), np.uint16)),
        "other.png": encoded(picture(side=9)),
    }
    for name, data in bad.items():
        source = image_source(tmp_path / name)
        (source / "train/bee" / name).write_bytes(data)
        refused(source, source / "train/bee" / name)
    write_folder(tmp_path / "in", {})
    for name in ("half.jpeg", "other.png"):
        files = images() | {f"bee/{name}": bad[name]}
        write_tar(tmp_path / f"{name}.tar", {f"{s}/{n}": d for s in ("train", "test") for n, d in files.items()})
        refused(tmp_path / f"{name}.tar", f"{name}.tar/train/bee/{name}", encoding="jpeg")


def test_things_named_like_images(tmp_path, refused):
    makers = {
        "folder.png": Path.mkdir,
        "pipe.png": os.mkfifo,
        "device.png": lambda path: path.symlink_to("/dev/zero"),
        "gone.png": lambda path: path.symlink_to("/gone"),
    }
    for name, make in makers.items():
        source = image_source(tmp_path / name)
        make(source / "train/ant" / name)
        refused(source, source / "train/ant" / name)
    sparse = image_source(tmp_path / "sparse")
    with (sparse / "test/ant/huge.png").open("wb") as file:
        file.truncate(1 << 36)
    refused(sparse, sparse / "test/ant/huge.png")


def test_splits_of_two_sizes(tmp_path, refused):
    write_folder(tmp_path / "s/train", images(side=8))
    write_folder(tmp_path / "s/test", images(side=9))
    refused(tmp_path / "s", tmp_path / "s/test/ant/0.png", "9x9 and 8x8")


def test_places_that_cannot_take_a_store(tmp_path, monkeypatch, capfd):
    source = image_source(tmp_path / "s")
    tar = write_tar(tmp_path / "s.tar", images())
    (tmp_path / "folder.safetensors").mkdir()
    before = tar.read_bytes()
    names = ("missing/s.safetensors", "/proc/x.safetensors", "folder.safetensors", tar.name, "", "/", "s.tar/x.safetensors")
    for out in (*(tmp_path / name for name in names), "."):
        monkeypatch.setattr(sys, "argv", ["pipelines", "convert", str(source), str(out)])
        assert exit_code(main) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error
    assert tar.read_bytes() == before


def test_what_cannot_be_written_is_refused_before_a_download(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sources, "download", lambda *_: pytest.fail("a download"))
    for words in (["out.txt"], [str(tmp_path / "s.safetensors"), "--size", "9999"]):
        monkeypatch.setattr(sys, "argv", ["pipelines", "convert", "cifar10", *words])
        assert exit_code(main) == 2 and capfd.readouterr().err.count("\n") == 1


def test_the_command_line_itself(tmp_path):
    """One good and one bad run in their own processes: exit codes, stdout and stderr as a person sees them."""
    source, out = image_source(tmp_path / "s"), tmp_path / "s.safetensors"

    def run(*words):
        return subprocess.run([sys.executable, "-m", "pipelines", *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True)

    bad = run("convert", tmp_path / "missing", out)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1) and str(tmp_path / "missing") in bad.stderr
    good = run("convert", source, out)
    assert (good.returncode, good.stderr) == (0, "") and str(out) in good.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "s.safetensors"]


def test_a_source_that_changes_while_it_is_read(tmp_path):
    source = find(image_source(tmp_path / "s"))
    (tmp_path / "s/train/ant/1.png").unlink()
    with pytest.raises(InputError, match="1.png"):
        convert(source, tmp_path / "s.safetensors")
    assert not list(tmp_path.glob("*.safetensors")) and sources.find(tmp_path / "s").splits["train"][0] == 5

"""Image files in folders and tars: <split>/<class>/<image>, class folders without a split, and Tiny-ImageNet's layout."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from os.path import exists, isdir, isfile  # unlike Path's, False for what may not be looked at
from pathlib import Path
from stat import S_ISREG
from typing import NoReturn

from pipelines import tars
from pipelines.errors import InputError, plain
from pipelines.files import walk
from pipelines.items import Item, Source
from pipelines.pictures import MOST_BYTES
from pipelines.plan import order
from pipelines.store import is_utf8

LAYOUT = "expected train/<class>/* and test/<class>/*, or <class>/*, or train.tar and test.tar of class folders"
SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
NEARLY = {"training", "testing", *(alias for several in SPLITS.values() for alias in several)}  # in any case: folders of splits, taken for classes
SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .bmp .webp .gif .ppm .pgm .pbm .pnm .tif .tiff".split())
UNREAD = tuple(".heic .heif .avif .jxl .jp2 .svg .psd .raw .dng .cr2 .cr3 .nef .arw".split())  # pictures, too, which nothing here decodes
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
HELD_OUT = 5  # of so many images of a class one is tested on, where a source has no test images
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's: a line an image, its name, class and box, apart by tabs
MOST_TEXT = 1 << 22  # bytes of a text file: Tiny-ImageNet's longest has 2.6 MB


@dataclass(frozen=True)
class Files:
    """The image files of a split: where they are, their sorted names, what a name's class is, and (place, bytes) of each of some names.

    What is left out: the names of pictures that nothing here decodes, of images that lie beside the class folders, and of folders without any.
    """

    where: Path
    names: list[str]
    class_of: Callable[[str], str]
    contents: Callable[[list[str]], Iterator[tuple[int, bytes]]]
    unread: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def image_folder(path: Path) -> Source:
    """<path>/<split>/<class>/..., where <split> is a folder or a tar of class folders; or <path>/<class>/... without a split."""
    if isfile(path / "val" / ANNOTATIONS):
        return tiny_imagenet(path)
    found = {}
    spare: list[str] = []
    for split, aliases in SPLITS.items():
        places = [p for a in aliases for p in (path / a, *(path / (a + s) for s in TARS))]
        places = [p for p in places if (holds_classes(p) if isdir(p) else exists(p))]  # a class may be called train
        if places:
            found[split] = in_folder(places[0]) if isdir(places[0]) else in_tar(places[0], tars.index(places[0]))
            spare += [p.name for p in places[1:]]
    if set(found) == {"train"}:
        alone(path, found["train"].where, [f.name for f in entries(path) if holds_images(f) and f.name not in SPLITS["test"]])
    return arranged(path, os.path.basename(os.path.realpath(path)), found or {"": in_folder(path)}, spare)


def image_tar(path: Path, members: dict[str, tars.tarfile.TarInfo]) -> Source:
    """One tar of <split>/<class>/<image> or <class>/<image>; a common folder around them is allowed. `members` is its index."""
    found = {}
    around, there = above_classes(members)
    spare: list[str] = []
    for split, aliases in SPLITS.items():
        named = [a for a in aliases if a in there]
        spare += named[1:]
        for alias in named[:1]:
            found[split] = in_tar(path, {n: m for n, m in members.items() if tars.parts(n)[around : around + 1] == [alias]})
    if set(found) == {"train"}:
        folders = {names[around] for names in map(tars.parts, members) if len(names) > around + 1 and is_image(names)}
        alone(path, path / "train", sorted(folders - set(SPLITS["test"])))
    return arranged(path, path.name.split(".")[0], found or {"": in_tar(path, members)}, spare)


def alone(path: Path, train: Path, folders: list[str]) -> None:
    """Raise `InputError` where folders of images lie beside those of train, without a split for tests: they would be left out without a word."""
    others = sorted(name for name in folders if name not in (train.name, "train"))
    if splits := [name for name in others if name.lower() in NEARLY]:
        raise InputError(f"{path}: a split by another name, {', '.join(splits)}, beside {train.name}: rename it to test")
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise InputError(f"{path}: {train.name} has class folders, and images lie beside it, too ({shown}): {LAYOUT}")


def holds_classes(place: Path) -> bool:
    """Whether it is a folder with folders of images, however deep, in it."""
    return isdir(place) and any(holds_images(f) for f in entries(place))


def holds_images(place: Path) -> bool:
    """Whether it is a folder that is not hidden, with images in it, however deep."""
    if not isdir(place) or place.name.startswith("."):
        return False
    return any(is_image([*Path(inside).relative_to(place).parts, name]) for inside, _, files in walk(place) for name in files)


def above_classes(members: Iterable[str]) -> tuple[int, set[str]]:
    """(how many folders lie around all images of a tar, the folders of splits in them; none where the classes come next)."""
    aliases, around = {alias for several in SPLITS.values() for alias in several}, 0
    folders = [names[:-1] for names in map(tars.parts, members) if names and is_image(names)]
    while folders:
        there = {names[around] for names in folders if len(names) > around + 1}
        if there & aliases or len(there) != 1 or any(len(names) < around + 2 for names in folders):
            return around, there & aliases
        around += 1
    return 0, set()


def arranged(path: Path, name: str, found: dict[str, Files], spare: list[str]) -> Source:
    """The source of what was found: both splits, or train (or class folders, "") alone, of which some are then held out. `spare`: what else is named like a split."""
    notes = [f"{path}: {' and '.join(spare)} left out, as there is another place of the same split"] * bool(spare)
    if "test" in found:
        if "train" not in found:
            raise InputError(f"{path}: no train images: {LAYOUT}")
        return source_of(name, found, notes)
    if "" in found:
        classes = sorted({found[""].class_of(n) for n in found[""].names})
        if all(c.lower() in NEARLY for c in classes):  # a net would learn to tell the splits apart
            raise InputError(f"{path}: splits by other names, {', '.join(classes)}: rename them to train and test")
    train, test = held_out(found.get("train") or found[""])
    note = f"{path}: no test images in it: one in {HELD_OUT} of each class ({len(test.names):,} of {len(test.names) + len(train.names):,}) is left out of training to test on"
    return source_of(f"{name} (one in {HELD_OUT} held out)", {"train": train, "test": test}, [note, *notes])


def held_out(files: Files) -> tuple[Files, Files]:
    """(train, test): a fixed choice from each class, by the plan's hash of a name's place in it."""
    by_class: dict[str, list[str]] = {}
    for name in files.names:
        by_class.setdefault(files.class_of(name), []).append(name)
    chosen = set()
    for owner, names in by_class.items():
        if len(names) < 2:
            raise InputError(f"{files.where}: class {owner!r} has one image, and there is no test folder: give it more, or remove it")
        chosen.update(names[i] for i in order(0, 0, len(names))[: max(1, len(names) // HELD_OUT)])
    if len(by_class) < 2:
        raise InputError(f"{files.where}: images of one class only, {next(iter(by_class))!r}: {LAYOUT}")
    train, test = (replace(files, names=[n for n in files.names if (n in chosen) == tested]) for tested in (False, True))
    return train, test


def source_of(name: str, splits: dict[str, Files], notes: Iterable[str] = (), titles: dict[str, str] | None = None) -> Source:
    """A source of image files; every split must have the same classes, sorted. `titles` are their names for people."""
    owners = {split: [files.class_of(n) for n in files.names] for split, files in splits.items()}
    note = "\n".join(map(plain, (*notes, *left_out(splits))))
    train, test = set(owners["train"]), set(owners["test"])
    for odd in sorted(train ^ test):
        raise InputError(f"{splits['test'].where}: class {odd!r:.200} is not in both train and test: give both the same class folders")
    for odd in (c for c in train if not is_utf8(c)):
        raise InputError(f"{splits['train'].where}: the name of class folder {odd!a} is not UTF-8: rename it")
    labels = {c: i for i, c in enumerate(sorted(train))}

    def items(split):
        files, mine = splits[split], [labels[c] for c in owners[split]]
        for place, data in files.contents(files.names):
            yield Item(place, f"{files.where}/{files.names[place]}", mine[place], data)

    readable = name.encode("utf-8", "backslashreplace").decode()  # a store holds UTF-8 only
    classes = tuple((titles or {}).get(c, c) for c in labels)
    return Source(readable, classes, {s: (len(files.names), partial(items, s)) for s, files in splits.items()}, note)


def left_out(splits: dict[str, Files]) -> list[str]:
    """What to say of what is left out. Raises `InputError` where a class has no pictures but such as nothing here decodes."""
    for files in splits.values():
        for owner in sorted({files.class_of(n) for n in files.unread} - {files.class_of(n) for n in files.names}):
            raise InputError(
                f"{files.where}/{owner}: no pictures of a kind that is read here, but others ({kinds(files.unread)}): make JPEG or PNG files of them"
            )
    unread, loose, empty = (
        list({f"{files.where}/{n}": None for files in splits.values() for n in getattr(files, kind)}) for kind in ("unread", "loose", "empty")
    )
    lines = []
    if unread:
        lines.append(f"{len(unread):,} pictures of kinds that are not read here ({kinds(unread)}) are left out: make JPEG or PNG files of them")
    if loose:
        lines.append(f"{len(loose):,} pictures beside the class folders are left out, such as {loose[0]}")
    if empty:
        lines.append(f"{', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}: no pictures in it, and so no class")
    return lines


def kinds(names: list[str]) -> str:
    return ", ".join(sorted({Path(name).suffix.lower() for name in names}))


def tiny_imagenet(path: Path) -> Source:
    """Tiny-ImageNet as it is unpacked: train/<class>/images/*, val/images/* with `val_annotations.txt`, words.txt.

    The validation images are the test split, as those of test/ have no labels. Classes are called by the first of their words.
    """
    place = path / "val" / ANNOTATIONS
    owner = {}
    for number, line in enumerate(lines(place), start=1):
        name, *rest = line.split("\t")
        if not rest or "/" in name or not is_image(["images", name]):
            raise InputError(f"{place}: line {number} names no image and class: get the archive again")
        owner[name] = rest[0]
    where = path / "val" / "images"
    names = sorted(name for name in owner if isfile(where / name))
    if len(names) < len(owner) or not names:
        raise InputError(f"{where}: {len(owner) - len(names)} of the images that {ANNOTATIONS} names are missing: get the archive again")
    test = Files(where, names, owner.__getitem__, partial(from_folder, where))
    return source_of("tiny-imagenet", {"train": in_folder(path / "train"), "test": test}, titles=words(path / "words.txt"))


def words(place: Path) -> dict[str, str]:
    """Class to the first of its words, with the class beside it where two have the same; empty where there is no such file."""
    if not isfile(place):
        return {}
    first = {name: rest.split(",")[0].strip() for name, tab, rest in (line.partition("\t") for line in lines(place)) if tab}
    count = Counter(first.values())
    return {name: word if count[word] == 1 else f"{word} ({name})" for name, word in first.items() if word}


def lines(place: Path) -> list[str]:
    try:
        tars.check_size(str(place), place.stat().st_size, MOST_TEXT)
        return place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place}: cannot be read ({getattr(error, 'strerror', None) or 'no text'}): get the archive again") from None


def is_image(names: list[str], suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether .../<folder>/<image> is one; hidden files, such as the `._` copies that macOS leaves, are none."""
    return names[-1].lower().endswith(suffixes) and not any(n.startswith(".") for n in names)


def in_tar(path: Path, members: dict[str, tars.tarfile.TarInfo]) -> Files:
    """The images of a tar's <class>/, those of folders in it included; folders around all of them do not count."""
    around, there = above_classes(members)
    place = around + bool(there)
    names, unread = (sorted(n for n in members if len(tars.parts(n)) >= place + 2 and is_image(tars.parts(n), suffixes)) for suffixes in (SUFFIXES, UNREAD))
    loose = sorted(n for n in members if 0 < len(tars.parts(n)) < place + 2 and is_image(tars.parts(n)))
    if not names:
        raise InputError(f"{path}: no images in it: {LAYOUT}")
    return Files(path, names, lambda name: tars.parts(name)[place], lambda chosen: tars.contents(path, [members[n] for n in chosen], MOST_BYTES), unread, loose)


def in_folder(path: Path) -> Files:
    """The images of <path>/<class>/, those of folders in it included."""
    names: list[str] = []
    unread: list[str] = []
    empty, inner = [], [f for f in entries(path) if not f.name.startswith(".")]
    for owner in filter(isdir, inner):
        before = len(names) + len(unread)
        for place, folders, files in walk(owner, onerror=listed):
            inside = Path(place).relative_to(path).as_posix()
            names += [f"{inside}/{name}" for name in (*files, *folders) if is_image([name])]  # a folder of such a name is refused when it is read
            unread += [f"{inside}/{name}" for name in files if is_image([name], UNREAD)]
            folders[:] = [name for name in folders if not name.startswith(".") and not is_image([name])]
        empty += [owner.name] * (len(names) + len(unread) == before)
    if not names:
        raise InputError(f"{path}: no images in it: {LAYOUT}")
    loose = sorted(f.name for f in inner if is_image([f.name]) and not isdir(f))
    return Files(path, sorted(names), lambda name: name.split("/")[0], partial(from_folder, path), sorted(unread), loose, sorted(empty))


def entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError as error:
        listed(error)


def listed(error: OSError) -> NoReturn:
    """Raise `InputError` for a folder that could not be listed."""
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}): allow it to be read") from None


def from_folder(path: Path, names: list[str]) -> Iterator[tuple[int, bytes]]:
    return ((i, read(path / name)) for i, name in enumerate(names))


def read(file: Path) -> bytes:
    """A file's bytes. Raises `InputError` for what is no plain file, or larger than any image."""
    try:
        status = file.stat()
        if not S_ISREG(status.st_mode):  # a folder, or a device that never ends
            raise InputError(f"{file}: named like an image, but no plain file: rename or remove it")
        tars.check_size(str(file), status.st_size, MOST_BYTES)
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}): mend or remove it") from None

"""The readers that are fuzzed: good files for each, ways to spoil them, and how what was read is checked.

A `Reader` has `make(rng) -> (mutation's name, {file name: bytes})` and `read(folder)`, which gives what was read or raises. A
reader that accepts a file must hand out what the file says: the asserts here are the "right result" of a case.
"""

import gzip
import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import fuzz_archives as archives
import fuzz_layouts as layouts
import fuzz_mutations as spoilt
import numpy as np
import torch
from makers import picture, python2_pickle
from PIL import Image
from torch import nn

import nets
from pipelines import reference
from pipelines.__main__ import describe
from pipelines.convert import convert
from pipelines.sources import find
from pipelines.store import Store
from train import checkpoint, compare, predict, result, saving
from train.course import Diverged
from train.jobs import earlier
from train.loop import Training
from train.recipe import Recipe
from train.state import go_on, read, recipe_of, taken
from train.stopwatch import Stopwatch

CLASSES = ("ant", "bee")
KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF")
OTHERS = ("EPS", "PCX", "ICO", "ICNS", "JPEG2000", "TGA", "SGI", "DDS", "IM")  # readable by Pillow, and no image format of ours
ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}
RECIPE = Recipe(seed=3)


@dataclass(frozen=True)
class Reader:
    """A kind of file: what is tried, and how it is read."""

    make: Callable[[Random], tuple[str, dict[str, bytes]]]
    read: Callable[[Path], object]


# Good files, made once


@cache
def image(kind: str, seed: int, mode: str = "RGB") -> bytes:
    options = {"TIFF": {"compression": (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")[seed % 4]}, "JPEG": {"progressive": seed % 2 == 1}}
    file = io.BytesIO()
    Image.fromarray(picture(seed, 32 if kind in OTHERS else 8)).convert(mode).save(file, kind, **options.get(kind, {}))
    return file.getvalue()


@cache
def picture_files(kind: str) -> dict[str, bytes]:
    return {
        f"{split}/{name}/{i}.png": image(kind, 4 * s + 2 * c + i)
        for s, split in enumerate(("train", "test"))
        for c, name in enumerate(CLASSES)
        for i in range(2)
    }


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@cache
def official_files(protocol: int) -> dict[str, bytes]:
    """CIFAR-10's seven pickles, two images in each. Protocol 0 is what Python 2 wrote; it made protocol 2 without memo."""
    dump = python2_pickle if protocol == 0 else lambda value: pickle.dumps(value, protocol)
    rng, files = np.random.default_rng(protocol), {"batches.meta": dump({b"num_vis": 3072, b"label_names": [b"ant", b"bee", b"fly"]})}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {b"batch_label": b"a batch", b"labels": [1, 2], b"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), b"filenames": [b"a.png", b"b.png"]}
        files[name] = dump(batch)
    return {f"cifar-10-batches-py/{name}": data for name, data in files.items()}


@cache
def cifar100_files(protocol: int) -> dict[str, bytes]:
    """CIFAR-100's three pickles, two images in each split."""
    rng, files = np.random.default_rng(protocol), {"meta": {b"fine_label_names": [b"ant", b"bee"], b"coarse_label_names": [b"all"]}}
    for name in ("train", "test"):
        files[name] = {b"fine_labels": [0, 1], b"coarse_labels": [0, 0], b"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8)}
    return {f"cifar-100-python/{name}": pickle.dumps(value, protocol) for name, value in files.items()}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def training(store: Store) -> Training:
    """Two epochs of two steps, the last batch of one image."""
    recipe = replace(RECIPE, pipeline="reference", device="cpu", precision="fp32", epochs=2, batch_size=3, lr=0.01, cutout=0, translate=2)
    loaders = [reference.open(store, split, batch_size=3, policy=recipe.policy(), seed=3) for split in ("train", "test")]
    return Training(recipe, net(), *loaders, torch.device("cpu"), Stopwatch())


# What sessions share: made by `prepare`, in a folder of their own, before anything is spoilt

GOOD: dict[str, bytes] = {}
STORE: list[Store] = []
STATES: list[dict] = []  # of a training, after each step and epoch


def prepare(folder: Path) -> None:
    """Make the good files that the project's own writers make. Each reader reads its own once."""
    for encoding, kind in (("raw", "PNG"), ("jpeg", "JPEG")):
        source = folder / "source.tar"
        source.write_bytes(tar_of(picture_files(kind)))
        convert(find(source), folder / "a.safetensors", encoding)
        GOOD[encoding] = (folder / "a.safetensors").read_bytes()
    torch.manual_seed(0)
    trained = net()
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.ones(2, 3, 3, 3)).sum().backward()
    optimiser.step()
    state = {"net": trained.state_dict(), "optimiser": optimiser.state_dict(), "epoch": 2, "random": {"cpu": torch.get_rng_state()[:16].clone()}}
    torch.save({**state, "history": [{"epoch": 1, "loss": 0.5}], "plateau": None, "recipe": {"name": "", **asdict(RECIPE)}}, folder / "checkpoint.pt")
    checkpoint.save_model(folder / "model.safetensors", trained, {"net": "small", "classes": '["ant", "bee"]'})
    described = {"classes": '["ant", "bee"]', "mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}
    checkpoint.save_model(folder / "level1.safetensors", nets.load("level1", 2), {"net": "level1", "norm": "batch", **described, "height": "32", "width": "32"})
    for name in ("checkpoint.pt", "model.safetensors", "level1.safetensors"):
        GOOD[name] = (folder / name).read_bytes()
    summary = {
        "schema": 1,
        "recipe": {"name": "", **asdict(RECIPE)},
        "seed": 3,
        "epochs": 2,
        "train_accuracy": 0.5,
        "test_accuracy": 0.25,
        "seconds": {"train": 1.5},
    }
    diverged = {"diverged": "seed 3 diverged", "seed": 3, "epoch": 1, "step": 2, "recipe": {"name": "", **asdict(RECIPE)}}
    figures = {"net": "level1", "parameters": 83368, "images_per_second": 999.5, "seconds": {"train": 1.5, "total": 2.0}, "command": "python -m train"}
    about = {
        "data": {"name": "CIFAR-10", "sha256": {"test.images": "0"}},
        "hardware": {"device": "cpu", "threads": 2},
        "versions": {"torch": "2"},
        "tested_on": "test",
    }
    GOOD["run.json"] = json.dumps(summary | figures | about).encode()
    several = {"seeds": [3, 4], "test_accuracies": [0.25, 0.25], "n": 2, "mean": 0.25, "deviation": 0.0, "low": 0.25, "high": 0.25, "diverged": []}
    GOOD["runs.json"] = json.dumps(summary | figures | about | {"runs": several}).encode()
    line = {
        "epoch": 1,
        "lr": 0.1,
        "train_loss": 2.0,
        "train_accuracy": 0.5,
        "test_loss": None,
        "test_accuracy": None,
        "images_per_second": 99.0,
        "seconds": 1.5,
    }
    GOOD["metrics.jsonl"] = b"".join(json.dumps(line | change).encode() + b"\n" for change in ({}, {"epoch": 2, "test_loss": 1.5, "test_accuracy": 0.25}))
    GOOD["steps.jsonl"] = b"".join(json.dumps({"epoch": e, "step": k, "loss": 2.0}).encode() + b"\n" for e in (1, 2) for k in (1, 2))
    GOOD["summary.json"], GOOD["diverged.json"] = json.dumps(summary).encode(), json.dumps(diverged).encode()
    Image.init()
    (folder / "a.safetensors").write_bytes(GOOD["raw"])
    STORE.append(Store(folder / "a.safetensors"))
    made = training(STORE[0])
    made.run(lambda *_: STATES.append(deepcopy(taken(made))), lambda: STATES.append(deepcopy(taken(made))))


# Sources: converted into a store, which is then verified


def read_source(path: Path, out: Path, encoding: str = "raw") -> Store:
    source = find(path)
    convert(source, out, encoding)
    store = Store(out)
    store.verify()
    assert {split: count for split, (count, _) in source.splits.items()} == {split: store.count(split) for split in store.splits}, "count"
    assert store.classes == source.classes and all(len(store.images(s)) for s in store.splits), "images"
    return store


def make_official(rng: Random) -> tuple[str, dict[str, bytes]]:
    files = dict(cifar100_files(rng.choice((2, 4))) if rng.random() < 0.2 else official_files(rng.choice((0, 0, 2, 2, 3, 4))))
    how = rng.choice(("pickle", "pickle", "pickle", "bytes of a pickle", "array", "bytes of the tar", "tar", "bomb", "missing"))
    name = rng.choice(sorted(files))
    if how == "pickle":
        files[name] = spoilt.pickled(rng, files[name])
    elif how == "bytes of a pickle":
        files[name] = spoilt.spoil(rng, files[name])
    elif how == "array":
        files[name] = other_batch(rng)
    elif how == "missing":
        files[name + "x"] = files.pop(name)
    if rng.random() < 0.3 and how not in ("tar", "bytes of the tar", "bomb"):
        return how, files
    return packed(rng, how, tar_of(files))


def other_batch(rng: Random) -> bytes:
    """A batch that holds arrays and labels of other types and shapes."""
    kind = rng.choice(("u1", "i1", "f4", "u2", "?", "O", "S1"))
    shape = rng.choice(((2, 3072), (2, 3073), (3072, 2), (2, 3, 32, 32), (0, 3072), (3, 3072), (3072,), ()))
    array = np.zeros(shape, kind, order=rng.choice("CF"))
    labels = rng.choice(([0, 1], [0, 3], [-1, 0], [0.0, 1.0], [True, False], ["0", "1"], [], (0, 1), [[0], [1]], [2**70, 0], None, np.array([0, 1]), [0, 1, 2]))
    return pickle.dumps(
        {b"data": array, b"labels": labels, b"label_names": [b"a", rng.choice((b"b", "b", "\ud7ff", 1, b"\xff", b"\x1b[31m"))]}, rng.choice((2, 3, 4))
    )


def packed(rng: Random, how: str, data: bytes) -> tuple[str, dict[str, bytes]]:
    """A tar, compressed or not, spoilt before or after it is packed where `how` says so."""
    ending = rng.choice(("", "", "", ".gz", ".xz", ".bz2"))
    if how == "tar":
        data = archives.tar(rng, data)
    if how == "bomb":
        if rng.random() < 0.9:  # dear: most of them lie about a size instead
            return "tar", packed(rng, "tar", data)[1]
        ending = rng.choice((".gz", ".xz", ".bz2"))
        return how, {f"a.tar{ending}": archives.bomb(rng, data, ending)}
    data = archives.PACKERS[ending](data)
    if how == "bytes of the tar":
        data = spoilt.spoil(rng, data)
    return how, {f"a.tar{ending}": data}


def read_official(folder: Path) -> None:
    inside = next(folder.iterdir())
    store = read_source(inside, folder.parent / "out" / "a.safetensors")
    for split in store.splits:
        assert store.images(split).shape[1:] == (32, 32, 3), "shape"


def make_tar(rng: Random) -> tuple[str, dict[str, bytes]]:
    files = dict(picture_files(rng.choice(KINDS[:3])))
    how = rng.choice(("tar", "tar", "tar", "bytes of the tar", "bytes of the tar", "names", "bomb"))
    if how == "names":
        for _ in range(rng.choice((1, 2, 8))):
            name = rng.choice(sorted(files))
            files[
                rng.choice((name.replace("train", "test"), "../" + name, name.replace("bee", "\udcff"), name + "/x.png", "a/b/" + name, name[:-4], name + "\n"))
            ] = files.pop(name)
    return packed(rng, how, tar_of(files))


def read_tar(folder: Path) -> None:
    read_source(next(folder.iterdir()), folder.parent / "out" / "a.safetensors")


def make_folder(rng: Random) -> tuple[str, dict[str, bytes]]:
    kind = rng.choice(KINDS)
    files = {f"images/{split}/bee/0.{ENDINGS.get(kind, kind.lower())}": image(kind, s, "RGB") for s, split in enumerate(("train", "test"))}
    name = rng.choice(sorted(files))
    how = rng.choice(("bytes", "bytes", "bytes", "chunks", "other format", "other mode"))
    if how == "chunks":
        files[name] = spoilt.png(rng, image("PNG", 0))
    elif how == "other format":
        files[name] = image(rng.choice(OTHERS), 0) if rng.random() < 0.5 else rng.choice(FOREIGN)
    elif how == "other mode":
        mode = rng.choice(("1", "L", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "LA"))
        files[name] = spoilt.spoil(rng, image("TIFF" if mode in ("CMYK", "YCbCr", "LAB", "F", "I") else "PNG", 0, mode))
    else:
        files[name] = spoilt.spoil(rng, files[name])
    return how, files


FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file closefile\n%%EOF\n",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'><image href='/etc/passwd'/></svg>",
    b"GIF89a" + b"\xff" * 7,
    b"P3\n8 8 255\n" + b"1 " * 192,
    b"P6\n8 8 65535\n" + bytes(384),
    b"Pf\n8 8\n-1.0\n" + bytes(256),
    b"BM" + bytes(52),
    b"\xd7\xcd\xc6\x9a" + bytes(100),
    b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {\n" + b"0x00, " * 8 + b"};\n",
    b"",
)


def read_folder(folder: Path) -> None:
    encoding = "jpeg" if len(next(folder.rglob("test/bee/*")).read_bytes()) % 2 else "raw"
    read_source(folder / "images", folder.parent / "out" / "a.safetensors", encoding)


# Other layouts


def read_layout(folder: Path) -> None:
    inside = next((folder / name for name in ("tiny", "own") if (folder / name).exists()), folder)
    store = read_source(inside, folder.parent / "out" / "a.safetensors")
    if inside == folder:
        assert store.source == "svhn" and store.classes == tuple("0123456789") and store.images("train").shape[1:] == (32, 32, 3), "digits"
    elif inside.name == "tiny":
        assert store.source == "tiny-imagenet" and len(store.classes) >= 1, "classes"
    elif "held out" in store.source:  # every image is in one of the splits, and once
        assert sum(store.count(split) for split in store.splits) == len(
            [p for p in inside.rglob("*.png") if not any(n.startswith(".") for n in p.relative_to(inside).parts)]
        ), "splits"


# Stores, models, checkpoints, summaries


def make_store(rng: Random) -> tuple[str, dict[str, bytes]]:
    data = GOOD[rng.choice(("raw", "jpeg"))]
    how = rng.choice(("header", "header", "bytes"))
    return how, {"a.safetensors": spoilt.safetensors(rng, data) if how == "header" else spoilt.spoil(rng, data)}


def read_store(folder: Path) -> None:
    store = Store(folder / "a.safetensors")
    json.dumps(describe(store)).encode()
    " ".join(store.classes).encode()
    for split in store.splits:
        labels = store.labels(split)
        assert labels.dtype == np.int64 and all(0 <= v < len(store.classes) for v in labels), "labels"
    store.verify()
    for split in store.splits:
        images = store.images(split)
        assert images.shape == (store.count(split), store.height, store.width, store.channels) and images.dtype == np.uint8, "images"


def make_checkpoint(rng: Random) -> tuple[str, dict[str, bytes]]:
    data = GOOD["checkpoint.pt"]
    how = rng.choice(("records", "records", "bytes", "old"))
    if how == "old":  # the pickle alone, which is what checkpoints were before they were archives
        return how, {"checkpoint.pt": spoilt.pickled(rng, pickle.dumps({"epoch": 1, "net": {}}, 2))}
    return how, {"checkpoint.pt": archives.zipped(rng, data) if how == "records" else spoilt.spoil(rng, data)}


def read_checkpoint(folder: Path) -> None:
    state = checkpoint.load(folder / "checkpoint.pt")
    assert isinstance(state, dict), "no dict"
    walk = [state]
    while walk:  # what a caller does with it: look at all of it
        value = walk.pop()
        walk += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        if isinstance(value, torch.Tensor):
            value.to(torch.float64).sum()
    assert len(repr(state)) < 1 << 20, "it grows when it is looked at"


def make_resume(rng: Random) -> tuple[str, dict[str, bytes]]:
    """A checkpoint that is whole, and holds what no training of ours would have written."""
    state = {**deepcopy(rng.choice(STATES)), "recipe": {"name": "", **asdict(RECIPE)}, "data": STORE[0].sha256}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        state = spoilt.values(rng, state)
    file = io.BytesIO()
    torch.save(state, file)
    return "values", {"checkpoint.pt": file.getvalue()}


def read_resume(folder: Path) -> None:
    state = read(folder)
    recipe_of(state, folder)
    goes_on, lines = training(STORE[0]), []
    go_on(goes_on, state, STORE[0], folder)
    try:
        goes_on.run(lambda line, losses: lines.append((line, losses)))
    except Diverged:  # weights may be any numbers
        return
    assert len(goes_on.history) == 2 and all(len(losses) == 2 for _, losses in lines), "epochs"
    json.dumps(goes_on.history, allow_nan=False)


def make_model(rng: Random) -> tuple[str, dict[str, bytes]]:
    name = rng.choice(("model.safetensors", "level1.safetensors"))
    how, where = rng.choice(("header", "header", "bytes")), {"level1.safetensors": "run/model.safetensors"}.get(name, name)
    return how, {where: spoilt.safetensors(rng, GOOD[name]) if how == "header" else spoilt.spoil(rng, GOOD[name])}


def read_model(folder: Path) -> None:
    if (folder / "run").exists():
        model = result.model(folder / "run")
        assert model.logits(np.zeros((1, model.height, model.width, 3), np.uint8)).shape == (1, len(model.classes)), "logits"
        return
    good = net().state_dict()
    state = checkpoint.load_model(folder / "model.safetensors", net()).state_dict()
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in good.items()}, "shapes"


def make_summary(rng: Random) -> tuple[str, dict[str, bytes]]:
    name = rng.choice(("summary.json", "summary.json", "diverged.json"))
    how = rng.choice(("values", "values", "bytes"))
    return how, {name: spoilt.document(rng, GOOD[name]) if how == "values" else spoilt.spoil(rng, GOOD[name])}


def read_summary(folder: Path) -> None:
    outcome = earlier(RECIPE, folder)
    if outcome is None:
        return
    assert outcome["seed"] == RECIPE.seed, "seed"
    if "diverged" in outcome:
        assert isinstance(outcome["diverged"], str) and isinstance(outcome["epoch"], int) and isinstance(outcome["step"], int), "diverged"
    else:
        assert 0 <= outcome["test_accuracy"] <= 1, "accuracy"
    json.dumps(outcome, allow_nan=False).encode()


# What is looked at: run folders that are compared, pictures that are asked about


class Tags(HTMLParser):
    """Collects what in a page runs or fetches."""

    def __init__(self):
        super().__init__()
        self.harmful = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        links = any(name.startswith("on") or name in ("src", "href") and not (value or "").startswith("data:") for name, value in attributes)
        if links or tag in ("script", "img", "iframe"):
            self.harmful.append((tag, attributes))


def make_run(rng: Random) -> tuple[str, dict[str, bytes]]:
    """A run folder, of one seed or of two, with one of its files spoilt."""
    if rng.random() < 0.5:
        files = {"summary.json": GOOD["run.json"], "metrics.jsonl": GOOD["metrics.jsonl"], "steps.jsonl": GOOD["steps.jsonl"]}
    else:
        files = {"summary.json": GOOD["runs.json"]}
        files |= {f"seed-{seed}/{name}": GOOD[good] for seed in (3, 4) for name, good in (("summary.json", "run.json"), ("metrics.jsonl", "metrics.jsonl"))}
    name = rng.choice(sorted(files))
    if rng.random() < 0.4:
        return "bytes", files | {name: spoilt.spoil(rng, files[name])}
    lines = files[name].splitlines()
    place = rng.randrange(len(lines))
    lines[place] = spoilt.document(rng, lines[place])
    return "values", files | {name: b"\n".join(lines) + b"\n"}


def read_run(folder: Path) -> None:
    if (folder / "steps.jsonl").exists():
        for kept in saving.kept_lines(folder / "steps.jsonl", 1):
            assert json.loads(kept)["epoch"] <= 1, "epoch"
        result.lines(folder, "steps.jsonl")
    runs = [compare.Run.read(str(folder))] * 2
    text, page = compare.text(runs), compare.html(runs)
    assert all(line.isprintable() for line in text.splitlines()), "steers the terminal"
    (tags := Tags()).feed(page)
    assert not tags.harmful, f"a page with {tags.harmful[:2]}"
    (text + page).encode()


def make_picture(rng: Random) -> tuple[str, dict[str, bytes]]:
    """As `make_folder`, and sizes that lie."""
    if rng.random() < 0.7:
        how, files = make_folder(rng)
        return how, {"0.png": files[sorted(files)[0]]}
    data = image("PNG", 0)
    size = b"".join(rng.choice((1, 8, 513, 9000, 10_000, 65_535, 2**24, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big") for _ in range(2))
    head = b"IHDR" + size + rng.choice((data[24:29], bytes((rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, rng.choice((0, 1))))))
    return "size", {"0.png": data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]}


def read_picture(folder: Path) -> None:
    pixels = predict.read(str(folder / "0.png"), 8, 6)
    assert pixels.shape == (8, 6, 3) and pixels.dtype == np.uint8, "shape"


READERS = {
    "official": Reader(make_official, read_official),
    "tar": Reader(make_tar, read_tar),
    "images": Reader(make_folder, read_folder),
    "svhn": Reader(layouts.make_svhn, read_layout),
    "tiny": Reader(partial(layouts.make_tiny, partial(image, "JPEG")), read_layout),
    "classes": Reader(partial(layouts.make_classes, partial(image, "PNG")), read_layout),
    "store": Reader(make_store, read_store),
    "checkpoint": Reader(make_checkpoint, read_checkpoint),
    "resume": Reader(make_resume, read_resume),
    "model": Reader(make_model, read_model),
    "summary": Reader(make_summary, read_summary),
    "run": Reader(make_run, read_run),
    "picture": Reader(make_picture, read_picture),
}


def good_cases() -> list[tuple[str, dict[str, bytes]]]:
    """(reader, files) of files that every reader must accept."""
    cases = [("official", {"a.tar": tar_of(official_files(p))}) for p in (0, 2, 3, 4)]
    cases += [("official", official_files(2)), ("tar", {"a.tar.gz": gzip.compress(tar_of(picture_files("PNG")))})]
    cases += [("images", {f"images/{s}/bee/0.png": image(kind, 1) for s in ("train", "test")}) for kind in KINDS]
    cases += [("picture", {"0.png": image(kind, 1)}) for kind in KINDS]
    cases += [("official", cifar100_files(2)), ("official", {"a.tar": tar_of(cifar100_files(4))})]
    cases += [("svhn", layouts.svhn_files(compress)) for compress in (True, False)]
    cases += [
        ("tiny", {f"tiny/{name}": data for name, data in layouts.tiny_files(partial(image, "JPEG")).items()}),
        ("classes", layouts.class_files(partial(image, "PNG"))),
    ]
    cases += [("store", {"a.safetensors": GOOD[encoding]}) for encoding in ("raw", "jpeg")]
    cases += [("model", {"model.safetensors": GOOD["model.safetensors"]}), ("model", {"run/model.safetensors": GOOD["level1.safetensors"]})]
    cases += [("checkpoint", {"checkpoint.pt": GOOD["checkpoint.pt"]}), *(("summary", {name: GOOD[name]}) for name in ("summary.json", "diverged.json"))]
    seeds = {f"seed-{seed}/{name}": GOOD[good] for seed in (3, 4) for name, good in (("summary.json", "run.json"), ("metrics.jsonl", "metrics.jsonl"))}
    single = {"summary.json": GOOD["run.json"], "metrics.jsonl": GOOD["metrics.jsonl"], "steps.jsonl": GOOD["steps.jsonl"]}
    return [*cases, ("run", {"summary.json": GOOD["runs.json"], **seeds}), ("run", single)]

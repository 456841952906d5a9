"""Readers of what the project itself writes: stores, checkpoints, models, summaries and run folders."""

import io
import json
import pickle
from copy import deepcopy
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import fuzz_archives as archives
import fuzz_mutations as spoilt
import numpy as np
import torch
from fuzz_good import FITTED, GOOD, RECIPE, STATES, STORE, net, training

from pipelines.__main__ import describe
from pipelines.store import Store
from train import budget, checkpoint, compare, result, saving
from train.course import Diverged
from train.jobs import earlier
from train.state import go_on, read, recipe_of


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
    state = {
        **deepcopy(rng.choice(STATES)),
        "recipe": {"name": "", **asdict(RECIPE)},
        "data": json.loads(json.dumps(STORE[0].sha256)),
    }  # words of its own: a pickle tells one that is twice there from two that are equal
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
    name = rng.choice(("summary.json", "summary.json", "diverged.json", "budget.json"))
    how = rng.choice(("values", "values", "bytes"))
    return how, {name: spoilt.document(rng, GOOD[name]) if how == "values" else spoilt.spoil(rng, GOOD[name])}


def read_summary(folder: Path) -> None:
    epochs = budget.remembered(FITTED, folder)
    assert epochs is None or type(epochs) is int and epochs > 0, "epochs"
    outcome = earlier(RECIPE, folder)
    if outcome is None:
        return
    assert outcome["seed"] == RECIPE.seed, "seed"
    if "diverged" in outcome:
        assert isinstance(outcome["diverged"], str) and isinstance(outcome["epoch"], int) and isinstance(outcome["step"], int), "diverged"
    else:
        assert 0 <= outcome["test_accuracy"] <= 1, "accuracy"
    json.dumps(outcome, allow_nan=False).encode()


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

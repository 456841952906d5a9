"""Stores that are damaged, or whose headers lie: each is refused in one line that names it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st
from makers import JPEGS, refusal, source_of

from pipelines.__main__ import main
from pipelines.convert import convert
from pipelines.errors import InputError, exit_code
from pipelines.pictures import blank
from pipelines.plan import Plan
from pipelines.store import Store


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_any_flipped_byte_is_found(encoding, small, tmp_path_factory):
    whole = small[encoding].path.read_bytes()
    path = tmp_path_factory.mktemp("flipped") / "s.safetensors"

    @settings(max_examples=300)
    @given(st.integers(0, len(whole) - 1) | st.integers(0, 2000), st.integers(1, 255))
    def flip(at, change):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
        refusal(path, lambda p: Store(p).verify())

    flip()


def test_a_file_that_is_cut_or_has_more(small, tmp_path):
    whole, path = small["jpeg"].path.read_bytes(), tmp_path / "s.safetensors"
    for size in [*range(0, 64), *range(64, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refusal(path)
    path.write_bytes(whole + b"\0")
    refusal(path)


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    for begin in (b"", len(data).to_bytes(8, "little"), (len(data) + 1).to_bytes(8, "little") + b"{"):
        path.write_bytes(begin + data)
        refusal(path)


def test_paths_that_are_no_store(tmp_path):
    assert "no such store" in refusal(tmp_path / "missing.safetensors")
    assert "no such store" in refusal(tmp_path)
    refusal(Path("/dev/zero"))
    refusal(Path("x" * 300))
    safetensors.numpy.save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    assert "not a Tenfold store" in refusal(tmp_path / "model.safetensors")


RAW_LIES = {
    "newer": lambda t, m: m.update(version="2"),
    "no version": lambda t, m: m.pop("version"),
    "unknown encoding": lambda t, m: m.update(encoding="png"),
    "labels too large": lambda t, m: t.update({"train.labels": t["train.labels"] + 2}),
    "labels negative": lambda t, m: t.update({"test.labels": t["test.labels"] - 1}),
    "labels int32": lambda t, m: t.update({"train.labels": t["train.labels"].astype(np.int32)}),
    "labels a table": lambda t, m: t.update({"train.labels": t["train.labels"][None]}),
    "labels a number": lambda t, m: t.update({"train.labels": np.array(3)}),
    "one label more": lambda t, m: t.update({"train.labels": np.zeros(9, np.int64)}),
    "images float": lambda t, m: t.update({"train.images": t["train.images"].astype(np.float32)}),
    "images flat": lambda t, m: t.update({"train.images": t["train.images"].ravel()}),
    "images bfloat16": lambda t, m: t.update({"train.images": torch.zeros(8, 8, 8, 3, dtype=torch.bfloat16)}),
    "labels float8": lambda t, m: t.update({"train.labels": torch.zeros(8, dtype=torch.float8_e4m3fn)}),
    "no images": lambda t, m: t.pop("test.images"),
    "no labels at all": lambda t, m: [t.pop("train.labels"), t.pop("test.labels")],
    "no tensors": lambda t, m: t.clear(),
    "height": lambda t, m: m.update(height="9"),
    "height no number": lambda t, m: m.update(height="9" * 5000),
    "height negative": lambda t, m: m.update(height="-8", width="-8"),
    "mean missing": lambda t, m: m.pop("mean"),
    "mean of one": lambda t, m: m.update(mean="[0.5]"),
    "mean NaN": lambda t, m: m.update(mean="[0.5, NaN, 0.5]"),
    "mean infinite": lambda t, m: m.update(mean="[0.5, Infinity, 0.5]"),
    "mean of 255": lambda t, m: m.update(mean="[125, 122, 113]"),
    "std NaN": lambda t, m: m.update(std="[0.5, NaN, 0.5]"),
    "std zero": lambda t, m: m.update(std="[0.5, 0, 0.5]"),
    "std negative": lambda t, m: m.update(std="[0.5, -0.1, 0.5]"),
    "std infinite": lambda t, m: m.update(std="[0.5, 1e999, 0.5]"),
    "std words": lambda t, m: m.update(std='["a", "b", "c"]'),
    "std a number": lambda t, m: m.update(std="5"),
    "std beyond float": lambda t, m: m.update(std=f"[0.1, 0.1, 1{'0' * 400}]"),
    "classes no list": lambda t, m: m.update(classes="7"),
    "classes too few": lambda t, m: m.update(classes='["one"]'),
    "classes no JSON": lambda t, m: m.update(classes="["),
    "classes too deep": lambda t, m: m.update(classes="[" * 200_000),
    "sums no JSON": lambda t, m: m.update(sha256="x"),
    "sums a list": lambda t, m: m.update(sha256="[1, 2]"),
    "no sum of the header": lambda t, m: m.pop("header"),
}
JPEG_LIES = {
    "offsets shifted": lambda t, m: t.update({"train.offsets": t["train.offsets"] + 1}),
    "offsets falling": lambda t, m: t.update({"train.offsets": t["train.offsets"][[0, 2, 1, *range(3, 9)]]}),
    "offsets overflowing": lambda t, m: t["train.offsets"].__setitem__(slice(1, 3), [2**63 - 1, -(2**63)]),
    "offsets too few": lambda t, m: t.update({"train.offsets": t["train.offsets"][[0, 8]]}),
    "offsets float": lambda t, m: t.update({"train.offsets": t["train.offsets"].astype(np.float64)}),
    "no offsets": lambda t, m: t.pop("train.offsets"),
    "header ids too large": lambda t, m: t.update({"train.header_ids": t["train.header_ids"] + 1}),
    "header ids negative": lambda t, m: t.update({"train.header_ids": t["train.header_ids"] - 1}),
    "header ids float": lambda t, m: t.update({"train.header_ids": t["train.header_ids"].astype(np.float32)}),
    "header offsets empty": lambda t, m: t.update({"train.header_offsets": np.zeros(0, np.int64)}),
    "header offsets a number": lambda t, m: t.update({"train.header_offsets": np.array(0)}),
    "headers float": lambda t, m: t.update({"train.headers": t["train.headers"].astype(np.float32)}),
    "images a table": lambda t, m: t.update({"train.images": t["train.images"][:, None]}),
    "four channels": lambda t, m: m.update(channels="4", mean="[0.5, 0.5, 0.5, 0.5]", std="[0.5, 0.5, 0.5, 0.5]"),
    "enormous pixels": lambda t, m: m.update(height="1000000", width="1000000"),
}
LIES = [("raw", name) for name in RAW_LIES] + [("jpeg", name) for name in JPEG_LIES]


def lied(store: Store, path: Path, lie) -> Path:
    """A copy of a store with its tensors and metadata changed, as another tool would write it."""
    tensors = {n: t.copy() for n, t in safetensors.numpy.load_file(store.path).items()}
    with safetensors.safe_open(store.path, framework="np") as file:
        metadata = dict(file.metadata())
    lie(tensors, metadata)
    as_torch = {n: t if isinstance(t, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(t)) for n, t in tensors.items()}
    safetensors.torch.save_file(as_torch, path, metadata)
    return path


@pytest.mark.parametrize("encoding, name", LIES)
def test_a_header_that_lies_is_refused(encoding, name, small, tmp_path):
    message = refusal(lied(small[encoding], tmp_path / "s.safetensors", {"raw": RAW_LIES, "jpeg": JPEG_LIES}[encoding][name]))
    assert "python -m pipelines convert" in message
    if name == "newer":
        assert "version 2" in message and "reads 1" in message and "upgrade" in message


def test_headers_that_ask_for_memory_or_for_one_another(tmp_path):
    def file(header, data=b""):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    def tensor(shape, begin, end, dtype="U8"):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    path = tmp_path / "s.safetensors"
    for content in (
        (1 << 63).to_bytes(8, "little") + b"{}",
        (99_000_000).to_bytes(8, "little") + b"{}",
        file(b"[" * 100_000),
        file({"train.images": tensor([1 << 62, 1 << 62], 0, 1)}, b"1"),
        file({"train.images": tensor([1 << 40], 0, 1 << 40)}, b"1"),
        file({"train.images": tensor([4], 0, 4), "train.labels": tensor([4], 2, 6)}, b"123456"),
        file({"train.images": tensor([4], 4, 0)}, b"1234"),
        file({"__metadata__": {"format": "tenfold", "version": 1}}),
    ):
        path.write_bytes(content)
        refusal(path)
    with pytest.raises(InputError, match="do not fit in memory"):
        blank((1 << 40, 512, 512, 3), path)


def test_a_store_without_images_opens_and_cannot_be_trained_on(small, tmp_path):
    def empty(tensors, metadata):
        tensors.update({"test.images": np.zeros((0, 8, 8, 3), np.uint8), "test.labels": np.zeros(0, np.int64)})

    ours = Store(lied(small["raw"], tmp_path / "s.safetensors", empty))
    assert ours.count("test") == 0 and ours.images("test").shape == (0, 8, 8, 3)
    with pytest.raises(InputError, match="at least one"):
        Plan.of(ours, "test", None, 0, 8)
    with pytest.raises(InputError, match="0 images"):
        convert(source_of(JPEGS, []), tmp_path / "t.safetensors")


def test_a_jpeg_that_is_not_what_the_header_says(small, tmp_path):
    def wrong_size(tensors, metadata):
        metadata.update(height="16", width="16")

    def cut(tensors, metadata):
        tensors["train.offsets"][3:8] = tensors["train.offsets"][3]

    def garbled(tensors, metadata):
        tensors["train.headers"][:] = 0

    for lie in (wrong_size, cut, garbled):
        assert "of train" in refusal(lied(small["jpeg"], tmp_path / "s.safetensors", lie), lambda p: Store(p).images("train"))


def test_inspect_and_verify_on_the_command_line(small, tmp_path, monkeypatch, capfd):
    ours = small["jpeg"]

    def run(command, path):
        monkeypatch.setattr(sys, "argv", ["pipelines", command, str(path)])
        return exit_code(main), *capfd.readouterr()

    code, out, err = run("inspect", ours.path)
    assert (code, err) == (0, "") and json.loads(out)["images"] == {"train": 8, "test": 4}
    code, out, err = run("verify", ours.path)
    assert (code, err) == (0, "") and str(ours.path) in out
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(ours.path.read_bytes()[:-1] + b"\0")
    for command in ("inspect", "verify"):
        code, out, err = run(command, tmp_path / "missing.safetensors")
        assert (code, out, err.count("\n")) == (2, "", 1)
    code, out, err = run("verify", damaged)
    assert (code, out, err.count("\n")) == (2, "", 1) and str(damaged) in err

"""Bad input: some thousand cases of the fuzzer, and every fault that it found, once each."""

import gzip
import io
import json
import pickle
import sys
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import fuzz
import fuzz_archives as archives
import fuzz_mutations as spoilt
import pytest
import torch
from fuzz_good import GOOD, RECIPE, image, net, official_files, picture_files, prepare, tar_of
from fuzz_readers import READERS, good_cases
from safetensors.torch import save_file

from pipelines.convert import convert
from pipelines.errors import InputError, reason
from pipelines.pickles import Name, Stand, load
from pipelines.sources import find
from pipelines.store import Store
from train import archive, checkpoint
from train.jobs import earlier

CASES = 3000


@pytest.fixture(scope="module", autouse=True)
def good(tmp_path_factory):
    prepare(tmp_path_factory.mktemp("good"))


def refused(reader, path: Path, words: str | None = None) -> str:
    """What the refusal says: one printable line that names the path."""
    with pytest.raises(InputError, match=words) as error:
        reader(path)
    said = str(error.value)
    assert said.isprintable() and str(path) in said
    return said


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_some_thousand_cases(good):
    """In a process of its own: the fuzzer forks, and what runs here has threads."""
    found = fuzz.subprocess_run(CASES)
    assert found["cases"] == CASES and not found["failures"], found["failures"]
    assert all(found["readers"][reader].get(end, 0) > 0 for reader in READERS for end in fuzz.GOOD_ENDS)


def test_good_files_are_read(tmp_path):
    for i, (reader, files) in enumerate(good_cases()):
        box = tmp_path / str(i)
        (box / "out").mkdir(parents=True)
        fuzz.write_files(box / "target", files)
        READERS[reader].read(box / "target")


def test_a_case_is_a_function_of_seed_and_number():
    made = [fuzz.make(1, case) for case in range(70)]
    assert [fuzz.make(1, case) for case in range(70)] == made  # whatever was made in between
    assert fuzz.make(1, 3) != fuzz.make(2, 3)


@pytest.mark.parametrize("name", ["official", "checkpoint"])
@pytest.mark.parametrize("program", spoilt.PROGRAMS)
def test_harmful_pickles(name, program, tmp_path, monkeypatch):
    """Among them: 4 GB for a place in the memo, a hash without end, a stack that overflows, bytes without end."""
    monkeypatch.chdir(tmp_path)
    for pair in (b"U\x01x" + spoilt.program(program), spoilt.program(program) + b"N"):
        data = b"\x80\x02}(" + pair + b"u."
        if name == "official":
            path = written(tmp_path / "a.tar", tar_of(official_files(2) | {"cifar-10-batches-py/test_batch": data}))
            refused(find, path)
        else:
            path = written(tmp_path / "checkpoint.pt", repacked({"data.pkl": data}))
            try:
                assert len(repr(checkpoint.load(path))) < 200_000  # a plain value
            except InputError as error:
                assert str(error).isprintable()
    assert not (tmp_path / "ran").exists()


def repacked(changes: dict[str, bytes], kind=zipfile.ZIP_STORED) -> bytes:
    """The good checkpoint with other records."""
    with zipfile.ZipFile(io.BytesIO(GOOD["checkpoint.pt"])) as old:
        records = {name: old.read(name) for name in old.namelist()}
    return archives.zip_of(list((records | {f"checkpoint/{name}": data for name, data in changes.items()}).items()), kind)


def test_pickles_cost_what_their_bytes_justify():
    shared = b"\x80\x02](" + b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"e."
    growing = b"\x80\x02]q\x00(h\x00h\x00e."
    deep = b"\x80\x02" + b"]" * 40 + b"a" * 39 + b"."
    for data, words in ((shared, "operations"), (growing, "whole"), (deep, "deep"), (b"\x80\x02.", "pop"), (b"", "exhausted"), (b"\x80\x02Nb.", "")):
        with pytest.raises((ValueError, TypeError, IndexError), match=words or None):
            load(data, {})
    again = [1, "a", b"b", 2.5, None, True, (1, 2), {"a": [1]}]
    for protocol in (2, 3, 4):
        assert load(pickle.dumps([again, again], protocol), {Name("_codecs", "encode"): lambda text, coding: text.encode(coding)}) == [again, again]
    assert load(b"\x80\x02cnumpy\ndtype\nU\x02u1\x85R}b.", {Name("numpy", "dtype"): Stand}).arguments == (b"u1",)


def test_a_checkpoint_is_read_as_torch_reads_it(tmp_path):
    """Also what only other optimisers and types keep."""
    trained = net().to(memory_format=torch.channels_last)
    adam = torch.optim.AdamW(trained.parameters())
    trained(torch.ones(2, 3, 3, 3)).sum().backward()
    adam.step()
    odd = [torch.tensor(3.0), torch.empty(0, 3), torch.ones(2, dtype=torch.bfloat16), torch.arange(6).view(2, 3).T, torch.get_rng_state()]
    state = {"net": trained.state_dict(), "optimiser": adam.state_dict(), "odd": odd, "recipe": asdict(RECIPE)}
    torch.save(state, tmp_path / "checkpoint.pt")
    ours, torchs = checkpoint.load(tmp_path / "checkpoint.pt"), torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert repr(ours).replace("OrderedDict", "") and same(ours, torchs)


def same(ours, theirs) -> bool:
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)
    return type(ours) is type(theirs) and ours == theirs


def test_damaged_checkpoints(tmp_path):
    path, whole = tmp_path / "checkpoint.pt", GOOD["checkpoint.pt"]
    tensor = (
        b"\x80\x02}U\x01xctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nX\x01\0\0\x000U\x03cpuK\x6ctQK\0J\0\0\0\x7f\x85K\0\x85\x89NtRs."
    )
    for data in (
        b"not a checkpoint",
        repacked({"data.pkl": b"\x80\x02}."}, zipfile.ZIP_DEFLATED),  # packed records may swell
        archives.swollen([("checkpoint/data.pkl", b"\x80\x02}.")], 0),
        repacked({"data/0": b"\0" * 8}),
        repacked({"byteorder": b"big"}),
        repacked({"data.pkl": tensor}),  # two billion values in a storage of 108
        repacked({"data.pkl": b"\x80\x02]."}),
        pickle.dumps({"net": 1}),  # torch's message for the old kind advised to load it with its code
        whole[: len(whole) // 2],
        whole.replace(b"\x00\x00\x80\x3f", b"\x00\x00\x80\x3e"),  # a value that its checksum denies
    ):
        said = refused(checkpoint.load, written(path, data))
        assert "weights_only" not in said and "Weights only" not in said
    old = io.BytesIO()
    with tarfile.open(fileobj=old, mode="w") as tar:  # torch unpacks this kind into a folder
        tar.addfile(tarfile.TarInfo("storages"))
    refused(checkpoint.load, written(path, old.getvalue()))


def test_an_error_without_a_message_has_a_name(tmp_path, monkeypatch):
    assert reason(MemoryError()) == "MemoryError" and reason(ValueError("\n a:\n b")) == " a"

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(archive, "read", fails)
    refused(checkpoint.load, tmp_path / "checkpoint.pt", "MemoryError")
    monkeypatch.setattr(checkpoint.safetensors.torch, "load_file", fails)
    refused(lambda path: checkpoint.load_model(path, net()), tmp_path / "model.safetensors", "MemoryError")


def test_a_model_of_another_type_is_not_converted(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.to(torch.int32) if tensor.is_floating_point() else tensor for name, tensor in net().state_dict().items()}, path)
    refused(lambda path: checkpoint.load_model(path, net()), path, "int32")


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": 5},
        {"recipe": None},
        {"seed": 4},
        {"seed": True},
        {"test_accuracy": "0.9"},
        {"test_accuracy": 1.5},
        {"test_accuracy": float("nan")},
        {"train_accuracy": float("inf")},
        {"diverged": None},
        {"diverged": "at a step", "epoch": 1},
    ],
)
def test_a_summary_that_cannot_be_used(change, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(json.loads(GOOD["summary.json"]) | change))
    refused(lambda path: earlier(RECIPE, path), tmp_path)


def test_summaries_that_are_none(tmp_path):
    for text in ("", "[]", "5", "{}", "[" * 100_000, '{"recipe": {}}', "\ud800"):
        written(tmp_path / "summary.json", text.encode("utf-8", "surrogatepass"))
        refused(lambda path: earlier(RECIPE, path), tmp_path)


def test_tars_that_turn_in_a_circle_or_swell(tmp_path):
    good = tar_of(picture_files("PNG"))

    def member(kind: bytes, size: int, content: bytes = b"") -> bytes:
        info = tarfile.TarInfo("train/bee/x.png")
        info.type, info.size = kind, abs(size)
        header = bytearray(info.tobuf())
        if size < 0:
            header[124:136] = b"\xff" * 4 + (size % (1 << 64)).to_bytes(8, "big")
        if kind == tarfile.GNUTYPE_SPARSE:
            header[483:495] = b"%011o\0" % (2 * 10**9)
        return archives.summed(header) + content + bytes(-len(content) % 512)

    def record(text: str) -> bytes:
        return member(tarfile.XHDTYPE, len(archives.pax_record(text)), archives.pax_record(text))

    for extra in (
        member(tarfile.REGTYPE, -512),
        record("size=-1024\n") + member(tarfile.REGTYPE, 0),
        member(tarfile.GNUTYPE_LONGNAME, 2**31),
        member(tarfile.GNUTYPE_LONGNAME, -1024),
        member(tarfile.XHDTYPE, 50_000, b"1" * 50_000),
        member(tarfile.GNUTYPE_SPARSE, 0),
        record("GNU.sparse.size=2000000000\n") + member(tarfile.REGTYPE, 0),
        record("GNU.sparse.major=1\n")[:-512] + member(tarfile.REGTYPE, 0),
    ):
        refused(find, written(tmp_path / "a.tar", extra + good), "not a whole tar")
    for kind in ("in a member", "behind the end", "members", "names"):
        chosen = type("Chosen", (), {"choice": lambda self, options, kind=kind: kind if kind in options else options[-1]})()
        for ending in (".xz", ".bz2"):
            path = written(tmp_path / f"a.tar{ending}", archives.bomb(chosen, good, ending))
            if kind == "behind the end":
                find(path)  # reads through it, and keeps nothing
            else:
                refused(lambda path: convert(find(path), tmp_path / "a.safetensors"), path)


def test_extended_records_are_searched_once(tmp_path):
    """A run of digits, which Pythons before 3.11.10 and 3.12.6 search in the square of its length; and what such records say is heeded."""
    good, long = tar_of(picture_files("PNG")), archives.pax_record("comment=" + "1" * 60_000 + "\n")
    block = header(tarfile.XHDTYPE, len(long)) + long + bytes(-len(long) % 512)
    assert find(written(tmp_path / "a.tar", block * 100 + good)).splits["train"][0] == 4
    for record, words in (("path=../ran", "leads outside"), ("size=0", "not a whole tar"), ("size=x", "not a whole tar")):
        lie = archives.pax_record(record + "\n")
        refused(find, written(tmp_path / "a.tar", header(tarfile.XHDTYPE, len(lie)) + lie.ljust(512, b"\0") + good), words)
    for text in (b"0 a=b\n", b"5 a=b", b"6 a=b\n0 a=b\n", b"3 a=b\n", b"6 =ab\n", b"a=b\n"):
        refused(find, written(tmp_path / "a.tar", header(tarfile.XHDTYPE, len(text)) + text.ljust(512, b"\0") + good), "not a whole tar")
    everywhere = archives.pax_record("path=one\n")
    refused(find, written(tmp_path / "a.tar", header(tarfile.XGLTYPE, len(everywhere)) + everywhere.ljust(512, b"\0") + good), "not a whole tar")


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, size
    return info.tobuf()


def test_tar_members_without_a_name(tmp_path):
    files = picture_files("PNG") | {".": b"x", "/".join(("a", "", "")): b""}
    assert find(written(tmp_path / "a.tar.gz", gzip.compress(tar_of(files)))).classes == ("ant", "bee")


def test_only_image_formats_are_decoded(tmp_path, monkeypatch):
    """Pillow starts Ghostscript for what looks like PostScript, whatever the file's name."""
    started = []
    sys.addaudithook(lambda event, arguments: started.append(arguments) if event == "subprocess.Popen" else None)
    for i, data in enumerate((image("EPS", 0), image("PCX", 0), image("ICNS", 0), image("JPEG2000", 0))):
        fuzz.write_files(tmp_path / str(i), {"train/bee/0.png": data, "test/bee/0.png": image("PNG", 0)})
        refused(lambda path: convert(find(path), tmp_path / "a.safetensors"), tmp_path / str(i), "cannot be read as an image")
    assert not started


def test_a_store_with_names_that_cannot_be_printed(tmp_path):
    def store(**changes) -> Path:
        size = int.from_bytes(GOOD["raw"][:8], "little")
        head = json.loads(GOOD["raw"][8 : 8 + size])
        head["__metadata__"].update(changes)
        text = json.dumps(head).encode()
        return written(tmp_path / "a.safetensors", len(text).to_bytes(8, "little") + text + GOOD["raw"][8 + size :])

    for classes in ('["\\ud800", "bee"]', '{"ant": 1, "bee": 2}', '"ab"', "[1, 2]", "[[[]], 2]"):
        refused(Store, store(classes=classes), "class names")
    for header in ("", " ", "0" * 65):  # with "" every byte would have been replaced by 64
        refused(Store, store(header=header), "checksum")


def test_a_message_does_not_steer_the_terminal():
    assert str(InputError("a\nb\x1b[2J\udcff é")) == "a b\\x1b[2J\\udcff é"

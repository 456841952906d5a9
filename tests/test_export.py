"""python -m train export: a model outside Tenfold gives the logits that it gives inside."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

import nets
from pipelines.errors import InputError, NotInstalled
from train import export, result


def images(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def given(count: int, kind: str) -> torch.Tensor:
    """The same images as a program takes them."""
    pixels = torch.from_numpy(images(count)).permute(0, 3, 1, 2)
    return pixels if kind == "uint8" else pixels / 255


def exported(run_folder, tmp_path, *flags):
    path = tmp_path / "exported"
    export.main([str(run_folder), "--out", str(path), *flags])
    return path


def test_safetensors_are_a_run_folders_model(run_folder, tmp_path, capsys):
    export.main([str(run_folder), "--out", str(tmp_path / "model.safetensors")])
    made, whole = result.model(tmp_path), result.model(run_folder)
    assert torch.equal(made.logits(images(5)), whole.logits(images(5))) and replace(made, net=whole.net) == whole
    assert "model.safetensors" in capsys.readouterr().out
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["tested_on"] == "test"


@pytest.mark.parametrize("kind", export.INPUTS)
def test_a_program_gives_the_same_logits(kind, run_folder, tmp_path):
    path = exported(run_folder, tmp_path, "--format", "program", "--input", kind)
    notes = {export.NOTE: ""}
    program, model = torch.export.load(path, extra_files=notes).module(), result.model(run_folder)
    for count in (1, 5):  # other numbers of images than the example's
        assert torch.allclose(program(given(count, kind)), model.logits(images(count)), atol=1e-5)
    said = json.loads(notes[export.NOTE])
    assert said["classes"] == list(model.classes) and said["input"] == kind and said["test_accuracy"] == result.summary(run_folder)["test_accuracy"]


@pytest.mark.parametrize("kind", export.INPUTS)
def test_onnx_gives_the_same_logits(kind, run_folder, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = exported(run_folder, tmp_path, "--format", "onnx", "--input", kind)
    session, model = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]), result.model(run_folder)
    for count in (1, 5):
        (logits,) = session.run(["logits"], {"images": given(count, kind).numpy()})
        assert np.allclose(logits, model.logits(images(count)).numpy(), atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(model.classes)


@pytest.mark.parametrize("name", nets.names())
@pytest.mark.parametrize("norm", ["batch", "ghost", "group"])
def test_every_net_becomes_a_program(name, norm):
    torch.manual_seed(0)
    options = {} if norm == "batch" else {"norm": norm}
    model = result.Model(name, norm, nets.load(name, 4, **options).eval(), tuple("abcd"), (0.5,) * 3, (0.2,) * 3, 32, 32)
    program = torch.export.export(**export.whole(model, "uint8")).module()
    assert torch.allclose(program(given(3, "uint8")), model.logits(images(3)), atol=1e-4)


def test_without_onnx_it_says_what_to_install(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match="pip install"):
        export.main([str(run_folder), "--format", "onnx", "--out", str(tmp_path / "a")])
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_not_there_is_one_line(run_folder, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        export.main([str(run_folder), "--out", str(tmp_path / "no" / "a.safetensors")])

"""python -m train export RUN --format safetensors|program|onnx: export a trained net for use without Tenfold.

    safetensors  weights and buffers by name; the metadata has net, norm, classes, mean, std, height, width
    program      a torch.export program (.pt2): needs torch alone, torch.export.load(FILE).module()(images)
    onnx         an ONNX model, opset 20: input "images", output "logits"

A program and an ONNX model take images [N,3,H,W] in RGB, any N: with --input uint8 (the default) uint8 pixels, with
--input float float32 in [0, 1]. Normalisation is included. They return logits, float32[N,K]; the class names are
stored with the model: in the program's extra file "tenfold.json", and in the ONNX metadata.
"""

import argparse
import importlib.util
import io
import json
import warnings
from pathlib import Path

import torch
from torch import nn

from pipelines.errors import InputError, NotInstalled
from pipelines.files import replacing
from pipelines.reference import scaling
from train import checkpoint, result
from train.command import parser_of
from train.result import Model

FORMATS = {"safetensors": ".safetensors", "program": ".pt2", "onnx": ".onnx"}
INPUTS = {"uint8": torch.uint8, "float": torch.float32}
NOTE = "tenfold.json"  # the extra file of a program


class Whole(nn.Module):
    """A net with its normalisation in front: images [N,C,H,W], uint8 or in [0, 1], to logits float32[N,K]."""

    def __init__(self, model: Model, fractions: bool):
        super().__init__()
        mean, std = (torch.from_numpy(values)[:, None, None] for values in scaling(model))
        # as in `reference.table`: in pixel values, and a product, not a quotient, to the last bit
        self.register_buffer("mean", mean)
        self.register_buffer("factor", 1 / std)
        self.net, self.fractions = model.net, fractions

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images * 255 if self.fractions else images.float()
        return self.net((pixels - self.mean) * self.factor)


def whole(model: Model, kind: str) -> dict:
    """The arguments that both of torch's exporters take: the net, an example, and that any number of images will do."""
    example = torch.zeros(2, len(model.mean), model.height, model.width, dtype=INPUTS[kind])
    return dict(mod=Whole(model, kind == "float").eval(), args=(example,), dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}})


def note(model: Model, run: str) -> dict:
    """What a model's user must know of it, as plain values."""
    values = {key: getattr(model, key) for key in ("classes", "mean", "std", "height", "width")}
    try:
        summary = result.summary(run)
    except InputError:  # the model is enough
        return {"net": model.name, **values}
    tested_on = summary.get("tested_on", "test")
    return {"net": model.name, **values, "data": summary["data"]["name"], "test_accuracy": summary["test_accuracy"], "tested_on": tested_on}


def strings(values: dict) -> dict[str, str]:
    """Text as it is, and everything else as JSON: what a header holds."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def save_weights(model: Model, run: str, path: Path) -> None:
    """Write safetensors that a run folder could hold: `result.model` reads them."""
    checkpoint.save_model(path, model.net, strings({"norm": model.norm, **note(model, run)}))


def save_program(model: Model, run: str, path: Path, kind: str) -> None:
    """Write a torch.export program."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(**whole(model, kind)), file, extra_files={NOTE: json.dumps({"input": kind, **note(model, run)})})
    with replacing(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def save_onnx(model: Model, run: str, path: Path, kind: str) -> None:
    """Write an ONNX model. Raises `NotInstalled` without ONNX's packages."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotInstalled(f'--format onnx needs {" and ".join(missing)}: pip install -e ".[onnx]", or export --format program')
    given = whole(model, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own calls
        made = torch.onnx.export(given.pop("mod"), **given, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"], opset_version=20)
    made.model.metadata_props.update(strings({"input": kind, **note(model, run)}))
    with replacing(path) as temporary:
        made.save(temporary, external_data=False)


def parser() -> argparse.ArgumentParser:
    made = parser_of("export", __doc__)
    made.add_argument("run", metavar="RUN", help="run folder")
    made.add_argument("--format", choices=FORMATS, default="safetensors", help="format to write (default safetensors)")
    made.add_argument("--input", choices=INPUTS, default="uint8", help="what a program or ONNX model takes: uint8 pixels, or float in [0, 1] (default uint8)")
    made.add_argument("--out", metavar="FILE", help="file to write (default: RUN/<net> with the format's extension)")
    return made


def main(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    model = result.model(given.run)
    path = Path(given.out or Path(given.run) / f"{model.name}{FORMATS[given.format]}")
    if given.format == "safetensors":
        save_weights(model, given.run, path)
        takes = "weights; normalise images with the header's mean and std"
    else:
        {"program": save_program, "onnx": save_onnx}[given.format](model, given.run, path, given.input)
        pixels = "uint8 pixels" if given.input == "uint8" else "float32 in [0, 1]"
        takes = f"takes images [N,{len(model.mean)},{model.height},{model.width}], {pixels}, and gives logits [N,{len(model.classes)}]"
    print(f"{path}: {path.stat().st_size:,} bytes; {takes}")

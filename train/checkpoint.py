"""What a run keeps of its net: a checkpoint to go on from, and the model alone. Both are written whole."""

import io
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from pipelines.errors import InputError, reason
from pipelines.files import replacing
from train import archive


def save(path: Path, state: dict) -> None:
    """Write a checkpoint whole or not at all: a training's state (`state.py`), plain tensors and values only."""
    file = io.BytesIO()  # torch's own writer reports a full disk as no OSError
    torch.save(alone(state), file)
    with replacing(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def alone(value):
    """The same without the storages that tensors are a small part of, which would be written whole: weights of several nets that train as one program."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, dict):
        return {key: alone(inner) for key, inner in value.items()}
    return [alone(inner) for inner in value] if type(value) is list else value


def load(path: Path, device: str = "cpu") -> dict:
    """A checkpoint's values. No code in the file can run. Raises `InputError` where it cannot be read."""
    try:
        state = archive.read(path, device)
    except Exception as error:  # a damaged file raises many kinds
        raise InputError(f"{path}: not a readable checkpoint ({reason(error)}): train again") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: a torch file, but not a checkpoint: train again")
    return state


def save_model(path: Path, net: nn.Module, metadata: dict[str, str]) -> None:
    """Write the weights and norms as safetensors, with `metadata` (all strings) in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(ordered(safetensors.torch.save(tensors, metadata)))


def ordered(file: bytes) -> bytes:
    """A safetensors file with its metadata sorted: the library gives them another order each time, and equal models are to be equal files."""
    begin = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:begin])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[begin:]


def load_model(path: Path, net: nn.Module) -> nn.Module:
    """Put a saved model's weights into `net` and give it back. Raises `InputError` where they do not fit."""
    try:
        tensors = safetensors.torch.load_file(path)
        wrong = [name for name, mine in net.state_dict().items() if name in tensors and tensors[name].dtype != mine.dtype]
        if wrong:  # torch would convert, and take the bits of one type for numbers of another
            raise ValueError(f"{wrong[0]} is of type {tensors[wrong[0]].dtype}")
        net.load_state_dict(tensors)
    except Exception as error:
        raise InputError(f"{path}: not a model of this net ({reason(error)}): name the net it was trained as") from None
    return net

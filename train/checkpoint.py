"""What a run keeps of its net: a checkpoint to go on from, and the model alone. Both are written whole."""

import io
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from pipelines.errors import InputError
from pipelines.store import replacing


def save(path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, scaler, epoch: int, recipe: dict) -> None:
    """Write a checkpoint: everything after `epoch` finished epochs, plain tensors and values only."""
    state = {
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict(),
        "epoch": epoch,
        "recipe": recipe,
    }
    file = io.BytesIO()  # torch's own writer reports a full disk as no OSError
    torch.save(state, file)
    with replacing(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def load(path: Path, device: str = "cpu") -> dict:
    """A checkpoint's values. No code in the file can run. Raises `InputError` where it cannot be read."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]}): train again") from None


def save_model(path: Path, net: nn.Module, metadata: dict[str, str]) -> None:
    """Write the weights and norms as safetensors, with `metadata` (all strings) in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def load_model(path: Path, net: nn.Module) -> nn.Module:
    """Put a saved model's weights into `net` and give it back. Raises `InputError` where they do not fit."""
    try:
        net.load_state_dict(safetensors.torch.load_file(path))
    except Exception as error:
        raise InputError(f"{path}: not a model of this net ({str(error).splitlines()[0]}): name the net it was trained as") from None
    return net

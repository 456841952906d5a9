"""What `torch.save` writes, read as plain data: a zip of one pickle and a record of bytes for each storage.

`torch.load` runs no code either (weights_only), but it unpacks whatever a record swells to, hashes whatever stands as a
key, checks no checksum, and for older kinds of file unpacks a tar into a folder.
"""

import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines.pickles import Name, load

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
}
MOST_DIMENSIONS = 8


def read(path: Path, device: str = "cpu"):
    """The saved value: tensors on `device`, dicts, lists, tuples, texts and numbers. An ordered dict comes as a dict.

    Raises `zipfile.BadZipFile`, `ValueError` and others for a file that is damaged or holds anything else.
    """
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        stored = all(i.compress_type == zipfile.ZIP_STORED and i.compress_size == i.file_size for i in records.values())
        if not stored or sum(i.file_size for i in records.values()) > path.stat().st_size:
            raise ValueError("its records are packed, or larger than itself")
        folder = next((name[: -len("data.pkl")] for name in records if name.endswith("/data.pkl")), "")

        def record(name: str) -> bytes:
            return archive.read(records[folder + name])  # and its checksum is right

        if record("byteorder") != sys.byteorder.encode():
            raise ValueError("written on a machine with another byte order")
        admitted: dict = {Name("torch", name): None for name in DTYPES}
        admitted |= {
            Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
            Name("collections", "OrderedDict"): lambda: {},
        }  # what a call would put into it may be no key
        return load(record("data.pkl"), admitted, _storages(record, device))


def _storages(record: Callable[[str], bytes], device: str) -> Callable:
    """The function that gives the storage of a persistent id as a tensor of one dimension. Each is read once."""
    kept: dict[str, torch.Tensor] = {}

    def storage(saved) -> torch.Tensor:
        what, (_, name), key, _, count = saved
        if what != "storage" or type(key) is not str or type(count) is not int:
            raise TypeError("a persistent id that is no storage")
        if key not in kept:
            data = record(f"data/{key}")
            values = torch.frombuffer(bytearray(data), dtype=DTYPES[name]) if data else torch.empty(0, dtype=DTYPES[name])
            kept[key] = values.to(device)
        if len(kept[key]) != count or kept[key].dtype != DTYPES[name]:
            raise ValueError(f"storage {key} is not what it is said to be")
        return kept[key]

    return storage


def _tensor(storage, offset, size, stride, *_) -> torch.Tensor:
    """The view of a storage that a tensor is, no larger than it."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor's shape is none")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) and (last >= len(storage) or math.prod(size) > len(storage)):
        raise ValueError("a tensor is larger than its storage")
    return torch.as_strided(storage, size, stride, offset) if math.prod(size) else storage.new_empty(size)

"""The store: one `.safetensors` file that holds every split of a set of small images.

    header      JSON, as safetensors has it; its metadata (all strings) is
                  format "tenfold", version, encoding "raw" or "jpeg", height, width, channels,
                  classes, mean, std (JSON lists; fractions of 1, of the train split),
                  source (where it came from), sha256 (JSON: tensor name to hex digest)
    <split>.labels   int64[N]            class of each image
    raw   <split>.images   uint8[N,H,W,C]
    jpeg  <split>.images   uint8[bytes]  the images' own data, one after another
          <split>.offsets  int64[N+1]    where each begins
          <split>.headers  uint8[bytes]  the distinct headers: all up to and with the start-of-scan segment
          <split>.header_offsets int64[K+1]
          <split>.header_ids     int32[N]  header of each image; header + data is the JPEG, byte for byte

Files of one encoder share their tables: the header is 623 of a CIFAR JPEG's 920 bytes, and is kept once.
"""

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from PIL import Image

from pipelines.errors import InputError

VERSION = 1
AGAIN = "convert the source again (python -m pipelines convert SOURCE OUT)"


class Store:
    """An open store. Tensors are memory-mapped; `raw` images are read without a copy.

    Attributes: path, encoding ("raw" or "jpeg"), height, width, channels (pixels), classes (names in
    label order), mean, std (fractions of 1, a value a channel), source (text), splits (names),
    sha256 (tensor name to hex digest).

    Raises `InputError`, one line that names the file, where it is missing, is not a store, is newer than
    this code or contradicts itself.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._tensors, metadata = _open(self.path)
        self._decoded: dict[str, np.ndarray] = {}
        try:
            self.encoding = metadata["encoding"]
            self.height, self.width, self.channels = (int(metadata[k]) for k in ("height", "width", "channels"))
            self.classes = tuple(str(name) for name in json.loads(metadata["classes"]))
            self.mean, self.std = (tuple(float(v) for v in json.loads(metadata[k])) for k in ("mean", "std"))
            self.source = metadata["source"]
            self.sha256 = dict(json.loads(metadata["sha256"]))
            self.splits = tuple(sorted((n[: -len(".labels")] for n in self._tensors if n.endswith(".labels")), reverse=True))
            for split in self.splits:
                self._check(split)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: the store's description is damaged ({error!r}): {AGAIN}") from None

    def _check(self, split: str) -> None:
        """Raise `ValueError` or `KeyError` where a split's tensors cannot be what the header says."""
        labels, images = self._tensors[f"{split}.labels"], self._tensors[f"{split}.images"]
        if labels.dtype != np.int64 or labels.ndim != 1 or images.dtype != np.uint8:
            raise ValueError(f"{split}: wrong dtype or shape")
        if len(self.mean) != self.channels or len(self.std) != self.channels or not all(s > 0 for s in self.std):
            raise ValueError("mean and std do not fit the channels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"{split}: a label has no class")
        if self.encoding == "raw":
            if images.shape != (len(labels), self.height, self.width, self.channels):
                raise ValueError(f"{split}: images of shape {images.shape}")
        elif self.encoding == "jpeg":
            ids, headers = self._tensors[f"{split}.header_ids"], self._tensors[f"{split}.header_offsets"]
            _check_offsets(self._tensors[f"{split}.offsets"], len(labels), images)
            _check_offsets(headers, len(headers) - 1, self._tensors[f"{split}.headers"])
            if ids.shape != labels.shape or (len(ids) and not 0 <= ids.min() <= ids.max() < len(headers) - 1):
                raise ValueError(f"{split}: a header is missing")
        else:
            raise ValueError(f"unknown encoding {self.encoding!r}")

    def count(self, split: str) -> int:
        """Number of images in a split; raises `InputError` where the store has no such split."""
        return len(self.labels(split))

    def labels(self, split: str) -> np.ndarray:
        """int64[N]: the class of each image, memory-mapped."""
        if split not in self.splits:
            raise InputError(f"{self.path}: no split {split!r}; it holds {', '.join(self.splits)}")
        return self._tensors[f"{split}.labels"]

    def images(self, split: str, progress=None) -> np.ndarray:
        """uint8[N,H,W,C]: all pixels, memory-mapped where raw, else decoded once by Pillow and kept.

        progress  a function that wraps an iterable and shows how far it is, such as tqdm; or None
        """
        count = self.count(split)
        if self.encoding == "raw":
            return self._tensors[f"{split}.images"]
        if split not in self._decoded:
            out = np.empty((count, self.height, self.width, self.channels), np.uint8)
            for i in (progress or iter)(range(count)):
                out[i] = self._decode(split, i)
            self._decoded[split] = out
        return self._decoded[split]

    def _decode(self, split: str, i: int) -> np.ndarray:
        try:
            pixels = decode(self.jpeg(split, i))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{self.path}: image {i} of {split} cannot be decoded ({error}): {AGAIN}") from None
        if pixels.shape != (self.height, self.width, self.channels):
            raise InputError(f"{self.path}: image {i} of {split} is of shape {pixels.shape}: {AGAIN}")
        return pixels

    def jpeg(self, split: str, i: int) -> bytes:
        """The i-th image's JPEG file, byte for byte as it was converted; only with encoding "jpeg"."""
        if self.encoding != "jpeg":
            raise InputError(f"{self.path}: holds raw pixels, no JPEGs: convert with --encoding jpeg")
        begin, end = self._tensors[f"{split}.offsets"][i : i + 2]
        head = self._tensors[f"{split}.header_ids"][i]
        first, last = self._tensors[f"{split}.header_offsets"][head : head + 2]
        return self._tensors[f"{split}.headers"][first:last].tobytes() + self._tensors[f"{split}.images"][begin:end].tobytes()

    def verify(self) -> None:
        """Raise `InputError` unless every tensor still has the sha256 that was written beside it."""
        if set(self.sha256) != set(self._tensors):
            raise InputError(f"{self.path}: damaged, its tensors are not those its checksums name: {AGAIN}")
        with ThreadPoolExecutor(2) as pool:  # hashlib lets go of the interpreter's lock
            digests = dict(zip(self._tensors, pool.map(_sha256, self._tensors.values())))
        for name, digest in digests.items():
            if digest != self.sha256[name]:
                raise InputError(f"{self.path}: damaged, tensor {name} does not match its checksum: {AGAIN}")


def read(store: str | Path | Store) -> Store:
    """A `Store` from a path; an open one is handed back as it is."""
    return store if isinstance(store, Store) else Store(store)


def write(path: str | Path, tensors: dict[str, np.ndarray], **metadata) -> None:
    """Write a store: all of it, or nothing. `tensors` and `metadata` are as the module describes them.

    Checksums and version are added. Raises `InputError` where the folder cannot be written or is full.
    """
    described = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    sums = json.dumps({name: _sha256(tensor) for name, tensor in tensors.items()})
    blob = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    header = {"format": "tenfold", "version": str(VERSION), "sha256": sums, **described}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(blob, header))


@contextmanager
def replacing(path: str | Path):
    """Yield a temporary path beside `path`; renamed onto it when the block ends well, removed when not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}): free some room or name another folder") from None
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the folder itself is missing or is no folder: nothing was written
            pass


def decode(data: bytes) -> np.ndarray:
    """uint8[H,W,3] of an encoded image (any format Pillow reads); raises what Pillow raises."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """(header, data) of a JPEG, cut behind its first start-of-scan segment (ITU-T T.81, B.1.1.3).

    Where the segments cannot be followed the header is empty; header + data is the file either way.
    """
    at = 2
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            return data[:end], data[end:]
        at = end
    return b"", data


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors, memory-mapped, and the metadata of a store that this code can read."""
    if not path.is_file():
        raise InputError(f"{path}: no such store: make one with python -m pipelines convert SOURCE {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != "tenfold":
                raise InputError(f"{path}: a safetensors file, but not a Tenfold store: make one with python -m pipelines convert SOURCE OUT")
            if metadata.get("version") != str(VERSION):
                raise InputError(f"{path}: store format version {metadata.get('version')}, this Tenfold reads {VERSION}: upgrade Tenfold, or {AGAIN}")
            return {name: file.get_tensor(name).numpy() for name in file.keys()}, metadata
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        raise InputError(f"{path}: not a readable store ({error}): {AGAIN}") from None


def _check_offsets(offsets: np.ndarray, count: int, stream: np.ndarray) -> None:
    if offsets.shape != (count + 1,) or offsets[0] != 0 or offsets[-1] != len(stream) or (np.diff(offsets) < 0).any():
        raise ValueError("offsets do not fit the images")


def _sha256(tensor: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)).hexdigest()

"""The store: one `.safetensors` file that holds every split of a set of small images.

    header      JSON, as safetensors has it; its metadata (all strings) is
                  format "tenfold", version, encoding "raw" or "jpeg", height, width, channels,
                  classes, mean, std (JSON lists; fractions of 1, of the train split),
                  source (where it came from), sha256 (JSON: tensor name to hex digest),
                  header (hex digest of the file up to the tensors, with this digest as 64 zeros)
    <split>.labels   int64[N]            class of each image
    raw   <split>.images   uint8[N,H,W,C]
    jpeg  <split>.images   uint8[bytes]  the images' own data, one after another
          <split>.offsets  int64[N+1]    where each begins
          <split>.headers  uint8[bytes]  the distinct headers: all up to and with the start-of-scan segment
          <split>.header_offsets int64[K+1]
          <split>.header_ids     int32[N]  header of each image; header + data is the JPEG, byte for byte

The same tensors and metadata give the same file, byte for byte. Files of one encoder share their tables:
the header is 623 of a CIFAR JPEG's 920 bytes, and is kept once.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors

from pipelines.errors import InputError
from pipelines.files import replacing
from pipelines.pictures import LARGEST, blank, decode

VERSION = 1
DTYPES = {"int64": "I64", "int32": "I32", "uint8": "U8"}  # as safetensors names them
BLANK = b"0" * 64
MOST_HEADER = 100_000_000  # bytes; safetensors refuses a longer one
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
        self._opened = _facts(self.path)
        self._tensors, metadata = _open(self.path)
        self._decoded: dict[str, np.ndarray] = {}
        try:
            self.encoding = metadata["encoding"]
            self.height, self.width, self.channels = (int(metadata[k]) for k in ("height", "width", "channels"))
            self.classes = _names(json.loads(metadata["classes"]))
            self.mean, self.std = (tuple(float(v) for v in json.loads(metadata[k])) for k in ("mean", "std"))
            self.source = metadata["source"]
            self.sha256 = dict(json.loads(metadata["sha256"]))
            self._header = str(metadata["header"]).encode()
            self.splits = tuple(sorted((n[: -len(".labels")] for n in self._tensors if n.endswith(".labels")), reverse=True))
            self._check()
            for split in self.splits:
                self._check_split(split)
        except Exception as error:  # a header that lies can raise anything, RecursionError included
            raise InputError(f"{self.path}: the store's description is damaged ({error!r:.200}): {AGAIN}") from None

    def _check(self) -> None:
        """Raise `ValueError` where the metadata cannot be true of any small images."""
        if self.encoding not in ("raw", "jpeg"):
            raise ValueError(f"unknown encoding {self.encoding!r}")
        if not (1 <= self.height <= LARGEST and 1 <= self.width <= LARGEST and 1 <= self.channels <= 4):
            raise ValueError(f"{self.channels} channels of {self.height}x{self.width} pixels")
        if self.encoding == "jpeg" and self.channels != 3:
            raise ValueError("JPEGs are read as 3 channels")
        fractions = all(0 <= m <= 1 for m in self.mean) and all(0 < s <= 1 for s in self.std)  # False for NaN too
        if len(self.mean) != self.channels or len(self.std) != self.channels or not fractions:
            raise ValueError("mean and std do not fit the channels")
        if not self.splits:
            raise ValueError("no split in it")
        if len(self._header) != len(BLANK):
            raise ValueError("its description has no checksum")

    def _check_split(self, split: str) -> None:
        """Raise `ValueError` or `KeyError` where a split's tensors cannot be what the header says."""
        labels, images = self._tensors[f"{split}.labels"], self._tensors[f"{split}.images"]
        if labels.dtype != np.int64 or labels.ndim != 1 or images.dtype != np.uint8:
            raise ValueError(f"{split}: wrong dtype or shape")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"{split}: a label has no class")
        if self.encoding == "raw":
            if images.shape != (len(labels), self.height, self.width, self.channels):
                raise ValueError(f"{split}: images of shape {images.shape}")
            return
        ids, headers = self._tensors[f"{split}.header_ids"], self._tensors[f"{split}.header_offsets"]
        _check_offsets(self._tensors[f"{split}.offsets"], len(labels), images)
        _check_offsets(headers, len(headers) - 1, self._tensors[f"{split}.headers"])
        if ids.dtype != np.int32 or ids.shape != labels.shape or (len(ids) and not 0 <= ids.min() <= ids.max() < len(headers) - 1):
            raise ValueError(f"{split}: a header is missing")

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
            out = blank((count, self.height, self.width, self.channels), self.path)
            for i in (progress or iter)(range(count)):
                out[i] = self._decode(split, i)
            self._decoded[split] = out
        return self._decoded[split]

    def _decode(self, split: str, i: int) -> np.ndarray:
        try:
            pixels = decode(self.jpeg(split, i))
        except Exception as error:  # Pillow's decoders raise many kinds; all mean one thing here
            raise InputError(f"{self.path}: image {i} of {split} cannot be decoded ({error}): {AGAIN}") from None
        if pixels.shape != (self.height, self.width, self.channels):
            raise InputError(f"{self.path}: image {i} of {split} is of shape {pixels.shape}: {AGAIN}")
        return pixels

    def jpeg(self, split: str, i: int) -> bytes:
        """The i-th image's JPEG file, byte for byte as it was converted; only with encoding "jpeg"."""
        if self.encoding != "jpeg":
            raise InputError(f"{self.path}: holds raw pixels, no JPEGs: convert with --encoding jpeg")
        if not 0 <= i < self.count(split):
            raise InputError(f"{self.path}: no image {i} of {split}; it has {self.count(split)}")
        begin, end = self._tensors[f"{split}.offsets"][i : i + 2]
        head = self._tensors[f"{split}.header_ids"][i]
        first, last = self._tensors[f"{split}.header_offsets"][head : head + 2]
        return self._tensors[f"{split}.headers"][first:last].tobytes() + self._tensors[f"{split}.images"][begin:end].tobytes()

    def check_untouched(self) -> None:
        """Raise `InputError` where the file was written into since it was opened: what is mapped of it may be anything.

        One that was replaced or removed, as `convert` and `rm` do, is another file: the one that was opened stays as it was.
        """
        now = _facts(self.path)
        if now and self._opened and now[0] == self._opened[0] and now != self._opened:
            raise InputError(f"{self.path}: was written into while it was read, so its images cannot be trusted any more: {AGAIN}")

    def verify(self) -> None:
        """Raise `InputError` unless every tensor, and the header, still has the sha256 that was written beside it."""
        try:
            with self.path.open("rb") as file:
                header = file.read(8)
                header += file.read(min(int.from_bytes(header, "little"), MOST_HEADER))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read any more ({error.strerror}): {AGAIN}") from None
        if hashlib.sha256(header.replace(self._header, BLANK)).hexdigest().encode() != self._header:
            raise InputError(f"{self.path}: damaged, its description does not match its checksum: {AGAIN}")
        if set(self.sha256) != set(self._tensors):
            raise InputError(f"{self.path}: damaged, its tensors are not those its checksums name: {AGAIN}")
        with ThreadPoolExecutor(2) as pool:  # hashlib lets go of the interpreter's lock
            digests = dict(zip(self._tensors, pool.map(_sha256, self._tensors.values())))
        for name, digest in digests.items():
            if digest != self.sha256[name]:
                raise InputError(f"{self.path}: damaged, tensor {name} does not match its checksum: {AGAIN}")


def cache_folder() -> Path:
    """Where downloads and converted sources are kept: $TENFOLD_CACHE, else ~/.cache/tenfold."""
    try:
        return Path(os.environ.get("TENFOLD_CACHE") or "~/.cache/tenfold").expanduser()
    except RuntimeError:  # a user without a home, as in many a container
        raise InputError("no home folder, in which downloads and converted sources could be kept: name a folder with TENFOLD_CACHE") from None


def read(store: str | Path | Store) -> Store:
    """A `Store` from a path; an open one is handed back as it is."""
    return store if isinstance(store, Store) else Store(store)


def write(path: str | Path, tensors: dict[str, np.ndarray], **metadata) -> None:
    """Write a store: all of it, or nothing. `tensors` and `metadata` are as the module describes them.

    Checksums and version are added. Raises `InputError` where the folder cannot be written or is full.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # the widest first, so that all are aligned
    whole = {name: np.ascontiguousarray(tensors[name]) for name in names}
    sums = json.dumps({name: _sha256(tensor) for name, tensor in whole.items()})
    described = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    unsigned = _header(whole, {"format": "tenfold", "version": str(VERSION), "sha256": sums, "header": BLANK.decode(), **described})
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(unsigned.replace(BLANK, hashlib.sha256(unsigned).hexdigest().encode()))
        for tensor in whole.values():
            file.write(tensor.reshape(-1).view(np.uint8))


def _header(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """A safetensors file up to its tensors: the header's size in 8 bytes, then JSON, padded so that 8 divides it.

    Written here because the library gives its metadata another order each time, builds the file in memory
    before it writes it, and does not say why a write failed.
    """
    described: dict[str, dict] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        described[name] = {"dtype": DTYPES[tensor.dtype.name], "shape": tensor.shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def is_utf8(name: str) -> bool:
    """Whether a name from the file system can be written in UTF-8: safetensors takes no other."""
    return name == name.encode(errors="replace").decode()


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors, memory-mapped, and the metadata of a store that this code can read."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name no file system takes
        raise InputError(f"{path}: no such store: make one with python -m pipelines convert SOURCE {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != "tenfold":
                raise InputError(f"{path}: a safetensors file, but not a Tenfold store: {AGAIN}")
            version = str(metadata.get("version"))[:20]
            if version != str(VERSION):
                raise InputError(f"{path}: store format version {version}, this Tenfold reads {VERSION}: upgrade Tenfold, or {AGAIN}")
            return {name: file.get_tensor(name).numpy() for name in file.keys()}, metadata
    except InputError:
        raise
    except Exception as error:  # of safetensors, of torch for a type it cannot hand to NumPy, of the system
        raise InputError(f"{path}: not a readable store ({error!s:.200}): {AGAIN}") from None


def _facts(path: Path) -> tuple[tuple[int, int], int, int] | None:
    """Which file a path is, its size in bytes, and when it was written to, ns; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    return (found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns


def _names(names) -> tuple[str, ...]:
    """The class names; raises `ValueError` for what is no list of texts that can be written again."""
    if not isinstance(names, list) or not all(isinstance(name, str) and is_utf8(name) for name in names):
        raise ValueError("the class names are no list of texts")
    return tuple(names)


def _check_offsets(offsets: np.ndarray, count: int, stream: np.ndarray) -> None:
    if offsets.dtype != np.int64 or offsets.shape != (count + 1,) or stream.dtype != np.uint8 or stream.ndim != 1:
        raise ValueError("wrong dtype or shape")
    if offsets[0] != 0 or offsets[-1] != len(stream) or (offsets[1:] < offsets[:-1]).any():  # a difference could overflow
        raise ValueError("offsets do not fit the images")


def _sha256(tensor: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)).hexdigest()  # type: ignore[arg-type]  # it is a buffer

"""The peers as their own documentation writes them: their own random operators, their own recommended settings.

Each is a class that takes a `Task` and gives, like a pipeline, `len()` and `epoch(number, start)`, which yields
(images [B,C,H,W] of the dtype in channels_last order on the device, labels int64[B]). All flip with probability a half,
shift by up to 4 pixels, cut a square of 8 out and normalise; which images come when is each library's own affair.
A peer whose library is absent raises ImportError, and `InputError` where it cannot do the task.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from pipelines import threads
from pipelines.errors import InputError
from pipelines.store import Store

TRANSLATE, CUTOUT = 4, 8  # pixels


@dataclass(frozen=True)
class Task:
    """What a row loads: `ids` (int64[n]) of a store's train split, on a device, in a dtype."""

    store: Store
    ids: np.ndarray
    batch_size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def steps(self) -> int:
        """Batches an epoch; a last one that is not full is kept."""
        return -(-len(self.ids) // self.batch_size)

    @property
    def mean(self) -> tuple[float, ...]:
        """A colour's mean, in [0, 1]."""
        return self.store.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.store.std

    @cached_property
    def whole(self) -> bool:
        return len(self.ids) == self.store.count("train")

    def images(self) -> np.ndarray:
        """uint8[n,H,W,C]; in memory, not on the disk, as every peer's example has CIFAR-10."""
        images = self.store.images("train")
        return np.array(images if self.whole else images[self.ids])

    def labels(self) -> np.ndarray:
        """int64[n]"""
        return self.store.labels("train")[self.ids]


def cores() -> int:
    """Cores that this process may use: the workers that each peer is given, at most 16."""
    return min(threads.cores(), 16)


class Pictures(Dataset):
    """A map-style dataset like torchvision's CIFAR10: (transformed image, label)."""

    def __init__(self, task: Task, transform, pil: bool):
        self.images, self.labels, self.transform, self.pil = task.images(), task.labels(), transform, pil

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if not self.pil:
            return self.transform(torch.from_numpy(self.images[i]).permute(2, 0, 1)), int(self.labels[i])
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


class Shuffled(RandomSampler):
    """torch's own shuffle, without its first `start` samples."""

    start = 0

    def __iter__(self):
        order = super().__iter__()
        return (i for position, i in enumerate(order) if position >= self.start)


class Torchvision:
    """torch's DataLoader with torchvision's v2 transforms, on uint8 tensors, as v2's notes on performance advise."""

    pil = False

    def __init__(self, task: Task):
        from torchvision.transforms import v2

        height, width = task.store.height, task.store.width
        area = CUTOUT**2 / (height * width)
        crop = [v2.RandomCrop((height, width), padding=TRANSLATE), v2.RandomHorizontalFlip()]
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(task.mean, task.std)]
        cut = v2.RandomErasing(p=1, scale=(area, area), ratio=(1, 1))
        transform = v2.Compose([*crop, v2.ToImage(), *scale, cut])
        pictures = Pictures(task, transform, self.pil)
        self.task, self.order = task, Shuffled(pictures)
        cuda, workers = task.device.type == "cuda", cores()
        batches = {"batch_size": task.batch_size, "sampler": self.order}
        self.loader = DataLoader(pictures, **batches, num_workers=workers, persistent_workers=True, pin_memory=cuda)

    def __len__(self) -> int:
        return self.task.steps

    def epoch(self, number: int, start: int = 0):
        self.order.start = start * self.task.batch_size
        for images, labels in self.loader:
            images = images.to(self.task.device, self.task.dtype, non_blocking=True, memory_format=torch.channels_last)
            yield images, labels.to(self.task.device, non_blocking=True)


class TorchvisionPIL(Torchvision):
    """The same on PIL images, which torchvision's datasets give."""

    pil = True


class Ffcv:
    """FFCV's CIFAR-10 example. Without a GPU, its own compiled NormalizeImage takes the place of the example's last
    two operations where it can (it has no bfloat16): it is faster there. On a GPU NormalizeImage would need CuPy."""

    def __init__(self, task: Task):
        import ffcv
        from ffcv import transforms as T
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from torchvision.transforms import Normalize

        from pipelines import ffcv as ours  # NotInstalled where FFCV is; it also gives torch its threads back

        if task.store.channels != 3:
            raise InputError("FFCV takes images of 3 channels")
        mean, std = (np.array(v) * 255 for v in (task.mean, task.std))
        colour = tuple(int(v) for v in mean)
        types = {torch.float32: np.float32, torch.float16: np.float16}
        cuda = task.device.type == "cuda"
        image, label = ([T.ToTensor(), *([T.ToDevice(task.device, non_blocking=True)] if cuda else [])] for _ in range(2))
        if cuda or task.dtype not in types:
            image += [T.ToTorchImage(), T.Convert(task.dtype), Normalize(mean.tolist(), std.tolist())]
        else:
            image = [T.NormalizeImage(mean, std, types[task.dtype]), *image, T.ToTorchImage()]
        augment = [T.RandomHorizontalFlip(), T.RandomTranslate(TRANSLATE, colour), T.Cutout(CUTOUT, colour)]
        fields = {"image": [SimpleRGBImageDecoder(), *augment, *image], "label": [IntDecoder(), *label, T.Squeeze()]}
        order = {"order": ffcv.loader.OrderOption.RANDOM, "indices": task.ids, "drop_last": False}
        path = str(ours.beton(task.store, "train"))
        self.loader = ffcv.Loader(path, task.batch_size, num_workers=cores(), os_cache=True, pipelines=fields, **order)
        self.task, self.batches = task, ours.Batches  # FFCV's thread, which ends with its error where FFCV's would wait for ever

    def __len__(self) -> int:
        return self.task.steps

    def epoch(self, number: int, start: int = 0):
        order = self.loader.traversal_order.sample_order(number)[start * self.task.batch_size :]
        batches = self.batches(self.loader, order)
        try:
            for images, labels in batches:
                yield images, labels.reshape(-1)  # Squeeze makes a number of the label of a batch of one
            if batches.error:
                raise batches.error
        finally:
            batches.stop()


class Samples:
    """DALI's external source: a batch of (uint8[B,H,W,C], int64[B]) a call, shuffled anew in every epoch."""

    def __init__(self, task: Task):
        self.images, self.labels, self.size = task.images(), task.labels(), task.batch_size
        self.rng, self.batches = np.random.default_rng(), iter(())

    def begin(self, start: int) -> None:
        order = self.rng.permutation(len(self.labels))[start * self.size :]
        self.batches = (order[at : at + self.size] for at in range(0, len(order), self.size))

    def __call__(self):
        ids = next(self.batches)
        return self.images[ids], self.labels[ids]


class Dali:
    """DALI's pipeline with its PyTorch iterator. Of the ways that its documentation shows this was the fastest on a CPU: a
    slice out of bounds before crop_mirror_normalize, not a crop of images padded beforehand; no parallel external source."""

    def __init__(self, task: Task):
        from nvidia.dali import fn, math, pipeline_def, types
        from nvidia.dali.plugin.pytorch import DALIGenericIterator

        native = {torch.float32: types.FLOAT, torch.float16: types.FLOAT16}
        if task.dtype not in native:
            raise InputError(f"DALI has no {str(task.dtype).removeprefix('torch.')}")
        cuda, size = task.device.type == "cuda", (task.store.height, task.store.width)
        mean, std = ([255 * x for x in v] for v in (task.mean, task.std))
        self.task, self.samples = task, Samples(task)

        where = (task.device.index or 0) if cuda else None

        @pipeline_def(batch_size=task.batch_size, num_threads=cores(), device_id=where, exec_dynamic=True)
        def graph():
            kinds = {"dtype": [types.UINT8, types.INT64], "ndim": [3, 0], "layout": ["HWC", ""]}
            images, labels = fn.external_source(self.samples, num_outputs=2, **kinds)
            if cuda:
                images, labels = images.gpu(), labels.gpu()
            corner = fn.random.uniform(range=(-TRANSLATE, TRANSLATE + 1 - 1e-4), shape=2)
            start = fn.cast(math.floor(corner), dtype=types.INT32)
            outside = {"out_of_bounds_policy": "pad", "fill_values": [0] * task.store.channels}
            images = fn.slice(images, start=start, shape=size, axis_names="HW", **outside)
            anchor = math.floor(fn.random.uniform(range=(0, size[0] - CUTOUT + 1 - 1e-4), shape=2))
            square = {"shape": [CUTOUT] * 2, "axis_names": "HW", "fill_value": [int(v) for v in mean]}
            images = fn.erase(images, anchor=anchor, **square)
            flip = fn.random.coin_flip(probability=0.5)
            scale = {"mean": mean, "std": std, "dtype": native[task.dtype], "output_layout": "HWC"}
            return fn.crop_mirror_normalize(images, mirror=flip, **scale), labels

        self.loader = DALIGenericIterator(graph(), ["images", "labels"], prepare_first_batch=False)

    def __len__(self) -> int:
        return self.task.steps

    def epoch(self, number: int, start: int = 0):
        self.samples.begin(start)
        self.loader.reset()
        for (batch,) in self.loader:
            yield batch["images"].permute(0, 3, 1, 2), batch["labels"].reshape(-1)

"""The baseline: torch's DataLoader with worker processes, and torchvision's v2 transforms.

The sampler sends each sample its choices from the plan, so that no worker draws a random number.
Transforms run on uint8 tensors, as the v2 documentation advises; on PIL images they took half as long again.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from pipelines.plan import Plan
from pipelines.reference import mean_pixel, scaling
from pipelines.store import Store, read
from pipelines.threads import cores
from pipelines.transfer import wanted
from pipelines.turns import Turns


class Images(Dataset):
    """A split as a map-style dataset. A key is (id, flip, dy, dx, cut_y, cut_x), plain integers.

    An item is (float32[C,H,W] normalised, label).
    """

    def __init__(self, store: Store, split: str, plan: Plan):
        self.images, self.labels = store.images(split), store.labels(split)
        mean, std = scaling(store)
        self.mean, self.inverse = (torch.from_numpy(v)[:, None, None] for v in (mean, 1 / std))
        self.policy = plan.policy
        self.fill = mean_pixel(store).tolist()
        self.size = [store.height, store.width]

    def __getitem__(self, key: tuple[int, ...]) -> tuple[torch.Tensor, int]:
        sample, flip, dy, dx, cut_y, cut_x = key
        reach, side, padding = self.policy.translate, self.policy.cutout, self.policy.padding
        image = torch.from_numpy(self.images[sample]).permute(2, 0, 1)
        if reach:
            mode = "reflect" if padding == "reflect" else "constant"
            image = F.pad(image, [reach] * 4, fill=self.fill if padding == "mean" else 0, padding_mode=mode)
            image = F.crop(image, reach + dy, reach + dx, *self.size)
        if flip:
            image = F.horizontal_flip(image)
        if side:
            fill = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None]
            image = F.erase(image, cut_y, cut_x, side, side, fill)
        image = F.to_dtype(image, torch.float32)  # 0 to 255; v2's own normalize divides by std, and would round otherwise
        return image.sub_(self.mean).mul_(self.inverse), int(self.labels[sample])


class Keys:
    """The batch sampler: lists of keys, by the plan. `epoch` and `start` are set before each pass."""

    def __init__(self, plan: Plan):
        self.plan, self.epoch, self.start = plan, 0, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        for ids in self.plan.batches(self.epoch, self.start):
            choices = self.plan.augmentation(self.epoch, ids)
            yield list(zip(ids.tolist(), *(c.tolist() for c in choices)))


class Torchvision(Turns):
    """See `pipelines.Pipeline`."""

    def __init__(self, store: Store, split: str, plan: Plan, device: torch.device, dtype: torch.dtype, workers: int):
        self.plan, self.device, self.dtype = plan, device, dtype
        self.keys = Keys(plan)
        self.loader = DataLoader(
            Images(store, split, plan),
            batch_sampler=self.keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own, or each pass would move the global stream that dropout draws from
        )

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.keys.epoch, self.keys.start = epoch, start
        for images, labels in self.loader:
            images = images.to(self.device, self.dtype, non_blocking=True, memory_format=torch.channels_last)
            yield images, labels.to(self.device, non_blocking=True)


def open(
    store, split="train", *, batch_size=512, policy=None, seed=0, device="cpu", dtype=torch.float32, ids=None, drop_last=False, share=(0, 1), workers=None
):
    """Open the torchvision baseline; arguments as in `pipelines.open`.

    workers  worker processes; one a core that this process may use, shared by all processes that train together, at most 16, without it
    """
    store, device = read(store), wanted("torchvision", device, dtype)
    plan = Plan.of(store, split, policy, seed, batch_size, ids, drop_last, share)
    workers = max(min(cores() // share[1], 16), 1) if workers is None else workers
    return Torchvision(store, split, plan, device, dtype, workers)

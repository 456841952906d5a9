"""The test pass: logits of every image, in the store's order."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipelines.transfer import sent
from train.ranks import Ranks

Look = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """What a net says of a split: predicted and true int64[N], and loss, the mean cross-entropy."""

    predicted: np.ndarray
    true: np.ndarray
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float((self.predicted == self.true).mean())

    def confusion(self, classes: int) -> np.ndarray:
        """int64[classes, classes]: images by true class (row) and predicted class (column)."""
        table = np.zeros((classes, classes), np.int64)
        np.add.at(table, (self.true, self.predicted), 1)
        return table


@torch.no_grad()
def evaluate(net: nn.Module, pipeline, look: Look, views: int = 1, share: float = 1.0, ranks: Ranks = Ranks()) -> Outcome:
    """Run `net` in evaluation mode over the pipeline's epoch 0; leaves it in training mode.

    look   (images, views) → logits float32[B,K] of the net
    views  of each image, whose logits are averaged (`seen`)
    share  of the images, the `least_confident`, that have more views than the plain one
    ranks  the processes that each do their part of it; all get the whole outcome
    """
    net.eval()
    logits_NK, labels_N = passed(pipeline, look, views if share == 1 else 1)
    if share < 1 and views > 1:
        places = torch.from_numpy(pipeline.plan.places[: len(logits_NK)]).to(logits_NK.device)
        unsure_n = least_confident(ranks.gathered(logits_NK, pipeline.plan), share)[places].nonzero().flatten()
        if len(unsure_n):  # in this process's part
            again = []
            for images in picked(pipeline, unsure_n.cpu().numpy()):
                again.append(look(images, views))
            logits_NK[unsure_n] = torch.cat(again)[: len(unsure_n)]
    net.train()
    logits, labels = (ranks.gathered(rows, pipeline.plan) for rows in (logits_NK, labels_N))
    loss = nn.functional.cross_entropy(logits, labels).item()
    return Outcome(logits.argmax(1).cpu().numpy(), labels.cpu().numpy(), loss)


def passed(pipeline, look: Look, views: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits float32[N,K], labels int64[N]) of the images of epoch 0."""
    logits, labels = [], []
    for images, classes in pipeline.epoch(0):
        logits.append(look(images, views))
        labels.append(classes)
    return torch.cat(logits), torch.cat(labels)


def picked(pipeline, wanted_n: np.ndarray) -> Iterator[torch.Tensor]:
    """The images of epoch 0 at the positions `wanted`, int64[n], n > 0 and ascending, in batches of the pipeline's size.

    On a GPU the last one is filled up with images that were there: kernels are chosen anew for every size of batch, which took longer than all
    the rest of a test pass.
    """
    parts, first, size = [], 0, 0
    for images, _ in pipeline.epoch(0):
        size = max(size, len(images))
        here = wanted_n[(first <= wanted_n) & (wanted_n < first + len(images))] - first
        first += len(images)
        parts.append(images[sent(here, images.device)])
        if sum(map(len, parts)) >= size:
            whole = joined(parts)
            yield whole[:size]
            parts = [whole[size:]]
    rest = joined(parts)
    if len(rest):
        yield joined([rest] * -(-size // len(rest)))[:size] if rest.is_cuda else rest


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The images of all parts, in channels_last order."""
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def least_confident(logits_NK: torch.Tensor, share: float) -> torch.Tensor:
    """bool[N]: that share of the images, rounded up, whose two likeliest classes are closest in probability."""
    first, second = logits_NK.softmax(1).topk(2, 1).values.unbind(1)
    chosen = torch.zeros(len(logits_NK), dtype=torch.bool, device=logits_NK.device)
    chosen[(first - second).argsort(stable=True)[: math.ceil(share * len(logits_NK))]] = True
    return chosen


def fitting(net: nn.Module, images_BCHW: torch.Tensor, views: int) -> torch.Tensor:
    """`seen`, in parts where the device has no memory for all of them: in evaluation mode no image depends on another."""
    try:
        return seen(net, images_BCHW, views)
    except torch.OutOfMemoryError:
        if len(images_BCHW) == 1:
            raise
    # after the handler, whose traceback keeps tensors alive
    return torch.cat([fitting(net, part, views) for part in images_BCHW.split(-(-len(images_BCHW) // 2))])


def seen(net: nn.Module, images_BCHW: torch.Tensor, views: int) -> torch.Tensor:
    """float32[B,K]: mean logits of an image (views 1), of it and its mirror image (2), or of those and of both shifted by a
    pixel down right and up left, the shifted four with the weight of the unshifted two (6; as airbench94, Jordan 2024)."""
    if views == 1:
        return net(images_BCHW).float()
    straight = (net(images_BCHW).float() + net(images_BCHW.flip(-1)).float()) / 2
    if views == 2:
        return straight
    height, width = images_BCHW.shape[2:]
    padded = nn.functional.pad(images_BCHW, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[..., at : at + height, at : at + width].contiguous(memory_format=torch.channels_last) for at in (0, 2)]
    return (straight + sum(seen(net, images, 2) for images in shifted) / 2) / 2

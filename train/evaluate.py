"""The test pass: logits of every image, in the store's order."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


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
def evaluate(net: nn.Module, pipeline, autocast) -> Outcome:
    """Run `net` in evaluation mode over the pipeline's epoch 0; leaves it in training mode.

    autocast  a function that gives a fresh context for the forward pass
    """
    net.eval()
    logits_NK, labels_N = [], []
    for images, labels in pipeline.epoch(0):
        with autocast():
            logits_NK.append(net(images).float())
        labels_N.append(labels)
    net.train()
    logits, labels = torch.cat(logits_NK), torch.cat(labels_N)
    loss = nn.functional.cross_entropy(logits, labels).item()
    return Outcome(logits.argmax(1).cpu().numpy(), labels.cpu().numpy(), loss)

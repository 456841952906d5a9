"""The optimiser of a recipe: SGD, and the plateau's falls."""

import torch
from torch import nn

from train.recipe import Recipe


def optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD over two groups: weights of two or more dimensions decay, norms and biases do not."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


class Plateau:
    """ReduceLROnPlateau as a factor: it falls when the training loss has not improved for `patience` epochs.

    torch's own works on an optimiser's rates, which the schedule sets anew at every step.
    """

    def __init__(self, factor: float, patience: int, threshold: float = 1e-4):
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.best, self.waited, self.value = float("inf"), 0, 1.0

    def step(self, loss: float) -> None:
        """Take an epoch's training loss."""
        if loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.value, self.waited = self.value * self.factor, 0

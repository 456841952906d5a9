"""The optimisers of a recipe: SGD, AdamW, Muon for the filters with SGD for the rest, and the plateau's falls."""

import torch
from torch import nn

from train.muon import Muon
from train.recipe import Recipe


def optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD, AdamW or Muon over what trains. Every group keeps its largest rate as `initial_lr`, which the schedule scales.

    There are two groups: weights of two or more dimensions decay, norms and biases do not. With Muon the filters,
    [out,in,height,width], are a third, with the rate `muon_lr`; they are kept at one norm and so need no decay. A
    depthwise filter mixes no channels, so that there is nothing to make orthogonal: it stays among the weights.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    filters = [p for p in trained if p.ndim == 4 and p.shape[1] > 1] if recipe.optimiser == "muon" else []
    weights = [p for p in trained if p.ndim > 1 and not any(p is f for f in filters)]
    others = [p for p in trained if p.ndim <= 1]
    rate = (recipe.head_lr or recipe.lr) if filters else recipe.lr
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay, "lr": rate, "initial_lr": rate},
        {"params": others, "weight_decay": 0.0, "lr": recipe.lr, "initial_lr": recipe.lr},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimiser == "sgd":
        fused = True if recipe.recorded and not recipe.compiled and trained[0].is_cuda else None  # the only one that reads a rate on the device
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(
            groups, lr=recipe.lr, betas=(recipe.momentum, recipe.beta), capturable=(recipe.compiled or recipe.recorded) and trained[0].is_cuda
        )
    rate = {"lr": recipe.muon_lr, "initial_lr": recipe.muon_lr}
    kept = {} if recipe.muon_norm == "filter" else {"norm": recipe.muon_norm}  # a checkpoint from before there was a choice has no such entry
    groups.append({"params": filters, "filters": True, "momentum": recipe.muon_momentum, **rate, **kept})
    return Muon(groups, momentum=recipe.momentum)


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

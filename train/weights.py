"""The weights of another run that a training begins with instead of random ones (`--weights`): to fine-tune a net, or to train it for longer."""

import torch
from torch import nn

from pipelines.errors import InputError
from pipelines.store import Store
from train import result
from train.recipe import Recipe


def begin(net: nn.Module, recipe: Recipe, store: Store) -> None:
    """Put the weights and norms of `recipe.weights`' model into a net of the same shape. What has a value for each class, the classifier, keeps its random
    weights where the model knows another number of classes than the store has. Draws nothing from torch's random stream.

    Raises `InputError` where there is no model, or it is of another net.
    """
    model = result.model(recipe.weights)
    ours, theirs = net.state_dict(), model.net.state_dict()
    counts = (len(store.classes), len(model.classes))
    same = {name for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape}
    if model.norm != recipe.norm or ours.keys() != theirs.keys() or not all(by_class(ours[name], theirs[name], *counts) for name in theirs.keys() - same):
        norms = ("", "") if model.norm == recipe.norm else (f" of --norm {recipe.norm}", f" --norm {model.norm}")
        raise InputError(f"--weights {recipe.weights}: the weights of another net than {recipe.net}{norms[0]}: add --net {model.name}{norms[1]}")
    net.load_state_dict({name: theirs[name] if name in same else ours[name] for name in ours})


def by_class(ours: torch.Tensor, theirs: torch.Tensor, count: int, other: int) -> bool:
    """Whether two shapes are the same but for `count` and `other` classes."""
    return ours.dim() == theirs.dim() and all(pair[0] == pair[1] or pair == (count, other) for pair in zip(ours.shape, theirs.shape))

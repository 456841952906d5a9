"""Parts of a net that rest, once they have learned what they will: their gradients cost time, and move them little.

A net that has such parts says so by switches, `settled` and `frozen`; a recipe says from which share of the epochs on each is set. From: FreezeOut (Brock et
al. 2017, arXiv:1706.04983), whose first layers stop first.
"""

from torch import nn

from train.recipe import Recipe

SHARES = {"settled": "settle", "frozen": "freeze"}  # a net's switch: the recipe's setting

Resting = tuple[bool, ...]  # by switch, in that order


def resting(net: nn.Module, recipe: Recipe, epoch: int) -> Resting:
    """What rests in an epoch (from 0)."""
    return tuple(hasattr(net, switch) and epoch >= getattr(recipe, share) * recipe.epochs for switch, share in SHARES.items())


def rest(net: nn.Module, which: Resting) -> None:
    """Have it rest, and all else train."""
    for switch, rests in zip(SHARES, which, strict=True):
        if hasattr(net, switch):
            setattr(net, switch, rests)


def at_rest(net: nn.Module) -> Resting:
    """What rests now."""
    return tuple(getattr(net, switch, False) for switch in SHARES)

"""A running mean of the weights, which is tested and saved in place of the last ones (Polyak and Juditsky 1992)."""

from copy import deepcopy

import torch
from torch import nn


class Average:
    """`net` is a copy of another net whose floating-point weights and statistics are running means of that one's.

    decay  share of the mean that each update leaves as it was, in (0, 1); at first less, (1 + n) / (10 + n) after n
           updates, so that the start is soon forgotten (as TensorFlow's ExponentialMovingAverage has it)
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.net = deepcopy(net).requires_grad_(False).eval()
        self._ours, self._theirs, self._counters = [], [], []
        for ours, theirs in zip(_tensors(self.net), _tensors(net), strict=True):
            if ours.is_floating_point():
                self._ours.append(ours)
                self._theirs.append(theirs)
            else:
                self._counters.append((ours, theirs))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the net as it is now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._ours, self._theirs, 1 - decay)
        for ours, theirs in self._counters:
            ours.copy_(theirs)

    def begin(self) -> None:
        """Start again from the net as it is now."""
        self.updates = 0
        with torch.no_grad():
            for ours, theirs in [*zip(self._ours, self._theirs), *self._counters]:
                ours.copy_(theirs)

    def state_dict(self) -> dict:
        return {"net": self.net.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.net.load_state_dict(state["net"])
        self.updates = state["updates"]


def _tensors(net: nn.Module) -> list[torch.Tensor]:
    return [*net.parameters(), *net.buffers()]

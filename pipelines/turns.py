"""What makes a pipeline an iterable."""

from collections.abc import Callable, Iterator

import torch


class Turns:
    """Iterating over a pipeline gives one epoch after another: the first loop is epoch 0, the next epoch 1."""

    turn = 0
    epoch: Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.turn += 1
        return self.epoch(self.turn - 1)

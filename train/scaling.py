"""Loss scaling, without which fp16 loses gradients below its smallest number, 6e-8."""

import torch


class FixedScale:
    """A scale that never changes, in the place of `torch.amp.GradScaler`, which looks at the gradients on the host at every step.

    A batch's size as the scale makes the loss the sum over its images, which is how the speed records train in fp16 without a scaler (hiverge 2025, after Jordan
    2024). Gradients that are too large become infinite, and the loss that follows is told as a divergence.
    """

    def __init__(self, scale: float):
        self.factor = float(scale)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self.factor == 1 else self.factor * loss

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Move the weights by gradients that are brought back to their size."""
        if self.factor != 1:
            torch._foreach_mul_([p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None], 1 / self.factor)
        optimiser.step()

    def update(self) -> None:
        """Nothing to learn from a step."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing of it changes."""

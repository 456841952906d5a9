"""Muon for a net's filters, SGD for the rest.

Shapes: a filter is [out, in, height, width]; as a matrix it is [out, height * width * in].
"""

from importlib.util import find_spec

import torch
from torch import nn

if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) and find_spec("triton"):
    from train import muon_kernels as kernels
else:
    kernels = None  # type: ignore[assignment]

EPS = 1e-7  # below which a norm is not divided by
STEPS, COEFFICIENTS = 3, (3.4445, -4.7750, 2.0315)  # of Newton-Schulz: Muon's quintic


class Muon(torch.optim.Optimizer):
    """Muon for groups marked `filters`, SGD with Nesterov's momentum for all others.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a filter by its momentum made orthogonal. As in
    its authors' CIFAR-10 trainings, each filter is first scaled back to the norm that rows of norm one would give it,
    sqrt(out), so that the rate is a fraction of the filter. With `norm` "row" each of its rows is, [in, height, width]: of a
    whole filter a row that no gradient reaches shrinks as the others grow, and where a net multiplies two rows' values, both
    die together (`benchmarks/LOG.md`).
    """

    def __init__(self, groups: list[dict], lr: float = 0.0, momentum: float = 0.9):
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=0.0, filters=False))
        for group in self.param_groups:
            for p in group["params"]:  # now: made by a compiled step, they would be another program's from the second step on
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in sorted(self.param_groups, key=lambda group: not group["filters"]):  # the longest first: what is beside it (`nets/aside.py`) comes behind
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._filters if group["filters"] else self._others)(parameters, group)

    def _buffers(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """The running sum of each parameter's gradients."""
        return [self.state[p]["momentum_buffer"] for p in parameters]

    def _momenta(self, parameters: list[torch.Tensor], group: dict) -> list[torch.Tensor]:
        """Nesterov's direction of each parameter: gradient + momentum * (running sum of gradients)."""
        gradients, buffers = [p.grad for p in parameters], self._buffers(parameters)
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        return torch._foreach_add(gradients, buffers, alpha=group["momentum"])

    def _others(self, parameters: list[torch.Tensor], group: dict) -> None:
        # not as `alpha`, which a rate kept as a tensor on the device (`compiled.py`) would have to leave it for
        torch._foreach_sub_(parameters, torch._foreach_mul(self._momenta(parameters, group), group["lr"]))

    def _filters(self, parameters: list[torch.Tensor], group: dict) -> None:
        """All filters of one shape at once: several nets' (`together.py`) then cost a GPU no more launches than one's."""
        by_row, buffers = group.get("norm") == "row", self._buffers(parameters)
        if fusible(parameters, buffers):
            rate = group["lr"] if torch.is_tensor(group["lr"]) else torch.full((), group["lr"], device=parameters[0].device)
            return kernels.move(parameters, [p.grad for p in parameters], buffers, rate, group["momentum"], by_row, STEPS, list(COEFFICIENTS), EPS)
        momenta = self._momenta(parameters, group)
        members: dict[torch.Size, list[int]] = {}
        for i, p in enumerate(parameters):
            members.setdefault(p.shape, []).append(i)
        moved = list(parameters)
        for some, move in zip(members.values(), orthogonal([stacked(momenta, some) for some in members.values()])):
            kept = stacked(parameters, some)
            norms = torch.linalg.vector_norm(kept, dim=2 if by_row else (1, 2), keepdim=True).clamp_min(EPS)
            kept /= norms if by_row else norms / kept.shape[1] ** 0.5
            kept -= move * group["lr"]
            for i, matrix in zip(some, kept):
                moved[i] = matrix.view(parameters[i].permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        torch._foreach_copy_(parameters, moved)


def fusible(filters: list[torch.Tensor], momenta: list[torch.Tensor]) -> bool:
    """Whether the kernels can move them: they take float32 on a GPU that lies in channels_last order, whatever a side of one means for that."""
    if kernels is None or not filters[0].is_cuda:
        return False
    return all(t.dtype == torch.float32 and t.permute(0, 2, 3, 1).is_contiguous() for t in (*filters, *momenta))


def stacked(filters: list[torch.Tensor], some: list[int]) -> torch.Tensor:
    """Those of them as matrices [count, out, height * width * in]: their values as they lie in memory, channels_last."""
    return torch.stack([filters[i].permute(0, 2, 3, 1).flatten(1) for i in some])


def orthogonal(batches: list[torch.Tensor], steps: int = STEPS, eps: float = EPS) -> list[torch.Tensor]:
    """Each matrix of the batches [count, rows, columns] with its singular values moved to about one (0.7 to 1.2), by Newton-Schulz iterations.

    On CUDA, where a launch costs more than the arithmetic, all are one batch, padded with zeros, which the
    iteration keeps.
    """
    wide = [m if m.shape[1] <= m.shape[2] else m.mT for m in batches]
    if batches[0].is_cuda:
        rows, columns = (max(m.shape[d] for m in wide) for d in (1, 2))
        padded = torch.cat([nn.functional.pad(m, (0, columns - m.shape[2], 0, rows - m.shape[1])) for m in wide])
        pieces = newton_schulz(padded, steps, eps).split([len(m) for m in wide])
        done = [piece[:, : m.shape[1], : m.shape[2]] for piece, m in zip(pieces, wide)]
    else:
        done = [newton_schulz(m, steps, eps) for m in wide]
    return [m if m.shape == batch.shape else m.mT for m, batch in zip(done, batches)]


def newton_schulz(X: torch.Tensor, steps: int, eps: float) -> torch.Tensor:
    """The iteration on [batch, rows, columns], rows <= columns; in bf16 on CUDA, as its authors do."""
    dtype, (a, b, c) = X.dtype, COEFFICIENTS
    X = X / (X.norm(dim=(1, 2), keepdim=True) + eps)
    X = X.bfloat16() if X.is_cuda else X
    for _ in range(steps):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.to(dtype)

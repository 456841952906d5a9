"""The loss of a batch: cross-entropy with smoothed, mixed and taught targets.

Shapes: logits_BK float32, `pipelines.mixing.Targets` of B images; all losses are means over the batch.
"""

import torch
import torch.nn.functional as F

from pipelines.mixing import Targets


def cross_entropy(logits_BK: torch.Tensor, targets: Targets, smoothing: float) -> torch.Tensor:
    """The mean cross-entropy; of a mixed image, that of both its labels by their shares."""
    if targets.partners is None or targets.share is None:
        return F.cross_entropy(logits_BK, targets.labels, label_smoothing=smoothing)
    return cross_entropies(logits_BK, targets, smoothing).mean()


def cross_entropies(logits_BK: torch.Tensor, targets: Targets, smoothing: float) -> torch.Tensor:
    """The cross-entropy of each image, float32[B]."""
    own = F.cross_entropy(logits_BK, targets.labels, label_smoothing=smoothing, reduction="none")
    if targets.partners is None or targets.share is None:
        return own
    theirs = F.cross_entropy(logits_BK, targets.partners, label_smoothing=smoothing, reduction="none")
    return torch.lerp(own, theirs, targets.share)


def distillation(logits_BK: torch.Tensor, taught_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence of the net's softened softmax from the teacher's (Hinton et al. 2015, arXiv:1503.02531).

    The square of the temperature keeps its gradients as large as those of the labels.
    """
    return distillations(logits_BK, taught_BK, temperature).mean()


def distillations(logits_BK: torch.Tensor, taught_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """The `distillation` of each image, float32[B]."""
    student, teacher = (F.log_softmax(logits / temperature, 1) for logits in (logits_BK, taught_BK))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1) * temperature**2

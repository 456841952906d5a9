"""Batch norm over the parts of a batch that several processes hold.

torch.nn.SyncBatchNorm does the same, on GPUs only; this works wherever `ranks.total` does, so what is tested without GPUs is
what runs on them.

Shapes: images_BCHW and every feature map, B this process's part, which may be 0; statistics_C float32.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from pipelines.errors import InputError
from train.ranks import Ranks, total

CHANNELS = (1, -1, 1, 1)  # as a feature map's own dimensions


class SyncedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of all processes' images. Evaluation is plain batch norm."""

    ranks: Ranks

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(images_BCHW)
        count, mean, spread = statistics(images_BCHW.detach(), self.ranks)
        with torch.no_grad():  # as torch does: the running variance is the unbiased one
            self.num_batches_tracked += 1
            share = self.momentum or 0.0  # never None: `synced` takes none of those
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(spread / (count - 1), share)
        return _Normalise.apply(images_BCHW, self.weight, self.bias, mean, spread / count, count, self.eps)


def synced(net: nn.Module, ranks: Ranks) -> nn.Module:
    """The net with its batch norms synced, in place: parameters and names stay. Raises `InputError` for norms that cannot be."""
    if ranks.alone:
        return net
    for module in net.modules():
        if type(module) is nn.BatchNorm2d and module.momentum is not None and module.track_running_stats:
            module.__class__, module.ranks = SyncedBatchNorm, ranks
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SyncedBatchNorm):
            raise InputError(f"{type(module).__name__} cannot be shared by several processes: choose --norm batch, group or layer")
    return net


def statistics(images_BCHW: torch.Tensor, ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(count, mean_C, sum_C of squared distances from the mean) over all processes' images and pixels.

    Means and sums are put together as in Chan, Golub and LeVeque 1979, which loses no digits where the mean is large.
    """
    channels, rows = images_BCHW.shape[1], torch.zeros(ranks.count, 2 * images_BCHW.shape[1] + 1, device=images_BCHW.device)
    if len(images_BCHW):
        count = images_BCHW.numel() // channels
        variance, mean = torch.var_mean(images_BCHW.float(), (0, 2, 3), correction=0)
        rows[ranks.rank] = torch.cat([mean, variance * count, mean.new_full((1,), count)])
    means, spreads, counts = total(rows).split([channels, channels, 1], 1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    return count, mean, (spreads + counts * (means - mean).square()).sum(0)


class _Normalise(torch.autograd.Function):
    """(images - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are functions of all processes' images."""

    @staticmethod
    def forward(context, images_BCHW, weight_C, bias_C, mean_C, variance_C, count, eps):
        context.save_for_backward(images_BCHW, weight_C, mean_C, torch.rsqrt(variance_C + eps), count)
        return nn.functional.batch_norm(images_BCHW, mean_C, variance_C, weight_C, bias_C, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(context, gradient_BCHW):
        """Gradients of the sum of all processes' losses: the images' need all of it, weight and bias are added up with the others."""
        images_BCHW, weight_C, mean_C, scale_C, count = context.saved_tensors
        gradient, normal = gradient_BCHW.float(), (images_BCHW.float() - mean_C.view(CHANNELS)) * scale_C.view(CHANNELS)
        ours = torch.stack([(gradient * normal).sum((0, 2, 3)), gradient.sum((0, 2, 3))])
        along, level = (total(ours.clone()) / count).view(2, *CHANNELS)
        images = (gradient - normal * along - level) * (weight_C * scale_C).view(CHANNELS)
        return images.to(images_BCHW.dtype), ours[0], ours[1], None, None, None, None

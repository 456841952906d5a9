"""Speednet: the net of the speed records' kind, for a GPU. 1,971,352 trainable parameters at ten classes.

whitening 2x2 conv to 24 (frozen, bias trained) · SiLU · [c64 M · c64] · [c256 M · c256] · [c256 M · c256] · 3x3 max-pool · linear

The shape is that of airbench94 (Jordan 2024, arXiv:2404.00498): patch whitening, identity starts, batch norm without
scale, logits kept small. c is a 3x3 convolution, batch norm and SiLU; in the first of each pair the pool stands before the norm.
"""

from collections import OrderedDict

import torch
from torch import nn

from nets.layers import global_max, norm as norm_of


class Whitening(nn.Conv2d):
    """A frozen 2x2 convolution to the eigenvectors of the training patches, scaled to unit variance, and their negatives.

    `fit` sets it; before that it is a random projection. Only the bias trains.
    """

    def __init__(self, channels: int = 3, kernel: int = 2):
        super().__init__(channels, 2 * channels * kernel**2, kernel)
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # there is one

    @torch.no_grad()
    def fit(self, images_NCHW: torch.Tensor, eps: float = 5e-4) -> None:
        """Set the filters from normalised images; `eps` keeps directions of almost no variance from blowing up."""
        k, channels = self.kernel_size[0], self.in_channels
        patches = images_NCHW.float().unfold(2, k, 1).unfold(3, k, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * k * k)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / torch.sqrt(values + eps)).T.flip(0).reshape(-1, channels, k, k)
        self.weight.copy_(torch.cat([filters, -filters]))


def unscaled(kind: str, channels: int) -> nn.Module:
    """A norm whose scale stays at one, since the next layer can learn it; batch norm's statistics follow fast."""
    made = norm_of(kind, channels)
    made.weight.requires_grad_(False)
    if kind in ("batch", "ghost"):
        made.momentum = 0.4
    return made


class Group(nn.Sequential):
    """Widen, pool, refine: [N,inputs,H,W] → [N,outputs,H/2,W/2]."""

    def __init__(self, inputs: int, outputs: int, norm: str, dropout: float):
        first, second = (nn.Conv2d(i, outputs, 3, padding=1, bias=False) for i in (inputs, outputs))
        for convolution in (first, second):
            nn.init.dirac_(convolution.weight.data[: convolution.in_channels])
        drop = [nn.Dropout2d(dropout)] if dropout else []
        super().__init__(first, nn.MaxPool2d(2), unscaled(norm, outputs), nn.SiLU(), *drop, second, unscaled(norm, outputs), nn.SiLU(), *drop)


class Speednet(nn.Module):
    def __init__(self, num_classes: int, widths: tuple[int, ...], norm: str, dropout: float):
        super().__init__()
        self.whitening = Whitening()
        pairs = zip((self.whitening.out_channels, *widths), widths)
        self.groups = nn.Sequential(OrderedDict((f"group{i + 1}", Group(*pair, norm, dropout)) for i, pair in enumerate(pairs)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()
        self.scale = 1 / widths[-1]

    def prepare(self, images_NCHW: torch.Tensor) -> None:
        """Fit the whitening to some thousand normalised training images, on their device."""
        self.whitening.fit(images_NCHW)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        # over all that is left: 3x3 at 32 pixels, as the record's pool, and any size beside
        return self.head(global_max(self.groups(nn.functional.silu(self.whitening(images_NCHW))))) * self.scale


def build(num_classes: int = 10, norm: str = "batch", dropout: float = 0.0, widths: tuple[int, ...] = (64, 256, 256)) -> nn.Module:
    return Speednet(num_classes, widths, norm, dropout)

"""Tiniest: the smallest public net above 94% on CIFAR-10 (xvel/cifar10-tiniest), built anew from its description. 97,530 parameters at ten classes.

3x3 conv to 48, norm · 3 blocks of 48 · grouped 4x4 stride-2 conv to 80, norm · 3 blocks of 80 · global average pool · linear

A block: of the channels' quarters one stays, one goes through a depthwise 3x3, one through a depthwise 7x7, one through an average
pool and a depthwise 7x7 of dilation 3; then layer norm over channels, 1x1 to twice the channels, gate, 1x1 back, and a learned
scale times that beside a shortcut. It is the peer of `tiny.py`, and stands here to be trained on the same images.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from nets import layers


def depthwise(channels: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=channels)


class Mixed(nn.Module):
    """Four views of a neighbourhood, a quarter of the channels each."""

    def __init__(self, channels: int):
        super().__init__()
        quarter = channels // 4
        self.near, self.wide = depthwise(quarter, 3), depthwise(quarter, 7)
        self.far = nn.Sequential(nn.AvgPool2d(3, 1, 1), depthwise(quarter, 7, dilation=3))

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        same, near, wide, far = images_NCHW.chunk(4, 1)
        return torch.cat([same, self.near(near), self.wide(wide), self.far(far)], 1)


class Block(nn.Module):
    def __init__(self, channels: int, norm: str, dropout: float):
        super().__init__()
        self.mixed, self.norm, self.dropout = Mixed(channels), layers.norm(norm, channels), nn.Dropout2d(dropout)
        self.widen, self.narrow = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        gate, value = self.widen(self.norm(self.mixed(images_NCHW))).chunk(2, 1)
        gate = F.mish(gate.contiguous(memory_format=torch.channels_last))  # of a slice, Mish takes six times as long on a CPU
        return images_NCHW + self.scale * self.dropout(self.narrow(gate * value))


def build(num_classes: int = 10, norm: str = "channel", dropout: float = 0.0) -> nn.Module:
    def blocks(channels: int) -> nn.Module:
        return nn.Sequential(*(Block(channels, norm, dropout) for _ in range(3)))

    stem = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), layers.norm(norm, 48))
    down = nn.Sequential(nn.Conv2d(48, 80, 4, stride=2, padding=1, groups=16), layers.norm(norm, 80))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, num_classes))
    return nn.Sequential(OrderedDict(stem=stem, fine=blocks(48), down=down, coarse=blocks(80), head=head))

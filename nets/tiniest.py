"""Tiniest: the smallest public net above 94% on CIFAR-10 (xvel/cifar10-tiniest), built anew from its description. 97,530 parameters at ten classes.

3x3 conv to 48, norm · 3 blocks of 48 · grouped 4x4 stride-2 conv to 80, norm · 3 blocks of 80 · global average pool · linear

A block: of the channels' quarters one stays, one goes through a depthwise 3x3, one through a depthwise 7x7, one through an average
pool and a depthwise 7x7 of dilation 3; then layer norm over channels, 1x1 to twice the channels, gate, 1x1 back, beside a
shortcut times a learned scale. It is the peer of `tiny.py`, and stands here to be trained on the same images.
"""

from collections import OrderedDict

import torch
from torch import nn

from nets import layers


def depthwise(channels: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    kind = nn.Conv2d if dilation == 1 else Exact
    return kind(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=channels)


class Exact(nn.Conv2d):
    """A convolution that a CPU does in float32 under autocast, too: torch 2.11's bf16 gradient of a dilated depthwise filter is garbage there."""

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        if images_NCHW.is_cuda:
            return super().forward(images_NCHW)
        with torch.autocast("cpu", enabled=False):
            return super().forward(images_NCHW.to(self.weight.dtype))


class Mixed(nn.Module):
    """Four views of a neighbourhood, a quarter of the channels each."""

    def __init__(self, channels: int):
        super().__init__()
        quarter = channels // 4
        self.near, self.wide = depthwise(quarter, 3), depthwise(quarter, 7)
        self.far = nn.Sequential(nn.AvgPool2d(3, 1, 1), depthwise(quarter, 7, dilation=3))

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        same, near, wide, far = images_NCHW.chunk(4, 1)
        return torch.cat([same, self.near(near), self.wide(wide), self.far(far).to(same.dtype)], 1)


def tanhexp(x: torch.Tensor) -> torch.Tensor:
    """x tanh(exp x) (Liu and Di 2020, arXiv:2003.09855). Above 5 the tangent is 1, and its gradient must not become 0 times infinity."""
    return x * torch.tanh(torch.exp(x.clamp(max=5.0)))


class Block(nn.Module):
    def __init__(self, channels: int, norm: str, dropout: float):
        super().__init__()
        self.mixed, self.norm, self.dropout = Mixed(channels), layers.norm(norm, channels), nn.Dropout2d(dropout)
        self.widen, self.narrow = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        gate, value = self.widen(self.norm(self.mixed(images_NCHW))).chunk(2, 1)
        return self.scale * images_NCHW + self.dropout(self.narrow(tanhexp(gate) * value))


def build(num_classes: int = 10, norm: str = "channel", dropout: float = 0.0) -> nn.Module:
    def blocks(channels: int) -> nn.Module:
        return nn.Sequential(*(Block(channels, norm, dropout) for _ in range(3)))

    stem = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), layers.norm(norm, 48))
    down = nn.Sequential(nn.Conv2d(48, 80, 4, stride=2, padding=1, groups=16), layers.norm(norm, 80))
    head = nn.Sequential(layers.GlobalMean(), nn.Flatten(), nn.Linear(80, num_classes))
    return nn.Sequential(OrderedDict(stem=stem, fine=blocks(48), down=down, coarse=blocks(80), head=head))

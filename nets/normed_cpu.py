"""Batch norm and what stands behind it, SiLU or ReLU with a 2x2 max-pool or a shortcut, on a processor: an operator of torch on C (`normed_cpu.c`; `native.py`).

By torch's own operations they took a third of a step of `quick`: each of them reads and writes the map, forward and back. Here the map is read twice on the way
forward, for its statistics and to make what comes out of it, and twice on the way back (`benchmarks/LOG.md`).

Shapes: images_NCHW float32, or bfloat16, in channels_last memory order, as all maps; C a multiple of sixteen; gain_C, bias_C; stats float32[2,C], mean and variance (over all rows,
not one less); place_NChw uint8, of h = H // 2 and w = W // 2: which of a window's four pixels was the largest, row by row.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from nets.native import custom_op, done, each_net, eager, known_to, library, map_of, ordered, place as address, plain

NAME = "normed_cpu"
LEAST = 16  # channels that a vector of 512 bits holds
NONE, SILU, RELU = range(3)  # as in C
ACTS = {type(None): NONE, nn.SiLU: SILU, nn.ReLU: RELU}


def takes(norm: nn.Module, activation: nn.Module | None, images_NCHW: Tensor) -> bool:
    """Whether the operator can do a norm and an activation behind a map like the images: plain batch norm, in training of more than one value or in a plain test
    pass, and SiLU, ReLU or nothing; in float32, or in bfloat16 as autocast has it."""
    if type(norm) is not nn.BatchNorm2d or type(activation) not in ACTS or not (norm.affine and norm.track_running_stats):
        return False
    if norm.weight.dtype != torch.float32 or norm.num_features % LEAST or not known_to(NAME, images_NCHW, half=True):
        return False
    if images_NCHW.shape[1] != norm.num_features:  # of which torch says that it does not fit
        return False
    if norm.training:
        return norm.momentum is not None and images_NCHW[:, 0].numel() > 1
    return not torch.is_grad_enabled() and plain([images_NCHW])


def normed(norm: Any, activation: nn.Module | None, images_NCHW: Tensor, shortcut: Tensor | None = None, pools: bool = False) -> Tensor:
    """activation(norm(images)), then a 2x2 max-pool where it `pools`, else with the shortcut added; for what it `takes`."""
    act = ACTS[type(activation)]
    if not norm.training:
        return made_of(images_NCHW, norm.weight, norm.bias, shortcut, torch.stack([norm.running_mean, norm.running_var]), norm.eps, pools, act, learns=False)[0]
    out, stats, _ = norm_and_act(images_NCHW, norm.weight, norm.bias, shortcut, norm.eps, pools, act)
    with torch.no_grad():
        rows = images_NCHW[:, 0].numel()
        norm.num_batches_tracked.add_(1)
        norm.running_mean.mul_(1 - norm.momentum).add_(stats[0], alpha=norm.momentum)  # vmap knows no lerp_
        norm.running_var.mul_(1 - norm.momentum).add_(stats[1], alpha=norm.momentum * rows / (rows - 1))
    return out


def made_of(images_NCHW, gain, bias, shortcut, stats, eps: float, pools: bool, act: int, learns: bool) -> tuple[Tensor, Tensor]:
    """(what comes out, place where it learns and pools); with the statistics that are given, or where it `learns` with the images' own, put there."""
    images, place = ordered(images_NCHW), like(images_NCHW, True, torch.uint8) if learns and pools else images_NCHW.new_empty(0, dtype=torch.uint8)
    beside, out = None if shortcut is None else ordered(shortcut).to(images.dtype), like(images, pools)
    maps = address(images), address(gain), address(bias), None if beside is None else address(beside), address(place) if len(place) else None, address(out)
    done(
        library(NAME).norm_forward(*maps, address(stats), ctypes.c_float(eps), learns, pools, images.itemsize == 2, act, *images.shape, torch.get_num_threads())
    )
    return out, place


def like(images: Tensor, pools: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An empty map of what comes out."""
    count, channels, height, width = images.shape
    size = (count, channels, height // 2, width // 2) if pools else images.shape
    return map_of(size, images, dtype)


@custom_op("tenfold::norm_act_cpu")
def norm_act(images_NCHW: Tensor, gain: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, pools: bool, act: int) -> tuple[Tensor, Tensor, Tensor]:
    """(what `normed` gives in training, stats, place where it pools)."""
    stats = gain.new_empty((2, len(gain)))
    out, place = made_of(images_NCHW, gain.contiguous(), bias.contiguous(), shortcut, stats, eps, pools, act, learns=True)
    return out, stats, place


@norm_act.register_fake
def _(images, gain, bias, shortcut, eps, pools, act):
    place = like(images, True, torch.uint8) if pools else images.new_empty(0, dtype=torch.uint8)
    return like(images, pools), gain.new_empty((2, len(gain))), place


@custom_op("tenfold::norm_act_cpu_backward")
def norm_act_backward(
    gradient: Tensor, images_NCHW: Tensor, gain: Tensor, bias: Tensor, stats: Tensor, place: Tensor, eps: float, pools: bool, act: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the images, the gain and the bias."""
    gradient, images, place = ordered(gradient).to(images_NCHW.dtype), ordered(images_NCHW), ordered(place) if pools else place
    parameters = gain.contiguous(), bias.contiguous(), stats.contiguous()
    out = torch.empty_like(images), gain.new_empty(gain.shape), bias.new_empty(bias.shape)
    maps = address(images), address(gradient), address(place) if pools else None, *map(address, parameters), *map(address, out)
    done(library(NAME).norm_backward(*maps, ctypes.c_float(eps), images.itemsize == 2, act, *images.shape, torch.get_num_threads()))
    return out


@norm_act_backward.register_fake
def _(gradient, images, gain, bias, stats, place, eps, pools, act):
    return like(images, False), gain.new_empty(gain.shape), bias.new_empty(bias.shape)


def keep(ctx, inputs, output) -> None:
    images, gain, bias, _, *ctx.how = inputs
    ctx.set_materialize_grads(False)  # only `out` has a gradient
    ctx.save_for_backward(images, gain, bias, *output[1:])


def go_back(ctx, gradient: Tensor, *_):
    return *back_through(gradient, *ctx.saved_tensors, *ctx.how), gradient if ctx.needs_input_grad[3] else None, None, None, None


norm_act.register_autograd(go_back, setup_context=keep)

for operator in (norm_act, norm_act_backward):
    operator.register_vmap(each_net(operator))

norm_and_act, back_through = eager(norm_act, keep, go_back), eager(norm_act_backward)

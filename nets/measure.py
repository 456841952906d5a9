"""What a net costs and sees: parameters, multiply-adds, receptive field, layer by layer.

Shapes: `shape` is (C, H, W) of one image; images_NCHW in, logits_NK out.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

SHAPE = (3, 32, 32)
THIN = 32  # pixels: the other side of an image on which the receptive field is measured along one
WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


class Step(NamedTuple):
    """A module that has run: the shape that it gave, the multiply-adds that it took beside those of its parts, and the steps of the net before it."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    macs: int
    before: int


class Layer(NamedTuple):
    """A module as one image passes it, without its parts that are layers, too. `sees` is its receptive field in pixels; None: the whole image."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    sees: int | None


def parameters(net: nn.Module) -> int:
    """The number of trainable values."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


@contextmanager
def watched(net: nn.Module, note: Callable[[str, nn.Module, torch.Tensor], None]) -> Iterator[None]:
    """Call note(name, module, output) each time that one of the net's modules, or the net, has run, its parts before it."""
    handles = [module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output)) for name, module in net.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain(net: nn.Module) -> nn.Module:
    """A copy on the processor, in float64: elsewhere a net may fill up its maps or filters with zeros, which are faster there and are not its arithmetic, or
    have several modules' work done by an operator of its own, in which they are not seen."""
    return copy.deepcopy(net).double().cpu()


def trace(net: nn.Module, shape: tuple[int, int, int]) -> list[Step]:
    """The modules in the order in which one image of zeros has passed them, the net itself as the last. The net stays as it was."""
    net, steps, begun = plain(net).eval(), [], []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:

        def note(name, module, output):
            before, flops = begun.pop()
            taken = (counter.get_total_flops() - flops) // 2 - sum(step.macs for step in steps[before:])
            steps.append(Step(name, module, tuple(output.shape[1:]), taken, before))

        for module in net.modules():
            module.register_forward_pre_hook(lambda *_: begun.append((len(steps), counter.get_total_flops())))
        with watched(net, note):
            net(torch.zeros(1, *shape, dtype=torch.float64))
    return steps


def output_shape(net: nn.Module, shape: tuple[int, int, int] = SHAPE) -> tuple[int, ...]:
    """The shape of what comes out for one image: (num_classes,)."""
    return trace(net, shape)[-1].shape


def macs(net: nn.Module, shape: tuple[int, int, int] = SHAPE) -> int:
    """Multiply-adds of one image's forward pass: convolutions and matrix products, half of torch's FLOPs.

    Norms, activations and pools are not counted, as in the papers that one compares with.
    """
    return sum(step.macs for step in trace(net, shape))


def training_flop(net: nn.Module, shape: tuple[int, int, int] = SHAPE) -> int:
    """FLOP of one image, forward and backward, of convolutions and matrix products: two a multiply-add. What has no gradient costs none; the first layer has
    none of its input. The net stays as it was."""
    net = plain(net).train()
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward}) as counter:
        net(torch.zeros(2, *shape, dtype=torch.float64)).sum().backward()
    return counter.get_total_flops() // 2


def convolution_backward(gradient_shape, images_shape, weight_shape, _bias, _stride, _padding, _dilation, transposed, *others, **_) -> int:
    """FLOP of a convolution's way back: as many as forward for the gradient of the images, and of the filters, where `others` ask for it. torch's own count takes
    the groups of a grouped one for a whole."""
    asked = others[2]
    return conv_flop_count(images_shape, weight_shape, gradient_shape, transposed=transposed) * (bool(asked[0]) + bool(asked[1]))


def transparent(net: nn.Module) -> nn.Module:
    """A copy in float64 through which every connection carries a positive gradient, so that none hides or cancels.

    Weights become 1 / fan-in, norms the identity (a group norm's statistics would see the whole image),
    and max-pools average-pools (the gradient of a maximum goes to one pixel of its window).
    """
    net = copy.deepcopy(net).double().cpu().eval()
    for parameter in net.parameters():
        parameter.data.fill_(len(parameter) / parameter.numel() if parameter.dim() else 1.0)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
            elif isinstance(child, nn.AdaptiveMaxPool2d):
                setattr(parent, name, nn.AdaptiveAvgPool2d(child.output_size))
    return net


def support(map_NCHW: torch.Tensor, image: torch.Tensor, axis: int) -> tuple[int, bool]:
    """The input pixels that the middle pixel of a feature map depends on, along an axis (0: height, 1: width): how many, and whether they meet the border."""
    height, width = map_NCHW.shape[2:]
    (gradient,) = torch.autograd.grad(map_NCHW[0, :, height // 2, width // 2].sum(), image, retain_graph=True)
    touched = gradient[0].amax((0, 2 - axis)).nonzero()
    low, high = int(touched.min()), int(touched.max())
    return high - low + 1, low == 0 or high == image.shape[2 + axis] - 1


def receptive_fields(net: nn.Module, channels: int = 3, limit: int = 512, last: bool = False) -> dict[str, int]:
    """{module name: receptive field in pixels} of each convolution and pool before the global pool, or of the last alone: the larger of height and width."""
    net = transparent(net)
    high, wide = (along(net, axis, channels, limit, last) for axis in (0, 1))
    return {name: max(side, wide[name]) for name, side in high.items()}


def along(net: nn.Module, axis: int, channels: int, limit: int, last: bool) -> dict[str, int]:
    """`receptive_fields` along one axis of a `transparent` net, by images that are thin along the other: windows are boxes, and a square image takes many times as long."""
    maps, size, clipped = {}, 64, True

    def note(name, module, output):
        if isinstance(module, WINDOWS) and output.shape[2] * output.shape[3] > 1:
            maps[name] = output

    while clipped and size < limit:
        size *= 2
        sides = (size, THIN) if axis == 0 else (THIN, size)
        image = torch.full((1, channels, *sides), 1e-3, dtype=torch.float64, requires_grad=True)  # small: gates square it, one behind the other
        with watched(net, note):
            net(image)
        found = {name: support(maps[name], image, axis) for name in (list(maps)[-1:] if last else maps)}
        clipped = any(meets for _, meets in found.values())
    return {name: side for name, (side, _) in found.items()}


def receptive_field(net: nn.Module, channels: int = 3, limit: int = 512) -> int:
    """The side, in input pixels, of the square that one pixel of the last feature map before the global pool depends on.

    Found by the support of a gradient, so that branches, strides and dilation need no rules of their own. It
    is the architecture's, whatever the weights and the image's size: 63 or more means that every last pixel
    sees all of a 32x32 image. Tried on images of 128x32 and 32x128 pixels, 256x32 and so on, until it fits or
    they are of `limit`. The net must take images of those sizes, and its max-pools must be modules.
    """
    return max(receptive_fields(net, channels, limit, last=True).values(), default=1)


def layers(net: nn.Module, shape: tuple[int, int, int] = SHAPE) -> list[Layer]:
    """The modules that have parameters, compute or change the shape, in the order in which an image has passed them. A block that uses its parts' filters
    itself is a row for them, behind those of its parts; the net, where it does, is one without a name."""
    fields, rows, known = receptive_fields(net, shape[0]), [], set()
    before, sees = shape, 1
    steps = trace(net, shape)
    ran = {id(step.module) for step in steps}
    for step in steps:
        if isinstance(step.module, (nn.Linear, *WINDOWS)):
            sees = fields.get(step.name)
        # a module that is used twice has its parameters once, and a part that is used later has its own there
        parts = {id(p) for part in step.module.modules() if part is not step.module and id(part) in ran for p in part.parameters()}
        own = {id(p): p.numel() for p in step.module.parameters() if p.requires_grad and id(p) not in known | parts}
        alone = next(step.module.children(), None) is None
        if own or step.macs or (alone and step.shape != before):
            rows.append(Layer(step.name, type(step.module).__name__, step.shape, sum(own.values()), step.macs, sees))
        known |= own.keys()
        before = step.shape
    return rows

"""Grad-CAM: where in an image a net finds a class (Selvaraju et al. 2017, arXiv:1610.02391).

Shapes: images_NCHW normalised, maps_NHW in [0, 1]; K channels of h x w pixels in the feature map looked at.
"""

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.errors import InputError

SIDE = 4  # pixels: spread over an image, 2x2 of them say hardly more than that something in it speaks for the class


def heat(net: nn.Module, images_NCHW: torch.Tensor, classes_N: torch.Tensor) -> torch.Tensor:
    """float32[N,H,W]: what speaks for class `classes_N[i]` (int64) in image i, 1 where it does most; 0 where nothing does.

    The map is relu(sum over channels of weight * feature map), a channel's weight being the mean over the pixels of
    the logit's gradient. It is as coarse as the features are, and spread over the image bilinearly. Raises `InputError`
    for a net without feature maps.
    """
    features, gradients = last_map(net, images_NCHW, classes_N)
    weights = gradients.mean((2, 3), keepdim=True)
    maps = F.relu((weights * features).sum(1, keepdim=True))
    maps = F.interpolate(maps, size=images_NCHW.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def last_map(net: nn.Module, images_NCHW: torch.Tensor, classes_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(features, gradients) float32[N,K,h,w]: the last map of at least 4x4 pixels, whatever layer made it (or the last of more than one, where
    there is none), and the gradient of each image's logit with respect to it. `net` is in evaluation mode: the images do not mix."""
    outputs = []

    def keep(module, inputs, output):
        if torch.is_tensor(output) and output.ndim == 4 and output.shape[-1] * output.shape[-2] > 1:
            outputs.append(output)

    hooks = [module.register_forward_hook(keep) for module in net.modules()]
    try:
        with torch.enable_grad():
            logits = net(images_NCHW.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    chosen = logits.gather(1, classes_N[:, None]).sum()
    if not outputs:
        raise InputError("Grad-CAM looks at feature maps, and this net has none of more than one pixel")
    features = next((output for output in reversed(outputs) if min(output.shape[-2:]) >= SIDE), outputs[-1])
    (gradients,) = torch.autograd.grad(chosen, features)
    return features.detach().float(), gradients.float()

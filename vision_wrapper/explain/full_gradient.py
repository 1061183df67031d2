"""FullGrad: the gradients of the input and of every bias, in one map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vision_wrapper.errors import SettingError
from vision_wrapper.explain.layers import submodules
from vision_wrapper.explain.package import without_the_empty


def full_gradients(net: nn.Module, images: Tensor, targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """FullGrad as its authors compute it: input times gradient, and each bias times the gradient at its output.

    Made here, because grad-cam pairs biases and gradients by their order, which in a network with branches is not one.
    """
    outputs: list[tuple[Tensor, Tensor]] = []  # bias (C,), output (N, C, h, w)

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        bias = _bias_of(module)
        if bias is None or not isinstance(output, Tensor) or output.ndim != 4 or not output.requires_grad:
            return None
        if not isinstance(module, _CHANNELS_FIRST):
            raise SettingError(
                f"fullgrad knows the biases of convolutions and norms over (N, C, H, W), not those of "
                f"{type(module).__name__} in this network. Choose another method."
            )
        outputs.append((bias, output))
        return output.clone()  # what follows may change it in place

    images = images.detach().clone().requires_grad_()
    handles = [module.register_forward_hook(keep) for _, module in submodules(net)]
    try:
        chosen = net(images)[range(len(targets)), targets].sum()
    finally:
        for handle in handles:
            handle.remove()
    found = torch.autograd.grad(chosen, [images, *(output for _, output in outputs)], allow_unused=True)
    total = _scaled(found[0] * images).sum(1)  # (N, H, W)
    for (bias, _), gradient in zip(outputs, found[1:], strict=True):
        if gradient is not None:
            maps = _scaled(gradient * bias.view(1, -1, 1, 1)).sum(1, keepdim=True)
            total = total + nn.functional.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=True)[:, 0]
    evidence = total.detach().float().cpu().numpy()
    low, high = evidence.min((1, 2), keepdims=True), evidence.max((1, 2), keepdims=True)
    return without_the_empty((evidence - low) / np.maximum(high - low, 1e-12), evidence.reshape(len(images), -1))


_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def _bias_of(module: nn.Module) -> Tensor | None:
    """What a layer adds to each channel, (C,); of a norm with a running mean, in evaluation, with that."""
    bias = getattr(module, "bias", None)
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
        assert module.running_var is not None
        scale = torch.rsqrt(module.running_var + module.eps)
        scale = scale if module.weight is None else scale * module.weight
        return (0 if bias is None else bias) - module.running_mean * scale
    return bias if isinstance(bias, Tensor) else None


def _scaled(values: Tensor) -> Tensor:
    """Absolute values (N, C, h, w), of each image from 0 to 1."""
    values = values.abs()
    low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-12)

"""Maps of a class for each image, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vision_wrapper._numbers import whole_number
from vision_wrapper.errors import SettingError
from vision_wrapper.explain.borrow import borrowed
from vision_wrapper.explain.full_gradient import full_gradients
from vision_wrapper.explain.layers import Layers, best_layer, check_layer, layer_names, layers_of_stages, probed
from vision_wrapper.explain.methods import BATCH, METHODS
from vision_wrapper.explain.package import batch_maps


@dataclass(frozen=True, eq=False)
class CamMaps:
    """What `cam` finds.

    Attributes:
        maps: float32 (L, N, H, W) in [0, 1], at the input's height and width; the strongest place of a map is 1.
        layers: the names of the L layers; of FullGrad, the one word "all".
        empty: bool (L, N), true where a layer holds no positive evidence for the class, or the same everywhere; the map
            is then 0.
        method: a name of `METHODS`.
    """

    maps: np.ndarray
    layers: tuple[str, ...]
    empty: np.ndarray
    method: str = "gradcam"


def cam(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    layers: Layers | None = None,
    method: str = "gradcam",
) -> CamMaps:
    """Maps of a class for each image, at one layer or several.

    Leaves the model and its gradients as they were. Works on frozen, half-precision and compiled models, and inside
    `torch.no_grad` and `torch.inference_mode`.

    Args:
        model: images to logits (N, num_classes).
        images: normalised, float (N, C, H, W), on any device.
        targets: the class of each image, (N,).
        layers: names as in `model.named_modules()`, or modules; None takes `default_layer`. FullGrad takes all.
        method: a name of `METHODS`.

    Raises:
        UnknownNameError: the model has no layer of that name, or an unknown method.
        SettingError: images or targets of another shape, a layer without a map, or one whose output does not lead to
            the logits, for which the maps would be wrong.
    """
    METHODS[method]
    images = checked_images(images)
    if method == "fullgrad" and layers is not None:
        raise SettingError("fullgrad takes the gradients of all layers together: leave layers= out.")
    with borrowed(model, images) as (net, images):
        names = None if layers is None else layer_names(model, layers)
        probe = probed(net, images)
        targets = _checked_targets(targets, len(images), probe.num_classes)
        if method == "fullgrad":
            results, names = [_in_parts(partial(full_gradients, net), images, targets, BATCH)], ("all",)
        else:
            names = (best_layer(probe),) if names is None else names
            for name in names:
                check_layer(name, probe)
            at_a_time = METHODS[method].at_a_time
            results = [_in_parts(partial(batch_maps, net, name, method), images, targets, at_a_time) for name in names]
    return CamMaps(np.stack([maps for maps, _ in results]), names, np.stack([empty for _, empty in results]), method)


def gradcam(model: nn.Module, images: Tensor, targets: Sequence[int] | Tensor, layers: Layers | None = None) -> CamMaps:
    """`cam` by Grad-CAM."""
    return cam(model, images, targets, layers)


def default_layer(model: nn.Module, image: Tensor) -> str:
    """The name of the layer with the smallest map whose sides are both at least 7, else of that with the largest map.

    That is layer4 (7x7) of a ResNet at 224x224, layer3 (8x8) of `resnet18` and layer2 (8x8) of `CustomResNet` at 32x32.
    Of the layers with this map, it is the last of the outermost ones. Found by a pass, not from names.

    Args:
        model: images to logits.
        image: a normalised image, float (C, H, W) or (1, C, H, W).

    Raises:
        SettingError: no layer gives a map, as in a network without convolutions.
    """
    with borrowed(model, checked_images(image)) as (net, images):
        return best_layer(probed(net, images))


def stages(model: nn.Module, image: Tensor, count: int = 4) -> tuple[str, ...]:
    """The names of a layer for each of the last `count` stages, in order: for each size of map the last outermost one.

    ("prep", "layer1", "layer2", "layer3") of `CustomResNet`, ("layer1", …, "layer4") of `resnet18`. Where two stages
    have maps of one size, as with other strides, they are told apart by the network's outermost blocks. Arguments and
    errors as in `default_layer`, and `SettingError` for a `count` below 1.
    """
    count = whole_number("count", count, 1)
    with borrowed(model, checked_images(image)) as (net, images):
        return tuple(layer.name for layer in layers_of_stages(probed(net, images), count))


def predicted_classes(model: nn.Module, images: Tensor) -> list[int]:
    """The class that the model gives each of the normalised images (N, C, H, W); it is left as it was."""
    with borrowed(model, checked_images(images)) as (net, inputs), torch.no_grad():
        return [int(label) for part in inputs.split(BATCH) for label in net(part).argmax(1)]


def checked_images(images: Any) -> Tensor:
    """Images (N, C, H, W), one alone too; raises SettingError for what is no batch of normalised images."""
    if isinstance(images, Tensor) and images.ndim == 3:
        images = images[None]
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise SettingError(
            f"Expected normalised images, a float tensor (N, C, H, W), got {got}. Raw images become that by "
            "loaders.preprocess.batch(images)."
        )
    return images


def _checked_targets(targets: Any, count: int, num_classes: int) -> list[int]:
    targets = targets.detach().cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if targets.size == 0:
        targets = targets.astype(np.int64)
    if targets.shape != (count,) or not np.issubdtype(targets.dtype, np.integer):
        raise SettingError(
            f"targets must hold a whole number for each of the {count} images, got {targets.dtype} of shape "
            f"{targets.shape}."
        )
    wrong = targets[(targets < 0) | (targets >= num_classes)]
    if len(wrong):
        raise SettingError(
            f"targets must be in 0..{num_classes - 1}, as the model has {num_classes} logits; got {wrong[0]}."
        )
    return targets.tolist()


def _in_parts(
    maps_of: Callable[[Tensor, list[int]], tuple[np.ndarray, np.ndarray]],
    images: Tensor,
    targets: list[int],
    at_a_time: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps float32 (N, H, W) and whether each is empty, bool (N,), a few images at a time."""
    maps = np.zeros((len(images), *images.shape[2:]), dtype=np.float32)
    empty = np.ones(len(images), dtype=bool)
    for start in range(0, len(images), at_a_time):
        part = slice(start, start + at_a_time)
        maps[part], empty[part] = maps_of(images[part], targets[part])
    return maps, empty

"""Grad-CAM: where in an image the evidence for a class is. The maps as arrays; figures are in `viz`.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) weighs the channels of a layer by the mean gradient of a class's
logit. The maps are computed by the grad-cam package, behind which its traps are taken away here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vision_wrapper._lookup import unknown_name
from vision_wrapper._state import preserve_hooks, preserve_random_states, preserve_state
from vision_wrapper.errors import SettingError

__all__ = ["CamMaps", "default_layer", "gradcam", "stages"]

Layers = str | nn.Module | Sequence[str | nn.Module]

MIN_SIDE = 7  # of the default layer's map: a 4x4 map scaled up is a blob
_BATCH = 32  # images at a time: what memory is bounded by


@dataclass(frozen=True, eq=False)
class CamMaps:
    """What `gradcam` finds.

    Attributes:
        maps: float32 (L, N, H, W) in [0, 1], at the input's height and width; the strongest place of a map is 1.
        layers: the names of the L layers.
        empty: bool (L, N), true where a layer holds no positive evidence for the class; the map is 0 everywhere then.
    """

    maps: np.ndarray
    layers: tuple[str, ...]
    empty: np.ndarray


def gradcam(model: nn.Module, images: Tensor, targets: Sequence[int] | Tensor, layers: Layers | None = None) -> CamMaps:
    """Grad-CAM maps of a class for each image, at one layer or several.

    Leaves the model and its gradients as they were. Works on frozen, half-precision and compiled models, and inside
    `torch.no_grad` and `torch.inference_mode`.

    Args:
        model: images to logits (N, num_classes).
        images: normalised, float (N, C, H, W), on any device.
        targets: the class of each image, (N,).
        layers: names as in `model.named_modules()`, or modules; None takes `default_layer`.

    Raises:
        UnknownNameError: the model has no layer of that name.
        SettingError: images or targets of another shape, a layer without a map, or one whose output is changed in place
            or does not lead to the logits, for which Grad-CAM would be wrong.
    """
    images = _checked_images(images)
    with _borrowed(model, images) as (net, images):
        names = None if layers is None else _layer_names(model, layers)
        probe = _probe(net, images)
        targets = _checked_targets(targets, len(images), probe.num_classes)
        names = (_best_layer(probe),) if names is None else names
        for name in names:
            _check_layer(name, probe)
        modules = dict(net.named_modules())
        results = [_maps(net, modules[name], images, targets) for name in names]
    return CamMaps(np.stack([maps for maps, _ in results]), names, np.stack([empty for _, empty in results]))


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
    with _borrowed(model, _checked_images(image)) as (net, images):
        return _best_layer(_probe(net, images))


def stages(model: nn.Module, image: Tensor, count: int = 4) -> tuple[str, ...]:
    """The names of one layer for each size of map, the last of the outermost ones; the last `count` sizes, in order.

    ("prep", "layer1", "layer2", "layer3") of `CustomResNet`, ("layer1", …, "layer4") of `resnet18`. Arguments and
    errors as in `default_layer`.
    """
    with _borrowed(model, _checked_images(image)) as (net, images):
        return tuple(layer.name for layer in _layer_of_each_size(_probe(net, images)))[-count:]


# ---- checks


def _checked_images(images: Any) -> Tensor:
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


def _layer_names(model: nn.Module, layers: Layers) -> tuple[str, ...]:
    modules = dict(_plain(model).named_modules())
    modules.pop("", None)
    names = []
    for layer in [layers] if isinstance(layers, (str, nn.Module)) else layers:
        name = layer if isinstance(layer, str) else next((n for n, m in modules.items() if m is layer), None)
        if name is None:
            raise SettingError(f"The layer {type(layer).__name__} is not a part of this model.")
        if name not in modules:
            raise unknown_name("layer", name, modules)
        names.append(name)
    if not names:
        raise SettingError("layers is empty; name at least one layer, or leave it out for the default one.")
    return tuple(names)


# ---- borrowing a model


@contextmanager
def _borrowed(model: nn.Module, images: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """The model made fit for Grad-CAM, and the images on its device; everything is put back afterwards."""
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        net = _plain(model)
        if any(_needs_copy(tensor) for tensor in [*net.parameters(), *net.buffers()]):
            stack.enter_context(preserve_random_states())
            net = copy.deepcopy(net).float()
        else:
            stack.enter_context(preserve_state(model))
        first = next((p for p in net.parameters() if p.is_floating_point()), images.float())
        with torch.autocast(first.device.type, enabled=False), _nothing_in_place(net), preserve_hooks(net):
            net.eval()
            for parameter in net.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            yield net, images.detach().to(first.device, first.dtype, copy=True)


def _needs_copy(tensor: Tensor) -> bool:
    # numpy has no bfloat16, gradients underflow in float16, tensors made in inference mode take no part in autograd.
    return tensor.dtype in (torch.bfloat16, torch.float16) or tensor.is_inference()


def _plain(model: nn.Module) -> nn.Module:
    """What `torch.compile` wrapped: hooks do not reach into compiled code."""
    return getattr(model, "_orig_mod", model)


@contextmanager
def _nothing_in_place(model: nn.Module) -> Iterator[None]:
    """A ReLU that overwrites the output of the layer before it would give that layer a wrong map."""
    modules: list[Any] = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    try:
        for module in modules:
            module.inplace = False
        yield
    finally:
        for module in modules:
            module.inplace = True


# ---- finding layers


class _Layer(NamedTuple):
    name: str
    shape: tuple[int, ...]
    calls: int  # in one pass
    changed: bool  # whether its output was later changed in place
    reached: bool  # whether the logits depend on it

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(height, width) where there is a map of more than one pixel that Grad-CAM can use."""
        usable = self.calls == 1 and not self.changed and self.reached and len(self.shape) == 4 and self.shape[0] == 1
        return self.shape[2:] if usable and self.shape[2:] != (1, 1) else None  # type: ignore[return-value]


class _Probe(NamedTuple):
    layers: dict[str, _Layer]  # in the order in which they finish
    num_classes: int


def _probe(net: nn.Module, images: Tensor) -> _Probe:
    """What one image's pass through the network shows."""
    outputs: dict[str, list[tuple[Tensor, int]]] = {}

    def recorder(name: str):
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name] = [*outputs.pop(name, []), (output, output._version)]

        return record

    image = (images[:1] if len(images) else images.new_zeros(1, *images.shape[1:])).detach().clone().requires_grad_()
    handles = [module.register_forward_hook(recorder(name)) for name, module in _layers(net)]
    try:
        logits = net(image)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SettingError(f"The model must return logits (N, num_classes), got {got} for one image.")
    reached = _reached(logits, {name: calls[-1][0] for name, calls in outputs.items()})
    layers = {
        name: _Layer(
            name, tuple(calls[-1][0].shape), len(calls), any(t._version != v for t, v in calls), name in reached
        )
        for name, calls in outputs.items()
    }
    return _Probe(layers, logits.shape[1])


def _layers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every submodule but those that compute weights, as `torch.nn.utils.parametrizations` do."""
    for name, module in net.named_modules():
        if name and "parametrizations" not in name.split("."):
            yield name, module


def _reached(logits: Tensor, outputs: dict[str, Tensor]) -> set[str]:
    """The names of the outputs that have a gradient."""
    names = [name for name, output in outputs.items() if output.requires_grad]
    if not names or not logits.requires_grad:
        return set()
    gradients = torch.autograd.grad(logits.sum(), [outputs[name] for name in names], allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def _layer_of_each_size(probe: _Probe) -> list[_Layer]:
    """For each size of map the last of the outermost layers, in the order in which they finish."""
    best: dict[tuple[int, int], _Layer] = {}
    for layer in probe.layers.values():
        size = layer.map_size
        if size and (size not in best or layer.name.count(".") <= best[size].name.count(".")):
            best[size] = layer
    if not best:
        raise SettingError("No layer of this model gives a map (N, C, H, W) of more than 1x1, which Grad-CAM needs.")
    return [layer for layer in probe.layers.values() if layer in best.values()]


def _best_layer(probe: _Probe) -> str:
    layers = _layer_of_each_size(probe)
    fine = [layer for layer in layers if min(layer.shape[2:]) >= MIN_SIDE]
    if fine:
        return min(reversed(fine), key=lambda layer: layer.shape[2] * layer.shape[3]).name
    return max(reversed(layers), key=lambda layer: layer.shape[2] * layer.shape[3]).name


def _check_layer(name: str, probe: _Probe) -> None:
    layer = probe.layers.get(name)
    if layer is not None and layer.map_size:
        return
    if layer is None:
        why = "does not run, or does not return a tensor"
    elif layer.calls > 1:
        why = f"runs {layer.calls} times in a pass, so that its maps would be mixed up"
    elif layer.changed:
        why = "has an output that is changed in place later, which would give a wrong map"
    elif len(layer.shape) != 4 or layer.shape[2:] == (1, 1):
        why = f"gives no map: its output is {layer.shape}, expected (N, C, H, W) of more than 1x1"
    else:
        why = "has no gradient: the logits do not depend on it, or it runs under no_grad or is detached"
    known = ", ".join(layer.name for layer in _layer_of_each_size(probe))
    raise SettingError(
        f"Grad-CAM cannot use the layer {name!r}: it {why}. Choose the output of a block, such as {known}."
    )


# ---- maps


def _maps(net: nn.Module, layer: nn.Module, images: Tensor, targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, H, W) and bool (N,). One layer at a time: grad-cam pairs several by the order in which they ran."""
    maps = np.zeros((len(images), *images.shape[2:]), dtype=np.float32)
    empty = np.ones(len(images), dtype=bool)
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        maps[part], empty[part] = _batch_maps(net, layer, images[part], targets[part])
    return maps, empty


def _batch_maps(net: nn.Module, layer: nn.Module, images: Tensor, targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():  # importing it sets filters
        from pytorch_grad_cam import GradCAM  # here: it takes seconds to import, and brings matplotlib along
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = images.detach().clone().requires_grad_()  # so that gradients flow whatever is frozen
    # No `with`: grad-cam's context manager swallows IndexError. The transform serves models with autocast inside.
    cam: Any = GradCAM(net, [layer], reshape_transform=torch.Tensor.float)
    try:
        chosen = [ClassifierOutputTarget(target) for target in targets]
        maps = cam(images, chosen)  # (N, H, W)
        activations, gradients = (
            np.asarray(tensors[0])
            for tensors in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
        )
        evidence = cam.get_cam_image(images, layer, chosen, activations, gradients, False)  # (N, h, w), before ReLU
    finally:
        cam.activations_and_grads.release()
    evidence = evidence.reshape(len(images), -1)
    empty = ~(np.isfinite(evidence).all(axis=1) & (evidence.max(axis=1) > 0))
    maps = np.where(empty[:, None, None], 0, maps)
    return np.clip(maps, 0, 1).astype(np.float32), empty

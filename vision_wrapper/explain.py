"""Class activation maps: where in an image the evidence for a class is, and how far to trust them.

The maps as arrays; figures are in `viz`. Most are computed by the grad-cam package, behind which its traps are taken
away here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vision_wrapper._lookup import Table, unknown_name
from vision_wrapper._state import preserve_hooks, preserve_random_states, preserve_state
from vision_wrapper.errors import SettingError

__all__ = ["METHODS", "CamMaps", "Trust", "cam", "default_layer", "gradcam", "stages", "trust"]

Layers = str | nn.Module | Sequence[str | nn.Module]

MIN_SIDE = 7  # of the default layer's map: a 4x4 map scaled up is a blob
_BATCH = 32  # images at a time: what memory is bounded by


class Method(NamedTuple):
    """A way to make maps: its name in figures, its class in the grad-cam package, and how many images at a time."""

    title: str
    package_class: str | None  # None where it is made here
    at_a_time: int = _BATCH


METHODS: Table[Method] = Table(
    "method",
    {
        # The gradient's mean over a channel weighs it (Selvaraju et al. 2017, arXiv:1610.02391).
        "gradcam": Method("Grad-CAM", "GradCAM"),
        # With higher powers of the gradient, for several objects (Chattopadhay et al. 2018, arXiv:1710.11063).
        "gradcam++": Method("Grad-CAM++", "GradCAMPlusPlus"),
        # Gradient times activation, place by place (Draelos & Carin 2020, arXiv:2011.08891).
        "hirescam": Method("HiResCAM", "HiResCAM"),
        # The same with positive gradients alone; finer at early layers (Jiang et al. 2021).
        "layercam": Method("LayerCAM", "LayerCAM"),
        # Weights that keep the sum of the evidence (Fu et al. 2020, arXiv:2008.02312).
        "xgradcam": Method("XGrad-CAM", "XGradCAM"),
        # The activations' first principal component, whatever the class (Muhammad & Yeasin 2020, arXiv:2008.00299).
        "eigencam": Method("Eigen-CAM", "EigenCAM"),
        # The class's logit on the image masked by each channel; a pass a channel (Wang et al. 2020, arXiv:1910.01279).
        "scorecam": Method("Score-CAM", "ScoreCAM", at_a_time=1),
        # The fall of the logit without each channel; a pass a channel (Desai & Ramaswamy 2020).
        "ablationcam": Method("Ablation-CAM", "AblationCAM", at_a_time=1),
        # The gradients of input and biases of all layers together (Srinivas & Fleuret 2019, arXiv:1905.00780).
        "fullgrad": Method("FullGrad", None),
    },
)


@dataclass(frozen=True, eq=False)
class CamMaps:
    """What `cam` finds.

    Attributes:
        maps: float32 (L, N, H, W) in [0, 1], at the input's height and width; the strongest place of a map is 1.
        layers: the names of the L layers; of FullGrad, the one word "all".
        empty: bool (L, N), true where a layer holds no positive evidence for the class; the map is 0 everywhere then.
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
        SettingError: images or targets of another shape, a layer without a map, or one whose output is changed in place
            or does not lead to the logits, for which the maps would be wrong.
    """
    METHODS[method]
    images = _checked_images(images)
    if method == "fullgrad" and layers is not None:
        raise SettingError("fullgrad takes the gradients of all layers together: leave layers= out.")
    with _borrowed(model, images) as (net, images):
        names = None if layers is None else _layer_names(model, layers)
        probe = _probe(net, images)
        targets = _checked_targets(targets, len(images), probe.num_classes)
        if method == "fullgrad":
            results, names = [_in_parts(partial(_full_gradients, net), images, targets, _BATCH)], ("all",)
        else:
            names = (_best_layer(probe),) if names is None else names
            for name in names:
                _check_layer(name, probe)
            at_a_time = METHODS[method].at_a_time
            results = [_in_parts(partial(_batch_maps, net, name, method), images, targets, at_a_time) for name in names]
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


def _batch_maps(
    net: nn.Module, layer: str, method: str, images: Tensor, targets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """One layer at a time: grad-cam pairs several by the order in which they ran."""
    with warnings.catch_warnings():  # importing it sets filters
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = images.detach().clone().requires_grad_()  # so that gradients flow whatever is frozen
    # No `with`: grad-cam's context manager swallows IndexError. The transform serves models with autocast inside.
    made: Any = _package_class(method)(net, [dict(net.named_modules())[layer]], reshape_transform=torch.Tensor.float)
    try:
        with _no_bars():
            maps = made(images, [ClassifierOutputTarget(target) for target in targets])  # (N, H, W)
        evidence = made.evidence.reshape(len(images), -1)
    finally:
        made.activations_and_grads.release()
    return _without_the_empty(maps, evidence)


def _without_the_empty(maps: np.ndarray, evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, H, W) in [0, 1], 0 where the evidence (N, places), before ReLU, is nowhere positive or no number."""
    empty = ~(np.isfinite(evidence).all(axis=1) & (evidence.max(axis=1) > 0))
    maps = np.where(empty[:, None, None], 0, maps)
    return np.clip(maps, 0, 1).astype(np.float32), empty


def _package_class(method: str) -> Any:
    """grad-cam's class of a method, which keeps what it found before negative evidence is cut off."""
    with warnings.catch_warnings():
        import pytorch_grad_cam  # here: it takes seconds to import, and brings matplotlib along

    base: Any = getattr(pytorch_grad_cam, str(METHODS[method].package_class))

    class Keeping(base):
        def get_cam_weights(self, images: Any, layer: Any, targets: Any, activations: Any, gradients: Any) -> Any:
            if method == "ablationcam":
                return _falls_without(self.model, layer, images, targets, activations)
            return super().get_cam_weights(images, layer, targets, activations, gradients)

        def get_cam_image(
            self, images: Any, layer: Any, targets: Any, activations: Any, gradients: Any, smooth: bool = False
        ) -> np.ndarray:
            if method == "eigencam":
                self.evidence = _first_component(activations)
            else:
                self.evidence = super().get_cam_image(images, layer, targets, activations, gradients, smooth)
            return self.evidence

    return Keeping


@torch.no_grad()
def _falls_without(
    net: nn.Module, layer: nn.Module, images: Tensor, targets: list[Any], activations: np.ndarray
) -> np.ndarray:
    """How far the logit of each image falls when a channel of the layer is set to 0, (N, C).

    (grad-cam sets it to -10,000,000 where a layer has negative activations, divides by the logit, whose sign turns the
    map around, and exchanges the layer, also for good after an error.)
    """
    falls = np.zeros(activations.shape[:2])
    for i, (target, kept) in enumerate(zip(targets, torch.from_numpy(activations).to(images.device), strict=True)):
        whole = float(target(net(images[i : i + 1])[0]))
        for channels in torch.arange(len(kept)).split(_BATCH):
            ablated = kept.repeat(len(channels), 1, 1, 1)  # (channels, C, h, w)
            ablated[torch.arange(len(channels)), channels] = 0
            exchanged = partial(lambda maps, *_: maps, ablated.to(images.dtype))
            handle = layer.register_forward_hook(exchanged)
            try:
                logits = net(images[i : i + 1].expand(len(channels), -1, -1, -1))
            finally:
                handle.remove()
            falls[i, channels.numpy()] = [whole - float(target(output)) for output in logits]
    return falls


def _first_component(activations: np.ndarray) -> np.ndarray:
    """Activations (N, C, h, w) along their first principal component over the places, (N, h, w).

    A component has no sign of its own: it is turned to where the activations are large. (grad-cam leaves it to chance,
    and computes as many components as there are places.)
    """
    projections = []
    for maps in np.nan_to_num(activations).astype(np.float64):
        rows = maps.reshape(len(maps), -1).T  # (places, C)
        centred = rows - rows.mean(0)
        _, vectors = np.linalg.eigh(centred.T @ centred)  # rising; vectors are columns
        projection = centred @ vectors[:, -1]
        sign = -1.0 if projection @ rows.sum(1) < 0 else 1.0
        projections.append(sign * projection.reshape(maps.shape[1:]))
    return np.stack(projections)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Score-CAM shows a bar for every image."""
    from pytorch_grad_cam import score_cam

    package: Any = score_cam
    bar, package.tqdm = package.tqdm, SimpleNamespace(tqdm=lambda numbers: numbers)
    try:
        yield
    finally:
        package.tqdm = bar


def _full_gradients(net: nn.Module, images: Tensor, targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
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
    handles = [module.register_forward_hook(keep) for _, module in _layers(net)]
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
            total = total + nn.functional.interpolate(maps, images.shape[2:], mode="bilinear")[:, 0]
    evidence = total.detach().float().cpu().numpy()
    low, high = evidence.min((1, 2), keepdims=True), evidence.max((1, 2), keepdims=True)
    return _without_the_empty((evidence - low) / np.maximum(high - low, 1e-12), evidence.reshape(len(images), -1))


_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def _bias_of(module: nn.Module) -> Tensor | None:
    """What a layer adds to each channel, (C,); of a batch norm in evaluation, with its running mean."""
    bias = getattr(module, "bias", None)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
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


# ---- trust


@dataclass(frozen=True, eq=False)
class Trust:
    """How far maps may be trusted, from `trust`.

    Attributes:
        randomised: rank correlation (Spearman) of each map with that of the same network with shuffled weights, (N,)
            in [-1, 1]; NaN where a map is empty. Near 1, the map shows the image rather than what was learned.
        deletion: mean probability of the class while the places that the map marks are removed, most important first,
            (steps + 1,); a good map lets it fall at once.
        insertion: the same while they are put into a blurred image; a good map lets it rise at once.
        random_deletion: of random maps as smooth as these.
        random_insertion: likewise.
    """

    randomised: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    def areas(self) -> dict[str, float]:
        """The mean height of each curve, in [0, 1], by its name."""
        names = ("deletion", "insertion", "random_deletion", "random_insertion")
        curves = {name: getattr(self, name) for name in names}
        return {name: float((curve[1:] + curve[:-1]).mean() / 2) for name, curve in curves.items()}

    def __str__(self) -> str:
        areas = self.areas()
        known = self.randomised[np.isfinite(self.randomised)]
        correlation = f"{known.mean():.2f}" if len(known) else "unknown, all are empty"
        better = areas["deletion"] < areas["random_deletion"], areas["insertion"] > areas["random_insertion"]
        verdict = {
            (True, True): "better than random maps",
            (True, False): "better than random maps at deletion alone",
            (False, True): "better than random maps at insertion alone",
            (False, False): "no better than random maps",
        }[better]
        return (
            f"Rank correlation with the maps of shuffled weights: {correlation} (0 is best). Deletion "
            f"{areas['deletion']:.2f} (random {areas['random_deletion']:.2f}, lower is better), insertion "
            f"{areas['insertion']:.2f} (random {areas['random_insertion']:.2f}, higher is better): {verdict}."
        )


def trust(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    layer: str | nn.Module | None = None,
    method: str = "gradcam",
    steps: int = 16,
    seed: int = 0,
) -> Trust:
    """Check maps against shuffled weights (Adebayo et al. 2018, arXiv:1810.03292) and by deletion and insertion.

    Deletion sets places to the mean of the training pixels, insertion begins with a blurred image (Petsiuk et al. 2018,
    arXiv:1806.07421). Leaves the model as it was.

    Args:
        model: as of `cam`.
        images: as of `cam`; at least one.
        targets: as of `cam`.
        layer: one, as of `cam`.
        method: as of `cam`.
        steps: parts in which the places are removed.
        seed: of the shuffling and of the random maps.

    Raises what `cam` raises.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise SettingError(f"steps must be a whole number of at least 1, got {steps!r}.")
    images = _checked_images(images)
    if not len(images):
        raise SettingError("trust needs at least one image.")
    name = None if layer is None else _layer_names(model, layer)[0]
    found = cam(model, images, targets, name, method)
    with _shuffled(model, seed) as shuffled:
        others = cam(shuffled, images, targets, None if method == "fullgrad" else found.layers[0], method)
    with _borrowed(model, images) as (net, inputs), torch.no_grad():
        size = (MIN_SIDE, MIN_SIDE) if method == "fullgrad" else _probe_size(net, inputs, found.layers[0])
        chosen = torch.as_tensor(targets).cpu().long()
        curves = partial(_curves, net, inputs, chosen, steps=steps)
        deletion, insertion = curves(found.maps[0])
        random_deletion, random_insertion = curves(_random_maps(len(inputs), size, inputs.shape[2:], seed))
    ranks = [
        np.nan if a or b else _rank_correlation(x, y)
        for x, y, a, b in zip(found.maps[0], others.maps[0], found.empty[0], others.empty[0], strict=True)
    ]
    return Trust(np.array(ranks), deletion, insertion, random_deletion, random_insertion)


def _probe_size(net: nn.Module, images: Tensor, layer: str) -> tuple[int, int]:
    with torch.enable_grad():
        size = _probe(net, images).layers[layer].map_size
    assert size is not None
    return size


@contextmanager
def _shuffled(model: nn.Module, seed: int) -> Iterator[nn.Module]:
    """For a while, the network with weights that have changed places within each tensor: nothing it learned is left."""
    net, generator = _plain(model), torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), ExitStack() as stack:
        if any(tensor.is_inference() for tensor in [*net.parameters(), *net.buffers()]):
            net = copy.deepcopy(net)
        else:
            stack.enter_context(preserve_state(net))
        with torch.no_grad():
            for parameter in net.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view(parameter.shape))
        yield net


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    x, y = (rankdata(values.ravel()) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / max(np.sqrt((x @ x) * (y @ y)), 1e-12))


def _random_maps(count: int, size: tuple[int, int], shape: Sequence[int], seed: int) -> np.ndarray:
    """Uniform noise at the layer's map size, scaled up as its maps are, (N, H, W)."""
    noise = np.random.default_rng(seed).random((count, 1, *size), dtype=np.float32)
    return nn.functional.interpolate(torch.from_numpy(noise), tuple(shape), mode="bilinear")[:, 0].numpy()


def _curves(
    net: nn.Module, images: Tensor, targets: Tensor, maps: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability of the classes while the marked places go (deletion) and come (insertion), (steps + 1,) each."""
    n, _, height, width = images.shape
    order = torch.from_numpy(maps.reshape(n, -1)).sort(dim=1, descending=True, stable=True)[1]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(height * width).expand(n, -1))
    rank = rank.view(n, 1, height, width).to(images.device)
    side = 2 * (min(height, width) // 6) + 1
    padding = (side // 2,) * 4
    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, padding, mode="replicate"), side, 1)
    curves: tuple[list[float], list[float]] = ([], [])
    for step in range(steps + 1):
        chosen = rank < round(step / steps * height * width)
        for curve, mixed in zip(
            curves, (images.masked_fill(chosen, 0.0), torch.where(chosen, images, blurred)), strict=True
        ):
            probability = torch.cat([net(part).float().softmax(1).cpu() for part in mixed.split(_BATCH)])
            curve.append(float(probability.gather(1, targets[:, None]).mean()))
    return np.array(curves[0]), np.array(curves[1])

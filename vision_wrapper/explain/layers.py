"""The layers of a network that give maps, found by a pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vision_wrapper._lookup import unknown_name
from vision_wrapper.errors import SettingError
from vision_wrapper.explain.borrow import plain

Layers = str | nn.Module | Sequence[str | nn.Module]

_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
MIN_SIDE = 7  # of the default layer's map: a 4x4 map scaled up is a blob


class Layer(NamedTuple):
    """What a pass shows of a layer."""

    name: str
    shape: tuple[int, ...]
    calls: int  # in one pass
    reached: bool  # whether the logits depend on it
    channels_last: bool  # whether its output is (N, H, W, C), as within Swin and ConvNeXt
    repeats: bool  # whether it is a pool that shows each place of a smaller map several times, as VGG's of small images

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(height, width) where there is a map of more than one pixel that Grad-CAM can use."""
        once = self.calls == 1 and self.reached
        usable = once and len(self.shape) == 4 and self.shape[0] == 1 and not self.channels_last
        return self.shape[2:] if usable and self.shape[2:] != (1, 1) else None  # type: ignore[return-value]


class Probe(NamedTuple):
    """What one image's pass through a network shows."""

    layers: dict[str, Layer]  # in the order in which they finish
    num_classes: int


def probed(net: nn.Module, images: Tensor) -> Probe:
    """Send one image through the network."""
    outputs: dict[str, list[Tensor]] = {}
    repeating: set[str] = set()

    def recorder(name: str):
        def record(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None
            outputs[name] = [*outputs.pop(name, []), output]
            if isinstance(module, _ADAPTIVE) and args and output[0, 0].numel() > args[0][0, 0].numel():
                repeating.add(name)
            return output.clone()  # what follows may change it in place

        return record

    image = (images[:1] if len(images) else images.new_zeros(1, *images.shape[1:])).detach().clone().requires_grad_()
    handles = [module.register_forward_hook(recorder(name)) for name, module in submodules(net)]
    try:
        logits = net(image)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what layers raise for images of another size or number of channels
        raise SettingError(
            f"{type(net).__name__} does not take images of shape {tuple(images.shape[1:])} (C, H, W): {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SettingError(f"The model must return logits (N, num_classes), got {got} for one image.")
    reached = _reached(logits, {name: calls[-1] for name, calls in outputs.items()})
    layers = {}
    for name, calls in outputs.items():
        shape = tuple(calls[-1].shape)
        channels_last = _has_channels_last(shape, image.shape[2:])
        layers[name] = Layer(name, shape, len(calls), name in reached, channels_last, name in repeating)
    return Probe(layers, logits.shape[1])


def submodules(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every submodule but those that compute weights, as `torch.nn.utils.parametrizations` do."""
    for name, module in net.named_modules():
        if name and "parametrizations" not in name.split("."):
            yield name, module


def _has_channels_last(shape: tuple[int, ...], image: Sequence[int]) -> bool:
    """Whether of an output's sides the second and third are as the image's height to its width, not the last two."""

    def as_the_image(height: int, width: int) -> bool:  # but for rounding: strides leave part of a pixel over
        return abs(height * image[1] - width * image[0]) <= max(image)

    return len(shape) == 4 and as_the_image(*shape[1:3]) and not as_the_image(*shape[2:])


def _reached(logits: Tensor, outputs: dict[str, Tensor]) -> set[str]:
    """The names of the outputs that have a gradient."""
    names = [name for name, output in outputs.items() if output.requires_grad]
    if not names or not logits.requires_grad:
        return set()
    gradients = torch.autograd.grad(logits.sum(), [outputs[name] for name in names], allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def layer_of_each_size(probe: Probe) -> list[Layer]:
    """For each size of map the last of the outermost layers, in the order in which they finish."""
    best: dict[tuple[int, int], Layer] = {}
    for layer in probe.layers.values():
        size = layer.map_size
        if size and not layer.repeats and (size not in best or layer.name.count(".") <= best[size].name.count(".")):
            best[size] = layer
    if not best:
        raise SettingError("No layer of this model gives a map (N, C, H, W) of more than 1x1, which Grad-CAM needs.")
    return [layer for layer in probe.layers.values() if layer in best.values()]


def layers_of_stages(probe: Probe, count: int) -> list[Layer]:
    """The last `count` of `layer_of_each_size`; where there are fewer, also the last of the other outermost blocks."""
    chosen = layer_of_each_size(probe)[-count:]
    usable = [layer for layer in probe.layers.values() if layer.map_size]
    depth = min(layer.name.count(".") for layer in usable)
    parents = {name.rpartition(".")[0] for name in probe.layers}
    blocks = [layer for layer in usable if layer.name.count(".") == depth and layer.name in parents]
    missing = count - len(chosen)
    others = [block for block in blocks if block not in chosen][-missing:] if missing > 0 else []
    return [layer for layer in usable if layer in chosen or layer in others]


def best_layer(probe: Probe) -> str:
    """The layer that `default_layer` names."""
    layers = layer_of_each_size(probe)
    fine = [layer for layer in layers if min(layer.shape[2:]) >= MIN_SIDE]
    if fine:
        return min(reversed(fine), key=lambda layer: layer.shape[2] * layer.shape[3]).name
    return max(reversed(layers), key=lambda layer: layer.shape[2] * layer.shape[3]).name


def check_layer(name: str, probe: Probe) -> None:
    """Raise SettingError, with the reason, for a layer whose maps would be none or wrong."""
    layer = probe.layers.get(name)
    if layer is not None and layer.map_size:
        return
    if layer is None:
        why = "does not run, or does not return a tensor"
    elif layer.calls > 1:
        why = f"runs {layer.calls} times in a pass, so that its maps would be mixed up"
    elif len(layer.shape) != 4 or layer.shape[2:] == (1, 1):
        why = f"gives no map: its output is {layer.shape}, expected (N, C, H, W) of more than 1x1"
    elif layer.channels_last:
        why = f"has its channels last: its output is {layer.shape}, expected (N, C, H, W)"
    else:
        why = "has no gradient: the logits do not depend on it, or it runs under no_grad or is detached"
    known = ", ".join(layer.name for layer in layer_of_each_size(probe))
    raise SettingError(
        f"Grad-CAM cannot use the layer {name!r}: it {why}. Choose the output of a block, such as {known}."
    )


def layer_names(model: nn.Module, layers: Layers) -> tuple[str, ...]:
    """The names of layers given by name or as modules; raises for those that the model has not."""
    modules = dict(plain(model).named_modules())
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

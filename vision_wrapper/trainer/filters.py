"""Gradients of filters that a bf16 convolution on a CPU leaves undefined."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NOTHING: AbstractContextManager[Any] = nullcontext()


class UnreachedTaps(dict[torch.Size, AbstractContextManager[Any]]):
    """The context for a forward pass of images of a size (channels, height, width), in which filters may meet padding.

    It makes the gradient 0 of the taps that meet nothing else, as on 1x1 maps all but a 3x3 filter's centre. It is 0 by
    definition, but oneDNN's bf16 kernels (torch 2.15, AVX512) leave there what the memory held, at times NaN. No output
    depends on these weights; the norm of the gradients does, and NaN in a weight ends the run.

    Looks at `nn.Conv1d`, `Conv2d` and `Conv3d`, not at classes made from them, which may pad for themselves. Hooks on
    these cost some microseconds each: where all have been seen and no tap is unreached, the size is kept here with a
    context that does nothing. Compiled models are left alone: they would be compiled anew for the hooks.
    """

    def __init__(self, model: nn.Module, enabled: bool) -> None:
        super().__init__()
        self._model, self._enabled = model, enabled

    def anew(self) -> UnreachedTaps:
        """One that knows no size yet."""
        return UnreachedTaps(self._model, self._enabled)

    def __missing__(self, size: torch.Size) -> AbstractContextManager[Any]:
        if self._enabled and not any(map(_is_compiled, self._model.modules())):
            return self._watching(size)
        self[size] = _NOTHING
        return _NOTHING

    @contextmanager
    def _watching(self, size: torch.Size) -> Iterator[None]:
        layers = [module for module in self._model.modules() if type(module) in _CONVOLUTIONS]
        unseen, found = set(layers), []

        def look(layer: Any, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            unseen.discard(layer)
            image = given[0] if given else named["input"]
            unreached = unreached_taps(layer, image.shape, output.shape)
            if unreached is not None:
                found.append(layer)
                _define(output, unreached)

        hooks = [layer.register_forward_hook(look, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if not (found or unseen):
            self[size] = _NOTHING


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def unreached_taps(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, image: torch.Size, output: torch.Size) -> Tensor | None:
    """Which taps of a layer's filters lie outside of the image wherever the filter stands; None if none does.

    The result has the filters' extent, such as (3, 3), and is True there.
    """
    if layer.padding_mode != "zeros":  # what is put around the image is the image again
        return None
    axes = layer.weight.ndim - 2
    strides, dilations = _of_each(layer.stride, axes), _of_each(layer.dilation, axes)
    reached = torch.ones((), dtype=torch.bool)
    for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
        size, places, taps = image[axis - axes], output[axis - axes], layer.weight.shape[axis + 2]
        if isinstance(layer.padding, str):
            padding = dilation * (taps - 1) // 2 if layer.padding == "same" else 0  # "valid" is none
        else:
            padding = _of_each(layer.padding, axes)[axis]
        firsts = [place * stride - padding for place in range(places)]  # where the first tap comes to lie
        along = [any(0 <= first + tap * dilation < size for first in firsts) for tap in range(taps)]
        reached = reached[..., None] & torch.tensor(along)
    return None if bool(reached.all()) else ~reached


def _of_each(values: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A layer's setting for each axis; torch takes a tuple of one for all."""
    return values * axes if len(values) == 1 else values


def _define(output: Tensor, unreached: Tensor) -> None:
    """Have the backward pass of the convolution with this output make the gradients of these taps 0."""

    def zero(gradients: Any, _: Any) -> Any:
        image, filters, *bias = gradients
        return image, None if filters is None else filters.masked_fill(unreached, 0), *bias

    node: Any = output.grad_fn
    if node is not None and node.name() == "SqueezeBackward1":  # of an image without a batch
        node = node.next_functions[0][0]
    if node is not None and node.name() == "ConvolutionBackward0":
        node.register_hook(zero)

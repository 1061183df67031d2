"""Gradients of filters that a bf16 convolution on a CPU leaves undefined."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_NOTHING: AbstractContextManager[Any] = nullcontext()


class UnreachedTaps(dict[torch.Size, AbstractContextManager[Any]]):
    """The context for a forward pass of images of a size (channels, height, width), in which filters may meet padding.

    It makes the gradient 0 of the taps that meet nothing else, as on 1x1 maps all but a 3x3 filter's centre. It is 0 by
    definition, but oneDNN's bf16 kernels (torch 2.15, AVX512) leave there what the memory held, at times NaN. No output
    depends on these weights; the norm of the gradients does, and NaN in a weight ends the run.

    Watching takes some microseconds an operation, so a size of which every tap is reached is then kept here with a
    context that does nothing.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self._enabled = enabled

    def anew(self) -> UnreachedTaps:
        """One that watches every size again, as where other layers are trained from now on."""
        return UnreachedTaps(self._enabled)

    def __missing__(self, size: torch.Size) -> AbstractContextManager[Any]:
        if self._enabled:
            return _Watch(size, self)
        self[size] = _NOTHING
        return _NOTHING


class _Watch(TorchFunctionMode):
    """Gives convolutions with unreached taps a hook for their gradients; where none has any, never again."""

    def __init__(self, size: torch.Size, contexts: UnreachedTaps) -> None:
        super().__init__()
        self._size, self._contexts, self._found = size, contexts, False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in _CONVOLUTIONS:
            unreached = unreached_taps(*_operands(*args, **(kwargs or {})), output)
            if unreached is not None:
                self._found = True
                _convolution(output).register_hook(_zero(unreached))
        return output

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None and not self._found:
            self._contexts[self._size] = _NOTHING


def _operands(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """The image and the filters, as torch names a convolution's arguments."""
    return input, weight


def _convolution(output: Tensor) -> Any:
    """The node of the graph that computes the gradients of the convolution with this output; None without gradients."""
    node = output.grad_fn
    if node is not None and node.name() == "SqueezeBackward1":  # of an image without a batch
        node = node.next_functions[0][0]
    return node if node is not None and node.name() == "ConvolutionBackward0" else None


def unreached_taps(image: Tensor, filters: Tensor, output: Tensor) -> Tensor | None:
    """Which taps of a convolution's filters lie outside of the image wherever the filter stands; None if none does.

    The result has the filters' extent, such as (3, 3), and is True there. `output` is what the convolution returned.
    """
    node = _convolution(output)
    if node is None:
        return None
    reached = torch.ones((), dtype=torch.bool)
    for axis, (stride, padding, dilation) in enumerate(
        zip(node._saved_stride, node._saved_padding, node._saved_dilation, strict=True), start=2 - filters.ndim
    ):
        firsts = [place * stride - padding for place in range(output.shape[axis])]  # where the first tap comes to lie
        along = [
            any(0 <= first + tap * dilation < image.shape[axis] for first in firsts)
            for tap in range(filters.shape[axis])
        ]
        reached = reached[..., None] & torch.tensor(along)
    return None if bool(reached.all()) else ~reached


def _zero(taps: Tensor) -> Callable[[Any, Any], Any]:
    """A hook that makes a convolution's gradients by these taps of its filters 0."""

    def hook(gradients: Any, _: Any) -> Any:
        image, filters, *bias = gradients
        return image, None if filters is None else filters.masked_fill(taps, 0), *bias

    return hook

"""The pieces the networks share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_wrapper._lookup import Table
from vision_wrapper._numbers import is_whole, pythons_own, whole_number
from vision_wrapper.errors import SettingError

NormLayer = Callable[[int], nn.Module]
Activation = Callable[[], nn.Module]
Constructor = TypeVar("Constructor", bound=Callable[..., Any])

GHOST_SIZE = 32  # images whose statistics a ghost batch norm takes together, as Page (2019) does


def records_architecture(name: str) -> Callable[[Constructor], Constructor]:
    """Have a constructor, an `__init__` or a function, note in the network's `architecture` what rebuilds it.

    That is {"name": `name`, "arguments": {…}}, plain values for `build_model`, which a classifier file carries.
    """

    def decorate(construct: Constructor) -> Constructor:
        signature = inspect.signature(construct)

        @wraps(construct)
        def constructed(*args: Any, **kwargs: Any) -> Any:
            made = construct(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            model = bound.arguments.pop("self", made)
            bound.arguments.pop("weights", None)  # they are in the model
            arguments = {key: _plain(value) for key, value in bound.arguments.items()}
            model.architecture = {"name": name, "arguments": arguments}
            return made

        return constructed  # type: ignore[return-value]

    return decorate


class GhostBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are of parts of the batch, for the noise of small batches (Hoffer et al. 2017).

    (N, C, H, W) to the same shape. In training each part of at least `GHOST_SIZE` images has its own mean and variance;
    the running ones, which evaluation uses, move as far as by one batch. arXiv:1705.08741.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        count = len(input) // GHOST_SIZE
        if not self.training or count < 2:
            return super().forward(input)
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 - (1 - self.momentum) ** (1 / count)
        parts = [
            F.batch_norm(part, self.running_mean, self.running_var, self.weight, self.bias, True, momentum, self.eps)
            for part in input.tensor_split(count)
        ]
        return torch.cat(parts)


class GlobalMaxPool(nn.Module):
    """The largest value of each map: (N, C, H, W) to (N, C, 1, 1).

    As `nn.AdaptiveMaxPool2d(1)`, whose gradient torch refuses on CUDA where algorithms are to be deterministic.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        return F.max_pool2d(x, x.shape[2:])


class BiasedBatchNorm(nn.BatchNorm2d):
    """Batch norm that learns a shift and no scale, which stays 1, and forgets its statistics quickly.

    The constants are airbench's (Jordan 2024, arXiv:2404.00498), for runs of some hundred steps.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-12, momentum=0.4)
        del self.weight
        self.register_buffer("weight", torch.ones(channels))


def _group_norm(channels: int) -> nn.Module:
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)  # 32 as in Wu & He 2018, fewer where it must be
    return nn.GroupNorm(groups, channels)


# A norm is made from its number of channels. "layer" is GroupNorm(1, C): mean and variance over C, H, W of each image.
NORMS: Table[NormLayer] = Table(
    "norm",
    {
        "batch": nn.BatchNorm2d,
        "layer": lambda channels: nn.GroupNorm(1, channels),
        "group": _group_norm,
        "ghost": GhostBatchNorm,
        "shift": BiasedBatchNorm,
        "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    },
)

ACTIVATIONS: Table[Activation] = Table(
    "activation",
    {
        "relu": nn.ReLU,
        "celu": lambda: nn.CELU(0.075),  # Page (2019): smooth, and close to ReLU
        "gelu": nn.GELU,
        "silu": nn.SiLU,
    },
)


def start_as_identity(model: nn.Module) -> None:
    """Let each convolution's first filters pass its channels on, and leave the others random.

    Dirac initialisation (Zagoruyko & Komodakis 2017, arXiv:1706.00388), in the partial form of Jordan (2024). For
    convolutions with an odd kernel and no fewer filters than channels.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or module.out_channels < module.in_channels:
            continue
        if module.kernel_size[0] % 2 and module.groups == 1:
            with torch.no_grad():
                nn.init.dirac_(module.weight[: module.in_channels])


def check_init(init: str) -> None:
    """Raise `SettingError` for an initialisation that is not known."""
    if init not in ("default", "dirac"):
        raise SettingError(f'init must be "default" or "dirac", got {init!r}.')


def check_classes_and_channels(num_classes: int, in_channels: int) -> tuple[int, int]:
    """Both as ints. Raises `SettingError` unless they are whole numbers that a network can have."""
    return whole_number("num_classes", num_classes, 2), whole_number("in_channels", in_channels, 1)


def check_widths(widths: Sequence[int], parts: Sequence[str]) -> list[int]:
    """The channels of each of a network's parts, as ints. Raises `SettingError` for anything else."""
    given = isinstance(widths, (Sequence, np.ndarray)) and len(widths) == len(parts)
    if not given or not all(is_whole(width) and width >= 1 for width in widths):
        raise SettingError(
            f"widths must be {len(parts)} whole numbers of at least 1 ({', '.join(parts)}), got {widths!r}."
        )
    return [int(width) for width in widths]


def _plain(value: Any) -> Any:
    """An argument as JSON holds it: a list for a tuple or an array, python's number for one of numpy's."""
    if isinstance(value, (tuple, list, np.ndarray)):
        return [_plain(part) for part in value]
    return pythons_own(value)

"""The pieces the networks share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from vision_wrapper._lookup import Table
from vision_wrapper.errors import SettingError

NormLayer = Callable[[int], nn.Module]


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
        "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    },
)


def check_classes_and_channels(num_classes: int, in_channels: int) -> None:
    """Raise `SettingError` unless both are whole numbers that a network can have."""
    for name, value, least in (("num_classes", num_classes, 2), ("in_channels", in_channels, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(f"{name} must be a whole number of at least {least}, got {value!r}.")

"""Training augmentations as data: a name and its operations, in order, on raw uint8 images.

Operations come before normalisation, so padding and holes are filled with pixel values in 0..255.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from vision_wrapper._lookup import Table, check_names
from vision_wrapper._numbers import is_number, is_whole, pythons_own
from vision_wrapper.errors import MissingPackageError, SettingError

if TYPE_CHECKING:
    import albumentations

# A pixel value in 0..255, one for each channel, or the data set's mean.
Fill: TypeAlias = "int | tuple[int, ...] | Literal['mean']"


def import_albumentations() -> Any:
    """The package, imported when it is first needed. Raises `MissingPackageError` where it is too old."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the package index
    import albumentations

    if int(albumentations.__version__.split(".")[0]) < 2:
        raise MissingPackageError(
            f'albumentations {albumentations.__version__} is too old: pip install "albumentations>=2.0.8,<3"'
        )
    return albumentations


@dataclass(frozen=True)
class Pad:
    """Pad every side by `pixels`; `mode` is "constant" (with `fill`) or "reflect"."""

    pixels: int = 4
    mode: Literal["constant", "reflect"] = "constant"
    fill: Fill = 0

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        import cv2

        modes = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}
        return import_albumentations().Pad(
            padding=self.pixels, border_mode=modes[self.mode], fill=fill_value(self.fill, mean)
        )


@dataclass(frozen=True)
class RandomCrop:
    """Crop the model's image size at a random place (of a padded image)."""

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        return import_albumentations().RandomCrop(*size)


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability `p`."""

    p: float = 0.5

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        return import_albumentations().HorizontalFlip(p=self.p)


@dataclass(frozen=True)
class AlternatingFlip:
    """Mirror left and right in every other epoch: any two epochs in a row show both mirrors of each image.

    Half of the images, drawn once, are mirrored in even epochs (Jordan 2024, arXiv:2404.00498).
    """


@dataclass(frozen=True)
class Rotate:
    """Turn by an angle drawn from -degrees..degrees; corners are filled."""

    degrees: float = 5.0
    fill: Fill = 0

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        import cv2

        return import_albumentations().Rotate(
            limit=(-self.degrees, self.degrees),
            border_mode=cv2.BORDER_CONSTANT,
            fill=fill_value(self.fill, mean),
            p=1.0,
        )


@dataclass(frozen=True)
class Cutout:
    """Cut `holes` squares of `size` pixels, with probability `p` (DeVries & Taylor 2017).

    Each lies inside the image; the paper's may hang over its edge, so that less is cut.
    """

    size: int = 8
    holes: int = 1
    fill: Fill = 0
    p: float = 1.0

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        if self.size > min(size):
            raise SettingError(f"Cutout: a hole of {self.size} pixels does not fit into an image of {size}.")
        return import_albumentations().CoarseDropout(
            num_holes_range=(self.holes, self.holes),
            hole_height_range=(self.size, self.size),
            hole_width_range=(self.size, self.size),
            fill=fill_value(self.fill, mean),
            p=self.p,
        )


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop a random part of an image of any size (`scale` of its area, `ratio` of its sides) to the model's size.

    The defaults are those of Inception's training (Szegedy et al. 2014) with a larger least part.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        # Where it makes a crop smaller it averages, as evaluation does: else most pixels would be passed over.
        return import_albumentations().RandomResizedCrop(
            size=size, scale=self.scale, ratio=self.ratio, area_for_downscale="image"
        )


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast and saturation, each by a factor from 1 - strength to 1 + strength."""

    strength: float = 0.2

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        span = (1 - self.strength, 1 + self.strength)
        return import_albumentations().ColorJitter(brightness=span, contrast=span, saturation=span, hue=(0, 0), p=1.0)


@dataclass(frozen=True)
class MixUp:
    """Blend with another image, and the targets alike, by a share drawn from Beta(alpha, alpha) (Zhang et al. 2017).

    The other is any image of the epoch, with its own look. Targets become probabilities (N, classes). It comes last.
    """

    alpha: float = 0.2
    p: float = 1.0


@dataclass(frozen=True)
class CutMix:
    """Paste a box of another image, and blend the targets by its area (Yun et al. 2019).

    The area's share is drawn from Beta(alpha, alpha), its centre anywhere, and what lies outside is cut off. Else as
    `MixUp`.
    """

    alpha: float = 1.0
    p: float = 1.0


Mixing: TypeAlias = MixUp | CutMix
Compiled: TypeAlias = Pad | RandomCrop | Flip | Rotate | Cutout | RandomResizedCrop | ColorJitter
Operation: TypeAlias = Compiled | AlternatingFlip | Mixing
Operations: TypeAlias = tuple[Operation, ...]
# What `make_loaders` takes: a name of AUGMENTATIONS, operations, or a user's own.
Augmentation: TypeAlias = "str | Operations | albumentations.Compose | Callable[[Any], Any]"

AUGMENTATIONS: Table[Operations] = Table(
    "augmentation",
    {
        "none": (),
        "flip": (Flip(),),
        "crop_flip": (Pad(4), RandomCrop(), Flip()),
        "crop_flip_cutout": (Pad(4), RandomCrop(), Flip(), Cutout(8)),
        "crop_flip_cutout_mean": (Pad(4), RandomCrop(), Flip(), Cutout(8, fill="mean")),
        "crop_flip_holes": (Pad(4), RandomCrop(), Flip(p=0.8), Cutout(8, holes=8, p=0.5)),
        "small_crop_flip_holes": (Pad(3), RandomCrop(), Flip(), Cutout(8, holes=8)),
        "crop_alternating_flip": (Pad(4, "reflect"), RandomCrop(), AlternatingFlip()),
        "crop_alternating_flip_cutout": (Pad(4, "reflect"), RandomCrop(), AlternatingFlip(), Cutout(12, fill="mean")),
        "crop_alternating_flip_mixup": (Pad(4, "reflect"), RandomCrop(), AlternatingFlip(), MixUp()),
        "crop_alternating_flip_cutmix": (Pad(4, "reflect"), RandomCrop(), AlternatingFlip(), CutMix(p=0.5)),
        "crop_flip_mixup": (Pad(4), RandomCrop(), Flip(), MixUp()),
        "crop_flip_cutmix": (Pad(4), RandomCrop(), Flip(), CutMix(p=0.5)),
        "crop": (Pad(4), RandomCrop()),
        "crop_rotate": (Pad(2), RandomCrop(), Rotate(10.0)),
        "crop_rotate_cutout": (Pad(4), RandomCrop(), Rotate(5.0), Cutout(16, p=0.5)),
        "photo": (RandomResizedCrop(), Flip(), ColorJitter()),
    },
)
"""The augmentations that `make_loaders` takes by name: operations, in order."""


def _is_probability(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_range(value: Any, most: float) -> bool:
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_number, value))
    return pair and 0 <= value[0] <= value[1] <= most


class _Field(NamedTuple):
    """A field of an operation, and what it can hold."""

    operation: Any  # the class, or a union of them
    name: str
    holds: Callable[[Any], bool]  # for a value that the field can take
    expected: str  # in words


# What `augmentation` lets one change, by the name that it has there.
_CHANGES: dict[str, _Field] = {
    "pad": _Field(Pad, "pixels", lambda v: is_whole(v) and v >= 0, "a whole number of pixels, at least 0"),
    "pad_mode": _Field(Pad, "mode", lambda v: v in ("constant", "reflect"), '"constant" or "reflect"'),
    "flip_p": _Field(Flip, "p", _is_probability, "a probability in [0, 1]"),
    "degrees": _Field(Rotate, "degrees", lambda v: is_number(v) and v >= 0, "a number of degrees, at least 0"),
    "hole_size": _Field(Cutout, "size", lambda v: is_whole(v) and v >= 1, "a whole number of pixels, at least 1"),
    "holes": _Field(Cutout, "holes", lambda v: is_whole(v) and v >= 1, "a whole number of at least 1"),
    "hole_p": _Field(Cutout, "p", _is_probability, "a probability in [0, 1]"),
    "mix_alpha": _Field(Mixing, "alpha", lambda v: is_number(v) and v > 0, "a number above 0"),
    "mix_p": _Field(Mixing, "p", _is_probability, "a probability in [0, 1]"),
    # Which fills there can be depends on the channels, which are not known before it is compiled: see `fill_value`.
    "fill": _Field(Pad | Rotate | Cutout, "fill", lambda v: True, '0..255, or "mean"'),
}
_FIELDS = (
    *_CHANGES.values(),
    _Field(RandomResizedCrop, "scale", lambda v: _is_range(v, 1), "(least, most) of the area, in [0, 1]"),
    _Field(RandomResizedCrop, "ratio", lambda v: _is_range(v, math.inf) and v[0] > 0, "(least, most), above 0"),
    _Field(ColorJitter, "strength", _is_probability, "a number in [0, 1]"),
)


def checked_operations(augment: Sequence[Any]) -> Operations:
    """The operations as a tuple. Raises `SettingError` for anything else, and for a value that cannot be."""
    for operation in augment:
        if not isinstance(operation, Operation):
            raise SettingError(
                f"An augmentation in operations takes those of vision_wrapper.data (Pad, Flip, …), got {operation!r}. "
                "Put transforms of albumentations or torchvision into their own Compose."
            )
        for field in _FIELDS:
            if isinstance(operation, field.operation) and not field.holds(getattr(operation, field.name)):
                raise SettingError(f"{field.name} must be {field.expected}, got {operation}.")
    return tuple(augment)


def augmentation(name: str, **changes: Any) -> Operations:
    """The operations of that name in `AUGMENTATIONS`, with some fields changed.

    Args:
        name: in `AUGMENTATIONS`.
        changes: `pad`, `pad_mode`, `flip_p`, `degrees`, `hole_size`, `holes`, `hole_p`, `mix_alpha`, `mix_p`, and
            `fill` (of holes, padding and corners: 0..255, a tuple of these, or "mean").

    Raises:
        UnknownNameError: an unknown name or change.
        SettingError: a change of an operation that this augmentation does not have, or an invalid value; `make_loaders`
            raises it for a `fill` that does not fit the images.

    Example: `data.augmentation("crop_flip_cutout", hole_size=16, fill="mean")`.
    """
    operations = AUGMENTATIONS[name]
    check_names("change of an augmentation", changes, _CHANGES)
    for key, value in changes.items():
        change = _CHANGES[key]
        if not change.holds(value):
            raise SettingError(f"{key} must be {change.expected}, got {value!r}.")
        if not any(isinstance(operation, change.operation) for operation in operations):
            raise SettingError(f"{name!r} has no operation that {key}= could change; it is {operations}.")
        value = pythons_own(value)
        operations = tuple(
            replace(operation, **{change.name: value}) if isinstance(operation, change.operation) else operation
            for operation in operations
        )
    return operations


def fill_value(fill: Fill, mean: Sequence[float]) -> int | tuple[int, ...]:
    """A fill in 0..255; raises where it is in another scale."""
    if fill == "mean":
        fill = tuple(round(255 * value) for value in mean)
    values: list[Any] = list(fill) if isinstance(fill, (tuple, list)) else [fill]
    if not all(is_whole(v) and 0 <= v <= 255 for v in values):
        raise SettingError(
            f'fill is in the raw image\'s own scale, whole numbers in 0..255, or "mean"; got {fill!r}. Filling happens '
            "before normalisation."
        )
    if len(values) not in (1, len(mean)):
        raise SettingError(f"fill has {len(values)} values for {len(mean)} channels.")
    return tuple(int(v) for v in values) if len(values) > 1 else int(values[0])

"""Training augmentations as data: a name and its operations, in order, on raw uint8 images.

Operations come before normalisation, so padding and holes are filled with pixel values in 0..255.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from vision_wrapper._lookup import Table, check_names
from vision_wrapper._seeding import BatchRandom, SampleRandom
from vision_wrapper.data.images import to_pil
from vision_wrapper.errors import DataError, MissingPackageError, SettingError, VisionWrapperError

if TYPE_CHECKING:
    import albumentations

_TO_FLOAT = {"ToDtype", "ConvertImageDtype", "ToTensor", "ToFloat"}  # after which images are in 0..1, or 0..255 again
# A pixel value in 0..255, one for each channel, or the data set's mean.
Fill: TypeAlias = "int | tuple[int, ...] | Literal['mean']"


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the package index
    import albumentations

    if int(albumentations.__version__.split(".")[0]) < 2:
        raise MissingPackageError(
            f"albumentations {albumentations.__version__} is too old: pip install 'albumentations>=2.0.4,<3'"
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
        if self.mode not in modes:
            raise SettingError(f'Pad: mode must be "constant" or "reflect", got {self.mode!r}.')
        height, width = size
        return _albumentations().PadIfNeeded(
            min_height=height + 2 * self.pixels,
            min_width=width + 2 * self.pixels,
            border_mode=modes[self.mode],
            fill=fill_value(self.fill, mean),
        )


@dataclass(frozen=True)
class RandomCrop:
    """Crop the model's image size at a random place (of a padded image)."""

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        return _albumentations().RandomCrop(*size)


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability `p`."""

    p: float = 0.5

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        return _albumentations().HorizontalFlip(p=self.p)


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

        return _albumentations().Rotate(
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
        return _albumentations().CoarseDropout(
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
        return _albumentations().RandomResizedCrop(size=size, scale=self.scale, ratio=self.ratio)


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast and saturation, each by a factor from 1 - strength to 1 + strength."""

    strength: float = 0.2

    def compile(self, size: tuple[int, int], mean: Sequence[float]) -> Any:
        """The albumentations transform for images of `size`."""
        span = (1 - self.strength, 1 + self.strength)
        return _albumentations().ColorJitter(brightness=span, contrast=span, saturation=span, hue=(0, 0), p=1.0)


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

# What `augmentation` lets one change, and which field of which operation it is.
_CHANGES: dict[str, tuple[Any, str]] = {
    "pad": (Pad, "pixels"),
    "pad_mode": (Pad, "mode"),
    "flip_p": (Flip, "p"),
    "degrees": (Rotate, "degrees"),
    "hole_size": (Cutout, "size"),
    "holes": (Cutout, "holes"),
    "hole_p": (Cutout, "p"),
    "mix_alpha": (Mixing, "alpha"),
    "mix_p": (Mixing, "p"),
}


def augmentation(name: str, **changes: Any) -> Operations:
    """The operations of that name in `AUGMENTATIONS`, with some numbers changed.

    Args:
        name: in `AUGMENTATIONS`.
        changes: `pad`, `pad_mode`, `flip_p`, `degrees`, `hole_size`, `holes`, `hole_p`, `mix_alpha`, `mix_p`, and
            `fill` (of holes, padding and corners: 0..255, a tuple of these, or "mean").

    Raises:
        UnknownNameError: an unknown name or change.
        SettingError: a change of an operation that this augmentation does not have, or a value that cannot be.

    Example: `data.augmentation("crop_flip_cutout", hole_size=16, fill="mean")`.
    """
    operations = AUGMENTATIONS[name]
    check_names("change of an augmentation", changes, [*_CHANGES, "fill"])
    for change, value in changes.items():
        _check_change(change, value)
        kind, field = _CHANGES.get(change, (object, "fill"))
        if not any(_has(operation, kind, field) for operation in operations):
            raise SettingError(f"{name!r} has no operation that {change}= could change; it is {operations}.")
        operations = tuple(
            replace(operation, **{field: value}) if _has(operation, kind, field) else operation
            for operation in operations
        )
    return operations


def _check_change(change: str, value: Any) -> None:
    """Raise `SettingError` for a value that the change cannot take."""
    whole, number = (isinstance(value, kind) and not isinstance(value, bool) for kind in (int, (int, float)))
    rules: dict[str, tuple[bool, str]] = {
        "pad": (whole and value >= 0, "a whole number of pixels, at least 0"),
        "hole_size": (whole and value >= 1, "a whole number of pixels, at least 1"),
        "holes": (whole and value >= 1, "a whole number of at least 1"),
        "degrees": (number and value >= 0, "a number of degrees, at least 0"),
        "mix_alpha": (number and value > 0, "a number above 0"),
        "pad_mode": (value in ("constant", "reflect"), '"constant" or "reflect"'),
        **{name: (number and 0 <= value <= 1, "a probability in [0, 1]") for name in ("flip_p", "hole_p", "mix_p")},
    }
    holds, expected = rules.get(change, (True, ""))
    if not holds:
        raise SettingError(f"{change} must be {expected}, got {value!r}.")


def _has(operation: Operation, kind: Any, field: str) -> bool:
    return isinstance(operation, kind) and field in {f.name for f in fields(operation)}


def fill_value(fill: Fill, mean: Sequence[float]) -> int | tuple[int, ...]:
    """A fill in 0..255; raises where it is in another scale."""
    if fill == "mean":
        fill = tuple(round(255 * value) for value in mean)
    values: list[Any] = list(fill) if isinstance(fill, (tuple, list)) else [fill]
    if not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and 0 <= v <= 255 for v in values):
        raise SettingError(
            f'fill is in the raw image\'s own scale, whole numbers in 0..255, or "mean"; got {fill!r}. Filling happens '
            "before normalisation."
        )
    if len(values) not in (1, len(mean)):
        raise SettingError(f"fill has {len(values)} values for {len(mean)} channels.")
    return tuple(int(v) for v in values) if len(values) > 1 else int(values[0])


# ---- what the loaders call

Augmentation: TypeAlias = "str | Operations | albumentations.Compose | Callable[[Any], Any]"


class Augmenter:
    """An augmentation that looks the same for the same seed, epoch and index.

    Takes a name of `AUGMENTATIONS`, operations, an `albumentations.Compose`, a torchvision transform (which gets a PIL
    image) or any callable on a uint8 array (H, W, C). Each must return a uint8 image: normalisation comes afterwards.
    """

    def __init__(self, augment: Augmentation, size: tuple[int, int], mean: Sequence[float], seed: int):
        self.size, self.mean, self.seed = size, tuple(mean), seed
        self.description = _describe(augment)
        operations: Operations | None = None
        if isinstance(augment, str):
            operations = AUGMENTATIONS[augment]
        elif isinstance(augment, (tuple, list)):
            operations = _checked_operations(augment)
        # What is done to each image by itself (None where it is somebody's own), and then to pairs of them.
        self.operations, self.mixing = _without_mixing(operations)
        self._alternates = any(isinstance(operation, AlternatingFlip) for operation in operations or ())
        # Without a name it is not known whether the images have to be of the model's size first.
        self.takes_any_size = operations is None or any(isinstance(o, RandomResizedCrop) for o in operations)
        self._random = SampleRandom(seed)
        self._apply = self._compiled(augment, operations, size, mean)

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """A uint8 image (H, W, C) to an augmented one."""
        if self._alternates and BatchRandom(self.seed, epoch, np.array([index])).mirrored()[0]:
            image = np.ascontiguousarray(image[:, ::-1])  # first: what follows is as likely as its mirror image
        if self._apply is None:
            return image
        self._random.move_to(epoch, index)
        try:
            return self._apply(image)
        except VisionWrapperError:
            raise
        except Exception as error:  # whatever a user's augmentation, or a library's, may raise
            raise DataError(
                f"The augmentation {self.description} failed on image {index} of shape {image.shape}: {error} It is "
                "given raw uint8 images."
            ) from error

    def _compiled(
        self, augment: Any, operations: Operations | None, size: tuple[int, int], mean: Sequence[float]
    ) -> Callable[[np.ndarray], np.ndarray] | None:
        if operations is not None:
            compiled = [operation.compile(size, mean) for operation in operations if isinstance(operation, Compiled)]
            if not compiled:
                return None
            compose = _albumentations().Compose(compiled)
            return _Albumentations(compose, self._random)
        if _comes_from(augment, "albumentations"):
            import copy

            _check_fills(augment)
            compose = copy.deepcopy(augment)  # the user's own keeps its random state
            return _UsersOwn(_Albumentations(compose, self._random), self._random)
        if callable(augment):
            parts = [augment, *getattr(augment, "children", tuple)()]  # of a Sequential
            wants_pil = any(_comes_from(part, "torchvision") for part in parts)
            _check_fills(augment)
            return _UsersOwn(_Callable(augment, wants_pil), self._random)
        raise SettingError(
            "augment must be a name of data.AUGMENTATIONS, operations, an albumentations.Compose, a torchvision "
            f"transform or a callable, got {augment!r}."
        )


def _checked_operations(augment: Sequence[Any]) -> Operations:
    for operation in augment:
        if not isinstance(operation, Operation):
            raise SettingError(
                f"An augmentation in operations takes those of vision_wrapper.data (Pad, Flip, …), got {operation!r}. "
                "Put transforms of albumentations or torchvision into their own Compose."
            )
    return tuple(augment)


def _without_mixing(operations: Operations | None) -> tuple[Operations | None, Mixing | None]:
    """The operations on single images, and the one on pairs, which comes last."""
    if not operations or not any(isinstance(operation, Mixing) for operation in operations):
        return operations, None
    *single, last = operations
    if not isinstance(last, Mixing) or any(isinstance(operation, Mixing) for operation in single):
        raise SettingError(
            f"An augmentation has at most one of MixUp and CutMix, as its last operation; got {operations}."
        )
    if not last.alpha > 0 or not 0 <= last.p <= 1:
        raise SettingError(f"alpha must be above 0, and p in [0, 1]; got {last}.")
    return tuple(single), last


def _describe(augment: Augmentation) -> str:
    """A text that is the same in every process: without addresses."""
    if isinstance(augment, str):
        return augment
    if hasattr(augment, "__qualname__"):  # a function or a class
        return f"{augment.__module__}.{augment.__qualname__}"  # type: ignore[union-attr]
    try:
        text = repr(augment)
    except ValueError:  # of a Compose with a Lambda that has no name
        parts = ", ".join(map(_describe, getattr(augment, "transforms", ())))
        text = f"{type(augment).__name__}([{parts}], p={getattr(augment, 'p', None)})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _comes_from(augment: object, package: str) -> bool:
    """Whether its class, or one that this is derived from, is that package's."""
    return any(kind.__module__.split(".")[0] == package for kind in type(augment).__mro__)


def _check_fills(transform: Any) -> None:
    """Raise where a transform of albumentations or torchvision, or one within it, fills with normalised values."""
    in_floats = False  # within some pipelines images are in 0..1
    for part in _flattened(transform):
        if type(part).__name__ in _TO_FLOAT:
            in_floats = "int" not in str(getattr(part, "dtype", ""))
        for name in ("fill", "value"):  # the latter is RandomErasing's
            fill = getattr(part, name, None)
            values = fill if isinstance(fill, (tuple, list)) else (fill,)
            if not in_floats and any(isinstance(value, float) and value < 1 and value != 0 for value in values):
                raise SettingError(
                    f"{type(part).__name__} fills with {fill!r}, but images are in 0..255 here: normalisation comes "
                    "afterwards. Multiply it by 255."
                )


def _flattened(transform: Any) -> Iterator[Any]:
    """A transform of albumentations or torchvision, and those within it."""
    if _comes_from(transform, "albumentations") or _comes_from(transform, "torchvision"):
        yield transform
        for part in getattr(transform, "transforms", ()):
            yield from _flattened(part)


class _Albumentations:
    """An albumentations pipeline whose transforms all draw from the sample's generators."""

    def __init__(self, compose: Any, sample_random: SampleRandom):
        self.compose = compose
        # Every transform would have a generator of its own, seeded by none of the global ones, and rebuilding them
        # for each sample takes 80 microseconds; sharing two takes 10.
        compose.set_random_state(sample_random.numpy, sample_random.python)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return checked_image(self.compose(image=image)["image"])


class _Callable:
    """A user's callable, which is given what it expects: an array, or a PIL image if it is torchvision's."""

    def __init__(self, function: Callable[[Any], Any], wants_pil: bool):
        self.function, self.wants_pil = function, wants_pil

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if not self.wants_pil:
            return checked_image(self.function(image))
        return checked_image(self.function(to_pil(image)))


class _UsersOwn:
    """Something of the user's: whatever it draws from is seeded for the sample, and as it was afterwards.

    That is the global generators, which the loader puts back, and albumentations pipelines, wherever it keeps them. It
    is given a copy of the image, should it draw on its argument.
    """

    def __init__(self, apply: Callable[[np.ndarray], np.ndarray], sample_random: SampleRandom):
        self.apply, self.sample_random = apply, sample_random

    def __call__(self, image: np.ndarray) -> np.ndarray:
        import torch

        seed = int(self.sample_random.numpy.integers(2**32))
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if "albumentations" in sys.modules:
            _let_pipelines_ask()
        before = _DRAWN_FROM.set(self.sample_random)
        try:
            return self.apply(image.copy())
        finally:
            _DRAWN_FROM.reset(before)


# What every albumentations transform draws from in place of its own generators, while a user's augmentation runs.
_DRAWN_FROM: ContextVar[SampleRandom | None] = ContextVar("drawn_from", default=None)


@cache
def _let_pipelines_ask() -> None:
    """Once in a process, let albumentations' transforms ask `_DRAWN_FROM` before their own generators."""
    from albumentations.core.composition import BaseCompose
    from albumentations.core.transforms_interface import BasicTransform

    def asking(name: str, field: str) -> property:
        def drawn_from(transform: Any) -> Any:
            chosen = _DRAWN_FROM.get()
            if chosen is not None:
                return getattr(chosen, field)
            if name not in vars(transform):
                raise AttributeError(f"{type(transform).__name__} has no {name}")
            return vars(transform)[name]

        return property(drawn_from, lambda transform, own: vars(transform).update({name: own}))

    for name, field in (("random_generator", "numpy"), ("py_random", "python")):
        for kind in (BaseCompose, BasicTransform):
            setattr(kind, name, asking(name, field))


def checked_image(result: Any) -> np.ndarray:
    """What an augmentation returned (array, PIL image or tensor) as uint8 (H, W, C); raises `DataError` otherwise."""
    if isinstance(result, Image.Image):
        result = np.asarray(result)
    elif not isinstance(result, np.ndarray) and hasattr(result, "permute"):  # a tensor (C, H, W)
        result = result.permute(1, 2, 0).numpy()
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.ndim not in (2, 3):
        what = f"{result.dtype} of shape {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
        raise DataError(
            f"An augmentation must return a uint8 image (H, W, C) with 0..255, got {what}. Take Normalize, ToTensor "
            "and ToTensorV2 out of it: the loader normalises afterwards."
        )
    return result[:, :, None] if result.ndim == 2 else result

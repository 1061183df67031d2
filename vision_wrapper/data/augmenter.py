"""What the loaders call: an augmentation of any kind, on one image at a time, by seed, epoch and index."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision_wrapper._describe import description
from vision_wrapper._seeding import BatchRandom, SampleRandom
from vision_wrapper.data.augment import (
    AUGMENTATIONS,
    AlternatingFlip,
    Augmentation,
    Compiled,
    Mixing,
    Operations,
    RandomResizedCrop,
    checked_operations,
    import_albumentations,
)
from vision_wrapper.data.images import to_pil
from vision_wrapper.errors import DataError, SettingError, VisionWrapperError

_TO_FLOAT = {"ToDtype", "ConvertImageDtype", "ToTensor", "ToFloat"}  # after which images are in 0..1, or 0..255 again


class Augmenter:
    """An augmentation that looks the same for the same seed, epoch and index.

    Takes a name of `AUGMENTATIONS`, operations, an `albumentations.Compose`, a torchvision transform (which gets a PIL
    image) or any callable on a uint8 array (H, W, C). Each must return a uint8 image: normalisation comes afterwards.
    """

    def __init__(self, augment: Augmentation, size: tuple[int, int], mean: Sequence[float], seed: int):
        self.size, self.mean, self.seed = size, tuple(mean), seed
        self.description = _describe(augment)
        self.name = getattr(augment, "__qualname__", self.description)  # for people: without what is in a function
        operations: Operations | None = None
        if isinstance(augment, (str, tuple, list)):
            operations = checked_operations(AUGMENTATIONS[augment] if isinstance(augment, str) else augment)
        # What is done to each image by itself (None where it is somebody's own), and then to pairs of them.
        self.operations, self.mixing = _without_mixing(operations)
        self._alternates = any(isinstance(operation, AlternatingFlip) for operation in operations or ())
        # A user's own augmentation may crop to the size itself, so it is given the whole image.
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
            augmented = self._apply(image)
        except VisionWrapperError:
            raise
        except Exception as error:  # whatever a user's augmentation, or a library's, may raise
            raise DataError(
                f"The augmentation {self.name} failed on image {index} of shape {image.shape}: {error} It is "
                "given raw uint8 images."
            ) from error
        if augmented.shape[2] != image.shape[2]:
            raise DataError(
                f"The augmentation {self.name} made an image of shape {augmented.shape} of one of {image.shape}. It "
                "must keep the channels, as Grayscale(num_output_channels=3) does; or load grey images, channels=1."
            )
        return augmented

    def _compiled(
        self, augment: Any, operations: Operations | None, size: tuple[int, int], mean: Sequence[float]
    ) -> Callable[[np.ndarray], np.ndarray] | None:
        if operations is not None:
            compiled = [operation.compile(size, mean) for operation in operations if isinstance(operation, Compiled)]
            if not compiled:
                return None
            compose = import_albumentations().Compose(compiled)
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
            'augment must be a name of data.AUGMENTATIONS ("none" for none), a list of operations such as '
            "[data.Flip()], an albumentations.Compose, a torchvision transform or a callable, got "
            f"{augment!r}."
        )


def _without_mixing(operations: Operations | None) -> tuple[Operations | None, Mixing | None]:
    """The operations on single images, and the one on pairs, which comes last."""
    if not operations or not any(isinstance(operation, Mixing) for operation in operations):
        return operations, None
    *single, last = operations
    if not isinstance(last, Mixing) or any(isinstance(operation, Mixing) for operation in single):
        raise SettingError(
            f"An augmentation has at most one of MixUp and CutMix, as its last operation; got {operations}."
        )
    return tuple(single), last


def _describe(augment: Augmentation) -> str:
    """A text that is the same in every process: without addresses."""
    if isinstance(augment, str):
        return augment
    if hasattr(augment, "__qualname__"):  # a function or a class
        return description(augment)
    try:
        text = repr(augment)
    except Exception:  # of a Compose with a Lambda that has no name, or with images to take its style from
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
    """Once in a process, let albumentations' transforms ask `_DRAWN_FROM` before their own generators.

    It has been imported: who uses it has done so.
    """
    core = sys.modules["albumentations"].core
    kinds = core.composition.BaseCompose, core.transforms_interface.BasicTransform

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
        for kind in kinds:
            setattr(kind, name, asking(name, field))


def checked_image(result: Any) -> np.ndarray:
    """What an augmentation returned (array, PIL image or tensor) as uint8 (H, W, C); raises `DataError` otherwise."""
    if isinstance(result, Image.Image):
        result = np.asarray(result)
    elif isinstance(result, Tensor) and result.ndim == 3:  # (C, H, W)
        result = result.permute(1, 2, 0).numpy()
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.ndim not in (2, 3):
        arrays = isinstance(result, (np.ndarray, Tensor))
        what = f"{result.dtype} of shape {tuple(result.shape)}" if arrays else type(result).__name__
        raise DataError(
            f"An augmentation must return a uint8 image (H, W, C) with 0..255, got {what}. Take Normalize, ToTensor "
            "and ToTensorV2 out of it: the loader normalises afterwards."
        )
    return result[:, :, None] if result.ndim == 2 else result

"""Splits: images and labels by index, in memory, in files, or chosen from another split."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from PIL import Image

from vision_wrapper._numbers import is_number
from vision_wrapper.data.images import decode
from vision_wrapper.errors import DataError, SettingError

Index = TypeVar("Index", int, np.ndarray)


class Split(Protocol):
    """Images and labels by index: `split[i]` is `(image, label)`, uint8 (H, W, C) and int."""

    labels: np.ndarray  # int64 (N,)
    channels: int
    classes: tuple[str, ...]  # the names of the labels; () where there are none

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]: ...

    def origin(self, index: int) -> str:
        """Where the image comes from: its file, or "index 12"."""
        ...


class ArraySplit:
    """A split in memory. Grey images are shown as RGB where `channels` is 3, and stored once."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, channels: int, classes: Sequence[str] = ()):
        self.images, self.labels, self.channels, self.classes = images, labels, channels, tuple(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        index = one_index(index)
        image = self.images[index]
        if image.shape[-1] != self.channels:
            return np.repeat(image, self.channels, axis=-1), int(self.labels[index])
        return image.copy(), int(self.labels[index])  # what is drawn on it stays out of the data

    def origin(self, index: int) -> str:
        """The index: an array has no files."""
        return f"index {index}"


class Paths(Sequence[str]):
    """Many paths in two blocks of memory.

    A million of them take half of what a list takes, and worker processes share them: of a list, merely reading a text
    counts its references anew, and so copies it into each process.
    """

    def __init__(self, paths: Sequence[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return os.fsdecode(self._text[self._ends[place] : self._ends[place + 1]])


class FolderSplit:
    """A split of image files, decoded when they are asked for."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray, channels: int, classes: Sequence[str] = ()):
        self.paths, self.labels, self.channels, self.classes = Paths(paths), labels, channels, tuple(classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        index = one_index(index)
        return decode(self.paths[index], self.channels), int(self.labels[index])

    def origin(self, index: int) -> str:
        """The path of the file."""
        return self.paths[index]


class Subset:
    """Some samples of another split, in the given order.

    Args:
        split: the other one.
        indices: of its samples, or a mask of a bool for each of them.

    Raises `DataError` for indices of samples that it does not have.
    """

    def __init__(self, split: Split, indices: Any):
        self.split, self.indices = split, checked_indices("The split", len(split), indices)
        self.labels, self.channels, self.classes = split.labels[self.indices], split.channels, split.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.split[int(self.indices[one_index(index)])]

    def origin(self, index: int) -> str:
        """Where the whole split has it from."""
        return self.split.origin(int(self.indices[index]))


def one_index(index: Any) -> int:
    """The index as an int. Raises `SettingError` for a slice, or a list of indices."""
    try:
        return operator.index(index)
    except TypeError as error:
        raise SettingError(
            f"A split gives one image at a time, split[i]; got {index!r}. For several there is "
            "data.Subset(split, range(5))."
        ) from error


def checked_indices(name: str, count: int, indices: Any) -> np.ndarray:
    """Indices of `count` samples, or a mask of as many, as indices.

    Raises `DataError` for anything else; `name` is what it calls the samples.
    """
    chosen = np.asarray(indices)
    if chosen.dtype == bool and chosen.shape == (count,):
        return np.flatnonzero(chosen)
    if not chosen.size:
        return np.zeros(0, np.int64)
    if chosen.dtype.kind not in "iu" or chosen.ndim != 1:
        raise DataError(
            f"{name} takes indices of samples, whole numbers, or a mask of {count} bools; got {chosen.dtype} of shape "
            f"{chosen.shape}."
        )
    if chosen.min() < 0 or chosen.max() >= count:
        raise DataError(f"{name} has {count} samples; got indices from {chosen.min()} to {chosen.max()}.")
    return chosen


def innermost(split: Split) -> Split:
    """The split that holds the samples, which is no subset of another."""
    while isinstance(split, Subset):
        split = split.split
    return split


def located(split: Split, index: Index) -> tuple[Split, Index]:
    """The innermost split, and where in it the sample lies; of an array of indices, where each does."""
    while isinstance(split, Subset):
        split, index = split.split, split.indices[index]
    return split, index


def image_for(split: Split, index: int, decode_size: tuple[int, int] | None) -> np.ndarray:
    """The image as `split[index][0]`, but of a file no more of it than `decode(decode_size=…)` says."""
    file = file_of(split, index)
    return split[index][0] if file is None else decode(file, split.channels, decode_size)


def file_of(split: Split, index: int) -> str | None:
    """The file that `split[index]` decodes; None where it decodes none."""
    split, index = located(split, index)
    return split.paths[index] if isinstance(split, FolderSplit) else None


def image_size(split: Split, index: int) -> tuple[int, int]:
    """(height, width) of an image as it will be decoded; of a file, only the header is read."""
    file = file_of(split, index)
    if file is not None:
        with suppress(Exception), Image.open(file) as image:  # decoding raises the error that names the file
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap the sides
            if not (turned and image.format == "TIFF"):  # which Pillow turns itself; its versions differ in when
                return (width, height) if turned else (height, width)
    return split[index][0].shape[:2]


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, classes: Sequence[str], what: str = "test_fraction"
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of (the rest, the held-out part): `fraction` of each class, at least one image, at random.

    `what` is the fraction's name. Raises `DataError` for a class with a single image, `SettingError` for a fraction
    outside (0, 1).
    """
    if not is_number(fraction) or not 0 < fraction < 1:
        raise SettingError(f"{what} must be between 0 and 1, got {fraction!r}.")
    random = np.random.default_rng([seed, 0x5917])  # a stream of its own
    held_out = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DataError(_too_few(name, len(members), what, fraction))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out.append(random.permutation(members)[:count])
    chosen = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _too_few(name: str, count: int, what: str, fraction: float) -> str:
    """What to say of a class that has no image to spare."""
    images = "1 image" if count == 1 else f"{count} images"
    if what == "test_fraction":
        return f"Class {name} has {images}; at least two are needed, as {what}={fraction} holds one out. Add some."
    return (
        f"Class {name} has {images} for training; at least two are needed, as {what}={fraction} holds one out (three "
        f"in a folder without test/, of which one is tested on). Add some, or set {what}=0."
    )

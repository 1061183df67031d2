"""Augmentation of whole batches in memory: the operations that compile to albumentations, many times as fast.

Numbers are drawn for a batch at once, from a counter-based generator: each is a function of (seed, epoch, index,
draw), so an image looks the same whatever batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple, TypeAlias

import numpy as np

from vision_wrapper.data.augment import Augmenter, Cutout, Flip, Operation, Pad, RandomCrop, Rotate, fill_value

Draw: TypeAlias = Callable[[], np.ndarray]  # the next uniform number in [0, 1) of every image, float64 (N,)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio: SplitMix64's increment


class Form(NamedTuple):
    """What operations have to know of the images: their (height, width), and their mean in [0, 1] by channel."""

    size: tuple[int, int]
    mean: tuple[float, ...]


class BatchAugmenter:
    """Operations on uint8 batches (N, H, W, C), by (seed, epoch, index)."""

    def __init__(self, operations: Sequence[Operation], form: Form, seed: int):
        self.operations, self.form, self.seed = tuple(operations), form, seed

    def __call__(self, images: np.ndarray, epoch: int, indices: np.ndarray) -> np.ndarray:
        """The batch augmented; `images`, contiguous, may be written to. `indices` (N,) say which image each is."""
        keys = _mixed(_mixed(np.uint64(self.seed), np.uint64(epoch)), indices.astype(np.uint64))
        numbers = count()

        def draw() -> np.ndarray:
            return (_mixed(keys, np.uint64(next(numbers))) >> np.uint64(11)) * 2.0**-53

        for operation in self.operations:
            images = _STEPS[type(operation)](operation, images, draw, self.form)
        return images


def batch_augmenter(augmenter: Augmenter, shape: tuple[int, ...]) -> BatchAugmenter | None:
    """The same augmentation for batches of images of `shape` (H, W, C); None where it has no such form.

    Photographs (random resized crops, jitter) and somebody's own augmentations go image by image.
    """
    operations = augmenter.operations
    if operations is None or not all(type(operation) in _STEPS for operation in operations):
        return None
    batched = BatchAugmenter(operations, Form(augmenter.size, augmenter.mean), augmenter.seed)
    keeps_shape = batched(np.zeros((1, *shape), dtype=np.uint8), 0, np.zeros(1, dtype=np.int64)).shape[1:] == shape
    return batched if keeps_shape else None


def _mixed(key: np.ndarray | np.uint64, value: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea & Flood 2014) of a key and a value, twice."""
    with np.errstate(over="ignore"):  # it counts modulo 2**64
        z = np.asarray(key) + (np.asarray(value) + np.uint64(1)) * _GOLDEN
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = (z ^ (z >> np.uint64(31))) + _GOLDEN
    return z


def _whole(draw: Draw, count: int) -> np.ndarray:
    """Whole numbers in 0..count - 1, all as likely."""
    return (draw() * count).astype(np.int64)


# ---- the operations


def _pad(operation: Pad, images: np.ndarray, draw: Draw, form: Form) -> np.ndarray:
    width, (n, height, length, channels) = operation.pixels, images.shape
    if operation.mode == "reflect":
        return np.pad(images, ((0, 0), (width, width), (width, width), (0, 0)), mode="reflect")
    padded = np.empty((n, height + 2 * width, length + 2 * width, channels), dtype=np.uint8)
    fill = fill_value(operation.fill, form.mean)
    padded[:, :width] = padded[:, height + width :] = fill
    padded[:, :, :width] = padded[:, :, length + width :] = fill
    padded[:, width : height + width, width : length + width] = images
    return padded


def _random_crop(operation: RandomCrop, images: np.ndarray, draw: Draw, form: Form) -> np.ndarray:
    (height, width), (n, rows, columns, channels) = form.size, images.shape
    tops, lefts = _whole(draw, rows - height + 1), _whole(draw, columns - width + 1)
    return _windows(images, height, width)[np.arange(n), tops, lefts].reshape(n, height, width, channels)


def _flip(operation: Flip, images: np.ndarray, draw: Draw, form: Form) -> np.ndarray:
    import cv2

    for index in np.flatnonzero(draw() < operation.p):
        cv2.flip(images[index], 1, images[index])  # a third of the time of numpy's reversed copy
    return images


def _rotate(operation: Rotate, images: np.ndarray, draw: Draw, form: Form) -> np.ndarray:
    import cv2

    height, width = images.shape[1:3]
    centre, fill = ((width - 1) / 2, (height - 1) / 2), fill_value(operation.fill, form.mean)
    fill = fill if isinstance(fill, tuple) else (fill,) * len(form.mean)
    for image, share in zip(images, draw(), strict=True):
        turn = cv2.getRotationMatrix2D(centre, (2 * share - 1) * operation.degrees, 1.0)
        turned = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=fill)
        image[:] = turned.reshape(image.shape)
    return images


def _cutout(operation: Cutout, images: np.ndarray, draw: Draw, form: Form) -> np.ndarray:
    side, fill = operation.size, np.asarray(fill_value(operation.fill, form.mean), dtype=np.uint8)
    chosen = np.flatnonzero(draw() < operation.p)
    windows = _windows(images, side, side)
    row = np.tile(fill, windows.shape[-1] // fill.size)
    for _ in range(operation.holes):
        tops, lefts = (_whole(draw, length - side + 1)[chosen] for length in images.shape[1:3])
        windows[chosen, tops, lefts] = row
    return images


def _windows(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every window of a contiguous batch (N, H, W, C), a view (N, tops, lefts, height, width * C).

    The rows of a window lie in one piece, so indexing copies them at once.
    """
    n, rows, columns, channels = images.shape
    row, pixel = images.strides[1], images.strides[2]
    return np.lib.stride_tricks.as_strided(
        images,
        (n, rows - height + 1, columns - width + 1, height, width * channels),
        (images.strides[0], row, pixel, row, images.strides[3]),
    )


_STEPS: dict[type, Callable[..., np.ndarray]] = {
    Cutout: _cutout,
    Flip: _flip,
    Pad: _pad,
    RandomCrop: _random_crop,
    Rotate: _rotate,
}

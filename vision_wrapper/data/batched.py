"""Augmentation of whole batches: the operations that compile to albumentations, many times as fast.

Numbers are drawn for a batch at once, on the CPU, from a counter-based generator: each is a function of (seed, epoch,
index, draw), so an image looks the same whatever batch it is in. What is drawn is then carried out by numpy, or by
torch on the GPU where the images lie; neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vision_wrapper._seeding import BatchRandom
from vision_wrapper.data.augment import (
    AlternatingFlip,
    Cutout,
    Flip,
    Mixing,
    MixUp,
    Operation,
    Pad,
    RandomCrop,
    Rotate,
    fill_value,
)
from vision_wrapper.data.augmenter import Augmenter

Drawn: TypeAlias = dict[str, np.ndarray]  # what was drawn for each image of a batch, arrays (N, …)


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
        random = BatchRandom(self.seed, epoch, indices)
        for operation in self.operations:
            step = _STEPS[type(operation)]
            images = step.on_cpu(operation, images, self.form, **step.draw(operation, random, images.shape, self.form))
        return images

    @property
    def exact_on_device(self) -> bool:
        """Whether a GPU makes the same pixels. Rotations interpolate, which no two devices do alike."""
        return all(_STEPS[type(operation)].on_gpu is not None for operation in self.operations)

    def on_device(self, images: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        """The same for a batch on a GPU, which the CPU does not wait for.

        The pixels are those of `__call__`. Only where it is `exact_on_device`.
        """
        random = BatchRandom(self.seed, epoch, indices)
        for operation in self.operations:
            step = _STEPS[type(operation)]
            assert step.on_gpu is not None
            drawn = step.draw(operation, random, tuple(images.shape), self.form)
            moved = {name: to_device(values, images.device) for name, values in drawn.items()}
            images = step.on_gpu(operation, images, self.form, **moved)
        return images


def batch_augmenter(augmenter: Augmenter, shape: tuple[int, ...]) -> BatchAugmenter | None:
    """The same augmentation for batches of images of `shape` (H, W, C); None where it has no such form.

    Photographs (random resized crops, jitter) and somebody's own augmentations go image by image.
    """
    operations = augmenter.operations
    if operations is None or not all(type(operation) in _STEPS for operation in operations):
        return None
    if shape[2] > 4 and any(isinstance(operation, Rotate) for operation in operations):
        return None  # OpenCV fills no more channels
    batched = BatchAugmenter(operations, Form(augmenter.size, augmenter.mean), augmenter.seed)
    keeps_shape = batched(np.zeros((1, *shape), dtype=np.uint8), 0, np.zeros(1, dtype=np.int64)).shape[1:] == shape
    return batched if keeps_shape else None


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device; a GPU copies it from pinned memory, without the CPU waiting."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# ---- what is drawn for each image


def _nothing(operation: Any, random: BatchRandom, shape: tuple[int, ...], form: Form) -> Drawn:
    return {}


def _draw_place(operation: RandomCrop, random: BatchRandom, shape: tuple[int, ...], form: Form) -> Drawn:
    (_, rows, columns, _), (height, width) = shape, form.size
    return {"tops": random.whole(rows - height + 1), "lefts": random.whole(columns - width + 1)}


def _draw_flip(operation: Flip, random: BatchRandom, shape: tuple[int, ...], form: Form) -> Drawn:
    return {"mirrored": random.uniform() < operation.p}


def _draw_alternating(operation: AlternatingFlip, random: BatchRandom, shape: tuple[int, ...], form: Form) -> Drawn:
    return {"mirrored": random.mirrored()}


def _draw_angle(operation: Rotate, random: BatchRandom, shape: tuple[int, ...], form: Form) -> Drawn:
    return {"angles": ((2 * random.uniform() - 1) * operation.degrees).astype(np.float32)}


def _draw_holes(operation: Cutout, random: BatchRandom, shape: tuple[int, ...], form: Form) -> Drawn:
    chosen = random.uniform() < operation.p
    places = [[random.whole(length - operation.size + 1) for length in shape[1:3]] for _ in range(operation.holes)]
    tops, lefts = np.array(places).transpose(1, 2, 0)  # (N, holes) each
    return {"chosen": chosen, "tops": np.ascontiguousarray(tops), "lefts": np.ascontiguousarray(lefts)}


# ---- carried out by numpy


def _pad(operation: Pad, images: np.ndarray, form: Form) -> np.ndarray:
    width, (n, height, length, channels) = operation.pixels, images.shape
    if operation.mode == "reflect":
        return np.pad(images, ((0, 0), (width, width), (width, width), (0, 0)), mode="reflect")
    padded = np.empty((n, height + 2 * width, length + 2 * width, channels), dtype=np.uint8)
    fill = fill_value(operation.fill, form.mean)
    padded[:, :width] = padded[:, height + width :] = fill
    padded[:, :, :width] = padded[:, :, length + width :] = fill
    padded[:, width : height + width, width : length + width] = images
    return padded


def _crop(operation: RandomCrop, images: np.ndarray, form: Form, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
    (height, width), (n, _, _, channels) = form.size, images.shape
    return _windows(images, height, width)[np.arange(n), tops, lefts].reshape(n, height, width, channels)


def _flip(operation: Any, images: np.ndarray, form: Form, mirrored: np.ndarray) -> np.ndarray:
    import cv2

    for index in np.flatnonzero(mirrored):
        cv2.flip(images[index], 1, images[index])  # a third of the time of numpy's reversed copy
    return images


def _rotate(operation: Rotate, images: np.ndarray, form: Form, angles: np.ndarray) -> np.ndarray:
    import cv2

    height, width = images.shape[1:3]
    centre, fill = ((width - 1) / 2, (height - 1) / 2), fill_value(operation.fill, form.mean)
    fill = fill if isinstance(fill, tuple) else (fill,) * len(form.mean)
    for image, angle in zip(images, angles, strict=True):
        turn = cv2.getRotationMatrix2D(centre, float(angle), 1.0)
        turned = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=fill)
        image[:] = turned.reshape(image.shape)
    return images


def _cutout(
    operation: Cutout, images: np.ndarray, form: Form, chosen: np.ndarray, tops: np.ndarray, lefts: np.ndarray
) -> np.ndarray:
    side, fill = operation.size, np.asarray(fill_value(operation.fill, form.mean), dtype=np.uint8)
    cut = np.flatnonzero(chosen)
    windows = _windows(images, side, side)
    row = np.tile(fill, windows.shape[-1] // fill.size)
    for hole in range(operation.holes):
        windows[cut, tops[cut, hole], lefts[cut, hole]] = row
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


# ---- carried out by torch, on the GPU: few and large operations, none that waits


def _gpu_pad(operation: Pad, images: Tensor, form: Form) -> Tensor:
    width, (height, length) = operation.pixels, images.shape[1:3]
    rows, columns = (torch.arange(-width, n + width, device=images.device) for n in (height, length))
    if operation.mode == "reflect":
        rows, columns = (_reflected(places, n) for places, n in ((rows, height), (columns, length)))
        return images[:, rows[:, None], columns]
    padded = images[:, rows.clamp(0, height - 1)[:, None], columns.clamp(0, length - 1)]
    inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < length)
    return torch.where(inside[:, :, None], padded, _gpu_fill(operation.fill, images, form))


def _reflected(places: Tensor, count: int) -> Tensor:
    """Places outside 0..count - 1 mirrored at the first and the last, which are not repeated, as often as needed."""
    last = count - 1
    return last - (last - places.abs() % max(2 * last, 1)).abs()


def _gpu_crop(operation: RandomCrop, images: Tensor, form: Form, tops: Tensor, lefts: Tensor) -> Tensor:
    rows, columns = (
        first[:, None] + torch.arange(count, device=images.device)
        for first, count in zip((tops, lefts), form.size, strict=True)
    )
    samples = torch.arange(len(images), device=images.device)
    return images[samples[:, None, None], rows[:, :, None], columns[:, None, :]]


def _gpu_flip(operation: Any, images: Tensor, form: Form, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


def _gpu_cutout(operation: Cutout, images: Tensor, form: Form, chosen: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
    def lies_in(first: Tensor, count: int) -> Tensor:
        places = torch.arange(count, device=images.device)
        return (places >= first[:, None]) & (places < first[:, None] + operation.size)

    cut = torch.zeros(images.shape[:3], dtype=torch.bool, device=images.device)
    for hole in range(operation.holes):
        rows, columns = lies_in(tops[:, hole], images.shape[1]), lies_in(lefts[:, hole], images.shape[2])
        cut |= rows[:, :, None] & columns[:, None, :]
    cut &= chosen[:, None, None]
    return torch.where(cut[..., None], _gpu_fill(operation.fill, images, form), images)


def _gpu_fill(fill: Any, images: Tensor, form: Form) -> Tensor:
    """uint8 (1,) or (C,) on the images' device."""
    return to_device(np.atleast_1d(np.asarray(fill_value(fill, form.mean), dtype=np.uint8)), images.device)


class _Step(NamedTuple):
    """An operation's batch form: what it draws, and how that is carried out."""

    draw: Callable[..., Drawn]
    on_cpu: Callable[..., np.ndarray]
    on_gpu: Callable[..., Tensor] | None


_STEPS: dict[type, _Step] = {
    AlternatingFlip: _Step(_draw_alternating, _flip, _gpu_flip),
    Cutout: _Step(_draw_holes, _cutout, _gpu_cutout),
    Flip: _Step(_draw_flip, _flip, _gpu_flip),
    Pad: _Step(_nothing, _pad, _gpu_pad),
    RandomCrop: _Step(_draw_place, _crop, _gpu_crop),
    Rotate: _Step(_draw_angle, _rotate, None),
}


# ---- pairs of images


class Mixer:
    """MixUp or CutMix of normalised batches; share, box and partner are functions of (seed, epoch, index)."""

    _STREAM = 1  # beside the numbers of the single images' operations

    def __init__(self, operation: Mixing, classes: int, seed: int):
        self.operation, self.classes, self.seed = operation, classes, seed

    def partners(self, order: np.ndarray, epoch: int, indices: np.ndarray) -> np.ndarray:
        """The index of the image that each is mixed with: any of the epoch's `order`."""
        return order[BatchRandom(self.seed, epoch, indices, self._STREAM).whole(len(order))]

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The batch mixed with its partners: images (N, C, H, W) and probabilities (N, classes).

        `images` (2N, C, H, W) and `targets`, classes (2N,), are of the batch and then of its partners.
        """
        n, device = len(indices), images.device
        random = BatchRandom(self.seed, epoch, indices, self._STREAM)
        random.uniform()  # the partner's
        kept = _beta(self.operation.alpha, random.uniform())
        kept[random.uniform() >= self.operation.p] = 1.0
        if isinstance(self.operation, MixUp):
            share = to_device(kept.astype(np.float32), device)
            images = torch.lerp(images[n:], images[:n], share[:, None, None, None])
        else:
            boxes = _boxes(random, kept, images.shape[2], images.shape[3])
            kept = 1 - boxes.mean(axis=(1, 2), dtype=np.float64)  # what is left once the box is cut at the edges
            share = to_device(kept.astype(np.float32), device)
            images = torch.where(to_device(boxes, device)[:, None], images[n:], images[:n])
        classes = torch.arange(self.classes, device=device)
        probabilities = (targets[:, None] == classes).float()
        return images, torch.lerp(probabilities[n:], probabilities[:n], share[:, None])


def _beta(alpha: float, uniform: np.ndarray) -> np.ndarray:
    """Numbers of Beta(alpha, alpha), by the inverse of its distribution function."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, uniform)


def _boxes(random: BatchRandom, kept: np.ndarray, height: int, width: int) -> np.ndarray:
    """For each image which pixels the partner's box covers, bool (N, H, W): 1 - kept of the area, before the edges."""

    def covered(length: int) -> np.ndarray:
        side = (length * np.sqrt(1 - kept)).astype(np.int64)
        first, places = random.whole(length) - side // 2, np.arange(length)
        return (places >= first[:, None]) & (places < (first + side)[:, None])

    rows, columns = covered(height), covered(width)
    return rows[:, :, None] & columns[:, None, :]

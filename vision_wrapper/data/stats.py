"""Statistics of raw images: exact mean and standard deviation, counts, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from vision_wrapper._kinds import check_kind
from vision_wrapper.data.sources import ImageData
from vision_wrapper.data.splits import ArraySplit, Split, image_size
from vision_wrapper.errors import DataError, SettingError

_PIXELS = 2**19  # of images in memory that are counted at a time: numpy takes 8 bytes for each
_CHUNK = 500  # files that wait for threads at a time; of each only the counts are kept
_LARGE = 100_000  # pixels of an image


@dataclass(frozen=True)
class Stats:
    """What `data.stats` finds.

    Attributes:
        mean: of the raw training pixels in [0, 1], one a channel.
        std: their (population) standard deviation, one a channel.
        classes: the names.
        counts: how many images of each class, by split: {"train": (…), "test": (…)}.
        sizes: how many images of each (height, width), by split.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    sizes: dict[str, dict[tuple[int, int], int]]

    def __str__(self) -> str:
        lines = [
            "mean  " + "  ".join(f"{value:.8f}" for value in self.mean) + "   (training pixels in [0, 1])",
            "std   " + "  ".join(f"{value:.8f}" for value in self.std),
        ]
        for split, counts in self.counts.items():
            sizes = ", ".join(f"{h}x{w}" for (h, w), _ in Counter(self.sizes[split]).most_common(5))
            more = "" if len(self.sizes[split]) <= 5 else f" and {len(self.sizes[split]) - 5} other sizes"
            lines.append(f"{split:5} {sum(counts):,} images of {sizes}{more} (height x width)")
        width = max(len(name) for name in self.classes)
        splits = list(self.counts)
        lines.append(f"{'class':{width}}  " + "  ".join(f"{split:>7}" for split in splits))
        for i, name in enumerate(self.classes):
            lines.append(f"{name:{width}}  " + "  ".join(f"{self.counts[split][i]:7,}" for split in splits))
        return "\n".join(lines)


def stats(data: ImageData) -> Stats:
    """Exact statistics of the raw images, in one pass and constant memory; nothing is augmented or normalised.

    Mean and standard deviation are of all training pixels; sums are of whole numbers, so nothing is rounded on the way.
    Raises `DataError` for an image that cannot be read.
    """
    if not isinstance(data, ImageData):
        raise SettingError(f"stats takes what data.load or data.from_arrays returns, got {data!r}.")
    totals = {name: _totals(split) for name, split in data.splits()}
    counts = {
        name: tuple(int(n) for n in np.bincount(split.labels, minlength=len(data.classes)))
        for name, split in data.splits()
    }
    sizes = {name: dict(total.sizes) for name, total in totals.items()}
    return Stats(*totals["train"].mean_and_std(), data.classes, counts, sizes)


def mean_and_std(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation of the raw pixels in [0, 1], one a channel."""
    return _totals(split).mean_and_std()


def class_weights(data: ImageData) -> Tensor:
    """For an unbalanced data set: float32 (classes,), the inverse of each class's share of the training images.

    Their mean over the training images is 1, so a loss keeps its size. For `nn.CrossEntropyLoss(weight=…)`.
    Raises `DataError` for a class without images.
    """
    check_kind(data, "data")
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    if not counts.all():
        raise DataError(f"Class {data.classes[int(counts.argmin())]} has no training image, so no weight fits it.")
    return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()


# Decoding a folder is the whole cost, so it is done once for each listing of one.
_of_files: WeakKeyDictionary[Split, _Totals] = WeakKeyDictionary()


def _totals(split: Split) -> _Totals:
    keeps = not isinstance(split, ArraySplit) and type(split).__hash__ is not None
    if keeps and split in _of_files:
        return _of_files[split]
    totals = _Totals(split.channels)
    for size, count, histograms in _counts(split):
        totals.sizes[size] += count
        totals.histograms += histograms  # a single channel counts for all
    if keeps:
        _of_files[split] = totals
    return totals


class _Totals:
    """Histograms of the 256 pixel values, one a channel: they hold every sum exactly."""

    def __init__(self, channels: int):
        self.histograms = np.zeros((channels, 256), dtype=np.int64)
        self.sizes: Counter[tuple[int, int]] = Counter()

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Means and standard deviations of the pixels divided by 255."""
        mean, std = [], []
        for histogram in self.histograms.tolist():  # python's whole numbers neither round nor overflow
            n = sum(histogram)
            total = sum(count * value for value, count in enumerate(histogram))
            squares = sum(count * value * value for value, count in enumerate(histogram))
            mean.append(total / (255 * n))
            std.append((n * squares - total * total) ** 0.5 / (255 * n))
        return tuple(mean), tuple(std)


def _counts(split: Split) -> Iterator[tuple[tuple[int, int], int, np.ndarray]]:
    """Of some images of one size at a time: the size, how many they are, and their histograms."""
    if isinstance(split, ArraySplit):
        size = split.images.shape[1:3]
        step = max(1, _PIXELS // (size[0] * size[1]))
        for start in range(0, len(split), step):
            images = split.images[start : start + step]
            yield size, len(images), _histograms(images)
        return

    def counted(index: int) -> tuple[tuple[int, int], int, np.ndarray]:
        image, _ = split[index]
        return image.shape[:2], 1, _histograms(image)

    # Decoding large images releases the interpreter's lock; for small ones threads only get in each other's way.
    height, width = image_size(split, 0)
    threads = None if height * width < _LARGE else ThreadPoolExecutor()
    with threads or nullcontext():
        for start in range(0, len(split), _CHUNK):
            yield from (threads.map if threads else map)(counted, range(start, min(start + _CHUNK, len(split))))


def _histograms(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel of uint8 (…, C): int64 (C, 256)."""
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])

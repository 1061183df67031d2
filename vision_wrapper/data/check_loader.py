"""Checks of loaders: their values, their last batch, and what is random that must not be, or the reverse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from vision_wrapper._state import samplers
from vision_wrapper.data.findings import Finding
from vision_wrapper.data.loader import Loader
from vision_wrapper.data.sources import ImageData
from vision_wrapper.data.splits import Subset
from vision_wrapper.data.stats import mean_and_std
from vision_wrapper.errors import DataError, SettingError

SAMPLED = 512  # images from which statistics are judged: their mean is then known to about 0.01
MEAN_TOLERANCE, STD_TOLERANCE = 0.1, 1.5  # of pixels in [0, 1]; ImageNet's statistics fit CIFAR-10 within these
DRAWS = 16  # looks of one image by each worker; with a flip alone two workers agree by chance once in 65,536


def check_loader(name: str, loader: Any, data: ImageData | None = None) -> Iterator[Finding]:
    """What a loader's first batches show: values, randomness where there must be none, workers' streams."""
    inputs, _ = first_batch(loader, 0)
    yield from check_values(inputs, name)
    if isinstance(loader, Loader) and (name == "train" or data is not None):
        yield from _check_statistics(name, loader, data)
    if name != "train":
        yield from _check_evaluation(name, loader, inputs)
        return
    yield from _check_last_batch(loader)
    yield from _check_repeatable(loader) if isinstance(loader, Loader) else _check_streams(loader)


def shuffles(loader: Any) -> bool:
    """Whether a loader draws its order at random."""
    if isinstance(loader, Loader):
        return loader.shuffle
    kinds = torch.utils.data
    random = (kinds.RandomSampler, kinds.SubsetRandomSampler, kinds.WeightedRandomSampler)
    return any(isinstance(s, random) or getattr(s, "shuffle", None) is True for s in samplers(loader))


def in_order(loader: Any) -> bool:
    """Whether a torch DataLoader gives every sample, one after the other; so do other iterables, for all one knows."""
    kinds = torch.utils.data
    if not isinstance(loader, kinds.DataLoader) or isinstance(loader.dataset, kinds.IterableDataset):
        return True
    return type(loader.sampler) is kinds.SequentialSampler and type(loader.batch_sampler) in (
        kinds.BatchSampler,
        type(None),
    )


def check_values(inputs: Tensor, name: str = "train") -> Iterator[Finding]:
    """Images (N, 1 or 3, H, W) that are not normalised, normalised twice, or not numbers."""
    if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        return
    values = inputs.detach().float()
    low, high, mean, std = (float(v) for v in (values.min(), values.max(), values.mean(), values.std()))
    found = (
        f"Images of the {name} loader have values from {low:.3g} to {high:.3g}, mean {mean:.2g}, deviation {std:.2g}"
    )
    fix = "Use data.make_loaders, or divide by 255, subtract data.stats(images).mean and divide by its std."
    if not values.isfinite().all():
        yield Finding("not_finite", "error", f"Images of the {name} loader have NaN or infinite values.", fix)
    elif high > 20 and (low >= 0 or std > 5):  # a few bright spots on black are as far from their mean
        yield Finding("not_scaled", "warning", f"{found}: they are pixels in 0..255, not normalised.", fix)
    elif low >= 0 and high <= 1:
        yield Finding("not_normalised", "warning", f"{found}: they are pixels in 0..1, not normalised.", fix)
    elif std > 2.5:
        yield Finding("normalised_twice", "warning", f"{found}: they seem to be normalised twice.", fix)


def _check_statistics(name: str, loader: Loader, data: ImageData | None) -> Iterator[Finding]:
    split = loader.split if data is None else data.train
    step = -(-len(split) // SAMPLED)
    found_mean, found_std = mean_and_std(Subset(split, np.arange(0, len(split), step)))
    mean, std = loader.preprocess.mean, loader.preprocess.std
    far = any(abs(a - b) > MEAN_TOLERANCE for a, b in zip(found_mean, mean, strict=True))
    ratios = [max(a, 1e-6) / b for a, b in zip(found_std, std, strict=True)]
    if far or any(not 1 / STD_TOLERANCE < ratio < STD_TOLERANCE for ratio in ratios):
        given, found = ([f"{v:.3f}" for v in (*m, *s)] for m, s in ((mean, std), (found_mean, found_std)))
        yield Finding(
            "statistics",
            "warning",
            f"The {name} loader normalises by mean and std {', '.join(given)}, but the training images have about "
            f"{', '.join(found)}.",
            "Leave preprocess= out, unless the weights were trained with it.",
        )


def _check_evaluation(name: str, loader: Any, inputs: Tensor) -> Iterator[Finding]:
    """Whether an evaluation loader's first inputs are the same each time."""
    again, _ = first_batch(loader, 1)
    if not torch.equal(inputs, again):
        shuffled = shuffles(loader)
        yield Finding(
            "random_evaluation",
            "error",
            f"The {name} loader gives other {'images' if shuffled else 'looks of its images'} each time.",
            "Do not shuffle it: predictions could not be told apart."
            if shuffled
            else "Augment the training images alone, as data.make_loaders does.",
        )


def length(value: Any) -> int | None:
    """How many a loader or a data set says that it has, or None: torch's chains have a length that only raises."""
    try:
        return len(value)
    except TypeError:
        return None


def last_batch(loader: Any) -> tuple[int, int, int] | None:
    """(images of an epoch, the batch size, the last batch's), or None where a loader does not tell."""
    if isinstance(loader, Loader):
        images, size = len(loader.split), loader.batch_size
    elif isinstance(loader, DataLoader) and loader.collate_fn is default_collate:  # another may make more of a sample
        images, size = length(loader.sampler), loader.batch_size
    else:
        return None
    if not images or not size:
        return None
    return images, size, size if loader.drop_last else images % size or size


def _check_last_batch(loader: Any) -> Iterator[Finding]:
    images, size, last = last_batch(loader) or (0, 0, 0)
    if last == 1 and size > 1:
        yield Finding(
            "last_batch",
            "warning",
            f"The last training batch has one image ({images} images, batch_size={size}), too few for batch norm.",
            "Use drop_last=True, or another batch size.",
        )


def _check_repeatable(loader: Loader) -> Iterator[Finding]:
    """Whether an image looks the same again in the same epoch.

    Our loaders seed what an augmentation may draw from, but for a generator of its own.
    """
    indices = loader.order(0)[:DRAWS]
    if not torch.equal(*(loader.inputs(0, indices) for _ in range(2))):
        yield Finding(
            "own_generator",
            "error",
            "The same image of the same epoch is augmented differently each time: the augmentation has a random "
            "generator of its own, so that workers may draw alike, and a resumed run is another.",
            "Draw from random, np.random or torch, which are seeded for each image.",
        )


def _check_streams(loader: Any) -> Iterator[Finding]:
    """Whether the workers of torch's DataLoader, or its epochs, draw the same augmentations.

    Each worker is given the same image `DRAWS` times.
    """
    workers = getattr(loader, "num_workers", 0)
    indexed = isinstance(loader, torch.utils.data.DataLoader) and hasattr(loader.dataset, "__getitem__")
    if not workers or not indexed or isinstance(loader.dataset, torch.utils.data.IterableDataset):
        return
    same_image = torch.utils.data.Subset(loader.dataset, [0] * (DRAWS * workers))
    probe = torch.utils.data.DataLoader(
        same_image,
        batch_size=1,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    epochs = [[batch[0].clone() for batch in probe] for _ in range(2)]
    random = any(not torch.equal(image, epochs[0][0]) for image in epochs[0])
    if not random:
        return
    fix = "Use data.make_loaders, or seed the augmentation in worker_init_fn from torch.initial_seed()."
    by_worker = [epochs[0][worker::workers] for worker in range(workers)]  # batches are dealt in turn
    if workers > 1 and all(_all_equal(by_worker[0], other) for other in by_worker[1:]):
        yield Finding("same_streams", "error", f"The {workers} workers draw the same augmentations.", fix)
    if _all_equal(*epochs):
        yield Finding("same_epochs", "error", "Every epoch draws the same augmentations.", fix)


def _all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def first_batch(loader: Any, epoch: int) -> tuple[Tensor, Tensor]:
    """The first (inputs, targets) of an epoch. Raises `SettingError` where there is none, `DataError` for no pair."""
    first = next(loader.batches(epoch) if isinstance(loader, Loader) else iter(loader), None)
    if first is None:
        raise SettingError("A loader gave no batch. Is it empty, or an iterator that is used up?")
    return check_pair(first)


def check_pair(batch: Any) -> tuple[Tensor, Tensor]:
    """The batch, which has to be (inputs, targets). Raises `DataError` for anything else."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        if batch[0].ndim and batch[1].ndim:
            return batch[0], batch[1]
        raise DataError(
            f"A loader must yield batches, inputs (N, …) and targets (N,); got shapes {tuple(batch[0].shape)} and "
            f"{tuple(batch[1].shape)}, one sample. Give the DataLoader a batch_size."
        )
    parts = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise DataError(
        f"A loader must yield pairs of tensors (inputs, targets), got {parts}. Have its dataset or its collate_fn "
        "return such pairs."
    )

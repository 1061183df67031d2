"""The loaders of a data set: training, validation and test."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from vision_wrapper._distributed import processes_here
from vision_wrapper._numbers import is_number, whole_number
from vision_wrapper._seeding import checked_seed
from vision_wrapper.data.augment import Augmentation
from vision_wrapper.data.augmenter import Augmenter
from vision_wrapper.data.loader import Loader, ProgressiveSize
from vision_wrapper.data.preprocess import Preprocess
from vision_wrapper.data.sources import ImageData
from vision_wrapper.data.splits import ArraySplit, Split, Subset, image_size, innermost, stratified_split
from vision_wrapper.data.stats import mean_and_std
from vision_wrapper.errors import DataError, SettingError

DEFAULT_PHOTO_SIZE = (224, 224)  # pixels; ImageNet's, for folders whose images differ in size
_PROBED_SIZES = 64  # how many headers of a folder are read to learn the size of its images
_MAX_WORKERS = 8  # more only pays on machines whose owner will say so
_EVALUATED_PIXELS = 2**19  # in a batch without gradients at least: 512 images of 32x32, fewer of larger


class Loaders(NamedTuple):
    """What `make_loaders` returns.

    Attributes:
        train: shuffled and augmented.
        val: the validation split, as it is; None where there is none.
        test: the test split, as it is.
        preprocess: how all of them make inputs of raw images; a classifier file keeps it.
    """

    train: Loader
    val: Loader | None
    test: Loader
    preprocess: Preprocess


def make_loaders(
    data: ImageData,
    augment: Augmentation = "none",
    batch_size: int = 128,
    *,
    val_fraction: float = 0.0,
    num_workers: int | None = None,
    drop_last: bool = False,
    seed: int | None = None,
    size: int | tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    balanced: bool = False,
    progressive_size: ProgressiveSize = (),
) -> Loaders:
    """Loaders of the splits of a data set. Only `train` is shuffled and augmented.

    Args:
        data: from `data.load` or `data.from_arrays`.
        augment: a name of `AUGMENTATIONS`, operations, an `albumentations.Compose`, a torchvision transform, or a
            callable from a uint8 image to another.
        batch_size: images in a training batch. Evaluation batches, which need no gradients, are larger for small
            images: at least 512 of 32x32.
        val_fraction: of each class of the training split, held out as `val`; 0 leaves `val` to what the data set has.
        num_workers: None takes none for data in memory, and up to 8, one a core, for files. With workers, images in
            memory stay off the GPU.
        drop_last: leave out a last training batch that is not full.
        seed: of order, augmentation and held-out part; None is the one of `seed_everything`.
        size: of the network's input, pixels or (height, width); None is that of the images, or 224 where they differ.
        preprocess: in place of `size` and of the statistics of the raw training images, such as those of a pretrained
            network.
        balanced: draw each class equally often in an epoch, which stays as long: images of small classes are repeated,
            with the same look in the same epoch.
        progressive_size: pairs (epoch, share): from that epoch on (the first from 0) training images have this share of
            the input's sides, scaled after augmentation, such as `[(0, 0.75), (6, 1.0)]`. Small images early save work
            (Howard 2018; Tan & Le 2021, arXiv:2104.00298); evaluation has them whole.

    Raises:
        UnknownNameError: an unknown augmentation.
        SettingError: an invalid value.
        DataError: an unreadable image, or an augmentation that does not return a uint8 image.
    """
    _check_arguments(data, val_fraction, size, preprocess)
    batch_size = whole_number("batch_size", batch_size, 1)
    check_progressive_size(progressive_size)
    seed = checked_seed(seed)
    train, val = _train_and_val(data, val_fraction, seed)
    preprocess = _preprocess_of(data, size, preprocess)
    if drop_last and batch_size > len(train):
        raise SettingError(
            f"drop_last=True leaves no batch: {len(train)} training images, batch_size={batch_size}. Choose a smaller"
            " one."
        )
    augmenter = Augmenter(augment, preprocess.size, preprocess.mean, seed)
    workers = _number_of_workers(data.train, num_workers)
    common = {"classes": data.classes, "preprocess": preprocess, "num_workers": workers}
    random = {"augmenter": augmenter, "shuffle": True, "balanced": balanced, "seed": seed}
    random["progressive_size"] = progressive_size
    evaluated = max(batch_size, _EVALUATED_PIXELS // (preprocess.size[0] * preprocess.size[1]))
    loaders = Loaders(
        train=Loader(train, **common, **random, batch_size=batch_size, drop_last=drop_last),
        val=None if val is None else Loader(val, **common, batch_size=evaluated),
        test=Loader(data.test, **common, batch_size=evaluated),
        preprocess=preprocess,
    )
    loaders.train._samples[0, np.array([0])]  # an augmentation that cannot work fails here, not in a worker
    return loaders


def _check_arguments(data: Any, val_fraction: Any, size: Any, preprocess: Any) -> None:
    """Raise `SettingError` for an invalid value."""
    if not isinstance(data, ImageData):
        raise SettingError(f"make_loaders takes what data.load or data.from_arrays returns, got {data!r}.")
    if not is_number(val_fraction) or not 0 <= val_fraction < 1:
        raise SettingError(f"val_fraction must be in [0, 1), got {val_fraction!r}.")
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise SettingError(f"preprocess must be a data.Preprocess, such as another loader's; got {preprocess!r}.")
    if preprocess is not None and size is not None:
        raise SettingError("size and preprocess both give the size of the input; pass one of them.")


def _train_and_val(data: ImageData, val_fraction: float, seed: int) -> tuple[Split, Split | None]:
    """The training split without what is held out of it, and the validation split, held out or the data set's own."""
    if not val_fraction:
        return data.train, data.val
    if data.val is not None:
        raise SettingError(f"{data.name} has a validation split of its own; leave out val_fraction.")
    rest, held_out = stratified_split(data.train.labels, val_fraction, seed, data.classes, "val_fraction")
    return Subset(data.train, rest), Subset(data.train, held_out)


def _preprocess_of(data: ImageData, size: int | tuple[int, int] | None, preprocess: Preprocess | None) -> Preprocess:
    """The given preprocessing, which has to be of as many channels, or one by the raw training images' statistics."""
    if preprocess is None:
        mean, std = (data.mean, data.std) if data.mean and data.std else mean_and_std(data.train)
        return Preprocess(common_size(data.train) if size is None else size, data.channels, mean, std)  # type: ignore[arg-type]
    if preprocess.channels != data.channels:
        raise DataError(
            f"preprocess is for {preprocess.channels} channels, the images have {data.channels}. Load them with "
            f"channels={preprocess.channels}."
        )
    return preprocess


def check_progressive_size(steps: ProgressiveSize) -> None:
    """Raise `SettingError` unless these are pairs (epoch, share of the size) from epoch 0 on."""
    pairs = isinstance(steps, (tuple, list)) and all(isinstance(s, (tuple, list)) and len(s) == 2 for s in steps)
    numbers = pairs and all(is_number(value) for step in steps for value in step)
    firsts = [step[0] for step in steps] if numbers else []
    if not numbers or not all(0 < share <= 1 for _, share in steps) or firsts != sorted(set(firsts)):
        raise SettingError(f"progressive_size must be pairs (epoch, share in (0, 1]) in rising order, got {steps!r}.")
    if firsts and firsts[0] != 0:
        raise SettingError(f"progressive_size must begin at epoch 0, got {steps!r}.")


def common_size(split: Split) -> tuple[int, int]:
    """(height, width) of the images where those looked at are of one size, else `DEFAULT_PHOTO_SIZE`."""
    step = max(1, len(split) // _PROBED_SIZES)
    sizes = Counter(image_size(split, index) for index in range(0, len(split), step))
    return sizes.most_common(1)[0][0] if len(sizes) == 1 else DEFAULT_PHOTO_SIZE


def _number_of_workers(split: Split, num_workers: int | None) -> int:
    if num_workers is not None:
        return whole_number("num_workers", num_workers, 0)
    if isinstance(innermost(split), ArraySplit):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_WORKERS, max(1, cores // processes_here()))

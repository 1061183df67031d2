"""Where images come from: data sets by name, folders, arrays. Always raw: uint8, as they were stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from PIL import Image

from vision_wrapper._kinds import check_kind
from vision_wrapper._lookup import Table, unknown_name
from vision_wrapper._numbers import whole_number
from vision_wrapper._state import preserve_random_states
from vision_wrapper._torchvision import torchvision
from vision_wrapper.data.folders import load_folder
from vision_wrapper.data.splits import ArraySplit, Split, Subset, checked_indices, stratified_split
from vision_wrapper.errors import DataError, DataNotFoundError, SettingError, UnknownNameError


@dataclass(frozen=True)
class ImageData:
    """Raw images with labels: `train[i]` is `(image, label)`, uint8 (H, W, C) and an index into `classes`.

    Attributes:
        name: of the data set or the folder.
        train: the training images.
        test: the test images.
        classes: their names, by label.
        val: a validation split that the source itself has, or None.
        mean: of the training pixels in [0, 1], one a channel, where it is known; `data.stats` computes it.
        std: their standard deviation, likewise.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    val: Split | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return self.train.channels

    def splits(self) -> Iterator[tuple[str, Split]]:
        """("train", …), ("val", …) where there is one, ("test", …)."""
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                yield name, split


@dataclass(frozen=True)
class DataSource:
    """An entry of `DATASETS`.

    Attributes:
        load: from the root folder and the number of channels to the data.
        mean: of the raw training pixels in [0, 1], one a channel.
        std: their standard deviation, likewise.
        description: one line.
    """

    load: Callable[[Path, int], ImageData]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str


def load(
    name: str | os.PathLike[str],
    root: str | os.PathLike[str] = "data",
    *,
    channels: int = 3,
    test_fraction: float = 0.2,
    seed: int | None = None,
    skip_unreadable: bool = False,
) -> ImageData:
    """A data set by its name in `DATASETS`, or a folder of images.

    A folder holds `train/CLASS/*` with `test/CLASS/*` or `val/CLASS/*` (with both, `val` is the validation split), or
    the classes alone, of which `test_fraction` is held out, stratified. Classes are sorted by name. Files are listed,
    not opened.

    Args:
        name: "digits" (offline), "cifar10", "cifar100", "mnist", "fashion_mnist", or the path of a folder.
        root: where named data sets are kept, and downloaded to once.
        channels: 3 gives RGB, so that every model fits every data set; 1 gives grey.
        test_fraction: of each class, for a folder without a test split.
        seed: of that split; None is the one of `seed_everything`.
        skip_unreadable: open every file of a folder first, and leave out what cannot be decoded, with a warning.

    Raises:
        UnknownNameError: neither a known name nor a path.
        DataNotFoundError: the folder does not exist, or a download failed.
        DataError: the folder is empty, has one class, a class without images or with too few to hold one out, or a
            class in test that train lacks.
        SettingError: an invalid value.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name):
        raise SettingError(f"load takes the name of a data set or the path of a folder, got {name!r}.")
    if channels not in (1, 3):
        raise SettingError(f"channels must be 3 (RGB) or 1 (grey), got {channels!r}.")
    if isinstance(name, str) and name in DATASETS:
        return _load_named(name, Path(root), channels)
    path = Path(name)
    if os.path.isdir(path):  # unlike path.is_dir() it never raises
        splits, classes = load_folder(
            path, channels=channels, test_fraction=test_fraction, seed=seed, skip_unreadable=skip_unreadable
        )
        own_name = Path(os.path.abspath(path)).name  # of "." too
        return ImageData(own_name, splits["train"], splits["test"], classes, val=splits.get("val"))
    looks_like_a_path = isinstance(name, os.PathLike) or os.sep in str(name) or "." in str(name)
    if looks_like_a_path:
        what = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        raise DataNotFoundError(
            f"The image folder {path} {what}. Expected {path}/train/CLASS/*.png with {path}/test/CLASS/*.png, or "
            f"{path}/CLASS/*.png."
        )
    raise UnknownNameError(f"{unknown_name(DATASETS.kind, name, DATASETS)} Nor is there a folder of that name.")


def _load_named(name: str, root: Path, channels: int) -> ImageData:
    source = DATASETS[name]
    try:
        data = source.load(root, channels)
    except (URLError, OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataNotFoundError(
            f"{name} is not in {root.resolve()} and could not be downloaded: {reason} Connect to "
            'the network once, or copy the data set there. "digits" needs no network: data.load("digits").'
        ) from error
    known = channels == 3 or len(source.mean) == 1
    repeat = channels if len(source.mean) == 1 else 1
    mean, std = (source.mean * repeat, source.std * repeat) if known else (None, None)
    return replace(data, name=name, mean=mean, std=std)


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str] | None = None,
    *,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    channels: int | None = None,
    name: str = "arrays",
) -> ImageData:
    """A data set of arrays (or tensors).

    Args:
        train: images uint8 (N, H, W) or (N, H, W, C) with 0..255, and labels int (N,).
        test: likewise.
        classes: a name for each label; None names them "0", "1", ….
        val: a validation split, likewise.
        channels: at least 1; None means 3 for grey and RGB images, so that every model fits, and C for any other C.
        name: shown in figures and reports.

    Raises:
        DataError: other shapes or types, labels that do not fit, fewer than two classes.
        SettingError: `channels` is no whole number of at least 1.
    """
    channels = None if channels is None else whole_number("channels", channels, 1)
    named = classes is None or (isinstance(classes, (Sequence, np.ndarray)) and not isinstance(classes, str))
    if not named or (classes is not None and len(set(map(str, classes))) != len(classes)):
        raise DataError(f"classes must be a sequence of different names, got {classes!r}.")
    splits = {"train": _array_split("train", train, channels), "test": _array_split("test", test, channels)}
    if val is not None:
        splits["val"] = _array_split("val", val, channels)
    if classes is None:
        classes = [str(i) for i in range(int(splits["train"].labels.max()) + 1)]
    if len(classes) < 2:
        raise DataError(f"There must be at least two classes, got {list(classes)!r}.")
    found = {split_name: split.images.shape[-1] for split_name, split in splits.items()}
    if len(set(found.values())) > 1:
        raise DataError(
            f"The splits must have images (N, H, W, C) of the same number of channels, got {found}. For (N, C, H, W): "
            "images.transpose(0, 2, 3, 1)."
        )
    for split_name, split in splits.items():
        _check_labels(split_name, split.labels, len(classes))
        split.classes = tuple(map(str, classes))
    return ImageData(name, splits["train"], splits["test"], tuple(map(str, classes)), val=splits.get("val"))


def _array_split(name: str, pair: tuple[np.ndarray, np.ndarray], channels: int | None) -> ArraySplit:
    try:
        images, labels = (np.asarray(part) for part in pair)
    except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor that has a gradient
        raise DataError(f"{name} must be a pair (images, labels) of arrays: {error}.") from error
    if images.dtype != np.uint8:
        raise DataError(
            f"{name} images must be uint8 with 0..255, got {images.dtype}. For values in [0, 1]: "
            "(images * 255).round().astype('uint8'); in 0..255: images.astype('uint8'); in 0..65535: "
            "(images // 257).astype('uint8')."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(f"{name} images must be (N, H, W) or (N, H, W, C) and not empty, got shape {images.shape}.")
    if channels is None:
        channels = 3 if images.shape[-1] in (1, 3) else int(images.shape[-1])
    if images.shape[-1] not in (1, channels):
        raise DataError(
            f"{name} images have {images.shape[-1]} channels (shape {images.shape}, read as (N, H, W, C)), expected "
            f"{channels} or grey. For (N, C, H, W): images.transpose(0, 2, 3, 1)."
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name} labels must be whole numbers of shape ({len(images)},), got {labels.dtype} of shape "
            f"{labels.shape}. For (N, 1): labels.ravel(); one-hot: labels.argmax(1); names: "
            "numpy.unique(labels, return_inverse=True)[1]."
        )
    return ArraySplit(images, labels.astype(np.int64), channels)


def _check_labels(name: str, labels: np.ndarray, num_classes: int) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise DataError(
            f"{name} labels must be in 0..{num_classes - 1} for {num_classes} classes; label {outside[0]} is "
            f"{labels[outside[0]]}."
        )


def leave_out(
    data: ImageData, train: Sequence[int] = (), val: Sequence[int] = (), test: Sequence[int] = ()
) -> ImageData:
    """The data set without some samples, by their indices in each split, or by masks of them.

    `data.check` finds duplicates' indices.

    Raises `DataError` for an index that is not there, or where nothing would be left.
    """
    check_kind(data, "data")
    splits: dict[str, Any] = {}
    for name, indices in (("train", train), ("val", val), ("test", test)):
        split: Split | None = getattr(data, name)
        if not len(indices):
            splits[name] = split
            continue
        count = 0 if split is None else len(split)
        kept = np.setdiff1d(np.arange(count), checked_indices(name, count, indices))
        assert split is not None  # one without samples has no index
        if not len(kept):
            raise DataError(f"Leaving out all {count} samples of {name} leaves none.")
        splits[name] = Subset(split, kept)
    return replace(data, mean=None, std=None, **splits) if len(train) else replace(data, **splits)


# ---- data sets by name


def _load_digits(root: Path, channels: int) -> ImageData:
    """1,797 handwritten digits that scikit-learn carries (UCI, Alpaydin & Kaynak 1998), 8x8 scaled to 32x32."""
    with preserve_random_states():  # which importing it draws from
        from sklearn.datasets import load_digits

    digits: Any = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    images = np.stack([np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BICUBIC)) for i in small])
    labels = digits.target.astype(np.int64)
    classes = tuple(str(digit) for digit in range(10))
    # The split is part of the data set: it does not follow the run's seed.
    rest, held_out = stratified_split(labels, fraction=0.2, seed=0, classes=classes)
    train, test = (ArraySplit(images[part][..., None], labels[part], channels, classes) for part in (rest, held_out))
    return ImageData("digits", train, test, classes)


def _torchvision_data(class_name: str, classes: tuple[str, ...] | None = None) -> Callable[[Path, int], ImageData]:
    def load_it(root: Path, channels: int) -> ImageData:
        constructor = getattr(torchvision().datasets, class_name)
        splits: list[ArraySplit] = []
        for train in (True, False):
            dataset = constructor(str(root), train=train, download=True)
            images, labels = np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64)
            if images.ndim == 3:
                images = images[..., None]
            if images.shape[-1] == 3 and channels == 1:
                images = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[..., None]
            names = tuple(classes or dataset.classes)
            splits.append(ArraySplit(images, labels, channels, names))
        return ImageData(class_name, splits[0], splits[1], names)

    return load_it


DATASETS: Table[DataSource] = Table(
    "data set",
    {
        "digits": DataSource(
            _load_digits, (0.30992751,), (0.34919429,), "1,797 handwritten digits, offline, scaled to 32x32"
        ),
        "cifar10": DataSource(
            _torchvision_data("CIFAR10"),
            (0.49139968, 0.48215841, 0.44653091),
            (0.24703223, 0.24348513, 0.26158784),
            "60,000 photographs of 10 classes, 32x32, RGB",
        ),
        "cifar100": DataSource(
            _torchvision_data("CIFAR100"),
            (0.50707516, 0.48654887, 0.44091784),
            (0.26733429, 0.25643846, 0.27615047),
            "60,000 photographs of 100 classes, 32x32, RGB",
        ),
        "mnist": DataSource(
            _torchvision_data("MNIST", tuple("0123456789")),
            (0.13066048,),
            (0.30810781,),
            "70,000 handwritten digits, 28x28, grey",
        ),
        "fashion_mnist": DataSource(
            _torchvision_data("FashionMNIST"),
            (0.28604060,),
            (0.35302424,),
            "70,000 pictures of clothes of 10 kinds, 28x28, grey",
        ),
    },
)
"""The data sets that `load` takes by name."""

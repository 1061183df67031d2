"""Raw images in, batches out: data sets, folders, statistics, augmentations, loaders."""

from vision_wrapper.data.augment import (
    AUGMENTATIONS,
    ColorJitter,
    Cutout,
    Flip,
    Pad,
    RandomCrop,
    RandomResizedCrop,
    Rotate,
    augmentation,
)
from vision_wrapper.data.images import decode
from vision_wrapper.data.loaders import Loader, Loaders, make_loaders
from vision_wrapper.data.preprocess import Preprocess
from vision_wrapper.data.sources import DATASETS, DataSource, ImageData, Split, Subset, from_arrays, load
from vision_wrapper.data.stats import Stats, stats

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "ColorJitter",
    "Cutout",
    "DataSource",
    "Flip",
    "ImageData",
    "Loader",
    "Loaders",
    "Pad",
    "Preprocess",
    "RandomCrop",
    "RandomResizedCrop",
    "Rotate",
    "Split",
    "Stats",
    "Subset",
    "augmentation",
    "decode",
    "from_arrays",
    "load",
    "make_loaders",
    "stats",
]

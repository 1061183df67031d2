"""Raw images in, batches out: data sets, folders, statistics, augmentations, loaders."""

from vision_wrapper.data.augment import (
    AUGMENTATIONS,
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    Flip,
    MixUp,
    Pad,
    RandomCrop,
    RandomResizedCrop,
    Rotate,
    augmentation,
)
from vision_wrapper.data.cache import cached
from vision_wrapper.data.check import check
from vision_wrapper.data.findings import Finding, Findings
from vision_wrapper.data.images import decode
from vision_wrapper.data.loader import Loader
from vision_wrapper.data.loaders import Loaders, make_loaders
from vision_wrapper.data.preprocess import Preprocess
from vision_wrapper.data.sources import DATASETS, DataSource, ImageData, from_arrays, leave_out, load
from vision_wrapper.data.splits import Split, Subset
from vision_wrapper.data.stats import Stats, class_weights, stats

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "AlternatingFlip",
    "ColorJitter",
    "CutMix",
    "Cutout",
    "DataSource",
    "Finding",
    "Findings",
    "Flip",
    "ImageData",
    "Loader",
    "Loaders",
    "MixUp",
    "Pad",
    "Preprocess",
    "RandomCrop",
    "RandomResizedCrop",
    "Rotate",
    "Split",
    "Stats",
    "Subset",
    "augmentation",
    "cached",
    "check",
    "class_weights",
    "decode",
    "from_arrays",
    "leave_out",
    "load",
    "make_loaders",
    "stats",
]

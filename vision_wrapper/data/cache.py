"""Images decoded and resized once, kept in files that are read like memory."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vision_wrapper._files import PathLike, read_json, replacing, write_json
from vision_wrapper._kinds import check_kind
from vision_wrapper.data.loaders import common_size
from vision_wrapper.data.preprocess import Preprocess
from vision_wrapper.data.sources import ImageData
from vision_wrapper.data.splits import ArraySplit, Split, file_of, image_for
from vision_wrapper.errors import DamagedFileError, DataError, DataNotFoundError

_FORMAT = 1
_CHUNK = 256  # images that are in memory at a time while the cache is written
_HEADER = 128  # bytes before the pixels of a .npy file


class CachedSplit(ArraySplit):
    """Resized images in a file that is mapped into memory, and where they came from."""

    def __init__(self, path: Path, split: Split):
        super().__init__(np.load(path, mmap_mode="r"), split.labels, split.channels, split.classes)
        self.path, self.split = path, split

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process maps the file again; the pixels of a mapped array would be copied to it."""
        return CachedSplit, (self.path, self.split)

    def origin(self, index: int) -> str:
        """The path of the original."""
        return self.split.origin(index)


def cached(images: ImageData, folder: PathLike, size: int | tuple[int, int] | None = None) -> ImageData:
    """The same data set with every image decoded and cut to `size` once, and kept as uint8 in `folder`.

    Later epochs and later runs decode nothing: loaders take whole batches from the file, of which only what is in use
    occupies memory. It takes height * width * channels bytes an image on the disk (150 kB of 224x224). Where an image
    file was changed, removed or added since, the cache is written anew.

    Args:
        images: of `data.load`.
        folder: where the cache is kept; one for each data set and size.
        size: pixels, or (height, width), as the network takes them; None is that of the images, or 224 where they
            differ. Random resized crops ("photo") need somewhat larger images than the network's: with
            `make_loaders(size=224)`, 256. They go image by image, so give `num_workers` too.

    Raises:
        DataError: an image cannot be decoded; nothing is kept.
        FileWriteError: the disk is full, or the folder cannot be written.
    """
    check_kind(images, "data")
    chosen = common_size(images.train) if size is None else size
    preprocess = Preprocess(chosen, images.channels, (0.0,) * images.channels, (1.0,) * images.channels)  # type: ignore[arg-type]
    splits = {name: _cached_split(split, Path(folder), name, preprocess) for name, split in images.splits()}
    return replace(images, **splits)  # type: ignore[arg-type]


def _cached_split(split: Split, folder: Path, name: str, preprocess: Preprocess) -> CachedSplit:
    path = (folder / f"{name}.cache.npy").absolute()
    identity = {
        "format": _FORMAT,
        "images": _identity(split),
        "shape": [len(split), *preprocess.size, preprocess.channels],
    }
    if not _is_current(path, identity):
        _write(path, split, preprocess)
        write_json(path.with_suffix(".json"), {**identity, "checksum": _checksum(path)})
    return CachedSplit(path, split)


def _identity(split: Split) -> str:
    """Changes when a file, its size or its time does; of arrays, when a pixel does."""
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(split)):
        file = file_of(split, index)
        if file is None or not os.path.exists(file):  # one that is gone is named when it is opened
            digest.update(split[index][0].tobytes())
            continue
        status = os.stat(file)
        digest.update(os.fsencode(os.path.abspath(file)) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_current(path: Path, identity: dict[str, Any]) -> bool:
    """Whether the cache is there, of these images, and whole."""
    try:
        kept = read_json(path.with_suffix(".json"))
    except (DataNotFoundError, DamagedFileError):
        return False
    if not isinstance(kept, dict) or any(kept.get(name) != value for name, value in identity.items()):
        return False
    if path.exists() and _checksum(path) == kept.get("checksum"):
        return True
    warnings.warn(f"The image cache {path} is damaged; it is written anew.", stacklevel=4)
    return False


def _checksum(path: Path) -> int:
    """CRC-32 of a whole file, about a second a gigabyte."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _write(path: Path, split: Split, preprocess: Preprocess) -> None:
    """Write all images as one .npy file."""
    shape = (len(split), *preprocess.size, preprocess.channels)
    with replacing(path, _HEADER + math.prod(shape)) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for image in _resized(split, preprocess):
            file.write(image.data)


def _resized(split: Split, preprocess: Preprocess) -> Iterator[np.ndarray]:
    """Every image as uint8 (*size, C), in order; decoders let go of Python's lock, so threads suffice."""

    def resized(index: int) -> np.ndarray:
        image = image_for(split, index, preprocess.decode_size)
        if image.shape[2] != preprocess.channels:
            raise DataError(f"{split.origin(index)} has {image.shape[2]} channels, expected {preprocess.channels}.")
        return np.ascontiguousarray(preprocess.resize(image))

    with ThreadPoolExecutor() as threads, tqdm(total=len(split), desc="caching images", disable=None) as bar:
        for first in range(0, len(split), _CHUNK):
            yield from threads.map(resized, range(first, min(first + _CHUNK, len(split))))
            bar.update(min(_CHUNK, len(split) - first))

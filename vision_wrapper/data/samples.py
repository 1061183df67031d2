"""Samples: raw batches, uint8, made image by image or whole from memory, on the CPU or on a GPU."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vision_wrapper._state import preserve_random_states
from vision_wrapper.data.augment import RandomResizedCrop
from vision_wrapper.data.augmenter import Augmenter
from vision_wrapper.data.batched import BatchAugmenter, batch_augmenter, to_device
from vision_wrapper.data.preprocess import Preprocess
from vision_wrapper.data.splits import ArraySplit, Split, file_of, image_for, located
from vision_wrapper.errors import DataNotFoundError

_FINGERPRINTED = 16  # images
_HASHED = 256  # images at a time, which bounds the memory
_COPIED = 4096  # images that go to a GPU at a time


class Samples:
    """Makes a whole batch from (epoch, indices); what workers run."""

    def __init__(self, split: Split, preprocess: Preprocess, augmenter: Augmenter | None):
        self.split, self.preprocess, self.augmenter = split, preprocess, augmenter
        self.decode_size = _decode_size(preprocess, augmenter)
        stored, self.places = _in_memory(split)
        shape = (*preprocess.size, preprocess.channels)
        fits = stored is not None and stored.shape[1:3] == preprocess.size
        self.batched: BatchAugmenter | None = batch_augmenter(augmenter, shape) if fits and augmenter else None
        # The images (all, H, W, C), where whole batches can be taken from them, at `places` (None: in their order).
        self.stored = stored if fits and (augmenter is None or self.batched is not None) else None

    @property
    def path(self) -> str:
        """How batches are made."""
        return "image by image" if self.stored is None else "whole batches"

    @property
    def fits_on_device(self) -> bool:
        """Whether a GPU can do all of it, with the same pixels."""
        return self.stored is not None and (self.batched is None or self.batched.exact_on_device)

    def stored_bytes(self) -> int:
        """What the split's own stored images take."""
        assert self.stored is not None
        return len(self.split) * self.stored[0].nbytes

    def __getitem__(self, request: tuple[int, np.ndarray]) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, C) and int64 (N,)."""
        epoch, indices = request
        labels = torch.from_numpy(self.split.labels[indices])
        if self.stored is not None:
            return torch.from_numpy(self._whole_batch(self.stored, epoch, indices)), labels
        with preserve_random_states():  # a user's augmentation may draw from the global generators
            images = [self._image(epoch, int(index)) for index in indices]
        return torch.from_numpy(np.stack(images)), labels

    def _whole_batch(self, stored: np.ndarray, epoch: int, indices: np.ndarray) -> np.ndarray:
        # Indexing copies, but keeps a transposed array's order in memory, which whole batches do not take. Reshaping
        # makes the strides the usual ones: of a side of length 1, numpy keeps any and calls that contiguous.
        chosen = np.ascontiguousarray(stored[indices if self.places is None else self.places[indices]])
        images: np.ndarray = chosen.reshape(-1).reshape(chosen.shape)
        if images.shape[3] != self.preprocess.channels:
            images = np.repeat(images, self.preprocess.channels, axis=3)
        return images if self.batched is None else self.batched(images, epoch, indices)

    def _image(self, epoch: int, index: int) -> np.ndarray:
        image = image_for(self.split, index, self.decode_size)
        if self.augmenter is None:
            return self.preprocess.resize(image)
        if not self.augmenter.takes_any_size:
            image = self.preprocess.resize(image)
        return self.preprocess.resize(self.augmenter(image, epoch, index))


class DeviceSamples:
    """The batches of `Samples` from images that lie on a GPU: gathered and augmented there, and not waited for."""

    def __init__(self, samples: Samples, device: torch.device):
        self.samples, self.device = samples, device
        stored, places = samples.stored, samples.places
        assert stored is not None
        self._images = torch.empty(len(samples.split), *stored.shape[1:], dtype=torch.uint8, device=device)
        for first in range(0, len(self._images), _COPIED):  # in parts: a mapped file need not fit into memory
            part = self._images[first : first + _COPIED]
            chosen = slice(first, first + len(part)) if places is None else places[first : first + len(part)]
            part.copy_(torch.from_numpy(np.array(stored[chosen], order="C")))
        self._labels = torch.from_numpy(samples.split.labels).to(device)

    def __getitem__(self, request: tuple[int, np.ndarray]) -> tuple[Tensor, Tensor]:
        epoch, indices = request
        places = to_device(indices, self.device)
        images = self._images[places]
        if images.shape[3] != self.samples.preprocess.channels:
            images = images.expand(-1, -1, -1, self.samples.preprocess.channels)
        if self.samples.batched is not None:
            images = self.samples.batched.on_device(images, epoch, indices)
        return images.contiguous(), self._labels[places]


def _decode_size(preprocess: Preprocess, augmenter: Augmenter | None) -> tuple[int, int] | None:
    """The size down to which a photograph may be decoded for this input.

    None (all of it) where a user's own augmentation sees the image first.
    """
    if augmenter is None:
        return preprocess.decode_size
    if augmenter.operations is None:
        return None
    crops = [operation for operation in augmenter.operations if isinstance(operation, RandomResizedCrop)]
    # The smallest crop has the input's size still: of a square image's side its short one is sqrt(scale * ratio), or
    # sqrt(scale / ratio) of a wide one.
    least = min((crop.scale[0] * min(crop.ratio[0], 1 / crop.ratio[1], 1.0) for crop in crops), default=1.0)
    if least <= 0:
        return None
    factor = max(1.0, 0.5 / math.sqrt(least))
    return math.ceil(factor * preprocess.decode_size[0]), math.ceil(factor * preprocess.decode_size[1])


def _in_memory(split: Split) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The array (N, H, W, C) that holds a split's images, and where in it they are (None: in their order)."""
    inner, places = located(split, np.arange(len(split)))
    if not isinstance(inner, ArraySplit):
        return None, None
    return inner.images, None if inner is split else places


def fingerprint(split: Split) -> str:
    """A digest of the labels and of a few images: enough to tell two data sets apart at each fit, and quick."""
    digest = hashlib.blake2b(np.ascontiguousarray(split.labels).tobytes(), digest_size=8)
    for index in np.linspace(0, len(split) - 1, _FINGERPRINTED).astype(int):
        digest.update(split[int(index)][0].tobytes())
    return digest.hexdigest()


def whole_fingerprint(split: Split) -> str:
    """A digest of the labels and of every image: about a second a gigabyte of pixels in memory, or of files.

    Where a file lies and what it is called does not count: only what is learned from and tested on.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(split.labels).tobytes(), digest_size=16)
    for content in _contents(split):
        digest.update(content)
    return digest.hexdigest()


def _contents(split: Split) -> Iterator[bytes]:
    """A digest of each image's file, or of its pixels; of images in memory, of many at a time."""
    stored, places = _in_memory(split)
    if stored is not None:
        yield repr(stored.shape[1:]).encode()
        for first in range(0, len(split), _HASHED):
            chosen = slice(first, first + _HASHED) if places is None else places[first : first + _HASHED]
            yield hashlib.blake2b(stored[chosen].tobytes()).digest()
        return
    with ThreadPoolExecutor() as threads:  # reading and hashing let go of Python's lock
        yield from threads.map(lambda index: _content(split, index), range(len(split)))


def _content(split: Split, index: int) -> bytes:
    file = file_of(split, index)
    if file is None:
        image = split[index][0]
        return hashlib.blake2b(repr(image.shape).encode() + image.tobytes()).digest()
    try:
        return hashlib.blake2b(Path(file).read_bytes()).digest()
    except OSError as error:
        raise DataNotFoundError(
            f"The image file {file} cannot be read: {error.strerror}. If it was there, it has been moved or removed."
        ) from error

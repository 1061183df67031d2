"""A loader: batches of normalised images, in an order and with a look that the seed and the epoch decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from vision_wrapper._distributed import part_of
from vision_wrapper._seeding import balanced_order, checked_seed, shuffled_order
from vision_wrapper.data.augmenter import Augmenter
from vision_wrapper.data.batched import Mixer
from vision_wrapper.data.preprocess import Preprocess
from vision_wrapper.data.samples import DeviceSamples, Samples, fingerprint
from vision_wrapper.data.splits import Split
from vision_wrapper.data.workers import Workers

_DEVICE_SHARE = 4  # raw images are kept on a GPU where they take at most a quarter of its free memory


ProgressiveSize: TypeAlias = Sequence[tuple[float, float]]  # (first epoch, share of the input's sides)


class Loader:
    """Batches `(images, targets)`: float32 (N, C, H, W), normalised, and int64 (N,).

    Where the augmentation mixes images (`MixUp`, `CutMix`), targets are probabilities, float32 (N, classes).

    A training loader is shuffled and augmented; the order is that of (seed, epoch), an image's look that of (seed,
    epoch, index). Each plain pass over it (`for images, targets in loader`) is its next epoch; `batches(epoch)` gives
    the batches of any epoch and leaves the count alone. An evaluation loader gives raw images in their own order.

    Images in memory are augmented in whole batches where the augmentation has such a form, many times as fast as
    image by image (`benchmarks/input_pipelines.py` measures it); with a CUDA GPU they are kept there and augmented
    there, but for rotations. `path` says which it is.

    Attributes:
        split: the raw images and labels; indices refer to it.
        classes: the names of the labels.
        preprocess: how a raw image becomes an input.
        epoch: how many plain passes were begun.
        device: where batches are put; the trainer sets it.
    """

    def __init__(
        self,
        split: Split,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        batch_size: int,
        augmenter: Augmenter | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        num_workers: int = 0,
        seed: int | None = None,
        balanced: bool = False,
        progressive_size: ProgressiveSize = (),
    ):
        self.split, self.classes, self.preprocess = split, classes, preprocess
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.num_workers, self.seed, self.balanced = num_workers, checked_seed(seed), balanced
        self.progressive_size = tuple((float(first), float(share)) for first, share in progressive_size)
        self.epoch = 0
        self.device = torch.device("cpu")
        self._samples = Samples(split, preprocess, augmenter)
        mixing = augmenter.mixing if augmenter is not None else None
        self._mixer = None if mixing is None else Mixer(mixing, len(classes), self.seed)
        self._workers: list[Workers] = []
        self._on_device: DeviceSamples | None = None

    def __len__(self) -> int:
        """The number of batches."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch
        if self.shuffle:
            self.epoch += 1
        return self.batches(epoch)

    def order(self, epoch: int) -> np.ndarray:
        """The indices into `split` in the order in which this epoch gives them, int64 (len(split),)."""
        if not self.shuffle:
            return np.arange(len(self.split))
        if self.balanced:
            return balanced_order(self.split.labels, self.seed, epoch)
        return shuffled_order(len(self.split), self.seed, epoch)

    @property
    def path(self) -> str:
        """How batches are made: "whole batches" from memory, "whole batches on cuda", or "image by image"."""
        return f"{self._samples.path} on {self.device.type}" if self._stays_on_device() else self._samples.path

    def batches(
        self, epoch: int, start: int = 0, channels_last: bool = False, *, step: int = 1, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from batch number `start` on.

        Args:
            epoch: its number, from 0.
            start: the first batch's number, from 0.
            channels_last: the images' memory format.
            step: 2 is every other batch.
            part: (rank, count) gives of each batch every count-th sample from number `rank` on, for one of several
                processes; of a batch that has none for it, the first sample.
        """
        order, (rank, count) = self.order(epoch), part
        chunks = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        chunks = [part_of(chunk, rank, count) for chunk in chunks[start : len(self) : step]]
        requests = [self._request(order, epoch, chunk) for chunk in chunks]
        for raw, chunk in zip(self._produce(requests), chunks, strict=True):
            yield self._finished(raw, epoch, chunk, channels_last)

    def inputs(self, epoch: int, indices: np.ndarray) -> Tensor:
        """What training sees of samples in an epoch, float32 (N, C, H, W); as in `batches`, but on the CPU."""
        raw = self._samples[self._request(self.order(epoch), epoch, indices)]
        return self._finished(raw, epoch, indices)[0]

    def _request(self, order: np.ndarray, epoch: int, indices: np.ndarray) -> tuple[int, np.ndarray]:
        """What `Samples` is asked for: the samples and, where they are mixed, their partners."""
        if self._mixer is None:
            return epoch, indices
        return epoch, np.concatenate([indices, self._mixer.partners(order, epoch, indices)])

    def _finished(
        self, raw: tuple[Tensor, Tensor], epoch: int, indices: np.ndarray, channels_last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What `Samples` gave, normalised, mixed and at the size of the epoch."""
        images, targets = self.preprocess.normalise(raw[0], channels_last), raw[1]
        if self._mixer is not None:
            images, targets = self._mixer(images, targets, epoch, indices)
        return self._sized(images, epoch, channels_last), targets

    def _sized(self, images: Tensor, epoch: int, channels_last: bool) -> Tensor:
        """The images (N, C, H, W) at the size of this epoch."""
        share = next((share for first, share in reversed(self.progressive_size) if epoch >= first), 1.0)
        size = [max(1, round(share * side)) for side in images.shape[2:]]
        if size == list(images.shape[2:]):
            return images
        images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def _produce(self, requests: list[tuple[int, np.ndarray]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Raw batches on the device, which is not waited for: uint8 (N, H, W, C) and int64 (N,)."""
        kept = self._device_samples()
        if kept is not None:
            yield from map(kept.__getitem__, requests)
            return
        produced = self._idle_workers().run(requests) if self.num_workers else map(self._samples.__getitem__, requests)
        asynchronous = self.device.type == "cuda"
        for images, targets in produced:
            if asynchronous:  # pinned memory is copied without waiting
                images, targets = images.pin_memory(), targets.pin_memory()
            yield tuple(part.to(self.device, non_blocking=asynchronous) for part in (images, targets))  # type: ignore[misc]

    @property
    def augments(self) -> bool:
        """Whether images are changed at random, as for training."""
        augmenter = self._samples.augmenter
        return augmenter is not None and (augmenter.operations != () or augmenter.mixing is not None)

    def _device_samples(self) -> DeviceSamples | None:
        """The samples on the GPU, where there is one and they fit; put there at the first batch."""
        if not self._stays_on_device():
            return None
        if self._on_device is None or self._on_device.device != self.device:
            self._on_device = DeviceSamples(self._samples, self.device)
        return self._on_device

    def _stays_on_device(self) -> bool:
        if self.device.type != "cuda" or self.num_workers or not self._samples.fits_on_device:
            return False
        if self._on_device is not None and self._on_device.device == self.device:
            return True
        free, _ = torch.cuda.mem_get_info(self.device)
        return self._samples.stored_bytes() * _DEVICE_SHARE <= free

    def _idle_workers(self) -> Workers:
        """Workers that no unfinished pass is using: a second pass beside it needs its own."""
        for workers in self._workers:
            if not workers.busy:
                return workers
        self._workers.append(Workers(self._samples, self.num_workers))
        return self._workers[-1]

    def describe(self) -> dict[str, Any]:
        """What makes a run over this loader the same run again (plain values)."""
        return {
            "samples": len(self.split),
            "content": fingerprint(self.split),
            "classes": list(self.classes),
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "shuffle": self.shuffle,
            "balanced": self.balanced,
            "seed": self.seed,
            "augmentation": self._samples.augmenter.description if self._samples.augmenter else "none",
            "path": self._samples.path,  # on any device the looks are the same
            "size": list(self.preprocess.size),
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
            **({"progressive_size": [list(step) for step in self.progressive_size]} if self.progressive_size else {}),
        }

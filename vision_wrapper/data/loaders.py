"""Loaders: batches of normalised images, in an order and with a look that the seed and the epoch decide."""

from __future__ import annotations

import hashlib
import math
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pickle import PicklingError
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from vision_wrapper._distributed import part_of, processes_here
from vision_wrapper._seeding import balanced as balanced_order
from vision_wrapper._seeding import checked_seed, shuffled
from vision_wrapper._state import preserve_random_states
from vision_wrapper.data.augment import Augmentation, Augmenter, RandomResizedCrop
from vision_wrapper.data.batched import BatchAugmenter, Mixer, batch_augmenter, to_device
from vision_wrapper.data.preprocess import Preprocess
from vision_wrapper.data.sources import ImageData
from vision_wrapper.data.splits import (
    ArraySplit,
    Split,
    Subset,
    image_for,
    image_size,
    innermost,
    located,
    stratified_split,
)
from vision_wrapper.data.stats import mean_and_std
from vision_wrapper.errors import DataError, SettingError, VisionWrapperError, WorkerError

DEFAULT_PHOTO_SIZE = (224, 224)  # pixels; ImageNet's, for folders whose images differ in size
_PROBED_SIZES = 64  # how many headers of a folder are read to learn the size of its images
_FINGERPRINTED = 16  # images
_MAX_WORKERS = 8  # more only pays on machines whose owner will say so
_EVALUATED_PIXELS = 2**19  # in a batch without gradients at least: 512 images of 32x32, fewer of larger
_COPIED = 4096  # images that go to a GPU at a time
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
        self._samples = _Samples(split, preprocess, augmenter)
        mixing = augmenter.mixing if augmenter is not None else None
        self._mixer = None if mixing is None else Mixer(mixing, len(classes), self.seed)
        self._workers: list[_Workers] = []
        self._on_device: _DeviceSamples | None = None

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
        return shuffled(len(self.split), self.seed, epoch)

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
        """What `_Samples` is asked for: the samples and, where they are mixed, their partners."""
        if self._mixer is None:
            return epoch, indices
        return epoch, np.concatenate([indices, self._mixer.partners(order, epoch, indices)])

    def _finished(
        self, raw: tuple[Tensor, Tensor], epoch: int, indices: np.ndarray, channels_last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What `_Samples` gave, normalised, mixed and at the size of the epoch."""
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

    def _device_samples(self) -> _DeviceSamples | None:
        """The samples on the GPU, where there is one and they fit; put there at the first batch."""
        if not self._stays_on_device():
            return None
        if self._on_device is None or self._on_device.device != self.device:
            self._on_device = _DeviceSamples(self._samples, self.device)
        return self._on_device

    def _stays_on_device(self) -> bool:
        if self.device.type != "cuda" or self.num_workers or not self._samples.fits_on_device:
            return False
        if self._on_device is not None and self._on_device.device == self.device:
            return True
        free, _ = torch.cuda.mem_get_info(self.device)
        return self._samples.stored_bytes() * _DEVICE_SHARE <= free

    def _idle_workers(self) -> _Workers:
        """Workers that no unfinished pass is using: a second pass beside it needs its own."""
        for workers in self._workers:
            if not workers.busy:
                return workers
        self._workers.append(_Workers(self._samples, self.num_workers))
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


class Loaders(NamedTuple):
    """What `make_loaders` returns; `val` is None where there is no validation split."""

    train: Loader
    val: Loader | None
    test: Loader
    preprocess: Preprocess


def fingerprint(split: Split) -> str:
    """Of the labels and of a few images: enough to tell two data sets apart, and quick."""
    digest = hashlib.blake2b(np.ascontiguousarray(split.labels).tobytes(), digest_size=8)
    for index in np.linspace(0, len(split) - 1, _FINGERPRINTED).astype(int):
        digest.update(split[int(index)][0].tobytes())
    return digest.hexdigest()


class _Samples:
    """Makes a whole batch from (epoch, indices); what workers run."""

    def __init__(self, split: Split, preprocess: Preprocess, augmenter: Augmenter | None):
        self.split, self.preprocess, self.augmenter = split, preprocess, augmenter
        self._enough = _enough(preprocess, augmenter)
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
        image = image_for(self.split, index, self._enough)
        if self.augmenter is None:
            return self.preprocess.resize(image)
        if not self.augmenter.takes_any_size:
            image = self.preprocess.resize(image)
        return self.preprocess.resize(self.augmenter(image, epoch, index))


class _DeviceSamples:
    """The batches of `_Samples` from images that lie on a GPU: gathered and augmented there, and not waited for."""

    def __init__(self, samples: _Samples, device: torch.device):
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


def _enough(preprocess: Preprocess, augmenter: Augmenter | None) -> tuple[int, int] | None:
    """What is enough of a photograph for its input; None, all of it, where somebody's own augmentation has it first."""
    if augmenter is None:
        return preprocess.enough
    if augmenter.operations is None:
        return None
    crops = [operation for operation in augmenter.operations if isinstance(operation, RandomResizedCrop)]
    # The smallest crop has the input's size still: its short side is sqrt(scale * ratio) of the image's.
    least = min((crop.scale[0] * min(*crop.ratio, 1.0) for crop in crops), default=1.0)
    if least <= 0:
        return None
    factor = max(1.0, 0.5 / math.sqrt(least))
    return math.ceil(factor * preprocess.enough[0]), math.ceil(factor * preprocess.enough[1])


def _in_memory(split: Split) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The array (N, H, W, C) that holds a split's images, and where in it they are (None: in their order)."""
    inner, places = located(split, np.arange(len(split)))
    if not isinstance(inner, ArraySplit):
        return None, None
    return inner.images, None if inner is split else places


class _Returning:
    """Returns the library's errors, which torch would raise anew as a page of traceback."""

    def __init__(self, samples: _Samples):
        self.samples = samples

    def __getitem__(self, request: tuple[int, np.ndarray]) -> tuple[Tensor, Tensor] | Exception:
        try:
            return self.samples[request]
        except VisionWrapperError as error:
            return error


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C in a terminal reaches every process; the one that trains ends its step first, and needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Workers:
    """Processes that live as long as the loader, and are given each epoch's batches in turn."""

    def __init__(self, samples: _Samples, count: int):
        self._requests = _Requests()
        self.busy = False
        with preserve_random_states():
            self._loader = torch.utils.data.DataLoader(
                _Returning(samples),  # type: ignore[arg-type]
                batch_size=None,
                sampler=self._requests,
                num_workers=count,
                persistent_workers=True,
                worker_init_fn=_ignore_interrupt,
            )

    def run(self, requests: list[tuple[int, np.ndarray]]) -> Iterator[tuple[Tensor, Tensor]]:
        self._requests.current, self.busy = requests, True
        dead = False
        try:
            with preserve_random_states():  # torch draws a base seed for its workers; ours need none
                batches = self._started()
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        except RuntimeError as error:
            dead = "DataLoader worker" in str(error)
            if not dead:
                raise
            raise WorkerError(
                f"A process that loads images has ended: {error} Often the memory did not suffice: use fewer "
                "num_workers or a smaller batch_size. With fit(checkpoint=…) the same call goes on."
            ) from error
        finally:
            self.busy = dead  # free, also when the pass is left before its end; the dead are never asked again

    def _started(self) -> Iterator[Any]:
        """The batches to come; the first time, the processes are started."""
        try:
            return iter(self._loader)
        except (PicklingError, AttributeError, TypeError) as error:  # as of a lambda, where processes are spawned
            raise SettingError(
                f"The augmentation or the data set cannot be sent to the processes that load images: {error} Define "
                "what they are made of at the top of a module, or pass num_workers=0."
            ) from error


class _Requests(torch.utils.data.Sampler):
    """Hands the current epoch's requests to torch's DataLoader.

    It does not know its `_Workers`: in a reference cycle these would end when the garbage collector comes by, and then
    wait five seconds for each process.
    """

    def __init__(self):
        self.current: list[tuple[int, np.ndarray]] = []

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


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
        batch_size: images in a training batch. Those without gradients are larger where images are small: 512 of
            32x32.
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
        SettingError: a value that cannot be.
        DataError: an unreadable image, or an augmentation that does not return a uint8 image.
    """
    if not isinstance(data, ImageData):
        raise SettingError(f"make_loaders takes what data.load or data.from_arrays returns, got {data!r}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SettingError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
    if not isinstance(val_fraction, (int, float)) or not 0 <= val_fraction < 1:
        raise SettingError(f"val_fraction must be in [0, 1), got {val_fraction!r}.")
    if preprocess is not None and size is not None:
        raise SettingError("size and preprocess both give the size of the input; pass one of them.")
    check_progressive_size(progressive_size)
    seed = checked_seed(seed)
    train, val = data.train, data.val
    if val_fraction:
        if val is not None:
            raise SettingError(f"{data.name} has a validation split of its own; leave out val_fraction.")
        rest, held_out = stratified_split(train.labels, val_fraction, seed, data.classes)
        train, val = Subset(train, rest), Subset(train, held_out)
    if preprocess is None:
        mean, std = (data.mean, data.std) if data.mean and data.std else mean_and_std(data.train)
        preprocess = Preprocess(common_size(data.train) if size is None else size, data.channels, mean, std)  # type: ignore[arg-type]
    if preprocess.channels != data.channels:
        raise DataError(
            f"preprocess is for {preprocess.channels} channels, the images have {data.channels}. Load them with "
            f"channels={preprocess.channels}."
        )
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


def check_progressive_size(steps: ProgressiveSize) -> None:
    """Raise `SettingError` unless these are pairs (epoch, share of the size) from epoch 0 on."""
    pairs = isinstance(steps, (tuple, list)) and all(isinstance(s, (tuple, list)) and len(s) == 2 for s in steps)
    numbers = pairs and all(isinstance(v, (int, float)) and not isinstance(v, bool) for s in steps for v in s)
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
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
            raise SettingError(f"num_workers must be a whole number of at least 0, got {num_workers!r}.")
        return num_workers
    if isinstance(innermost(split), ArraySplit):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_WORKERS, max(1, cores // processes_here()))

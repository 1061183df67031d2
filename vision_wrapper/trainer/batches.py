"""The batches of a pass, of which several processes take their parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice, zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, IterableDataset

from vision_wrapper._distributed import Processes, part_of
from vision_wrapper._state import samplers
from vision_wrapper.data import Loader
from vision_wrapper.data.check_loader import check_pair, shuffles
from vision_wrapper.errors import SettingError

if TYPE_CHECKING:
    from vision_wrapper.trainer.trainer import Trainer

T = TypeVar("T")


class Parts:
    """The parts that one of several processes takes of an epoch's batches: every count-th sample from its rank on.

    Of a batch that has no sample for it, it takes the first, whose `share` is 0: every process makes every step.

    Attributes:
        size: samples of the whole batch whose part was given last.
        share: what the loss of that part counts for, where the mean over the processes is the mean over the batch.
    """

    def __init__(self, processes: Processes, batches: Iterator[Any], sizes: Iterator[int] | None = None):
        """`batches` are whole ones, or with their whole `sizes` the parts of this process."""
        self._processes, self._batches, self._sizes = processes, batches, sizes
        self.size, self.share = 0, 1.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        rank, count = self._processes.rank, self._processes.count
        inputs, targets = check_pair(next(self._batches))
        if self._sizes is not None:
            self.size = next(self._sizes)
        else:
            self.size = len(targets)
            inputs, targets = part_of(inputs, rank, count), part_of(targets, rank, count)
        self.share = len(range(rank, self.size, count)) * count / self.size
        return inputs, targets


class SampledParts(Parts):
    """Of a DataLoader with a `DistributedSampler`, which gives each process its own batches, as many and as large."""

    def __next__(self) -> tuple[Tensor, Tensor]:
        inputs, targets = check_pair(next(self._batches))
        self.size = len(targets) * self._processes.count
        return inputs, targets


def training_batches(trainer: Trainer, loader: Any, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a training epoch from number `start` on, all of a loader that is not the library's.

    Of several processes each has its `Parts`.

    Raises `SettingError` for what is no loader, and, with several processes, for a torch DataLoader that shuffles, each
    in its own way, or whose `DistributedSampler` repeats samples.
    """
    processes = trainer.processes
    if isinstance(loader, Loader):
        loader.device = trainer.device
        batches = loader.batches(epoch, start, trainer.channels_last, part=(processes.rank, processes.count))
        if processes.count == 1:
            return batches
        images, size = len(loader.split), loader.batch_size
        return Parts(processes, batches, (min(size, images - number * size) for number in count(start)))
    sampler = _distributed_sampler(loader)
    if sampler is not None:
        sampler.set_epoch(epoch)
    if processes.count == 1:
        return _iterator(loader)
    if sampler is not None:
        _check_repeats_none(sampler)
        return SampledParts(processes, _iterator(loader))
    if shuffles(loader):
        raise SettingError(
            "This DataLoader shuffles, in each process in another way. Use data.make_loaders, or give it a "
            "torch.utils.data.DistributedSampler."
        )
    return Parts(processes, _iterator(loader))


def _check_repeats_none(sampler: DistributedSampler) -> None:
    repeated = sampler.total_size - len(sampler.dataset)  # type: ignore[arg-type]
    if repeated > 0:
        raise SettingError(
            f"The DistributedSampler repeats {repeated} of {sampler.total_size - repeated} samples, so that each "
            "process has as many; they would count twice. Pass it drop_last=True, or use data.make_loaders."
        )


def _iterator(loader: Any) -> Iterator[Any]:
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise SettingError(
            f"{type(loader).__name__} gives samples, not batches: torch.utils.data.DataLoader(dataset, batch_size=…)."
        )
    try:
        return iter(loader)
    except TypeError as error:
        raise SettingError(
            f"A loader is an iterable of (inputs, targets), such as data.make_loaders gives; got {loader!r}."
        ) from error


def _distributed_sampler(loader: Any) -> DistributedSampler | None:
    """The loader's DistributedSampler, which gives each process samples of its own, or None."""
    return next((sampler for sampler in samplers(loader) if isinstance(sampler, DistributedSampler)), None)


def evaluated_batches(trainer: Trainer, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader, which gives all of them to all processes; of several each has every count-th.

    Raises `SettingError` for what is no loader, and, with several processes, for a torch DataLoader that shuffles or
    parts its samples.
    """
    processes = trainer.processes
    if isinstance(loader, Loader):
        loader.device = trainer.device
        return loader.batches(0, processes.rank, trainer.channels_last, step=processes.count)
    if processes.count == 1:
        return _iterator(loader)
    if _distributed_sampler(loader) is not None or shuffles(loader):
        raise SettingError(
            "With several processes, evaluate with a DataLoader with shuffle=False and no DistributedSampler, which "
            "repeats samples: each process then takes its share of the batches."
        )
    return islice(_iterator(loader), processes.rank, None, processes.count)


def interleaved(gathered: Sequence[Sequence[T]]) -> list[T]:
    """What each process had of its batches, by rank, in the order of the batches that they parted."""
    missing = object()
    return [value for values in zip_longest(*gathered, fillvalue=missing) for value in values if value is not missing]  # type: ignore[misc]

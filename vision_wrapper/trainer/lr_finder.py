"""The learning rate range test, by torch-lr-finder with the trainer's own step, on a state that is put back."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from vision_wrapper._numbers import is_number, whole_number
from vision_wrapper._state import preserve_order, preserve_state
from vision_wrapper.data.check_loader import check_pair
from vision_wrapper.data.check_model import BATCH_OF_ONE, has_batch_norm
from vision_wrapper.errors import DataError, SettingError
from vision_wrapper.trainer.batches import Parts, training_batches
from vision_wrapper.trainer.checks import (
    check_last_batch,
    check_still_held,
    check_trainable,
    memory_errors,
    no_batch,
)
from vision_wrapper.trainer.first_batch import check_first_batch
from vision_wrapper.trainer.optimizers import Lookahead
from vision_wrapper.trainer.schedules import check_proportion, leading_group, rate_shares

if TYPE_CHECKING:
    from vision_wrapper.trainer.trainer import Trainer

SKIP_START, SKIP_END = 0.10, 0.05  # parts of the curve left out: settling in, and diverging
LEAST_POINTS = 10
LEAST_FALL = 0.05  # of the first loss; a smaller fall is noise
PEAK_SHARE = 0.2  # of the rate with the lowest loss, which is on the verge of diverging; measured: docs/trials.md


@dataclass(frozen=True)
class LRCurve:
    """The loss (smoothed) at each rate.

    Attributes:
        lrs: rising learning rates.
        losses: as many losses, exponentially smoothed as torch-lr-finder does.
        suggestion: the rate where the loss falls most steeply on a logarithmic scale, before its lowest point, as most
            finders suggest. None if the curve is useless.
        reason: why there is a suggestion or none.
        max_lr: the peak of a cycle, a fifth of the rate where the loss is lowest. That suits Adam; with SGD the best
            peak was about ten times as high in the trials of docs/trials.md. None if the curve is useless.
    """

    lrs: list[float] = field(repr=False)
    losses: list[float] = field(repr=False)
    suggestion: float | None
    reason: str
    max_lr: float | None = None


def suggest(lrs: list[float], losses: list[float], stopped: str = "") -> LRCurve:
    """Judge a curve: the steepest point on a logarithmic scale and the lowest one, or why it is useless."""

    def useless(why: str) -> LRCurve:
        return LRCurve(lrs, losses, None, f"{why}{stopped}")

    if not lrs:
        return useless("The loss is not finite at the first rate: look at the data and at the loss.")
    if len(lrs) < LEAST_POINTS:
        return useless(f"Only {len(lrs)} points, at least {LEAST_POINTS} are needed: raise num_iter or lower start_lr.")
    first, last = math.ceil(SKIP_START * len(lrs)), len(lrs) - math.ceil(SKIP_END * len(lrs))
    values = np.asarray(losses[first:last])
    fall = (values[0] - values.min()) / max(abs(values[0]), 1e-12)
    if fall < LEAST_FALL:
        return useless(f"The loss hardly falls ({fall:.1%}): try more steps or other rates, and look at the data.")
    lowest = int(values.argmin())
    # Up to the lowest point: Adam's loss may burst beyond it and then fall from there, steeper than it ever fell.
    values = values[: lowest + 1]
    steepest = int(np.gradient(values, np.log(lrs[first : first + len(values)])).argmin())
    steepest_lr, lowest_lr = float(lrs[first + steepest]), float(lrs[first + lowest])
    reason = f"The loss falls most steeply at {steepest_lr:.3g} and is lowest at {lowest_lr:.3g}.{stopped}"
    return LRCurve(lrs, losses, steepest_lr, reason, PEAK_SHARE * lowest_lr)


def run_lr_finder(
    trainer: Trainer, train_loader: Any, val_loader: Any, start_lr: float, end_lr: float, num_iter: int
) -> LRCurve:
    """See `Trainer.find_lr`."""
    if not (is_number(start_lr) and is_number(end_lr) and 0 < start_lr < end_lr < math.inf):
        raise SettingError(f"find_lr needs numbers 0 < start_lr < end_lr, got {start_lr!r} and {end_lr!r}.")
    num_iter = whole_number("num_iter", num_iter, 2)
    check_still_held(trainer.model, trainer.optimizer, trainer.loss_fn)
    check_trainable(trainer.model, trainer.optimizer)
    check_proportion(trainer.optimizer)
    check_last_batch(trainer.model, train_loader, trainer.processes.count)
    finder_class, batches_class = _classes()
    with _borrowed(trainer, train_loader), memory_errors(train_loader, trainer.accumulate):
        finder = finder_class(trainer, val_loader)
        with _quietly(), contextlib.suppress(_LossNotFinite):
            finder.range_test(
                batches_class(_endless(trainer, train_loader)),
                start_lr=start_lr,
                end_lr=end_lr,
                num_iter=num_iter,
                accumulation_steps=trainer.accumulate,
            )
    losses = finder.history["loss"]
    stopped = f" The loss was not finite at {finder.rates[-1]:.3g}." if len(losses) < len(finder.rates) else ""
    return suggest(finder.rates[: len(losses)], losses, stopped)


@contextlib.contextmanager
def _borrowed(trainer: Trainer, loader: Any) -> Iterator[None]:
    """Let the trainer make steps as at the beginning of a fit, and put back all that they change."""
    loss = trainer.loss_fn if isinstance(trainer.loss_fn, nn.Module) else nn.Module()  # one may have a state too
    with (
        preserve_state(trainer.model, trainer.optimizer, trainer._scaler),
        preserve_state(loss),
        preserve_order(loader),
    ):
        if not trainer.model.training:
            trainer.model.train()
        trainer.optimizer.zero_grad(set_to_none=True)
        if isinstance(trainer.optimizer, Lookahead):
            trainer.optimizer.restart()
        for group in trainer.optimizer.param_groups:
            group.pop("initial_lr", None)  # of an attached scheduler, from which the test would start
        # Of a fit that a callback interrupts with this: its averages have no part in it, its processes stay joined.
        average, trainer._average = trainer._average, None
        joined = bool(trainer._distributed)
        taps, trainer._unreached_taps = trainer._unreached_taps, trainer._unreached_taps.anew()
        try:
            trainer._distribute()
            yield
        finally:
            trainer._unreached_taps = taps
            trainer._average = average
            if not joined:
                trainer._separate()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The package prints, whether one wants it or not.

    Its bar shows in notebooks wherever standard error goes, and leaves a thread behind.
    """
    from torch_lr_finder import lr_finder

    bar, lr_finder.tqdm = lr_finder.tqdm, iter
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        lr_finder.tqdm = bar


class _LossNotFinite(Exception):
    """Ends the test: torch-lr-finder itself goes on through NaN."""


def _endless(trainer: Trainer, loader: Any) -> Iterator[Any]:
    """(batch, its `Parts.share`) of epoch after epoch; a loader's own count of epochs stays."""
    refuses_one = has_batch_norm(trainer.model)
    for epoch in count():
        first, batches = True, training_batches(trainer, loader, epoch)
        for batch in batches:
            if first and epoch == 0:
                check_first_batch(trainer, batch, loader)
            first = False
            inputs, targets = check_pair(batch)
            size, share = (batches.size, batches.share) if isinstance(batches, Parts) else (len(targets), 1.0)
            if refuses_one and size < 2 * trainer.processes.count:
                raise DataError(BATCH_OF_ONE)
            yield (inputs, targets), share
        if first:
            raise no_batch()


def _classes() -> tuple[Any, Any]:
    """torch-lr-finder's classes with the trainer's step; made here because importing it loads matplotlib."""
    from torch_lr_finder import LRFinder, TrainDataLoaderIter

    class Batches(TrainDataLoaderIter):
        def __init__(self, batches: Iterator[Any]):
            self._iterator = batches

    class Finder(LRFinder):
        def __init__(self, trainer: Trainer, val_loader: Any):
            self.trainer, self.val_loader = trainer, val_loader
            self.leader, self.shares = leading_group(trainer.optimizer), rate_shares(trainer.optimizer)
            self.rates: list[float] = []
            super().__init__(trainer.model, trainer.optimizer, trainer.loss_fn, device=trainer.device)

        def _check_for_scheduler(self) -> None:
            """An attached scheduler is no obstacle: its marks are put back."""

        def _train_batch(self, train_iter: Any, accumulation_steps: int, non_blocking_transfer: bool = True) -> float:
            groups = self.optimizer.param_groups
            rate = float(groups[self.leader]["lr"])
            for group, proportion in zip(groups, self.shares, strict=False):
                group["lr"] = rate * proportion  # the package would drive all groups to one rate
            self.rates.append(rate)
            self.optimizer._opt_called = True  # the step is taken, though not through the package's counter
            total = 0.0
            for i in range(accumulation_steps):
                batch, part = next(train_iter)
                inputs, targets = self.trainer._prepare(*batch)
                share = part / accumulation_steps
                loss, _ = self.trainer.train_step(inputs, targets, share=share, update=i == accumulation_steps - 1)
                total += float(loss) * share
            totals = self.trainer.processes.gathered(total)
            total = sum(totals) / len(totals)
            if self.val_loader is not None:
                total = self.trainer.evaluate(self.val_loader).loss
            if not math.isfinite(total):
                raise _LossNotFinite
            return total

    return Finder, Batches

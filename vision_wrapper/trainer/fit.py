"""One fit: what it is to be, and where it stands, with what only the loop needs to know."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vision_wrapper._files import PathLike, check_writable
from vision_wrapper._numbers import is_number, whole_number
from vision_wrapper.data.check_loader import length
from vision_wrapper.data.check_model import has_batch_norm
from vision_wrapper.errors import DataError, SettingError
from vision_wrapper.trainer import checkpoint as checkpoints
from vision_wrapper.trainer.batches import Parts
from vision_wrapper.trainer.callbacks import HOOKS, Callback, Run, hooks_of
from vision_wrapper.trainer.checks import (
    check_last_batch,
    check_same_settings,
    check_still_held,
    check_trainable,
    not_finite,
)
from vision_wrapper.trainer.distributed import Agreement
from vision_wrapper.trainer.guards import BeforeSchedule
from vision_wrapper.trainer.history import check_validated
from vision_wrapper.trainer.passes import Evaluation, are_classes
from vision_wrapper.trainer.schedules import Schedule, from_function

if TYPE_CHECKING:
    from vision_wrapper.trainer.trainer import Trainer


@dataclass
class Fit(Run):
    """A `Run` with what only the loop needs to know, and the sums of the epoch under way."""

    loader: Any = None
    first_epoch: int = 0  # epochs the trainer had trained before this fit
    step: int = 0  # batches of the finished epochs
    schedule: Schedule | None = None
    scheduler: Any = None
    schedule_begun: str = ""  # the scheduler of a user's function, as it was made
    leader: int = 0  # the group of the optimizer whose rate the history keeps
    own_rates: list[float] = field(default_factory=list)  # of the groups, before the schedule
    before_schedule: BeforeSchedule | None = None
    checkpoint: Path | None = None
    checkpoint_seconds: float = math.inf
    settings: dict[str, Any] = field(default_factory=dict)
    batch_history: bool = False
    callbacks: list[Callback] = field(default_factory=list)  # that this process calls
    started: list[Callback] = field(default_factory=list)
    hooks: dict[str, list[Any]] = field(default_factory=dict)
    # Of the epoch under way: of the batches whose losses and hits were read, and, on the device, of those since then.
    losses: list[float] = field(default_factory=list)
    correct: int | None = None  # None where targets are not classes
    unread: list[Tensor] = field(default_factory=list)  # losses, of several processes this one's part of them
    hits: list[Tensor] = field(default_factory=list)  # bool (N,) each
    sizes: list[int] = field(default_factory=list)
    rates: list[float | Tensor] = field(default_factory=list)
    parts: Parts | None = None  # of several processes: this one's part of the epoch's batches
    agreement: Agreement | None = None  # likewise
    seconds: float = 0.0
    epoch_random: dict[str, Any] | None = None  # at the epoch's first batch, for loaders that draw their order from it
    resume_random: dict[str, Any] | None = None  # where a resumed run has to go on
    pending: int = 0  # batches since the optimizer's last step
    refuses_one: bool = False  # a batch of one, because of batch norm
    checked: bool = False  # the first batch of this fit
    in_epoch: bool = False  # between the first batch of an epoch and its last step
    waiting: bool = False  # in an epoch, for the loader's next batch
    ctrl_c: bool = False  # was pressed, in this process
    interrupted: bool = False  # what all processes know of it

    def call(self, hook: str) -> None:
        """Call what the callbacks have for this hook."""
        for function in self.hooks[hook]:
            function(self)

    def start(self) -> None:
        """Call each `on_fit_start`; callbacks that were called also get `on_fit_end`, even if a later one raises."""
        for callback in self.callbacks:
            self.started.append(callback)
            callback.on_fit_start(self)

    def end(self) -> None:
        """Call every `on_fit_end`, also where one raises; its error is raised afterwards."""
        errors = []
        for callback in self.started:
            try:
                callback.on_fit_end(self)
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def begin_epoch(self) -> None:
        """Forget the sums of the epoch before."""
        self.losses, self.unread, self.hits, self.sizes, self.rates = [], [], [], [], []
        self.samples = self.correct = 0

    def window(self, accumulate: int) -> tuple[int, bool]:
        """(batches in the window the next one is in, whether it is its last); an epoch's last may be shorter.

        It may also end before it was to, where the loader's length is unknown or wrong.
        """
        left = accumulate
        if self.batches is not None and self.batch < self.batches:
            left = self.batches - (self.batch - self.pending)
        window = min(accumulate, left)
        return window, self.pending + 1 == window

    def add_batch(self, loss: Tensor, logits: Tensor, targets: Tensor, size: int, share: float) -> None:
        """Count a batch of that size, and keep its loss and hits, unread.

        Of several processes, `size` is that of the whole batch, and `share` 0 where this one had no sample of it.
        """
        self.batch += 1
        self.samples += size
        self.sizes.append(size)
        self.unread.append(loss if self.parts is None else loss * (share / self.trainer.processes.count))
        if self.correct is None:
            return
        if not are_classes(logits, targets):
            self.correct = None
        elif share:
            self.hits.append(logits.argmax(1) == targets)

    def read_losses(self) -> None:
        """Read the losses and hits since the last time: the one moment at which the device is waited for.

        Raises `NonFiniteLossError` where one is not finite.
        """
        losses = torch.stack(self.unread).float().tolist() if self.unread else []
        hits = int(torch.cat(self.hits).sum()) if self.hits else 0
        self.unread, self.hits = [], []
        gathered = self.trainer.processes.gathered((losses, hits))
        self.losses += [sum(parts) for parts in zip(*(losses for losses, _ in gathered), strict=True)]
        if self.correct is not None:
            self.correct += sum(hits for _, hits in gathered)
        for batch, loss in enumerate(self.losses):
            if not math.isfinite(loss):
                raise not_finite(self, batch, loss)

    def add_row(self, evaluation: Evaluation | None) -> dict[str, Any]:
        """Add the epoch that was trained, and whose losses were read, to the history; return its row."""
        self.total, self.val_total = self.samples, 0 if evaluation is None else evaluation.total
        row = {
            "epoch": self.epoch + 1,
            "lr": float(self.rates[-1]),
            "train_loss": sum(map(operator.mul, self.losses, self.sizes)) / self.samples,
            "train_accuracy": None if self.correct is None else self.correct / self.samples,
            "val_loss": None if evaluation is None else evaluation.loss,
            "val_accuracy": None if evaluation is None else evaluation.accuracy,
            "seconds": self.seconds,
        }
        if self.batch_history:
            self.history.batches += [
                {"step": self.step + i, "epoch": self.epoch + 1, "lr": float(rate), "loss": loss}
                for i, (rate, loss) in enumerate(zip(self.rates, self.losses, strict=False))
            ]
        self.history.rows.append(row)
        self.step += len(self.losses)
        return row


def new_run(
    trainer: Trainer,
    train_loader: Any,
    val_loader: Any,
    epochs: int,
    schedule: Schedule | Callable[[torch.optim.Optimizer], Any] | None,
    every: Literal["batch", "epoch"],
    checkpoint: PathLike | None,
    checkpoint_seconds: float,
    batch_history: bool,
) -> Fit:
    """A run that has not begun, of what `Trainer.fit` was given; raises what that raises before the first batch."""
    schedule = _as_schedule(schedule, every)
    epochs = whole_number("epochs", epochs, 1)
    if schedule is not None and schedule.monitor is not None:
        check_validated(schedule.monitor, val_loader is not None, "The schedule")
    if not is_number(checkpoint_seconds) or not checkpoint_seconds >= 0:
        raise SettingError(f"checkpoint_seconds must be a number of at least 0, got {checkpoint_seconds!r}.")
    batches = length(train_loader)
    if batches == 0:
        raise DataError("The training loader is empty.")
    check_still_held(trainer.model, trainer.optimizer, trainer.loss_fn)
    check_trainable(trainer.model, trainer.optimizer)
    check_last_batch(trainer.model, train_loader, trainer.processes.count)
    run = Fit(
        trainer=trainer,
        epochs=epochs,
        batches=batches,
        loader=train_loader,
        first_epoch=trainer.epochs_trained,
        schedule=schedule,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_seconds=checkpoint_seconds,
        batch_history=batch_history,
        validates=val_loader is not None,
        refuses_one=has_batch_norm(trainer.model),
    )
    if schedule is not None and batches is None and schedule.every == "batch":
        raise SettingError(f"{schedule.name} needs to know how many batches an epoch has; give the loader a len().")
    run.callbacks = [callback for callback in trainer.callbacks if callback.everywhere or trainer.processes.is_main]
    run.hooks = {name: hooks_of(run.callbacks, name) for name in HOOKS}
    run.settings = checkpoints.describe(trainer, run)
    if trainer.processes.count > 1:
        run.agreement = Agreement(trainer.processes)
        settings = {**run.settings, "checkpoint": run.checkpoint is not None}
        check_same_settings(trainer.processes.gathered(settings))
    if run.checkpoint is not None:
        trainer.processes.on_main(partial(check_writable, run.checkpoint))
    return run


def _as_schedule(
    schedule: Schedule | Callable[[torch.optim.Optimizer], Any] | None, every: Literal["batch", "epoch"]
) -> Schedule | None:
    """What `fit` was given, as a Schedule. Raises `SettingError` for what cannot be one."""
    if schedule is None or isinstance(schedule, Schedule):
        return schedule
    if not callable(schedule):
        raise SettingError(f"schedule must be of trainer.schedules or a function of the optimizer, got {schedule!r}.")
    return from_function(schedule, every)

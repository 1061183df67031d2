"""The loop: one training step, written once, and what goes around it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vision_wrapper._allocator import keep_freed_memory
from vision_wrapper._describe import description
from vision_wrapper._distributed import join
from vision_wrapper._files import PathLike
from vision_wrapper._numbers import whole_number
from vision_wrapper._state import loader_states, random_states, set_loader_states, set_random_states
from vision_wrapper.data import Loader
from vision_wrapper.data.check_loader import check_pair
from vision_wrapper.data.check_model import BATCH_OF_ONE
from vision_wrapper.errors import DataError, SettingError
from vision_wrapper.evaluation import Predictions
from vision_wrapper.models import is_own
from vision_wrapper.trainer import checkpoint as checkpoints
from vision_wrapper.trainer import passes
from vision_wrapper.trainer.batches import Parts, training_batches
from vision_wrapper.trainer.callbacks import Callback, ProgressBar
from vision_wrapper.trainer.checks import (
    check_callbacks,
    check_distributable,
    check_optimizer,
    check_same_groups,
    check_settings,
    memory_errors,
    no_batch,
    no_logits,
    position,
    warn_of_low_rates,
)
from vision_wrapper.trainer.distributed import Synchronised
from vision_wrapper.trainer.ema import WeightAverage
from vision_wrapper.trainer.filters import UnreachedTaps
from vision_wrapper.trainer.first_batch import check_first_batch, check_validation
from vision_wrapper.trainer.fit import Fit, new_run
from vision_wrapper.trainer.guards import (
    BeforeSchedule,
    deterministic_algorithms,
    end_of,
    preserve_training,
    reset_scaler,
    stop_on_interrupt,
    unchanged_on_error,
)
from vision_wrapper.trainer.history import History, watched
from vision_wrapper.trainer.losses import LOSS_ERRORS, check_loss, no_mean, raise_loss_failed
from vision_wrapper.trainer.lr_finder import LRCurve, run_lr_finder
from vision_wrapper.trainer.optimizers import Lookahead
from vision_wrapper.trainer.passes import Evaluation
from vision_wrapper.trainer.precision import autocast, choose_device, choose_precision, gradient_scaler
from vision_wrapper.trainer.schedules import Schedule, leading_group
from vision_wrapper.trainer.views import Views

Batches = Iterable[tuple[Tensor, Tensor]]


class Trainer:
    """Trains, evaluates and predicts with a model and its optimizer.

    Under `torchrun`, `accelerate launch`, a notebook launcher, srun or Ray Train it joins the other processes: each
    trains on its part of every batch, from the main one's weights, with torch's DistributedDataParallel. Every process
    then has to make the same calls; the main one writes and prints. `processes` says which one this is.

    Args:
        model: any module from a batch of inputs to logits (N, classes). It is moved to the device; networks of this
            library are also put into channels_last memory format.
        optimizer: of the model's parameters, all or some.
        loss_fn: (logits float32, targets) to the batch's mean loss; None is cross-entropy.
        callbacks: None is a `ProgressBar`; a sequence replaces it.
        device: None is CUDA, else MPS, else the CPU.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the device computes it itself, fp16 on older CUDA GPUs,
            else fp32.
        compile: compile the forward pass with `torch.compile`; "graphs" has CUDA replay it as graphs, for networks so
            small that launching their kernels takes longer than running them.
        ema: decay of an exponential moving average of the weights, such as 0.999; validation uses the average, and the
            model holds it after `fit`.
        clip_norm: the gradient is scaled down to this norm where it is larger.
        accumulate: how many batches' gradients make one step.
        l1: coefficient of the sum of absolute weights (without norms and biases), added to the training loss.
        channels_last: whether to use channels_last memory format; None means for this library's networks alone.
        deterministic: use deterministic algorithms during `fit`, which CUDA needs for an exact resume. On CUDA this
            sets the environment variable `CUBLAS_WORKSPACE_CONFIG`, unless it is set already; torch reads it once, at
            the process's first matrix multiplication there.

    Attributes:
        model, optimizer, device, precision: as it was made; another one takes another Trainer.
        epochs_trained: the epochs of all fits so far, or of the checkpoint that was loaded.
        interrupted: whether Ctrl-C ended the last `fit`.
        processes: the processes that train together: `.count`, `.rank` of this one, and `.is_main`.

    Raises:
        SettingError: an invalid value, or an optimizer that does not belong to the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        callbacks: Sequence[Callback] | None = None,
        device: str | torch.device | None = None,
        precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        compile: bool | Literal["graphs"] = False,
        ema: float | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        l1: float = 0.0,
        channels_last: bool | None = None,
        deterministic: bool = False,
    ):
        accumulate = whole_number("accumulate", accumulate, 1)
        check_settings(ema=ema, clip_norm=clip_norm, accumulate=accumulate, l1=l1, compile=compile)
        check_optimizer(model, optimizer, loss_fn)
        if loss_fn is not None:
            check_loss(loss_fn)
        self.processes = join()
        if self.processes.count > 1:
            check_distributable(model, compile)
        self.device = choose_device(device, self.processes.count)
        self.precision = choose_precision(precision, self.device)
        if deterministic and self.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as torch asks for
        self.model, self.optimizer = model, optimizer
        self.loss_fn = loss_fn or nn.functional.cross_entropy
        if isinstance(loss_fn, nn.Module):
            loss_fn.to(self.device)  # the weights of its classes
        self.callbacks: list[Callback] = [ProgressBar()] if callbacks is None else check_callbacks(callbacks)
        self.ema, self.clip_norm, self.accumulate, self.l1 = ema, clip_norm, accumulate, l1
        self.channels_last = is_own(model) if channels_last is None else channels_last
        self.deterministic = deterministic
        self.epochs_trained = 0
        self.interrupted = False  # whether Ctrl-C ended the last fit
        model.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        checkpoints.place_state(optimizer)
        self.processes.broadcast([*model.parameters(), *model.buffers()])
        self._network = _compiled(model, compile) if compile else model
        self._forward: Callable[[Tensor], Tensor] = self._network  # in training steps
        self._distributed: list[nn.Parameter] = []  # whose gradients that averages over processes
        self._unsynchronised: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._autocast = autocast(self.precision, self.device)
        bf16_on_cpu = self.precision == "bf16" and self.device.type == "cpu"
        self._unreached_taps = UnreachedTaps(model, enabled=bf16_on_cpu and not compile)
        self._scaler = gradient_scaler(self.precision, self.device)
        # A disabled scaler would only pass on, in every step.
        self._optimizer_step = partial(self._scaler.step, optimizer) if self._scaler.is_enabled() else optimizer.step
        self._average: WeightAverage | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and name in self.__dict__ and value is not self.__dict__[name]:
            raise SettingError(f"A trainer's {name} stays what it was made with: make another Trainer for another one.")
        super().__setattr__(name, value)

    # ---- one step

    def train_step(
        self, inputs: Tensor, targets: Tensor, *, share: float = 1.0, update: bool = True
    ) -> tuple[Tensor, Tensor]:
        """One training step, the only one: fit, the LR finder and the benchmarks call it.

        Args:
            inputs: a batch (N, …) on the trainer's device.
            targets: (N,) classes, or what else the loss takes, likewise.
            share: what the loss counts for in this step of the optimizer: 1 / n where n batches make it.
            update: whether this is the last of them.

        Returns:
            The batch's loss, a scalar, and its logits, float32 (N, classes): detached, on the device.

        Raises:
            DataError: the loss cannot be computed of these outputs and targets.
            SettingError: the model returns no tensor; the loss is no mean of the batch, or depends on nothing that
                learns.
        """
        defined = self._unreached_taps[inputs.shape[1:]]
        with defined, self._autocast, _SYNCHRONISED if update else self._unsynchronised():
            outputs = self._forward(inputs)
        if not isinstance(outputs, Tensor):
            raise no_logits(outputs)
        logits = outputs.float()  # losses are computed in float32, here as in `evaluate`
        try:
            loss = self.loss_fn(logits, targets)
        except LOSS_ERRORS as error:
            raise_loss_failed(logits, targets, error)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            raise no_mean(loss)
        total = loss if not self.l1 else loss + self.l1 * self._l1_norm()
        if share != 1:
            total = total * share
        scales = self._scaler.is_enabled()
        (self._scaler.scale(total) if scales else total).backward()
        if update:
            if self.clip_norm is not None:
                self._clip_gradients(self.clip_norm)
            self._optimizer_step()
            self._after_step()
        return loss.detach(), logits.detach()

    def _l1_norm(self) -> Tensor:
        """The sum of the absolute weights that learn, of matrices and filters."""
        sums = [p.abs().sum() for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        return torch.stack(sums).sum() if sums else torch.zeros((), device=self.device)

    def _clip_gradients(self, norm: float) -> None:
        self._scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self._optimized(), norm)

    def _optimized(self) -> list[nn.Parameter]:
        """The parameters that the optimizer holds, all of the model's or some; others keep what gradients they have."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _after_step(self) -> None:
        if self._scaler.is_enabled():
            self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update()

    # ---- training

    def fit(
        self,
        train_loader: Batches,
        val_loader: Batches | None = None,
        *,
        epochs: int,
        schedule: Schedule | Callable[[torch.optim.Optimizer], Any] | None = None,
        every: Literal["batch", "epoch"] = "epoch",
        checkpoint: PathLike | None = None,
        checkpoint_seconds: float = 60.0,
        extend: bool = False,
        batch_history: bool = False,
    ) -> History:
        """Train for `epochs`, and return the history.

        Ctrl-C ends the run after the batch under way, writes the checkpoint, and returns the history so far.

        The first fit on a CPU tells glibc to keep freed memory for the next step; the environment variable
        `VISION_WRAPPER_ALLOCATOR=system` prevents that.

        Args:
            train_loader: of `data.make_loaders`, or any iterable of (inputs, targets), iterated once an epoch.
            val_loader: validated after each epoch.
            epochs: of the whole run, also when it goes on.
            schedule: of `trainer.schedules`, or a function from the optimizer to a torch scheduler, which then steps
                `every` "batch" or "epoch". None leaves the rate alone.
            every: see `schedule`.
            checkpoint: written here at the end of each epoch's training and every `checkpoint_seconds`. Where the same
                run's checkpoint lies, the run goes on from it, and ends as if it had never been interrupted.
            checkpoint_seconds: between two checkpoints inside an epoch.
            extend: let a checkpoint of the same run with fewer epochs go on. The schedule is then the one that is given
                here, made for all `epochs`, from the position that was reached; without it this is an `OtherRunError`.
                One that watches a metric goes on as it was, and has to be the same.
            batch_history: keep the loss and the rate of each batch in `history.batches`.

        Raises:
            SettingError: an invalid value, before the first batch.
            DataError: a first batch that the model cannot take.
            NonFiniteLossError: the loss became NaN or infinite, or weights that a checkpoint was to hold.
            OtherRunError: the checkpoint is of a run with other settings.
            CheckpointError: a checkpoint cannot hold the state of the schedule, of a callback or of the model.
            DeviceMemoryError: the GPU's memory did not suffice.
        """
        run = new_run(
            self, train_loader, val_loader, epochs, schedule, every, checkpoint, checkpoint_seconds, batch_history
        )
        # Another run's is refused before anything is changed.
        kept = self.processes.on_main(partial(checkpoints.read, self, run, extend))
        with memory_errors(val_loader):
            check_validation(self, val_loader)
        if self.device.type == "cpu":
            keep_freed_memory()
        begun = False
        try:
            with end_of(run), stop_on_interrupt(run), deterministic_algorithms(self.deterministic):
                self._begin(run, kept)
                begun = True
                run.start()
                checkpoints.check_model_savable(self, run)
                checkpoints.check_callbacks_savable(self, run)
                # A reason to stop that came inside an epoch, before an interruption, ends the run after that epoch.
                while run.epoch < run.epochs and (run.stop is None or run.batch) and not run.interrupted:
                    self._train_epoch(run)
                    if not run.interrupted:
                        self._finish_epoch(run, val_loader)
                if not run.interrupted:
                    checkpoints.write(self, run)
                averages = [] if self._average is None else self._average.averages
                self.processes.broadcast([*self.model.buffers(), *averages])
        finally:
            try:
                if begun:
                    run.end()
            finally:
                self._end(run, begun)
        return run.history

    def _begin(self, run: Fit, kept: dict[str, Any] | None) -> None:
        """Attach the schedule and the average, and go to where a kept checkpoint left the run."""
        if self.ema is not None:
            self._average = WeightAverage(self.model, self.ema)
        self._unreached_taps.clear()  # layers may be others now
        run.own_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        with unchanged_on_error(self.optimizer):
            if run.schedule is not None:
                self._attach(run, run.schedule, kept)
            run.leader = leading_group(self.optimizer)
            warn_of_low_rates(self.optimizer)
            if kept is not None:
                checkpoints.restore(self, run, kept)
        if kept is None and isinstance(self.optimizer, Lookahead):
            self.optimizer.restart()
        if not self.model.training:
            self.model.train()  # a part that was put in eval mode alone, as by models.freeze, stays in it
        self.optimizer.zero_grad(set_to_none=True)

    def _attach(self, run: Fit, schedule: Schedule, kept: dict[str, Any] | None) -> None:
        """Build the scheduler from the rates that the run began with."""
        if kept is not None:
            checkpoints.rewind_rates(self.optimizer, kept)
        run.before_schedule = BeforeSchedule(self.optimizer)
        run.scheduler = schedule.build(self.optimizer, run.epochs, math.ceil((run.batches or 1) / self.accumulate))
        if schedule.function is not None:
            run.schedule_begun = f"{type(run.scheduler).__name__} {description(run.scheduler.state_dict())}"
            if kept is not None:
                checkpoints.check_same_schedule(run, kept)
        # The scheduler has put a counter over `optimizer.step`, to warn where it steps first; here it never does.
        vars(self.optimizer)["_opt_called"] = True
        checkpoints.check_schedule_savable(run)

    def _train_epoch(self, run: Fit) -> None:
        started = time.monotonic()
        batches = self._epoch_batches(run)  # a new epoch begins at 0 seconds, one that goes on where it was
        started -= run.seconds
        check_same_groups(self.optimizer, len(run.own_rates))
        self._distribute()
        batch_hooks, every_batch = run.hooks["on_batch_end"], run.schedule is not None and run.schedule.every == "batch"
        next_checkpoint = time.monotonic() + run.checkpoint_seconds
        run.in_epoch, run.waiting, window = True, True, 1
        for batch in batches:
            run.waiting = False
            try:
                inputs, targets = batch
            except (TypeError, ValueError):
                inputs, targets = check_pair(batch)  # says what it is
            size, share = len(targets), 1.0
            if run.parts is not None:
                size, share = run.parts.size, run.parts.share
            if run.refuses_one and size < 2 * self.processes.count:  # in all processes, where one has a single sample
                raise DataError(f"{position(run)}: {BATCH_OF_ONE}")
            inputs, targets = self._prepare(inputs, targets)
            window, update = (1, True) if self.accumulate == 1 else run.window(self.accumulate)
            rate = self.optimizer.param_groups[run.leader]["lr"]
            run.rates.append(rate.clone() if isinstance(rate, Tensor) else rate)  # schedules change a tensor in place
            loss, logits = self.train_step(inputs, targets, share=share / window, update=update)
            run.add_batch(loss, logits, targets, size, share)
            run.pending = 0 if update else run.pending + 1
            if update and every_batch:
                run.scheduler.step()
            for hook in batch_hooks:
                hook(run)
            if update:
                stop, due = run.ctrl_c, time.monotonic() >= next_checkpoint
                if run.agreement is not None:
                    stop, due = run.agreement.reached(stop, due)
                if stop or due:
                    run.seconds = time.monotonic() - started
                    checkpoints.write(self, run)
                    next_checkpoint = time.monotonic() + run.checkpoint_seconds
                if stop:
                    run.interrupted = True
                    return
            run.waiting = True
        run.waiting = False
        self._close_epoch(run, window, started)

    def _epoch_batches(self, run: Fit) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this epoch that are still to be trained on; the first one of a fit is looked at.

        Where a run goes on inside an epoch, two random states are put back: that of the epoch's beginning, from which a
        user's loader draws its order again, and, last, that of the interruption: all draws until it had been made.
        """
        loader, epoch = run.loader, run.first_epoch + run.epoch
        resumed, run.resume_random = run.resume_random, None
        if run.batch == 0:
            if resumed is not None:
                set_random_states(resumed)
            run.epoch_random = {**random_states(), "loader": loader_states(loader)}
            run.begin_epoch()
        elif not isinstance(loader, Loader) and run.epoch_random is not None:
            set_random_states(run.epoch_random)
            set_loader_states(loader, run.epoch_random["loader"])
        run.call("on_epoch_start")  # before a loader's processes look at what it may change
        batches = training_batches(self, loader, epoch, run.batch)
        run.parts = batches if isinstance(batches, Parts) else None
        if run.batch:
            for _ in range(0 if isinstance(loader, Loader) else run.batch):
                next(batches, None)
            if resumed is not None:
                set_random_states(resumed)
        if not run.checked:
            run.checked = True
            first = next(batches, None)
            if first is None:
                if resumed is not None:  # the end of the epoch may draw, and had drawn
                    set_random_states(resumed)
                return iter(())
            check_first_batch(self, first, loader)
            batches = chain([first], batches)
        return batches

    def _distribute(self) -> None:
        """Have training steps average their gradients over the processes, of what is trained now."""
        if self.processes.count == 1:
            return
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if [*map(id, trained)] == [*map(id, self._distributed)]:
            return
        self._separate()
        # After its first step torch orders the gradients anew, and with them, from three processes on, the sums: a
        # resumed run would differ in its last bits. Looking for unused parameters, which takes time, prevents it.
        exact = self.processes.count > 2 and (self.device.type == "cpu" or self.deterministic)
        wrapped = Synchronised(self._network, find_unused_parameters=exact)  # type: ignore[arg-type]
        self._forward, self._unsynchronised, self._distributed = wrapped, wrapped.no_sync, trained

    def _separate(self) -> None:
        """Have training steps use the gradients of this process alone, as outside of a fit."""
        self._forward, self._unsynchronised, self._distributed = self._network, nullcontext, []

    def _finish_window(self, run: Fit, window: int) -> None:
        """The step of the epoch's last window, where the loader's length (none, or a wrong one) had promised more."""
        gradients = [p.grad for p in self._optimized() if p.grad is not None]
        torch._foreach_mul_(gradients, window / run.pending)  # each loss counted as 1 / window
        self.processes.average(gradients)
        run.pending = 0
        if self.clip_norm is not None:
            self._clip_gradients(self.clip_norm)
        self._optimizer_step()
        self._after_step()
        if run.schedule is not None and run.schedule.every == "batch":
            run.scheduler.step()

    def _close_epoch(self, run: Fit, window: int, started: float) -> None:
        """What is to be done after an epoch's last batch; `window` is of the step that it began."""
        if not run.batch:
            raise no_batch("training loader")
        if run.pending:
            self._finish_window(run, window)
        run.in_epoch = False
        gathered = self.processes.gathered((run.ctrl_c, time.monotonic() - started))
        run.interrupted, run.seconds = any(stop for stop, _ in gathered), max(seconds for _, seconds in gathered)
        if run.interrupted:  # after the last batch, as while the loader's processes end
            checkpoints.write(self, run)

    def _finish_epoch(self, run: Fit, val_loader: Batches | None) -> None:
        checkpoints.write(self, run)
        run.read_losses()
        evaluation = None
        if val_loader is not None:
            with self.averaged():
                evaluation = self.evaluate(val_loader)
        row = run.add_row(evaluation)
        if run.schedule is not None and run.schedule.every == "epoch":
            monitor = run.schedule.monitor
            run.scheduler.step(*([] if monitor is None else [watched(row, monitor, "The schedule")]))
        run.epoch += 1
        self.epochs_trained = run.first_epoch + run.epoch  # before callbacks, of which one may save
        run.batch, run.seconds = 0, 0.0
        with preserve_training(self.model):
            run.call("on_epoch_end")
        gathered = self.processes.gathered((run.stop, run.ctrl_c))
        run.stop = next((stop for stop, _ in gathered if stop is not None), None)
        run.interrupted = any(ctrl_c for _, ctrl_c in gathered)

    def _end(self, run: Fit, begun: bool) -> None:
        """Leave the model with its average, and the optimizer without the schedule."""
        average, self._average = self._average, None
        self._separate()
        if run.before_schedule is not None and run.scheduler is not None:
            run.before_schedule.put_back()
        if self._scaler.is_enabled():
            reset_scaler(self._scaler, self.optimizer)
        self.interrupted = run.interrupted
        if not begun:
            return
        if average is not None:
            average.swap()
        self.epochs_trained = run.first_epoch + run.epoch

    # ---- evaluation

    def evaluate(self, loader: Batches) -> Evaluation:
        """Mean loss and accuracy over a loader, in eval mode; everything is left as it was.

        Args:
            loader: of `data.make_loaders`, or any iterable of (inputs, targets).

        Raises:
            DataError: no batch, or one that the model or the loss cannot take.
            SettingError: what is no loader.
            DeviceMemoryError: the GPU's memory did not suffice.
        """
        return passes.evaluate(self, loader)

    def predict(self, loader: Batches, tta: Views = None) -> Predictions:
        """Logits of every sample, with targets and indices, on the CPU; everything is left as it was.

        Args:
            loader: of `make_loaders`, whose raw images the predictions then know, or any iterable in a fixed order.
            tta: views whose logits are averaged: "flip" (the image and its mirror image), "flip_shift" (also shifted
                by a pixel; six views), or functions from a batch (N, C, H, W) to another, or `View`s with weights.

        Raises:
            UnknownNameError: an unknown `tta`.
            DataError, DeviceMemoryError: as in `evaluate`.
            SettingError: an invalid `tta`, or a torch DataLoader that shuffles, so that indices would be unknown.
        """
        return passes.predict(self, loader, tta)

    def averaged(self) -> AbstractContextManager[None]:
        """During `fit(…)` with `ema`: a context in which the model holds the averaged weights; else nothing changes."""
        return self._average.applied() if self._average is not None else nullcontext()

    def _prepare(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """A batch on the device, in the memory format of the model."""
        inputs = inputs.to(self.device, non_blocking=True)
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, targets.to(self.device, non_blocking=True)

    # ---- finding a rate, saving

    def find_lr(
        self,
        train_loader: Batches,
        val_loader: Batches | None = None,
        *,
        start_lr: float = 1e-6,
        end_lr: float = 10.0,
        num_iter: int = 100,
    ) -> LRCurve:
        """The learning rate range test (Smith 2015, arXiv:1506.01186): the rate rises, the loss is watched.

        Model, optimizer, scaler, loaders and random states are put back, whatever happens. Groups of the optimizer keep
        the proportion of their rates; those shown are of the group with the largest.

        Args:
            train_loader: its own epochs are used; the count of the loader stays.
            val_loader: judge by its loss (slow) in place of the training batch's.
            start_lr: the first rate.
            end_lr: the last one, unless the loss diverges or becomes NaN before.
            num_iter: steps of the optimizer, at least 2.

        Returns:
            The rates, the smoothed losses, a suggestion, and a cycle's `max_lr`; both are None where the curve is
            useless, and `reason` says why.

        Raises:
            SettingError: invalid rates or an invalid number of steps, or several groups whose rates are all 0.
            DataError: no batch, or one that the model or the loss cannot take.
            DeviceMemoryError: the GPU's memory did not suffice.
        """
        return run_lr_finder(self, train_loader, val_loader, start_lr, end_lr, num_iter)

    def save(self, path: PathLike) -> None:
        """Write model, optimizer, scaler and random states; `load` puts them back."""
        checkpoints.save(self, path)

    def load(self, path: PathLike) -> None:
        """Put back what `save` or a `fit(checkpoint=…)` wrote; of a fit with `ema` the averaged weights.

        An error leaves everything as it was.

        Raises:
            DataNotFoundError: there is no such file.
            DamagedFileError: it is truncated, altered, or no checkpoint.
            NewerFormatError: it was written by a newer version of this library.
            OtherModelError: it is of another network, or of another optimizer.
        """
        checkpoints.load(self, path)


# ---- small parts of the loop

_FIXED = ("model", "optimizer", "device", "precision", "processes")  # its step is built on them
_SYNCHRONISED = nullcontext()  # a step that ends a window: DistributedDataParallel averages the gradients


def _compiled(model: nn.Module, compile: bool | str) -> Callable[[Tensor], Tensor]:
    if compile is True:
        return torch.compile(model)
    graphs = torch.compile(model, mode="reduce-overhead")
    return lambda inputs: graphs(inputs).clone()  # the next replay writes over what the last one returned

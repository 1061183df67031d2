"""What a fit sets in the process and on the optimizer while it runs, and puts back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vision_wrapper.errors import DataError
from vision_wrapper.trainer.checks import out_of_memory, position
from vision_wrapper.trainer.losses import LossFailed

if TYPE_CHECKING:
    from vision_wrapper.trainer.fit import Fit


@contextmanager
def stop_on_interrupt(run: Fit) -> Iterator[None]:
    """Ctrl-C inside a step waits for its end; the second one, or one outside, is raised at once.

    Of several processes none leaves the others alone: the first one waits until all have agreed. Where Ctrl-C is
    ignored, as a shell has it for what a script starts in the background, it stays so.
    """
    before = signal.getsignal(signal.SIGINT)  # None is not python's handler, which python could not put back
    if before in (None, signal.SIG_IGN) or threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(*_: Any) -> None:
        if os.getpid() != process:  # a loader's worker: the batches to the step's end are still needed
            return
        if run.ctrl_c or not (run.in_epoch or run.trainer.processes.count > 1):
            raise KeyboardInterrupt
        run.ctrl_c = True

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of what must be done whole."""
    before = signal.getsignal(signal.SIGINT)
    if before in (None, signal.SIG_IGN) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[Any] = []
    signal.signal(signal.SIGINT, lambda *call: pressed.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def end_of(run: Fit) -> Iterator[None]:
    """Let Ctrl-C end a run, and errors say where they came from."""
    try:
        yield
    except KeyboardInterrupt:
        run.interrupted = True  # during validation: the checkpoint before it is whole
    except torch.OutOfMemoryError as error:
        raise out_of_memory(run.loader, run.trainer.accumulate) from error
    except LossFailed as error:
        if not run.in_epoch:  # of the validation loader
            raise
        raise DataError(f"{position(run)}: {error}") from error.__cause__
    except Exception:
        # A terminal tells all processes of Ctrl-C. Spawned workers of a user's loader end by it, and what they had
        # promised is then missing in one of many ways: a RuntimeError, a FileNotFoundError, an EOFError.
        if not (run.ctrl_c and run.waiting and run.trainer.processes.count == 1):
            raise
        run.interrupted = True


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Have torch use deterministic algorithms, where that is wanted."""
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        if wanted:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark


# What torch's schedulers note in the groups of an optimizer, and what besides the rate they change there.
SCHEDULE_NOTES = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
SCHEDULED = (*SCHEDULE_NOTES, "momentum", "betas")


class BeforeSchedule:
    """What a scheduler changes on an optimizer, but for the rates, as it was before one was made for a fit."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.groups = [{name: group[name] for name in SCHEDULED if name in group} for group in optimizer.param_groups]
        # The counter that a scheduler puts over `step`, where an earlier one of the user's has put one.
        self._attributes = {name: value for name, value in vars(optimizer).items() if name in ("step", "_opt_called")}

    def put_back(self) -> None:
        """Leave the optimizer without the fit's scheduler."""
        for group, own in zip(self.optimizer.param_groups, self.groups, strict=False):  # there may be a new group
            for name in SCHEDULED:
                if name in own:
                    group[name] = own[name]
                else:
                    group.pop(name, None)
        for name in ("step", "_opt_called"):
            vars(self.optimizer).pop(name, None)
        vars(self.optimizer).update(self._attributes)


@contextmanager
def unchanged_on_error(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A scheduler changes the groups when it is made; one that is then refused must not have."""
    before = BeforeSchedule(optimizer)
    groups = [dict(group) for group in optimizer.param_groups]
    rates = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in groups]
    try:
        yield
    except BaseException:
        for group, own, rate in zip(optimizer.param_groups, groups, rates, strict=True):
            if isinstance(rate, Tensor):  # schedulers change it in place
                own["lr"].copy_(rate)
            group.clear()
            group.update(own)
        before.put_back()
        raise


@contextmanager
def preserve_training(model: nn.Module) -> Iterator[None]:
    """Put the train flags back where a callback leaves the whole model in eval mode; parts may be put in it."""
    flags = [(module, module.training) for module in model.modules()]
    yield
    if not model.training:
        for module, training in flags:
            module.training = training


def reset_scaler(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """Forget a step that an error has cut short: its gradients were unscaled, and the next ones would not be."""
    scaler._per_optimizer_states.clear()
    for name in ("grad_scale", "found_inf"):  # of fused optimizers
        vars(optimizer).pop(name, None)

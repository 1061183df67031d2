"""What a fit sets in the process and on the optimizer while it runs, and puts back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vision_wrapper.trainer.fit import Fit


@contextmanager
def stop_on_interrupt(run: Fit) -> Iterator[None]:
    """Ctrl-C inside a step waits for its end; the second one, or one outside, is raised at once.

    Of several processes none leaves the others alone: the first one waits until all have agreed.
    """
    foreign = signal.getsignal(signal.SIGINT) is None  # not python's handler, which python could not put back
    if foreign or threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(*_: Any) -> None:
        if os.getpid() != process:  # a loader's worker: the batches to the step's end are still needed
            return
        if run.ctrl_c or not (run.in_step or run.trainer.processes.count > 1):
            raise KeyboardInterrupt
        run.ctrl_c = True

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


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


@contextmanager
def unchanged_on_error(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A scheduler changes the groups when it is made; one that is then refused must not have."""
    groups = [dict(group) for group in optimizer.param_groups]
    rates = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in groups]
    try:
        yield
    except BaseException:
        for group, before, rate in zip(optimizer.param_groups, groups, rates, strict=True):
            if isinstance(rate, Tensor):  # schedulers change it in place
                before["lr"].copy_(rate)
            group.clear()
            group.update(before)
        detach_scheduler(optimizer)
        raise


def reset_scaler(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """Forget a step that an error has cut short: its gradients were unscaled, and the next ones would not be."""
    scaler._per_optimizer_states.clear()
    for name in ("grad_scale", "found_inf"):  # of fused optimizers
        vars(optimizer).pop(name, None)


def detach_scheduler(optimizer: torch.optim.Optimizer) -> None:
    """Take away the counter that a torch scheduler puts over the optimizer's `step`."""
    for name in ("step", "_opt_called"):
        vars(optimizer).pop(name, None)

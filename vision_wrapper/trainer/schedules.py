"""Learning rate schedules: torch's own schedulers, with the arguments that the field speaks of.

Groups of an optimizer keep the proportion of their rates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers

from vision_wrapper._describe import description
from vision_wrapper._lookup import Table
from vision_wrapper._numbers import (
    is_number,
    is_positive,
    is_whole,
    number_from_0,
    plain_values,
    positive_number,
    pythons_own,
    whole_number,
)
from vision_wrapper.errors import SettingError
from vision_wrapper.trainer.history import check_monitor

RISE = 25.0  # from the first rate of a cycle to its peak, where the first one is not given, as in torch

__all__ = [
    "SCHEDULES",
    "Schedule",
    "constant",
    "cosine",
    "from_function",
    "linear",
    "multi_step",
    "one_cycle",
    "plateau",
    "warm_up",
]


@dataclass(frozen=True)
class Schedule:
    """What makes a torch scheduler for a run.

    Attributes:
        name: as in `SCHEDULES`.
        build: (optimizer, epochs, steps of the optimizer in an epoch) to a torch scheduler.
        every: whether it steps by "batch" (each step of the optimizer) or by "epoch".
        monitor: the column of the history it watches ("val_loss", …), or None.
        arguments: what it was made with.
        function: of the user, that makes the scheduler; None for the schedules of this library.
    """

    name: str
    build: Callable[[Optimizer, int, int], Any]
    every: Literal["batch", "epoch"]
    monitor: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    function: Callable[[Optimizer], Any] | None = None

    def preview(self, epochs: int, steps_per_epoch: int, lr: float = 0.1) -> list[float]:
        """The rate of every step, without training: `epochs * steps_per_epoch` numbers.

        `lr` is the optimizer's own rate, from which some schedules start. A schedule that watches a metric is shown as
        if the metric never improved.

        Raises `SettingError` for what is no number of epochs or steps and no rate, and where training would.
        """
        epochs, steps_per_epoch = whole_number("epochs", epochs, 1), whole_number("steps_per_epoch", steps_per_epoch, 1)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=number_from_0("lr", lr))
        scheduler = self.build(optimizer, epochs, steps_per_epoch)
        rates = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # nothing is trained, so torch finds no optimizer step
            for _ in range(epochs):
                for _ in range(steps_per_epoch):
                    rates.append(float(optimizer.param_groups[0]["lr"]))
                    if self.every == "batch":
                        scheduler.step()
                if self.every == "epoch":
                    scheduler.step(*([0.0] if self.monitor else []))
        return rates

    def describe(self) -> dict[str, Any]:
        """Plain values that say whether two schedules are the same."""
        made_by = {} if self.function is None else {"function": description(self.function)}
        return {"name": self.name, "every": self.every, **{k: repr(v) for k, v in self.arguments.items()}, **made_by}


def from_function(function: Callable[[Optimizer], Any], every: Literal["batch", "epoch"] = "epoch") -> Schedule:
    """A schedule from any function of the optimizer that returns a torch scheduler.

    Raises `SettingError` for what is no function, for another `every`, and, when training begins, where a scheduler
    made for the batches of the run (as OneCycleLR with their number) would be stepped by epoch. It warns where one that
    is stepped by epoch is made for more steps than that.
    """
    if every not in ("batch", "epoch"):
        raise SettingError(f'every must be "batch" or "epoch", got {every!r}.')
    if not callable(function):
        raise SettingError(f"A schedule is made from a function of the optimizer, got {function!r}.")
    name = getattr(function, "__name__", type(function).__name__)

    def build(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        try:
            scheduler = function(optimizer)
        except TypeError as error:
            if not isinstance(function, type):
                raise
            raise SettingError(
                f"{name} takes more than the optimizer: lambda optimizer: {name}(optimizer, …)."
            ) from error
        if isinstance(scheduler, torch_schedulers.ReduceLROnPlateau):
            raise SettingError("ReduceLROnPlateau has to be told what it watches: use schedules.plateau(monitor=…).")
        if not callable(getattr(scheduler, "step", None)):
            raise SettingError(f"The schedule function {name} must return a torch scheduler, got {scheduler!r}.")
        if getattr(scheduler, "optimizer", optimizer) is not optimizer:
            raise SettingError(
                f"The schedule function {name} must use the optimizer that it is given; it uses another."
            )
        _check_long_enough(scheduler, epochs * steps_per_epoch if every == "batch" else epochs)
        length = _length(scheduler) if every == "epoch" else 0
        steps = epochs * steps_per_epoch
        if every == "batch" and isinstance(scheduler, torch_schedulers.OneCycleLR) and scheduler.total_steps > steps:
            warnings.warn(
                f"OneCycleLR is made for {scheduler.total_steps} steps, but the run has {steps} and ends before the "
                "cycle does: with accumulate several batches make one step.",
                stacklevel=5,
            )
        if length > epochs:
            said = (
                f"{type(scheduler).__name__} is made for {length} steps, but stepped by epoch it takes {epochs}. Pass "
                'every="batch", or make it for as many steps as epochs.'
            )
            whole = getattr(scheduler, "total_steps", None) or getattr(scheduler, "T_max", 0)
            if whole >= epochs * steps_per_epoch > epochs:
                raise SettingError(said)
            warnings.warn(said, stacklevel=5)
        return scheduler

    return Schedule(name, build, every, function=function)


def _check_long_enough(scheduler: Any, steps: int) -> None:
    """Raise `SettingError` for a OneCycleLR of fewer steps: it would raise in the middle of the run."""
    parts = getattr(scheduler, "_schedulers", [scheduler])
    if len(parts) == 1 and isinstance(parts[0], torch_schedulers.OneCycleLR) and parts[0].total_steps < steps:
        raise SettingError(
            f"OneCycleLR is made for {parts[0].total_steps} steps, but the run has {steps}. Make it for as many, or "
            "use schedules.one_cycle, which finds out."
        )


def _length(scheduler: Any) -> float:
    """The steps until a torch scheduler has done, or first does, what it is for; 0 where that is not known."""
    if not isinstance(scheduler, torch_schedulers.LRScheduler) or not type(scheduler).__module__.startswith("torch."):
        return 0  # somebody's own: its attributes may mean anything
    parts = [_length(part) for part in getattr(scheduler, "_schedulers", ())]  # of a SequentialLR or a chain
    names = ("total_steps", "T_max", "T_0", "total_iters", "step_size", "total_size")
    own = [getattr(scheduler, name, None) or 0 for name in names]
    return max([*parts, *own, *getattr(scheduler, "milestones", ()), *getattr(scheduler, "_milestones", ())])


def one_cycle(
    max_lr: float,
    min_lr: float | None = None,
    peak_epoch: float | None = None,
    *,
    annihilate: bool = True,
    final_lr: float | None = None,
    anneal: Literal["linear", "cos"] = "linear",
    three_phase: bool = False,
    cycle_momentum: bool = False,
) -> Schedule:
    """The one-cycle policy (Smith & Topin 2017, arXiv:1708.07120): up to `max_lr`, then down, by batch.

    With `annihilate=False` it equals torch's OneCycleLR with `pct_start=peak_epoch/epochs`, `div_factor=max_lr/min_lr`
    and `final_div_factor=1`: the cycle ends at the rate it began with.

    Args:
        max_lr: the peak; of the group with the largest rate, where the optimizer has several.
        min_lr: where it begins; None is `max_lr / 25`.
        peak_epoch: when the peak is reached, counted from 0, fractions allowed; None is 30% of the run.
        annihilate: fall to `min_lr / 10_000` at the end; False ends at `min_lr`.
        final_lr: where it ends, in place of `annihilate`; 0 is allowed.
        anneal: "linear" or "cos".
        three_phase: down to `min_lr` as fast as it rose, and then on to the final rate.
        cycle_momentum: also lower the momentum (Adam's beta1) while the rate rises, 0.95 to 0.85 and back.

    Raises:
        SettingError: rates that are not 0 < min_lr <= max_lr, a `final_lr` above them, or, when training begins, a peak
            outside the run, and `cycle_momentum` with an optimizer of which a group has no momentum, or one of 0.
    """
    max_lr, peak_epoch = pythons_own(max_lr), pythons_own(peak_epoch)
    low: float = max_lr / RISE if min_lr is None and is_positive(max_lr) else pythons_own(min_lr)
    if not (is_positive(max_lr) and is_positive(low) and low <= max_lr):
        raise SettingError(
            f"one_cycle needs 0 < min_lr <= max_lr, got max_lr={max_lr!r}, min_lr={min_lr!r}. Where the learning "
            "rate finder found none, its curve's .reason says why; where it found less than min_lr, leave min_lr out."
        )
    if peak_epoch is not None and not is_number(peak_epoch):
        raise SettingError(f"peak_epoch must be a number of epochs, got {peak_epoch!r}.")
    if anneal not in ("linear", "cos"):
        raise SettingError(f'anneal must be "linear" or "cos", got {anneal!r}.')
    end = number_from_0("final_lr", final_lr) if final_lr is not None else (low / 1e4 if annihilate else low)
    if end > max_lr:
        raise SettingError(f"one_cycle needs final_lr <= max_lr, got final_lr={final_lr!r}, max_lr={max_lr!r}.")

    def build(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        total = epochs * steps_per_epoch
        peak = 0.3 * epochs if peak_epoch is None else peak_epoch
        _check_peak(peak, epochs, steps_per_epoch, three_phase)
        if cycle_momentum and not all(group.get("momentum") or "betas" in group for group in optimizer.param_groups):
            raise SettingError(
                f"cycle_momentum=True needs an optimizer with momentum in every group, got {type(optimizer).__name__}."
            )
        _start_at(optimizer, max_lr)
        return _OneCycle(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total,
            pct_start=peak / epochs,
            anneal_strategy=anneal,
            div_factor=max_lr / low,
            final_div_factor=low / end if end else math.inf,
            three_phase=three_phase,
            cycle_momentum=cycle_momentum,
        )

    arguments = {
        "max_lr": max_lr, "min_lr": low, "final_lr": end, "peak_epoch": peak_epoch, "anneal": anneal,
        "three_phase": three_phase, "cycle_momentum": cycle_momentum,
    }  # fmt: skip
    return Schedule("one_cycle", build, "batch", arguments=arguments)


def _check_peak(peak: float, epochs: int, steps_per_epoch: int, three_phase: bool) -> None:
    """Raise `SettingError` for a peak (in epochs) that the run does not reach, or reaches with its first step."""
    if not 0 < peak <= epochs:
        raise SettingError(f"peak_epoch={peak:g} lies outside the run of {epochs} epochs; choose 0 < peak <= {epochs}.")
    if not peak / epochs * (epochs * steps_per_epoch) > 1:  # rounded as torch's scheduler rounds it
        raise SettingError(
            f"peak_epoch={peak:g} is within the first step: an epoch has {steps_per_epoch} steps. Choose a later peak "
            "or a smaller batch."
        )
    if three_phase and 2 * peak > epochs:
        raise SettingError(f"three_phase rises and falls by epoch {2 * peak:g}, but the run has {epochs} epochs.")


def cosine(max_lr: float | None = None, final_lr: float = 0.0) -> Schedule:
    """Down along half a cosine over the run (Loshchilov & Hutter 2016, arXiv:1608.03983), by batch.

    Args:
        max_lr: where it begins, of the group with the largest rate; None is the optimizer's own rates.
        final_lr: where that group ends.

    Raises:
        SettingError: an invalid rate, or, when training begins, a `final_lr` above the first rate.
    """
    max_lr, final_lr = _positive_or_none("max_lr", max_lr), number_from_0("final_lr", final_lr)

    def build(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        _start_at(optimizer, max_lr)
        end, total = _final_share(optimizer, final_lr), epochs * steps_per_epoch

        def factor(step: int) -> float:
            return end + (1 - end) * (1 + math.cos(math.pi * min(1.0, step / total))) / 2

        return torch_schedulers.LambdaLR(optimizer, factor)

    return Schedule("cosine", build, "batch", arguments={"max_lr": max_lr, "final_lr": final_lr})


def linear(max_lr: float | None = None, final_lr: float = 0.0) -> Schedule:
    """Down along a straight line over the run, by batch; all groups end at the same share of their rate.

    Arguments and errors are those of `cosine`.
    """
    max_lr, final_lr = _positive_or_none("max_lr", max_lr), number_from_0("final_lr", final_lr)

    def build(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        _start_at(optimizer, max_lr)
        end, total = _final_share(optimizer, final_lr), epochs * steps_per_epoch
        return torch_schedulers.LinearLR(optimizer, start_factor=1.0, end_factor=end, total_iters=total)

    return Schedule("linear", build, "batch", arguments={"max_lr": max_lr, "final_lr": final_lr})


def multi_step(milestones: Sequence[int], factor: float = 0.1) -> Schedule:
    """Times `factor` after each of the `milestones`, by epoch.

    Args:
        milestones: numbers of epochs that have ended, from 1 on, rising.
        factor: above 0.

    Raises:
        SettingError: other milestones or another factor.
    """
    milestones = plain_values(milestones)
    whole = isinstance(milestones, Sequence) and all(is_whole(m) for m in milestones)
    if not whole or not milestones or sorted(set(milestones)) != list(milestones) or milestones[0] < 1:
        raise SettingError(f"milestones must be rising epoch numbers from 1 on, got {milestones!r}.")
    milestones = list(milestones)
    factor = positive_number("factor", factor)

    def build(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        _start_at(optimizer, None)
        return torch_schedulers.MultiStepLR(optimizer, milestones, gamma=factor)

    return Schedule("multi_step", build, "epoch", arguments={"milestones": milestones, "factor": factor})


def plateau(
    factor: float = 0.1,
    patience: int = 10,
    monitor: Literal["val_loss", "val_accuracy", "train_loss", "train_accuracy"] = "val_loss",
    threshold: float = 1e-4,
    min_lr: float = 0.0,
) -> Schedule:
    """Times `factor` when `monitor` has not improved for more than `patience` epochs.

    Args:
        factor: between 0 and 1.
        patience: epochs.
        monitor: the column of the history that is watched.
        threshold: the share of the best value by which a better one has to differ.
        min_lr: below which the rate does not fall, of the group with the largest.

    Raises:
        SettingError: an invalid value, or, when training begins, a `val_` column without a validation loader.
    """
    if not (is_positive(factor) and factor < 1):
        raise SettingError(f"factor must be between 0 and 1, got {factor!r}.")
    factor, patience = pythons_own(factor), whole_number("patience", patience, 0)
    threshold, min_lr = number_from_0("threshold", threshold), number_from_0("min_lr", min_lr)
    check_monitor(monitor)

    def build(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        _start_at(optimizer, None)
        mode = "min" if monitor.endswith("loss") else "max"
        least = [min_lr * share for share in rate_shares(optimizer)] if min_lr else 0.0  # a list is of so many groups
        return torch_schedulers.ReduceLROnPlateau(
            optimizer, mode=mode, factor=factor, patience=patience, threshold=threshold, min_lr=least
        )

    arguments = {"factor": factor, "patience": patience, "threshold": threshold, "min_lr": min_lr}
    return Schedule("plateau", build, "epoch", monitor=monitor, arguments={**arguments, "monitor": monitor})


def warm_up(warm_up_epochs: float = 5.0, max_lr: float | None = None, final_lr: float | None = None) -> Schedule:
    """Linearly up from nearly 0 over `warm_up_epochs`, then constant, or linearly down to `final_lr`; by batch.

    Args:
        warm_up_epochs: above 0, fractions allowed.
        max_lr: the rate after them, of the group with the largest; None is the optimizer's own.
        final_lr: where that group ends; None stays at `max_lr`.

    Raises:
        SettingError: an invalid value, or, when training begins, a rise longer than the run.
    """
    warm_up_epochs = positive_number("warm_up_epochs", warm_up_epochs)
    max_lr, final_lr = _positive_or_none("max_lr", max_lr), _positive_or_none("final_lr", final_lr)

    def build(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        if warm_up_epochs > epochs:
            raise SettingError(f"warm_up_epochs={warm_up_epochs} is longer than the run of {epochs} epochs.")
        _start_at(optimizer, max_lr)
        end = 1.0 if final_lr is None else _final_share(optimizer, final_lr)
        rise, total = max(1, round(warm_up_epochs * steps_per_epoch)), epochs * steps_per_epoch

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            return 1.0 + (end - 1.0) * min(1.0, (step + 1 - rise) / max(1, total - rise))

        return torch_schedulers.LambdaLR(optimizer, factor)

    arguments = {"warm_up_epochs": warm_up_epochs, "max_lr": max_lr, "final_lr": final_lr}
    return Schedule("warm_up", build, "batch", arguments=arguments)


def constant(lr: float | None = None) -> Schedule:
    """The same rate throughout; None is the optimizer's own. Raises `SettingError` for one that is not above 0."""
    lr = _positive_or_none("lr", lr)

    def build(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        _start_at(optimizer, lr)
        return torch_schedulers.ConstantLR(optimizer, factor=1.0, total_iters=0)

    return Schedule("constant", build, "epoch", arguments={"lr": lr})


class _OneCycle(torch_schedulers.OneCycleLR):
    """Stays where it ends: torch's own goes on past its end in the step after the last one, to below 0."""

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of the groups."""
        reached = self.last_epoch
        self.last_epoch = min(reached, self.total_steps - 1)
        try:
            return super().get_lr()
        finally:
            self.last_epoch = reached


SCHEDULES: Table[Callable[..., Schedule]] = Table(
    "schedule",
    {
        "constant": constant,
        "cosine": cosine,
        "linear": linear,
        "multi_step": multi_step,
        "one_cycle": one_cycle,
        "plateau": plateau,
        "warm_up": warm_up,
    },
)
"""The schedules that recipes take by name."""

# The schedules' arguments that count epochs, and what each becomes in a run that is `share` times as long.
COUNTED_IN_EPOCHS: dict[str, Callable[[Any, float], Any]] = {
    "milestones": lambda milestones, share: sorted({max(1, round(epoch * share)) for epoch in milestones}),
    "patience": lambda epochs, share: max(min(epochs, 1), round(epochs * share)),  # none stays none
    "peak_epoch": lambda epoch, share: epoch * share,
    "warm_up_epochs": lambda epochs, share: epochs * share,
}


def _positive_or_none(name: str, value: Any) -> float | None:
    return None if value is None else positive_number(name, value)


def _highest(optimizer: Optimizer) -> float:
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _final_share(optimizer: Optimizer, final_lr: float) -> float:
    """What part of its rate each group ends at. Raises `SettingError` where that is above the rate."""
    highest = _highest(optimizer)
    if final_lr > highest > 0:
        raise SettingError(f"final_lr={final_lr!r} is above the highest rate, {highest:g}, from which the rate falls.")
    return final_lr / highest if highest else 0.0


def rate_shares(optimizer: Optimizer) -> list[float]:
    """Each group's rate as a share of the largest one; where all are 0, all are alike."""
    rates, highest = [float(group["lr"]) for group in optimizer.param_groups], _highest(optimizer)
    return [rate / highest for rate in rates] if highest > 0 else [1.0] * len(rates)


def check_proportion(optimizer: Optimizer) -> None:
    """Raise `SettingError` for several groups whose rates are all 0, where an earlier schedule has ended."""
    if len(optimizer.param_groups) > 1 and _highest(optimizer) <= 0:
        raise SettingError(
            "The rates of the optimizer's groups are all 0, where an earlier schedule may have ended, so their "
            "proportion is not known: set each group's lr."
        )


def leading_group(optimizer: Optimizer) -> int:
    """Which group has the largest rate: the one that schedules, the LR finder and the history speak of."""
    shares = rate_shares(optimizer)
    return shares.index(max(shares))


def _start_at(optimizer: Optimizer, lr: float | None) -> None:
    """Let the largest rate be `lr`, the others in proportion; None begins at the groups' own.

    Raises what `check_proportion` raises.
    """
    if lr is not None:
        check_proportion(optimizer)
    for group, share in zip(optimizer.param_groups, rate_shares(optimizer), strict=True):
        group.pop("initial_lr", None)  # torch would begin there
        if lr is not None:
            group["lr"] = lr * share

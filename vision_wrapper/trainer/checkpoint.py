"""Checkpoints: everything a run needs to go on as if nothing had happened."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vision_wrapper._describe import description, digest, fingerprint
from vision_wrapper._files import PathLike, check_savable, read_tensors, remove_leftovers, write_tensors
from vision_wrapper._state import loader_states, random_states, set_loader_states, set_random_states
from vision_wrapper.data import Loader
from vision_wrapper.data.check_loader import check_pair, length
from vision_wrapper.errors import CheckpointError, DamagedFileError, OtherModelError, OtherRunError, VisionWrapperError
from vision_wrapper.models.weights import check_fits
from vision_wrapper.trainer.callbacks import Callback
from vision_wrapper.trainer.checks import check_finite, differences
from vision_wrapper.trainer.ema import WeightAverage
from vision_wrapper.trainer.guards import SCHEDULE_NOTES
from vision_wrapper.trainer.history import History
from vision_wrapper.trainer.optimizers import Lookahead

if TYPE_CHECKING:
    from vision_wrapper.trainer.fit import Fit
    from vision_wrapper.trainer.trainer import Trainer

KIND = "checkpoint"
# What of a run is kept and put back as it is.
_AS_IT_WAS = (
    "first_epoch", "epoch", "step", "batch", "samples", "total", "val_total", "seconds", "stop", "sizes", "leader",
    "own_rates",
)  # fmt: skip


def save(trainer: Trainer, path: PathLike) -> None:
    """Write the trainer's own state, without a run; of several processes the main one does."""
    if not trainer.processes.is_main:
        return
    write_tensors(path, KIND, {**_trainer_state(trainer), "run": None})


def load(trainer: Trainer, path: PathLike) -> None:
    """Put the trainer's own state back, all of it or nothing."""
    state, _ = trainer.processes.on_main(partial(read_tensors, path, KIND))
    with _all_or_nothing(trainer, path):
        _check_trainer(trainer, state, path)
        attached = [_schedule_notes(group) for group in trainer.optimizer.param_groups]
        _restore_trainer(trainer, state)
        for group in trainer.optimizer.param_groups:
            for name in SCHEDULE_NOTES:  # of the fit's schedule, which is not attached here
                group.pop(name, None)
        if state["run"] is not None and state["run"]["before_schedule"] is not None:
            for group, own in zip(trainer.optimizer.param_groups, state["run"]["before_schedule"], strict=False):
                group.update(own)
        for group, notes in zip(trainer.optimizer.param_groups, attached, strict=True):
            group.update(notes)  # of a schedule that is attached here, as in a fit whose callback loads
        if state["run"] is not None and state["run"]["average"] is not None:
            average = WeightAverage(trainer.model, 0.0)  # what a model holds after a fit with one
            average.load([tensor.to(trainer.device) for tensor in state["run"]["average"]])
            average.swap()
        set_random_states(state["random"])


def _schedule_notes(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in SCHEDULE_NOTES if name in group}


def write(trainer: Trainer, run: Fit) -> None:
    """Write a run's checkpoint, where it has one; never over a good one when a loss or a weight is not finite.

    Every process has its random states in it; the main one writes.
    """
    if run.checkpoint is None:
        return
    run.read_losses()
    check_finite(run, trainer._optimized())
    own = {
        "random": random_states(),
        "epoch_random": run.epoch_random,
        "loader_random": loader_states(run.loader),
    }
    processes = trainer.processes.gathered(own)
    position = {
        "settings": run.settings,
        **{name: getattr(run, name) for name in _AS_IT_WAS},
        "losses": torch.tensor(run.losses, dtype=torch.float64),
        "rates": [float(rate) for rate in run.rates],
        "correct": run.correct,
        "rows": run.history.rows,
        "batches": run.history.batches,
        "schedule": None if run.scheduler is None else run.scheduler.state_dict(),
        "schedule_begun": run.schedule_begun,
        "average": None if trainer._average is None else trainer._average.averages,
        "average_steps": 0 if trainer._average is None else trainer._average.steps,
        "before_schedule": None if run.before_schedule is None else run.before_schedule.groups,
        "callbacks": _callback_states(trainer),
        "processes": processes,
    }
    trained = {"epochs_trained": run.first_epoch + run.epoch}
    state = {**_trainer_state(trainer), **trained, "run": position}
    trainer.processes.on_main(partial(write_tensors, run.checkpoint, KIND, state))


def read(trainer: Trainer, run: Fit, extend: bool = False) -> dict[str, Any] | None:
    """What the run's checkpoint holds, or None where there is none; nothing is changed.

    `extend` allows one with fewer epochs.

    Raises `OtherRunError` where settings differ, `OtherModelError` where the weights do not fit.
    """
    if run.checkpoint is None or not run.checkpoint.exists():
        return None
    remove_leftovers(run.checkpoint.parent)
    state, _ = read_tensors(run.checkpoint, KIND)
    with _forged_is_damaged(run.checkpoint):
        if state["run"] is None:
            raise OtherRunError(
                f"{run.checkpoint} was written by Trainer.save, not by fit. Load it, or choose another path."
            )
        _check_same_run(trainer, run, state["run"], extend)
        matched = _matched(trainer, state["run"]["callbacks"])
        if run.epochs == state["run"]["settings"]["epochs"]:
            _check_same_callbacks(trainer, matched, run.checkpoint)
        _check_trainer(trainer, state, run.checkpoint)
    return state


def check_same_schedule(run: Fit, kept: dict[str, Any]) -> None:
    """Raise `OtherRunError` where a user's function has now made another scheduler than when the run began."""
    there = kept["run"]["schedule_begun"]
    if kept["run"]["settings"]["epochs"] == run.epochs and there != run.schedule_begun:
        raise OtherRunError(
            f"{run.checkpoint} is of another run (schedule: {there} there, {run.schedule_begun} here). Use the same "
            "schedule, another path, or delete the file."
        )


def check_model_savable(trainer: Trainer, run: Fit) -> None:
    """Raise `CheckpointError`, before anything is trained, where the model has an extra state that cannot be kept."""
    if run.checkpoint is not None:
        state = trainer.model.state_dict()
        check_savable({"model": {name: value for name, value in state.items() if not isinstance(value, Tensor)}})


def check_schedule_savable(run: Fit) -> None:
    """Raise `CheckpointError`, before anything is trained, where the schedule's state cannot be kept."""
    if run.checkpoint is not None:
        check_savable({"schedule": run.scheduler.state_dict()})


def check_callbacks_savable(trainer: Trainer, run: Fit) -> None:
    """Raise `CheckpointError`, before anything is trained, where a callback's state cannot be kept."""
    if run.checkpoint is not None:
        check_savable({"callbacks": _callback_states(trainer)})


def _callback_states(trainer: Trainer) -> list[tuple[str, Any]]:
    """(class, state) of each callback that has a state."""
    states = [(type(callback).__qualname__, callback.state_dict()) for callback in trainer.callbacks]
    return [(name, state) for name, state in states if state]


def _matched(trainer: Trainer, kept: Sequence[tuple[str, Any]]) -> list[tuple[Callback, Any]]:
    """Each kept state with its callback: the first of a class has the first state of that class.

    Raises `OtherRunError` for a state whose callback is not there.
    """
    waiting, matched = list(trainer.callbacks), []
    for name, state in kept:
        callback = next((callback for callback in waiting if type(callback).__qualname__ == name), None)
        if callback is None:
            raise OtherRunError(
                f"The checkpoint has the state of a {name}, which is not among the callbacks: the run would go on in "
                "another way. Use the same callbacks, or another path."
            )
        waiting.remove(callback)
        matched.append((callback, state))
    return matched


def _check_same_callbacks(trainer: Trainer, matched: Sequence[tuple[Callback, Any]], path: PathLike) -> None:
    """Raise `OtherRunError` for a callback with a state that was not there, or says that it had other settings."""
    kept = {id(callback): state for callback, state in matched}
    for callback in trainer.callbacks:
        state = callback.state_dict()
        if not state:
            continue
        found = differences(kept.get(id(callback), {}).get("settings", {}), state.get("settings", {}))
        if id(callback) not in kept:
            found = ["it was not among the callbacks"]
        if found:
            raise OtherRunError(
                f"{path} is of another run ({type(callback).__qualname__}: {'; '.join(found)}). Use the same callbacks "
                "with the same settings, another path, or delete the file."
            )


def rewind_rates(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the groups the rates that the run in the checkpoint began with: its schedule is built from them."""
    for group, rate in zip(optimizer.param_groups, state["run"]["own_rates"], strict=True):
        group["lr"] = group["lr"].new_tensor(rate) if isinstance(group["lr"], Tensor) else rate


def restore(trainer: Trainer, run: Fit, state: dict[str, Any]) -> None:
    """Put a run where the checkpoint that was read left it, all of it or nothing."""
    assert run.checkpoint is not None
    with _all_or_nothing(trainer, run.checkpoint):
        _restore(trainer, run, state)


@contextmanager
def _all_or_nothing(trainer: Trainer, path: PathLike) -> Iterator[None]:
    before = copy.deepcopy(_trainer_state(trainer))
    try:
        with _forged_is_damaged(path):
            yield
    except BaseException:  # Ctrl-C too
        _restore_trainer(trainer, before)
        set_random_states(before["random"])
        raise


@contextmanager
def _forged_is_damaged(path: PathLike) -> Iterator[None]:
    """Content that is not a trainer's, but that somebody gave a fitting checksum, may raise anything."""
    try:
        yield
    except (VisionWrapperError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise DamagedFileError(f"{path} holds no state of a trainer: {type(error).__name__}: {error}.") from error


def _restore(trainer: Trainer, run: Fit, state: dict[str, Any]) -> None:
    position = state["run"]
    extended = position["settings"]["epochs"] != run.epochs
    anew = _advanced_groups(trainer, run, position) if extended and run.scheduler is not None else None
    _restore_trainer(trainer, state)
    for name in _AS_IT_WAS:
        setattr(run, name, position[name])
    run.losses, run.rates, run.correct = position["losses"].tolist(), position["rates"], position["correct"]
    run.history = History(position["rows"], position["batches"])
    if anew is not None:
        for group, values in zip(trainer.optimizer.param_groups, anew, strict=True):
            group.update(values)
    elif run.scheduler is not None:
        _restore_scheduler(run.scheduler, position["schedule"])
    if extended:
        run.stop = None
    if trainer._average is not None:
        averages = [tensor.to(trainer.device) for tensor in position["average"]]
        trainer._average.load(averages, position["average_steps"])
    for callback, kept in _matched(trainer, position["callbacks"]):
        _restore_callback(callback, kept)
    own = position["processes"][trainer.processes.rank]
    run.epoch_random, run.resume_random = own["epoch_random"], own["random"]
    set_random_states(own["random"])  # also where no epoch is left
    set_loader_states(run.loader, own["loader_random"])


def _restore_scheduler(scheduler: Any, state: dict[str, Any]) -> None:
    """The state of a torch scheduler, and of those that it is made of; files keep a Counter as a plain dict."""
    parts = _schedulers(scheduler)
    counters = [(part, name) for part in parts for name, value in vars(part).items() if isinstance(value, Counter)]
    scheduler.load_state_dict(state)
    for part, name in counters:  # of MultiStepLR, which asks for its elements
        setattr(part, name, Counter(getattr(part, name)))


def _schedulers(scheduler: Any) -> Iterator[Any]:
    """A torch scheduler, and all that it is made of."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", []):
        yield from _schedulers(part)


def _restore_callback(callback: Callback, state: dict[str, Any]) -> None:
    try:
        callback.load_state_dict(state)
    except VisionWrapperError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{type(callback).__name__} does not take the state that the checkpoint has of it: {type(error).__name__}: "
            f"{error}. Was its class changed since? Put it back as it was, or choose another path for this run."
        ) from error


def _advanced_groups(trainer: Trainer, run: Fit, position: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What the schedule for more epochs makes of the optimizer's groups, stepped to where the shorter one was.

    None for a schedule that watches a metric: it knows no number of epochs, and goes on as it was.
    """
    assert run.schedule is not None
    if run.schedule.monitor is not None:
        return None
    for _ in range(position["schedule"].get("last_epoch", _scheduler_steps(trainer, run, position))):
        run.scheduler.step()
    return [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]


def _scheduler_steps(trainer: Trainer, run: Fit, position: dict[str, Any]) -> int:
    """How often a scheduler that does not count has stepped until that position."""
    assert run.schedule is not None
    if run.schedule.every == "epoch":
        return position["epoch"]
    whole, begun = (math.ceil(batches / trainer.accumulate) for batches in (run.batches or 0, position["batch"]))
    return position["epoch"] * whole + begun


def _trainer_state(trainer: Trainer) -> dict[str, Any]:
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "optimizer_class": _class_name(trainer.optimizer),
        "scaler": trainer._scaler.state_dict(),
        "random": random_states(),
        "epochs_trained": trainer.epochs_trained,
    }


def _check_trainer(trainer: Trainer, state: dict[str, Any], path: PathLike) -> None:
    check_fits(trainer.model.state_dict(), state["model"], str(path))
    groups = [len(group["params"]) for group in trainer.optimizer.param_groups]
    kept = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    here, there = _class_name(trainer.optimizer), state["optimizer_class"]
    if there != here:
        raise OtherModelError(f"{path} has the state of an optimizer of the class {there}, this one is {here}.")
    if groups != kept:
        raise OtherModelError(f"{path} has an optimizer with groups of {kept} parameters, this one has {groups}.")


def _class_name(optimizer: torch.optim.Optimizer) -> str:
    """The class, of Lookahead with that of the optimizer in it."""
    name = type(optimizer).__name__
    return f"{name} of {_class_name(optimizer.optimizer)}" if isinstance(optimizer, Lookahead) else name


def _restore_trainer(trainer: Trainer, state: dict[str, Any]) -> None:
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    place_state(trainer.optimizer)
    if state["scaler"]:
        trainer._scaler.load_state_dict(state["scaler"])
    trainer.epochs_trained = state["epochs_trained"]


def place_state(optimizer: torch.optim.Optimizer) -> None:
    """Put an optimizer's state where its parameters are, on their device and in their memory format.

    Fused optimizers take it for granted, and without it would pair the values of other weights, without a word.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            values = optimizer.state.get(parameter, {})
            for key, value in values.items():
                if not isinstance(value, torch.Tensor):
                    continue
                if value.shape == parameter.shape and value.ndim:
                    if value.device != parameter.device or value.stride() != parameter.stride():
                        values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                elif value.ndim or group.get("fused") or group.get("capturable"):  # the step, else kept on the CPU
                    values[key] = value.to(parameter.device)


# ---- what makes a run the same run


def describe(trainer: Trainer, run: Fit) -> dict[str, Any]:
    """Plain values that a checkpoint keeps, and that have to be the same when a run goes on."""
    return {
        "epochs": run.epochs,
        "network": _describe_network(trainer.model),
        "loader": _describe_loader(run),
        "validation": run.validates,
        "loss": description(trainer.loss_fn),
        "schedule": None if run.schedule is None else run.schedule.describe(),
        "optimizer": {
            "class": type(trainer.optimizer).__name__,
            # Of rates the groups' count; a tensor of one is the group's own, which schedules change.
            **{k: repr(v) for k, v in trainer.optimizer.defaults.items() if not isinstance(v, Tensor)},
        },
        "groups": [_describe_group(trainer.optimizer, group) for group in trainer.optimizer.param_groups],
        "precision": trainer.precision,
        "ema": trainer.ema,
        "clip_norm": trainer.clip_norm,
        "accumulate": trainer.accumulate,
        "l1": trainer.l1,
        "processes": trainer.processes.count,
    }


def _describe_network(model: nn.Module) -> str:
    """Its class, and a digest of the classes of its parts: weights of the same shapes may be used in other ways."""
    parts = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    return f"{type(model).__qualname__} {digest(str(parts))}"


def _describe_group(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, str]:
    """What a group has of its own, but for the rates and what schedulers note beside them."""
    notes = ("lr", *SCHEDULE_NOTES)
    defaults = {name: repr(value) for name, value in optimizer.defaults.items() if name not in notes}
    return {name: repr(group[name]) for name, value in defaults.items() if name in group and repr(group[name]) != value}


def _describe_loader(run: Fit) -> dict[str, Any]:
    if isinstance(run.loader, Loader):
        return run.loader.describe()
    described: dict[str, Any] = {"batches": run.batches, "batch_size": getattr(run.loader, "batch_size", None)}
    if isinstance(run.loader, Sequence) and len(run.loader):
        described["first_batch"] = fingerprint(*check_pair(run.loader[0]))
    samples = getattr(run.loader, "dataset", None)
    if isinstance(samples, TensorDataset):
        described["samples"] = fingerprint(*samples.tensors)
    elif samples is not None:
        described["samples"] = f"{type(samples).__qualname__}, {length(samples)}"
    return described


def _free_to_extend(there: dict[str, Any] | None, here: dict[str, Any] | None) -> tuple[str, ...]:
    """The settings that may differ where a run is made longer: also the schedule, if it counts the same steps."""
    counted = there and here and there["every"] == here["every"] and "monitor" not in {**there, **here}
    return ("epochs", "validation", "schedule") if counted else ("epochs", "validation")


def _check_same_run(trainer: Trainer, run: Fit, position: dict[str, Any], extend: bool) -> None:
    there = position["settings"]
    longer = there["epochs"] < run.epochs
    free = _free_to_extend(there["schedule"], run.settings["schedule"]) if extend and longer else ()
    here = {**run.settings, **{name: there[name] for name in free}}
    found = differences(there, here)
    fresh = not (trainer.optimizer.state or trainer.epochs_trained or trainer.interrupted)
    if fresh and not found:  # else another schedule may have been at work on the rates
        rates = [float(group["lr"]) for group in trainer.optimizer.param_groups]
        if any(rates) and rates != position["own_rates"]:
            found.append(f"the groups' rates: {position['own_rates']} there, {rates} here")
    if found:
        only_longer = longer and not extend and len(found) == 1
        hint = " To train it for more epochs, say so: extend=True." if only_longer else ""
        raise OtherRunError(
            f"{run.checkpoint} is of another run ({'; '.join(found)}). Use the same settings, another path, or "
            f"delete the file.{hint}"
        )

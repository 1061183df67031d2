"""Checkpoints: everything a run needs to go on as if nothing had happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vision_wrapper._files import PathLike, read_tensors, write_tensors
from vision_wrapper._state import random_states, set_random_states
from vision_wrapper.errors import OtherModelError, OtherRunError
from vision_wrapper.models.weights import check_fits
from vision_wrapper.trainer.history import History

if TYPE_CHECKING:
    from vision_wrapper.trainer.trainer import Trainer, _Fit

KIND = "checkpoint"


def save(trainer: Trainer, path: PathLike) -> None:
    """Write the trainer's own state, without a run."""
    write_tensors(path, KIND, {**_trainer_state(trainer), "run": None})


def load(trainer: Trainer, path: PathLike) -> None:
    """Put the trainer's own state back."""
    state, _ = read_tensors(path, KIND)
    _restore_trainer(trainer, state, path)
    set_random_states(state["random"])


def write(trainer: Trainer, run: _Fit) -> None:
    """Write a run's checkpoint, where it has one; never over a good one when a loss is not finite."""
    if run.checkpoint is None:
        return
    trainer._read_losses(run)
    position = {
        "settings": _comparable(run.settings),
        "first_epoch": run.first_epoch,
        "epoch": run.epoch,
        "batch": run.batch,
        "samples": run.samples,
        "total": run.total,
        "seconds": run.seconds,
        "stop": run.stop,
        "losses": torch.stack(run.losses) if run.losses else None,
        "sizes": run.sizes,
        "rates": [float(rate) for rate in run.rates],
        "correct": run.correct,
        "rows": run.history.rows,
        "batches": run.history.batches,
        "schedule": None if run.scheduler is None else run.scheduler.state_dict(),
        "average": None if trainer._average is None else trainer._average.averages,
        "callbacks": [callback.state_dict() for callback in trainer.callbacks],
        "epoch_random": run.epoch_random,
    }
    write_tensors(run.checkpoint, KIND, {**_trainer_state(trainer), "run": position})


def resume(trainer: Trainer, run: _Fit) -> None:
    """Put a run where its checkpoint left it. Raises `OtherRunError` where settings differ."""
    assert run.checkpoint is not None
    state, _ = read_tensors(run.checkpoint, KIND)
    position = state["run"]
    if position is None:
        raise OtherRunError(
            f"{run.checkpoint} was written by Trainer.save, not by fit. Load it, or choose another path."
        )
    _check_same_run(run, position["settings"])
    _restore_trainer(trainer, state, run.checkpoint)
    for name in ("first_epoch", "epoch", "batch", "samples", "total", "seconds", "stop", "sizes", "rates"):
        setattr(run, name, position[name])
    run.losses = [] if position["losses"] is None else list(position["losses"].to(trainer.device).unbind())
    run.correct = None if position["correct"] is None else position["correct"].to(trainer.device)
    run.history = History(position["rows"], position["batches"])
    if run.scheduler is not None:
        run.scheduler.load_state_dict(position["schedule"])
    if trainer._average is not None:
        trainer._average.load([tensor.to(trainer.device) for tensor in position["average"]])
    for callback, kept in zip(trainer.callbacks, position["callbacks"], strict=False):
        if kept:
            callback.load_state_dict(kept)
    run.epoch_random, run.resume_random = position["epoch_random"], state["random"]


def _trainer_state(trainer: Trainer) -> dict[str, Any]:
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer._scaler.state_dict(),
        "random": random_states(),
        "epochs_trained": trainer.epochs_trained,
    }


def _restore_trainer(trainer: Trainer, state: dict[str, Any], path: PathLike) -> None:
    check_fits(trainer.model.state_dict(), state["model"], str(path))
    groups = [len(group["params"]) for group in trainer.optimizer.param_groups]
    kept = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    if groups != kept:
        raise OtherModelError(f"{path} has an optimizer with groups of {kept} parameters, this one has {groups}.")
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:
        trainer._scaler.load_state_dict(state["scaler"])
    trainer.epochs_trained = state["epochs_trained"]


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "checked"}


def _check_same_run(run: _Fit, kept: dict[str, Any]) -> None:
    now = _comparable(run.settings)
    differences = [
        f"{name}: {kept.get(name)!r} there, {now[name]!r} here" for name in now if kept.get(name) != now[name]
    ]
    if differences:
        raise OtherRunError(
            f"{run.checkpoint} is of another run ({'; '.join(differences)}). Use the same settings, another path, or "
            "delete the file."
        )

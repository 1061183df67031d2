"""A recipe: a whole experiment as frozen data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import nn

from vision_wrapper._lookup import check_names
from vision_wrapper._seeding import checked_seed
from vision_wrapper.data import AUGMENTATIONS
from vision_wrapper.errors import SettingError
from vision_wrapper.models import MODELS, build_model
from vision_wrapper.trainer import SCHEDULES, Schedule
from vision_wrapper.trainer.precision import PRECISIONS

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class Expected:
    """What a recipe reached, measured: the mean over `seeds` of the last epoch's accuracy on the test set.

    Accuracies are in [0, 1]; `spread` is the standard deviation between seeds, None for a single one.
    """

    accuracy: float
    tta_accuracy: float | None
    spread: float | None
    seeds: int
    epochs: int
    data: str
    hardware: str
    version: str


@dataclass(frozen=True)
class Recipe:
    """An experiment. Every field can be changed: `recipe.changed(epochs=5)`, `--set batch_size=128`.

    Attributes:
        name: as in `RECIPES`.
        description: one line.
        data: the data set it was made for.
        channels: 3 for RGB, 1 for grey.
        model: a name of `MODELS`.
        model_args: its constructor's arguments, without num_classes and in_channels.
        optimizer: "adam", "adamw" or "sgd".
        lr: the optimizer's rate, from which the LR finder's groups and some schedules start.
        optimizer_args: its further arguments.
        schedule: a name of `SCHEDULES`, or None.
        schedule_args: its arguments.
        find_lr: take the schedule's `max_lr` from the LR finder, and `min_lr` as a tenth of it.
        batch_size: images in a step.
        epochs: that are trained.
        schedule_epochs: that the schedule is made for, where the run ends before; None is `epochs`.
        augment: a name of `AUGMENTATIONS`.
        val_fraction: held out of the training images and watched; 0 watches the test set, as the classic ones do.
        label_smoothing: of the cross-entropy.
        drop_last: leave out a last batch that is not full.
        precision: of the trainer.
        ema: of the trainer.
        accumulate: of the trainer.
        seed: of everything random.
        published: what the original reports, as text.
        expected: what was measured with this library, or None.
    """

    name: str
    description: str
    data: str = "cifar10"
    channels: int = 3
    model: str = "custom_resnet"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 0.01
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    schedule_args: Mapping[str, Any] = field(default_factory=dict)
    find_lr: bool = False
    batch_size: int = 512
    epochs: int = 24
    schedule_epochs: int | None = None
    augment: str = "none"
    val_fraction: float = 0.0
    label_smoothing: float = 0.0
    drop_last: bool = False
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    ema: float | None = None
    accumulate: int = 1
    seed: int = 0
    published: str = ""
    expected: Expected | None = None

    def __post_init__(self):
        self._check_numbers()
        checked_seed(self.seed)
        AUGMENTATIONS[self.augment]
        check_names("optimizer", [self.optimizer], OPTIMIZERS)
        check_names("precision", [self.precision], PRECISIONS)
        for name in ("model_args", "optimizer_args", "schedule_args"):
            if not isinstance(getattr(self, name), Mapping):
                raise SettingError(f'{name} must be a dict such as {{"p": 1}}, got {getattr(self, name)!r}.')
        _check_arguments("model_args", MODELS[self.model], self.model_args, ("num_classes", "in_channels"))
        _check_arguments("optimizer_args", OPTIMIZERS[self.optimizer], self.optimizer_args, ("params", "lr"))
        if self.schedule is not None:
            found = ("max_lr",) if self.find_lr else ()
            _check_arguments("schedule_args", SCHEDULES[self.schedule], self.schedule_args, found, fixed=False)
        if self.find_lr and (self.schedule is None or "max_lr" not in _parameters(SCHEDULES[self.schedule])):
            raise SettingError(f"find_lr=True sets the schedule's max_lr, which {self.schedule!r} does not have.")

        if not isinstance(self.name, str) or not self.name.strip() or set(self.name) & set("/\\"):
            raise SettingError(f"name must be a text that can be a folder's name, got {self.name!r}.")
        if not (self.expected is None or isinstance(self.expected, Expected)):
            raise SettingError(f"expected is measured, not set; got {self.expected!r}.")

    def _check_numbers(self) -> None:
        least_one, share = (lambda v: v >= 1), (lambda v: 0 <= v < 1)
        rules = {
            "epochs": (int, least_one, "a whole number of at least 1"),
            "batch_size": (int, least_one, "a whole number of at least 1"),
            "accumulate": (int, least_one, "a whole number of at least 1"),
            "schedule_epochs": (int, lambda v: v >= self.epochs, "a whole number of at least `epochs`, or None"),
            "lr": (float, lambda v: 0 < v < math.inf, "a positive number"),
            "ema": (float, lambda v: 0 < v < 1, "a number between 0 and 1, or None"),
            "val_fraction": (float, share, "a number in [0, 1)"),
            "label_smoothing": (float, share, "a number in [0, 1)"),
            "find_lr": (bool, lambda v: True, "true or false"),
            "drop_last": (bool, lambda v: True, "true or false"),
        }
        for name, (kind, holds, expected) in rules.items():
            value = getattr(self, name)
            if value is None and name in ("schedule_epochs", "ema"):
                continue
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or (isinstance(value, bool) and kind is not bool) or not holds(value):
                raise SettingError(f"{name} must be {expected}, got {value!r}.")

    def changed(self, **settings: Any) -> Recipe:
        """A copy with other settings. Where `epochs` changes, what counts in epochs keeps its fraction of the run.

        Raises `UnknownNameError` for an unknown field.
        """
        check_names("setting of a recipe", settings, [f.name for f in fields(self)])
        if settings and settings.keys() != {"seed"}:
            settings = {"expected": None, **settings}  # it was measured with other settings
        epochs = settings.get("epochs", self.epochs)
        if isinstance(epochs, int) and epochs > 0 and epochs != self.epochs and "schedule_args" not in settings:
            share = epochs / self.epochs
            arguments = dict(self.schedule_args)
            for name in ("peak_epoch", "warm_up_epochs"):
                if arguments.get(name) is not None:
                    arguments[name] = arguments[name] * share
            if "milestones" in arguments:
                arguments["milestones"] = sorted({max(1, round(m * share)) for m in arguments["milestones"]})
            settings["schedule_args"] = arguments
            if self.schedule_epochs is not None and "schedule_epochs" not in settings:
                settings["schedule_epochs"] = max(epochs, round(self.schedule_epochs * share))
        return replace(self, **settings)

    @property
    def watches(self) -> str:
        """What is looked at after each epoch: "the test set" or "held-out training images"."""
        return "held-out training images" if self.val_fraction else "the test set"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `recipe.json`."""
        return asdict(self)

    def build_model(self, num_classes: int) -> nn.Module:
        """The recipe's network, with fresh weights."""
        return build_model(self.model, num_classes=num_classes, in_channels=self.channels, **self.model_args)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The recipe's optimizer of all parameters; fused, one pass over them a step, unless its arguments choose."""
        form = {} if {"foreach", "fused"} & set(self.optimizer_args) else {"fused": True}
        try:
            return OPTIMIZERS[self.optimizer](model.parameters(), lr=self.lr, **form, **self.optimizer_args)
        except (TypeError, ValueError) as error:
            raise SettingError(f"optimizer_args={dict(self.optimizer_args)} does not fit: {error}") from error

    def build_schedule(self, max_lr: float | None = None) -> Schedule | None:
        """The recipe's schedule; `max_lr` is what the LR finder suggested, where the recipe asks it."""
        if self.schedule is None:
            return None
        arguments = dict(self.schedule_args)
        make = SCHEDULES[self.schedule]
        if self.find_lr and max_lr is not None:
            if "min_lr" in _parameters(make):
                arguments.setdefault("min_lr", max_lr / 10)
            arguments["max_lr"] = max_lr
        try:
            schedule = make(**arguments)
        except TypeError as error:
            raise SettingError(f"schedule_args={arguments} does not fit: {error}.") from error
        if self.schedule_epochs is None:
            return schedule
        planned = self.schedule_epochs
        return replace(schedule, build=lambda optimizer, epochs, steps: schedule.build(optimizer, planned, steps))


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _check_arguments(
    name: str, function: Callable[..., Any], arguments: Mapping[str, Any], given: tuple[str, ...], fixed: bool = True
) -> None:
    """Raise for arguments that `function` does not take or lacks; the `given` ones come from elsewhere.

    `fixed`: they cannot be in `arguments` too.
    """
    parameters = _parameters(function)
    check_names(f"entry of {name}", arguments, [p for p in parameters if not fixed or p not in given])
    missing = [
        p for p, value in parameters.items() if value.default is value.empty and p not in arguments and p not in given
    ]
    if missing:
        raise SettingError(f"{name} lacks {', '.join(missing)}: got {dict(arguments)}.")

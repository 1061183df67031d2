"""A recipe: a whole experiment as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
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

OPTIMIZERS = ("adam", "adamw", "sgd")


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
    seed: int = 0
    published: str = ""
    expected: Expected | None = None

    def __post_init__(self):
        MODELS[self.model]
        AUGMENTATIONS[self.augment]
        checked_seed(self.seed)
        if self.schedule is not None:
            SCHEDULES[self.schedule]
        check_names("optimizer", [self.optimizer], OPTIMIZERS)
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if isinstance(self.lr, bool) or not isinstance(self.lr, (int, float)) or not self.lr > 0:
            raise SettingError(f"lr must be a positive number, got {self.lr!r}.")
        for name in ("model_args", "optimizer_args", "schedule_args"):
            if not isinstance(getattr(self, name), Mapping):
                raise SettingError(f'{name} must be a dict such as {{"p": 1}}, got {getattr(self, name)!r}.')

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
        """The recipe's optimizer of all parameters."""
        constructors = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        return constructors[self.optimizer](model.parameters(), lr=self.lr, **self.optimizer_args)

    def build_schedule(self, max_lr: float | None = None) -> Schedule | None:
        """The recipe's schedule; `max_lr` is what the LR finder suggested, where the recipe asks it."""
        if self.schedule is None:
            return None
        arguments = dict(self.schedule_args)
        if self.find_lr and max_lr is not None:
            arguments = {"min_lr": max_lr / 10, **arguments, "max_lr": max_lr}
        schedule = SCHEDULES[self.schedule](**arguments)
        if self.schedule_epochs is None:
            return schedule
        planned = self.schedule_epochs
        return replace(schedule, build=lambda optimizer, epochs, steps: schedule.build(optimizer, planned, steps))

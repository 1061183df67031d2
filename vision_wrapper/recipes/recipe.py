"""A recipe: a whole experiment as frozen data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import nn

from vision_wrapper._lookup import check_names
from vision_wrapper._numbers import plain_values
from vision_wrapper.errors import SettingError
from vision_wrapper.models import build_model, parameter_groups, scale_head
from vision_wrapper.recipes.checks import check_fields, parameters_of
from vision_wrapper.trainer import OPTIMIZERS, SCHEDULES, Lookahead, Schedule, schedules

INFORMATIVE = {"description", "published", "goal", "expected"}  # fields of a recipe that change no run


@dataclass(frozen=True)
class Expected:
    """What a recipe reached, as it was measured.

    Attributes:
        accuracy: on the test set after the last epoch, the mean over the seeds, in [0, 1].
        tta_accuracy: the same with the recipe's test-time averaging; None where it has none.
        spread: the standard deviation of `accuracy` between seeds; None for a single seed.
        seeds: how many.
        epochs: of each run.
        images_per_second: of training.
        data: the data set.
        hardware: the machine.
        version: of this library.
        tta_spread: the standard deviation of `tta_accuracy` between seeds; None for a single seed.
        test_images: how many an accuracy is of; None in summaries from before it was kept.
        failed: seeds whose runs failed, of which no accuracy is known.
    """

    accuracy: float
    tta_accuracy: float | None
    spread: float | None
    seeds: int
    epochs: int
    images_per_second: float
    data: str
    hardware: str
    version: str
    tta_spread: float | None = None
    test_images: int | None = None
    failed: int = 0


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
        pretrained: torchvision's weights of the model, such as "IMAGENET1K_V1", or a file. Where the former cannot be
            had, training begins from random weights, with a warning, which the run folder and the report repeat.
        whiten: fit the network's first layer, a `Whitening`, to training images.
        head_scale: of the logits, in the form of `models.scale_head` and `models.parameter_groups`.
        optimizer: "adam", "adamw", "muon" or "sgd".
        lr: the optimizer's rate, from which the LR finder's groups and some schedules start.
        optimizer_args: its further arguments.
        groups: arguments of `models.parameter_groups` (body_lr, norms_biases_lr, weight_decay); with them, or with a
            head_scale, norms and biases have no weight decay. None is one group for all.
        lookahead: arguments of `trainer.Lookahead`, or None.
        freeze_epochs: that train the head alone, at the beginning; none where there are no pretrained weights.
        schedule: a name of `SCHEDULES`, or None.
        schedule_args: its arguments.
        find_lr: take the schedule's `max_lr` from the LR finder, and `min_lr`, where `schedule_args` have none, as a
            tenth of it.
        batch_size: images in a step.
        epochs: that are trained.
        schedule_epochs: that the schedule is made for, where the run ends before; None is `epochs`.
        augment: a name of `AUGMENTATIONS`.
        augment_args: fields to change in it, as of `data.augmentation`.
        size: of the network's input, pixels; None is that of the images, or 224 where they differ.
        normalisation: by mean and standard deviation of the training "data", or of "imagenet" (for pretrained weights).
        progressive_size: pairs (epoch, share of the size), as of `data.make_loaders`.
        val_fraction: held out of the training images and watched; 0 watches the test set, as the classic ones do.
        label_smoothing: of the cross-entropy.
        drop_last: leave out a last batch that is not full.
        precision: of the trainer.
        deterministic: of the trainer: for an exact resume on CUDA.
        ema: of the trainer.
        accumulate: of the trainer.
        tta: test-time averaging whose accuracy is given beside the plain one, or None.
        seed: of everything random; None is that of `seed_everything`.
        published: what the original reports, as text.
        goal: the test accuracies that were aimed at, in [0, 1], without and with `tta`; or None.
        expected: what was measured with this library, or None.
    """

    name: str
    description: str
    data: str = "cifar10"
    channels: int = 3
    model: str = "custom_resnet"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    whiten: bool = False
    head_scale: float = 1.0
    optimizer: str = "adam"
    lr: float = 0.01
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Any] | None = None
    lookahead: Mapping[str, Any] | None = None
    freeze_epochs: int = 0
    schedule: str | None = None
    schedule_args: Mapping[str, Any] = field(default_factory=dict)
    find_lr: bool = False
    batch_size: int = 512
    epochs: int = 24
    schedule_epochs: int | None = None
    augment: str = "none"
    augment_args: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    normalisation: Literal["data", "imagenet"] = "data"
    progressive_size: Sequence[tuple[float, float]] = ()
    val_fraction: float = 0.0
    label_smoothing: float = 0.0
    drop_last: bool = False
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    deterministic: bool = False
    ema: float | None = None
    accumulate: int = 1
    tta: str | None = None
    seed: int | None = None
    published: str = ""
    goal: tuple[float | None, float | None] | None = None
    expected: Expected | None = None

    def __post_init__(self):
        for each in fields(self):  # its own: recipes that were made from the same one do not share them
            object.__setattr__(self, each.name, plain_values(getattr(self, each.name)))
        check_fields(self)
        if not (self.expected is None or isinstance(self.expected, Expected)):
            raise SettingError(f"expected is measured, not set; got {self.expected!r}.")

    def changed(self, **settings: Any) -> Recipe:
        """A copy with other settings. Where `epochs` changes, what counts in epochs keeps its fraction of the run.

        Raises `UnknownNameError` for an unknown field, `SettingError` for values that cannot be, and for an `lr` alone
        where the highest rate is the schedule's.
        """
        check_names("setting of a recipe", settings, [f.name for f in fields(self)])
        settings = plain_values(settings)
        self._check_rate(settings)
        epochs = settings.get("epochs", self.epochs)
        if isinstance(epochs, int) and epochs > 0 and epochs != self.epochs:
            scaled = {name: scale(self, epochs) for name, scale in COUNTED_IN_EPOCHS.items()}
            settings = {**scaled, **settings}
        changed = replace(self, **settings)
        if "expected" in settings or settings_of(changed) == settings_of(self):
            return changed
        return replace(changed, expected=None)  # it was measured with other settings

    def _check_rate(self, settings: Mapping[str, Any]) -> None:
        """Raise for a rate that would count for nothing, or for the groups' proportion alone."""
        arguments = settings.get("schedule_args")
        peak = arguments.get("max_lr") if isinstance(arguments, Mapping) else None
        if settings.get("find_lr", self.find_lr) is True:  # what is no bool is refused later
            if "lr" in settings or peak is not None:
                raise SettingError(
                    "The LR finder gives the highest rate: set find_lr=false, and schedule_args' max_lr."
                )
            return
        peak = self.schedule_args.get("max_lr")
        if (
            peak is not None
            and settings.get("lr", self.lr) != self.lr
            and not {"schedule", "schedule_args"} & {*settings}
        ):
            raise SettingError(
                f"The highest rate is the schedule's max_lr={peak}, not lr: set schedule_args (all of it; with groups, "
                "lr too, to which their rates are in proportion)."
            )

    @property
    def watches(self) -> str:
        """What is looked at after each epoch: "the test set" or "held-out training images"."""
        return "held-out training images" if self.val_fraction else "the test set"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `recipe.json` holds them: lists, not tuples."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe that `as_dict` gave, without `expected`: that is measured, not read.

        Raises what making a Recipe raises.
        """
        return cls(**{**fields, "expected": None})

    def build_model(self, num_classes: int) -> nn.Module:
        """The recipe's network, with fresh weights but for the pretrained ones.

        Raises `DataNotFoundError` where these are neither on this machine nor to be downloaded, and what the network
        raises for its arguments.
        """
        given = {} if self.pretrained is None else {"weights": self.pretrained}
        arguments = {"in_channels": self.channels, **self.model_args, **given}
        try:
            model = build_model(self.model, num_classes=num_classes, **arguments)
        except TypeError as error:
            raise SettingError(f"model_args={dict(self.model_args)} does not fit: {error}.") from error
        if self.head_scale != 1:
            scale_head(model, self.head_scale)
        return model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The recipe's optimizer; fused, one pass over the parameters a step, where it can and no argument chooses."""
        make, arguments = OPTIMIZERS[self.optimizer], dict(self.optimizer_args)
        if "fused" in parameters_of(make) and not {"foreach", "fused"} & set(arguments):
            arguments["fused"] = True
        parameters: Any = model.parameters()
        if self.groups is not None or self.head_scale != 1:
            decay = arguments.get("weight_decay", parameters_of(make)["weight_decay"].default)
            groups = {"weight_decay": decay, **(self.groups or {})}
            parameters = parameter_groups(model, self.lr, head_scale=self.head_scale, **groups)
        try:
            optimizer = make(parameters, lr=self.lr, **arguments)
        except (TypeError, ValueError) as error:
            raise SettingError(f"optimizer_args={dict(self.optimizer_args)} does not fit: {error}") from error
        return optimizer if self.lookahead is None else Lookahead(optimizer, **self.lookahead)

    def build_schedule(self, max_lr: float | None = None) -> Schedule | None:
        """The recipe's schedule; `max_lr` is the LR finder's, where the recipe asks it."""
        if self.schedule is None:
            return None
        arguments = dict(self.schedule_args)
        make = SCHEDULES[self.schedule]
        if self.find_lr and max_lr is not None:
            if "min_lr" in parameters_of(make):
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


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide what a run reaches, as plain values."""
    return {name: value for name, value in recipe.as_dict().items() if name not in {*INFORMATIVE, "name", "seed"}}


def _scaled_schedule_args(recipe: Recipe, epochs: int) -> dict[str, Any]:
    arguments = dict(recipe.schedule_args)
    parameters = {} if recipe.schedule is None else parameters_of(SCHEDULES[recipe.schedule])
    for name, scaled in schedules.COUNTED_IN_EPOCHS.items():
        default = parameters[name].default if name in parameters else None  # it counts in epochs too
        value = arguments.get(name, default)
        if value is not None:
            arguments[name] = scaled(value, epochs / recipe.epochs)
    return arguments


def _scaled_schedule_epochs(recipe: Recipe, epochs: int) -> int | None:
    planned = recipe.schedule_epochs
    return None if planned is None else max(epochs, round(planned * (epochs / recipe.epochs)))


def _scaled_progressive_size(recipe: Recipe, epochs: int) -> tuple[tuple[float, float], ...]:
    return tuple((first * (epochs / recipe.epochs), part) for first, part in recipe.progressive_size)


def _scaled_freeze_epochs(recipe: Recipe, epochs: int) -> int:
    return min(epochs - 1, math.ceil(recipe.freeze_epochs * (epochs / recipe.epochs)))


# The fields that count in epochs, and what each becomes in a run of another number of them.
COUNTED_IN_EPOCHS: dict[str, Callable[[Recipe, int], Any]] = {
    "schedule_args": _scaled_schedule_args,
    "schedule_epochs": _scaled_schedule_epochs,
    "progressive_size": _scaled_progressive_size,
    "freeze_epochs": _scaled_freeze_epochs,
}

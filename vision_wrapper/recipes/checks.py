"""What a recipe refuses, before any data are read."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from vision_wrapper._lookup import check_names, takes_any_name
from vision_wrapper._numbers import is_number
from vision_wrapper._seeding import checked_seed
from vision_wrapper._state import preserve_random_states
from vision_wrapper.classifier import MAX_INPUT
from vision_wrapper.data import augmentation
from vision_wrapper.data.loaders import check_progressive_size
from vision_wrapper.errors import SettingError
from vision_wrapper.models import MODELS, Whitening, parameter_groups
from vision_wrapper.models.fine_tuning import check_group_numbers
from vision_wrapper.trainer import OPTIMIZERS, SCHEDULES, Lookahead
from vision_wrapper.trainer.optimizers import check_lookahead
from vision_wrapper.trainer.precision import PRECISIONS
from vision_wrapper.trainer.views import views_of

if TYPE_CHECKING:
    from vision_wrapper.recipes.recipe import Recipe

MAX_SIDE = math.isqrt(MAX_INPUT)  # pixels
_MANY_STEPS = 10**6  # in an epoch: no fraction of one is within the first step
_ANY_RATE = 1e6  # above all that arguments may name
DICTS = ("model_args", "optimizer_args", "schedule_args", "augment_args", "groups", "lookahead")


def check_fields(recipe: Recipe) -> None:
    """Raise `SettingError` or `UnknownNameError` for a field that cannot be. Later checks rely on the earlier ones."""
    _check_texts(recipe)
    _check_goal(recipe.goal)
    _check_numbers(recipe)
    checked_seed(recipe.seed)
    _check_dicts(recipe)
    check_names("precision", [recipe.precision], PRECISIONS)
    _check_images(recipe)
    _check_optimizer(recipe)
    _check_groups(recipe)
    _check_model(recipe)
    _check_schedule(recipe)


def check_parts(recipe: Recipe) -> None:
    """Raise what the network, the optimizer and the schedule raise for their arguments, by making them.

    Weights are neither read nor downloaded. Of the schedule of an LR finder the highest rate is not known yet, and of
    no schedule the steps in an epoch: other rates above the highest, and a peak within the first step, are found later.
    """
    with preserve_random_states():
        model = replace(recipe, pretrained=None).build_model(num_classes=2)
        optimizer = recipe.build_optimizer(model)
    if recipe.whiten:
        whitening_of(model)
    schedule = recipe.build_schedule(_ANY_RATE if recipe.find_lr else None)
    if schedule is not None:
        schedule.build(optimizer, recipe.epochs, _MANY_STEPS)


def whitening_of(model: nn.Module) -> Whitening:
    """The layer that a recipe with `whiten` fits. Raises `SettingError` where the network has none."""
    layer = next((module for module in model.modules() if isinstance(module, Whitening)), None)
    if layer is None:
        raise SettingError(f"whiten=true needs a network that has a Whitening layer, not {type(model).__name__}.")
    return layer


def _check_texts(recipe: Recipe) -> None:
    optional = ("schedule", "pretrained", "tta")
    for name in ("description", "data", "model", "optimizer", "augment", "precision", "published", *optional):
        value = getattr(recipe, name)
        if not isinstance(value, str) and not (value is None and name in optional):
            raise SettingError(f"{name} must be a text, got {value!r}.")
    if not isinstance(recipe.name, str) or not recipe.name.strip() or set(recipe.name) & set("/\\"):
        raise SettingError(f"name must be a text that can be a folder's name, got {recipe.name!r}.")


def _check_goal(goal: Any) -> None:
    if goal is not None and not (
        isinstance(goal, (tuple, list)) and len(goal) == 2 and all(g is None or _is_share(g) for g in goal)
    ):
        raise SettingError(f"goal must be two accuracies in [0, 1], or None for one that has none; got {goal!r}.")


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _check_numbers(recipe: Recipe) -> None:
    least_one, share = (lambda v: v >= 1), (lambda v: 0 <= v < 1)
    rules = {
        "epochs": (int, least_one, "a whole number of at least 1"),
        "batch_size": (int, least_one, "a whole number of at least 1"),
        "accumulate": (int, least_one, "a whole number of at least 1"),
        "schedule_epochs": (int, lambda v: v >= recipe.epochs, "a whole number of at least `epochs`, or None"),
        "lr": (float, lambda v: 0 < v < math.inf, "a positive number"),
        "head_scale": (float, lambda v: 1e-3 <= v <= 1e3, "a number from 0.001 to 1000"),
        "freeze_epochs": (int, lambda v: 0 <= v < recipe.epochs, "a whole number of epochs, less than `epochs`"),
        "channels": (int, least_one, "a whole number, 3 for RGB or 1 for grey"),
        "size": (int, lambda v: 1 <= v <= MAX_SIDE, f"a whole number of pixels from 1 to {MAX_SIDE}, or None"),
        "ema": (float, lambda v: 0 < v < 1, "a number between 0 and 1, or None"),
        "val_fraction": (float, share, "a number in [0, 1)"),
        "label_smoothing": (float, share, "a number in [0, 1)"),
        "find_lr": (bool, lambda v: True, "true or false"),
        "whiten": (bool, lambda v: True, "true or false"),
        "drop_last": (bool, lambda v: True, "true or false"),
        "deterministic": (bool, lambda v: True, "true or false"),
    }
    for name, (kind, holds, expected) in rules.items():
        value = getattr(recipe, name)
        if value is None and name in ("schedule_epochs", "ema", "size"):
            continue
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool) or not holds(value):
            raise SettingError(f"{name} must be {expected}, got {value!r}.")


def _check_dicts(recipe: Recipe) -> None:
    for name in DICTS:
        value = getattr(recipe, name)
        if not isinstance(value, Mapping) and not (value is None and name in ("groups", "lookahead")):
            raise SettingError(f'{name} must be a dict such as {{"p": 1}}, got {value!r}.')
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise SettingError(f"{name} must hold numbers, texts, lists and dicts, got {value!r}: {error}.") from error


def _check_images(recipe: Recipe) -> None:
    check_names("normalisation", [recipe.normalisation], ("data", "imagenet"))
    if recipe.normalisation == "imagenet" and recipe.channels != 3:
        raise SettingError(
            f'normalisation="imagenet" is for 3 channels, got channels={recipe.channels}: set normalisation to "data", '
            "and pretrained to None, or leave channels at 3, as which grey images are read too."
        )
    augmentation(recipe.augment, **recipe.augment_args)
    check_progressive_size(recipe.progressive_size)
    views_of(recipe.tta)


def _check_optimizer(recipe: Recipe) -> None:
    _check_arguments("optimizer_args", OPTIMIZERS[recipe.optimizer], recipe.optimizer_args, ("params", "lr"))
    _check_arguments("lookahead", Lookahead, recipe.lookahead or {}, ("optimizer",))
    check_lookahead(**(recipe.lookahead or {}))
    if recipe.head_scale != 1 and recipe.optimizer in ("adam", "adamw"):
        raise SettingError("head_scale is for sgd and muon: the steps of Adam do not depend on a gradient's size.")


def _check_groups(recipe: Recipe) -> None:
    groups = recipe.groups or {}
    _check_arguments("groups", parameter_groups, groups, ("model", "lr", "head_scale", "head"))
    check_group_numbers(**groups)
    if "weight_decay" in recipe.optimizer_args and "weight_decay" in groups:
        raise SettingError("weight_decay is given twice, in optimizer_args and in groups.")


def _check_model(recipe: Recipe) -> None:
    make = MODELS[recipe.model]
    if "weights" in recipe.model_args:
        raise SettingError("weights are not among model_args: set the recipe's pretrained to their name or file.")
    _check_arguments("model_args", make, recipe.model_args, ("num_classes", "in_channels"))
    if recipe.pretrained is not None and "weights" not in parameters_of(make):
        having = " and ".join(name for name, other in MODELS.items() if "weights" in parameters_of(other))
        raise SettingError(f"{recipe.model} has no pretrained weights; {having} have torchvision's.")


def _check_schedule(recipe: Recipe) -> None:
    make = None if recipe.schedule is None else SCHEDULES[recipe.schedule]
    if make is not None:
        found = ("max_lr",) if recipe.find_lr else ()
        _check_arguments("schedule_args", make, recipe.schedule_args, found, fixed=False)
    if recipe.find_lr and (make is None or "max_lr" not in parameters_of(make)):
        raise SettingError(f"find_lr=True sets the schedule's max_lr, which {recipe.schedule!r} does not have.")


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """A function's parameters by name, without `*args` and `**kwargs`."""
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _check_arguments(
    name: str, function: Callable[..., Any], arguments: Mapping[str, Any], given: tuple[str, ...], fixed: bool = True
) -> None:
    """Raise for arguments that `function` does not take or lacks; the `given` ones come from elsewhere.

    `fixed`: they cannot be in `arguments` too.
    """
    parameters = parameters_of(function)
    known = [p for p in parameters if not fixed or p not in given]
    if not takes_any_name(function):
        check_names(f"entry of {name}", arguments, known)
    missing = [
        p for p, value in parameters.items() if value.default is value.empty and p not in arguments and p not in given
    ]
    if missing:
        raise SettingError(f"{name} lacks {', '.join(missing)}: got {dict(arguments)}.")

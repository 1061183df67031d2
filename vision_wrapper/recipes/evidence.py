"""What the recipes reached: records of runs, their summary, and the table that the docs and the command line show.

A record is a few figures of one run, written by `benchmarks/measure_recipes.py` into `docs/evidence/RECIPE.json`. The
summary of the records, `measured.json` beside this file, is where `Recipe.expected` comes from; nothing else fills it.
"""

from __future__ import annotations

import inspect
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from vision_wrapper._files import read_json
from vision_wrapper.data import augmentation
from vision_wrapper.errors import DataError
from vision_wrapper.models import MODELS, parameter_groups
from vision_wrapper.recipes.recipe import Expected, Recipe, settings_of
from vision_wrapper.trainer import OPTIMIZERS, SCHEDULES, Trainer
from vision_wrapper.trainer.lr_finder import PEAK_SHARE, SKIP_END, SKIP_START
from vision_wrapper.trainer.views import views_of

CONFIDENCE = 0.95
MEASURED = Path(__file__).with_name("measured.json")


def resolved(recipe: Recipe) -> dict[str, Any]:
    """What the names in a recipe's settings stand for, as plain values: it may change while the names stay.

    Only what is data: default arguments of this library's own (torch's go with its version, which records name), the
    augmentation's operations, the weights of the views, and what the LR finder goes by where it is asked.
    """
    operations = augmentation(recipe.augment, **recipe.augment_args)
    groups = {} if recipe.groups is None else _arguments(parameter_groups, recipe.groups)
    groups.pop("head", None)  # is for networks that are not of this library
    found = {
        "model": _arguments(MODELS[recipe.model], recipe.model_args),
        "optimizer": _arguments(OPTIMIZERS[recipe.optimizer], recipe.optimizer_args),
        "schedule": {} if recipe.schedule is None else _arguments(SCHEDULES[recipe.schedule], recipe.schedule_args),
        "groups": groups,
        "augment": [[type(operation).__name__, asdict(operation)] for operation in operations],
        "tta": [view.weight for view in views_of(recipe.tta)],
    }
    if recipe.find_lr:
        rule = {"skip_start": SKIP_START, "skip_end": SKIP_END, "peak_share": PEAK_SHARE}
        found["find_lr"] = {**_arguments(Trainer.find_lr, {}), **rule}
    return json.loads(json.dumps(found))  # lists, not tuples


def _arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments given, with the defaults of those that are not."""
    if not function.__module__.startswith("vision_wrapper."):
        return dict(given)
    parameters = inspect.signature(function).parameters.values()
    return {**{p.name: p.default for p in parameters if p.default is not p.empty}, **given}


def meaning(recipe: Recipe) -> dict[str, Any]:
    """What a record says of what was run."""
    return {"settings": settings_of(recipe), "resolved": resolved(recipe)}


def same_meaning(kept: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a record is of the recipe as it is; fields and arguments that came later have their default in it."""
    if "resolved" not in kept:
        return False
    settings, then = {**settings_of(Recipe("default", "")), **kept["settings"]}, kept["resolved"]
    return settings == settings_of(recipe) and all(
        then.get(name, {}) == now or (isinstance(now, dict) and {**now, **then.get(name, {})} == now)
        for name, now in resolved(recipe).items()
    )


@cache
def _measured() -> dict[str, Any]:
    return read_json(MEASURED) if MEASURED.exists() else {}


def with_expected(recipe: Recipe) -> Recipe:
    """The recipe with what was measured with just these settings; as it is where nothing was."""
    found = _measured().get(recipe.name)
    if found is None or not same_meaning(found, recipe):
        return recipe
    return replace(recipe, expected=Expected(**found["expected"]))


def summarise(records: Sequence[Mapping[str, Any]], failed: int = 0) -> Expected:
    """The records of one recipe's runs, one a seed, as `Expected`; so many more seeds failed.

    Raises `DataError` where they are of different images.
    """
    check_one_data(records)
    accuracies = [record["accuracy"] for record in records]
    tta_accuracies = [record["tta_accuracy"] for record in records]
    return Expected(
        accuracy=statistics.fmean(accuracies),
        tta_accuracy=None if None in tta_accuracies else statistics.fmean(tta_accuracies),
        spread=_deviation(accuracies),
        tta_spread=None if None in tta_accuracies else _deviation(tta_accuracies),
        seeds=len(records),
        epochs=records[0]["epochs"],
        images_per_second=statistics.median(record["images_per_second"] for record in records),
        data=_all_of(records, "data"),
        hardware=_all_of(records, "hardware"),
        version=_all_of(records, "version"),
        test_images=records[0]["test_images"],
        failed=failed,
    )


def check_one_data(records: Sequence[Mapping[str, Any]]) -> None:
    """Raise `DataError` for records of different images; those from before the fingerprints were kept pass."""
    contents = {json.dumps(record["content"], sort_keys=True) for record in records if "content" in record}
    if len(contents) > 1:
        raise DataError(f"Records of different images have no common mean: {'; '.join(sorted(contents))}.")


def _deviation(accuracies: Sequence[float]) -> float | None:
    return statistics.stdev(accuracies) if len(accuracies) > 1 else None


def _all_of(records: Sequence[Mapping[str, Any]], name: str) -> str:
    return "; ".join(dict.fromkeys(str(record[name]) for record in records))


# ---- the table

COLUMNS = ("recipe", "epochs", "published", "goal", "measured", "with averaging", "seeds", "images a second")


def rows(recipes: Mapping[str, Recipe]) -> list[dict[str, str]]:
    """A row a recipe, by `COLUMNS`; accuracies in percent of the test set, after the last epoch.

    With averaging, the kind of it (of `VIEWS`) follows the figure: unlike kinds are not to be compared.
    """
    return [_row(recipe) for recipe in recipes.values()]


def provenance(found: Expected) -> str:
    """What the figures of a recipe were measured on."""
    return f"{found.data}; {found.hardware}; version {found.version}"


def _row(recipe: Recipe) -> dict[str, str]:
    found, goal = recipe.expected, recipe.goal
    row = {
        "recipe": recipe.name,
        "epochs": str(recipe.epochs),
        "published": recipe.published or "–",
        "goal": "–" if goal is None else " / ".join("–" if g is None else f"{100 * g:.1f}" for g in goal),
        "measured": "not measured",
        "with averaging": "–",
        "seeds": "–",
        "images a second": "–",
    }
    if found is None:
        return row
    without, with_averaging = goal or (None, None)
    row["measured"] = _reached(found, found.accuracy, found.spread, without)
    if found.tta_accuracy is not None:
        row["with averaging"] = _reached(found, found.tta_accuracy, found.tta_spread, with_averaging, recipe.tta)
    seeds = f"{found.seeds} of {found.seeds + found.failed}" if found.failed else str(found.seeds)
    return {**row, "seeds": seeds, "images a second": f"{found.images_per_second:.0f}"}


def _reached(found: Expected, accuracy: float, spread: float | None, goal: float | None, tta: str | None = None) -> str:
    between_seeds = "" if spread is None else f" ± {100 * spread:.2f}"
    notes = [note for note in (tta, _distance(found, accuracy, spread, goal)) if note]
    return f"{100 * accuracy:.2f}{between_seeds}" + (f" ({'; '.join(notes)})" if notes else "")


def _distance(found: Expected, reached: float, spread: float | None, goal: float | None) -> str:
    """Whether a goal is met, or by how many points it is missed; a mean may be met by chance."""
    if goal is None:
        return ""
    # A mean of ten-thousandths may come out a rounding error below the goal that it is.
    if reached < goal - 1e-9:
        short = 100 * (goal - reached)
        return f"{short:.2f} short" if short >= 0.005 else "less than 0.01 short"
    if spread is None:
        return "met by one seed"
    half = _half_interval(spread, found.seeds, 1 / found.test_images if found.test_images else 0.0)
    met = f"met by the seeds that did not fail, {found.failed} did" if found.failed else "met"
    return met if reached - half >= goal else f"{met}, not shown to be above"


def mean_interval(values: Sequence[float], resolution: float) -> tuple[float, float] | None:
    """Student's 95% interval of the mean of values that are multiples of `resolution`; None for a single value."""
    if len(values) < 2:
        return None
    mean, half = statistics.fmean(values), _half_interval(statistics.stdev(values), len(values), resolution)
    return mean - half, mean + half


def _half_interval(deviation: float, count: int, resolution: float) -> float:
    """Half of the interval of the mean of `count` values, at least two, of this standard deviation.

    Few values may be equal by chance: the deviation counts as at least that of rounding, resolution / √12.
    """
    from scipy.special import stdtrit

    deviation = max(deviation, resolution / math.sqrt(12))
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(count)

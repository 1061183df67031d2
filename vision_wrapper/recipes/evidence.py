"""What the recipes reached: records of runs, their summary, and the table that the docs and the command line show.

A record is a few figures of one run, written by `benchmarks/measure_recipes.py` into `docs/evidence/RECIPE.json`. The
summary of the records, `measured.json` beside this file, is where `Recipe.expected` comes from; nothing else fills it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from vision_wrapper._files import read_json
from vision_wrapper.recipes.recipe import INFORMATIVE, Expected, Recipe

MEASURED = Path(__file__).with_name("measured.json")


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide what a run reaches, as plain values."""
    return {name: value for name, value in recipe.as_dict().items() if name not in {*INFORMATIVE, "name", "seed"}}


def same_settings(kept: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether the settings of a record are the recipe's; fields that came later have their default in it."""
    return {**settings_of(Recipe("default", "")), **kept} == settings_of(recipe)


@cache
def _measured() -> dict[str, Any]:
    return read_json(MEASURED) if MEASURED.exists() else {}


def with_expected(recipe: Recipe) -> Recipe:
    """The recipe with what was measured with just these settings; as it is where nothing was."""
    found = _measured().get(recipe.name)
    if found is None or not same_settings(found["settings"], recipe):
        return recipe
    return replace(recipe, expected=Expected(**found["expected"]))


def summarise(records: Sequence[Mapping[str, Any]]) -> Expected:
    """The records of one recipe's runs, one a seed, as `Expected`."""
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
    )


def _deviation(accuracies: Sequence[float]) -> float | None:
    return statistics.stdev(accuracies) if len(accuracies) > 1 else None


def _all_of(records: Sequence[Mapping[str, Any]], name: str) -> str:
    return "; ".join(dict.fromkeys(str(record[name]) for record in records))


# ---- the table

COLUMNS = ("recipe", "epochs", "published", "goal", "measured", "with averaging", "seeds", "images a second")


def rows(recipes: Mapping[str, Recipe]) -> list[dict[str, str]]:
    """A row a recipe, by `COLUMNS`; accuracies in percent of the test set, after the last epoch."""
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
    row["measured"] = _reached(found.accuracy, found.spread, without, found.seeds)
    if found.tta_accuracy is not None:
        row["with averaging"] = _reached(found.tta_accuracy, found.tta_spread, with_averaging, found.seeds)
    return {**row, "seeds": str(found.seeds), "images a second": f"{found.images_per_second:.0f}"}


def _reached(accuracy: float, spread: float | None, goal: float | None, seeds: int) -> str:
    between_seeds = "" if spread is None else f" ± {100 * spread:.2f}"
    return f"{100 * accuracy:.2f}{between_seeds}{_distance(accuracy, goal, seeds)}"


def _distance(reached: float, goal: float | None, seeds: int) -> str:
    """Whether a goal is met, or by how many points it is missed; one seed may have been a lucky one."""
    if goal is None:
        return ""
    reached_it = "met" if seeds > 1 else "met by one seed"
    # A mean of ten-thousandths may come out a rounding error below the goal that it is.
    return f" ({reached_it})" if reached >= goal - 1e-9 else f" ({100 * (goal - reached):.2f} short)"

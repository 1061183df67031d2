"""What a recipe promised, and what was measured of it in the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from vision_wrapper.evaluation import Predictions
from vision_wrapper.trainer.schedules import RISE

NEAR = 0.02  # rates that are this close, relatively, are the same
THREE_DEVIATIONS = 0.99865  # the share of a normal distribution that lies above three deviations below its mean


class Promise(NamedTuple):
    """A line of the checklist."""

    state: Literal["kept", "broken", "unknown"]
    promise: str
    measured: str


def checklist(
    recipe: dict[str, Any],
    rows: list[dict[str, Any]],
    predictions: Predictions | None,
    curve: dict[str, Any] | None,
    data: str = "",
) -> list[Promise]:
    """The promises of a recipe that a run can be checked by.

    Args:
        recipe: its fields, as in recipe.json.
        rows: of the history.
        predictions: of the test set, or None.
        curve: of the LR finder, as in lr_curve.json, or None.
        data: the name of the data set, or the folder.
    """
    return [
        *_epochs(recipe, rows),
        *_found_rate(recipe, rows, curve),
        *_one_cycle(recipe, rows, curve),
        *_order(predictions),
        *_expected(recipe, predictions, data),
    ]


def _state(holds: bool) -> Literal["kept", "broken"]:
    return "kept" if holds else "broken"


def _epochs(recipe: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[Promise]:
    yield Promise(_state(len(rows) == recipe["epochs"]), f"{recipe['epochs']} epochs", f"{len(rows)} were trained")


def _found_rate(recipe: dict[str, Any], rows: list[dict[str, Any]], curve: dict[str, Any] | None) -> Iterator[Promise]:
    if not recipe.get("find_lr"):
        return
    if curve is None or not curve.get("max_lr"):
        yield Promise("unknown", "the highest rate comes from the LR finder", "its curve is not there")
        return
    highest = max(row["lr"] for row in rows)
    said = f"the finder found {curve['max_lr']:.3g}; the highest at an epoch's end was {highest:.3g}"
    # The peak may lie inside an epoch, of which the history keeps the last rate.
    yield Promise(_state(highest <= curve["max_lr"] * (1 + NEAR)), "the highest rate comes from the LR finder", said)


def _one_cycle(recipe: dict[str, Any], rows: list[dict[str, Any]], curve: dict[str, Any] | None) -> Iterator[Promise]:
    arguments = recipe.get("schedule_args") or {}
    if recipe.get("schedule") != "one_cycle" or not rows:
        return
    peak = arguments.get("peak_epoch")
    if peak is not None:
        rates = [row["lr"] for row in rows]
        reached = rates.index(max(rates)) + 1
        kept = max(1, math.floor(peak)) <= reached <= max(1, math.ceil(peak))  # the history has the last rates
        yield Promise(
            _state(kept), f"the rate peaks at epoch {peak:g}", f"the highest rate was at the end of {reached}"
        )
    if arguments.get("annihilate") is False and arguments.get("final_lr") is None:
        found = (curve or {}).get("max_lr")
        given = None if recipe.get("find_lr") or "max_lr" not in arguments else arguments["max_lr"] / RISE
        low = arguments.get("min_lr") or (found / 10 if found else given)
        last = rows[-1]["lr"]
        promise = "no annihilation: the cycle ends at the rate it began with"
        if low is None:
            yield Promise("unknown", promise, f"it ended at {last:.3g}; where it began is not kept")
        else:  # the last step is one before the end of the cycle
            yield Promise(_state(low * (1 - NEAR) <= last <= low * 1.5), promise, f"from {low:.3g} to {last:.3g}")


def _order(predictions: Predictions | None) -> Iterator[Promise]:
    promise = "the test set is whole and not shuffled"
    if predictions is None:
        yield Promise("unknown", promise, "the predictions are not there")
        return
    indices = predictions.indices.tolist()
    yield Promise(_state(indices == list(range(len(indices)))), promise, f"{len(indices)} images, in their order")


def _expected(recipe: dict[str, Any], predictions: Predictions | None, data: str) -> Iterator[Promise]:
    """Not far below what was measured; of other data nothing is expected."""
    found = recipe.get("expected")
    if found is None or predictions is None or found["data"] != data:
        return
    measured = predictions.accuracy()
    yield Promise(
        _state(measured >= found["accuracy"] - _allowed(found, len(predictions))),
        f"about {found['accuracy']:.2%}, as measured before ({found['seeds']} seeds)",
        f"{measured:.2%}",
    )


def _allowed(found: dict[str, Any], images: int) -> float:
    """How far below the mean a run may come: as far as by chance in one of 700 runs, but not much further than that.

    By the spread of the seeds with Student's t, since few seeds know it badly; and at most three times the larger
    standard deviation, of the seeds or of the test set, since the t of two seeds would let everything pass.
    """
    from scipy.special import stdtrit

    spread, seeds = found["spread"] or 0.0, found["seeds"]
    limit = 3 * max(spread, math.sqrt(found["accuracy"] * (1 - found["accuracy"]) / max(images, 1)))
    if seeds < 2:
        return limit
    rounding = 1 / (max(images, 1) * math.sqrt(12))  # two seeds may be equal by chance
    t = float(stdtrit(seeds - 1, THREE_DEVIATIONS))
    return min(limit, t * max(spread, rounding) * math.sqrt(1 + 1 / seeds))

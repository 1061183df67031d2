"""The curve of the learning-rate finder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vision_wrapper._kinds import check_kind
from vision_wrapper.viz._figure import (
    TRAIN,
    VALIDATION,
    WRONG,
    Figure,
    figure_with_axes,
    nothing,
    plain_numbers,
    remark,
    styled,
)

if TYPE_CHECKING:
    from vision_wrapper.trainer import LRCurve


@styled
def plot_lr_curve(curve: LRCurve) -> Figure:
    """Loss by learning rate (log axis), with the suggestion and a cycle's peak marked, or why there are none."""
    check_kind(curve, "curve")
    rates, losses = np.asarray(curve.lrs, dtype=float), np.asarray(curve.losses, dtype=float)
    shown = np.isfinite(losses) & (rates > 0)
    if not shown.any():
        return nothing(f"No learning-rate curve to show. {curve.reason or ''}".strip())
    rates, losses = rates[shown], losses[shown]
    fig, (ax,) = figure_with_axes(7.5, 4.2)
    ax.plot(rates, losses, color=TRAIN, marker="o" if len(rates) == 1 else None)
    ax.set_xscale("log")
    plain_numbers(ax.xaxis)
    ax.set_ylim(*_limits(losses))
    ax.grid(True)
    ax.set(xlabel="learning rate (log scale)", ylabel="loss (smoothed)", title="Learning-rate finder")
    if curve.suggestion is None:
        remark(fig, f"No suggestion: {curve.reason}", WRONG)
        return fig
    for name, rate, color in (("suggestion", curve.suggestion, WRONG), ("peak of a cycle", curve.max_lr, VALIDATION)):
        if rate is not None:
            ax.axvline(rate, color=color, linestyle="--", linewidth=1.2)
            at = np.interp(np.log(rate), np.log(rates), losses, left=np.nan, right=np.nan)  # no dot beside the curve
            ax.plot([rate], [at], "o", color=color, label=f"{name} {rate:.3g}")
    ax.legend(loc="lower left")
    if curve.reason:
        remark(fig, curve.reason)
    return fig


def _limits(losses: np.ndarray) -> tuple[float, float]:
    """From the lowest loss to well above the start: where the loss explodes, its height says nothing."""
    start, low = float(np.median(losses[:5])), float(losses.min())
    high = min(float(losses.max()), max(start, low) + 0.75 * max(start - low, 0.1 * abs(start), 1e-6))
    high = max(high, start)
    pad = 0.06 * max(high - low, 0.02 * abs(high), 1e-6)
    return low - pad, high + pad

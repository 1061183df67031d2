"""Whether a confidence of 80% is right 80 times out of 100."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import PercentFormatter

from vision_wrapper._kinds import check_kind
from vision_wrapper.viz._figure import GRID, MUTED, TRAIN, WRONG, Figure, nothing, styled

if TYPE_CHECKING:
    from vision_wrapper.evaluation import Predictions


@styled
def plot_reliability(predictions: Predictions, bins: int = 15) -> Figure:
    """Accuracy by confidence of the prediction, with the calibration error and how many images each bin holds.

    Raises `SettingError` for less than one bin.
    """
    check_kind(predictions, "predictions")
    if not len(predictions):
        return nothing("No predictions to show the calibration of.")
    calibration = predictions.calibration(bins=bins)
    filled = [b for b in calibration.bins if b.count]
    fig = Figure(5.6, 6.2)
    ax, counts = fig.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    lows, widths = [b.low for b in filled], [b.high - b.low for b in filled]
    ax.bar(lows, [b.accuracy for b in filled], widths, align="edge", color=TRAIN, edgecolor="white", label="accuracy")
    gaps = [b.confidence - b.accuracy for b in filled]
    bottoms = [b.accuracy for b in filled]
    ax.bar(lows, gaps, widths, bottoms, align="edge", color=WRONG, alpha=0.25, label="gap to the mean confidence")
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect calibration")
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"Calibration error (ECE) {calibration.ece:.2%}")
    fig.legend(loc="outside lower center", ncols=3)
    counts.bar(lows, [b.count for b in filled], widths, align="edge", color="#9aa5b1", edgecolor="white")
    counts.set(ylabel="images", xlabel=f"confidence, {bins} bins")
    counts.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (ax, counts):
        axes.grid(True, color=GRID)
    return fig

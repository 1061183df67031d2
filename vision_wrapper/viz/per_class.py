"""The accuracy of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import PercentFormatter

from vision_wrapper._kinds import check_kind
from vision_wrapper.viz._figure import (
    MUTED,
    TRAIN,
    WRONG,
    Figure,
    class_rows,
    figure_with_axes,
    nothing,
    rows_height,
    styled,
)

if TYPE_CHECKING:
    from vision_wrapper.evaluation import Predictions

_MAX_NUMBERS = 120


@styled
def plot_per_class(predictions: Predictions) -> Figure:
    """The fraction of each class that was recognised, with the counts, and the accuracy over all."""
    check_kind(predictions, "predictions")
    if not len(predictions):
        return nothing("No predictions to show the classes of.")
    results = predictions.per_class()
    overall = predictions.accuracy()
    fig, (ax,) = figure_with_axes(8, rows_height(len(results), 1.3))
    ax.barh(range(len(results)), [r.accuracy if r.count else 0 for r in results], 0.72, color=TRAIN)
    if len(results) <= _MAX_NUMBERS:
        for row, r in enumerate(results):
            text = f"{r.accuracy:.1%}  ({r.correct:,} of {r.count:,})" if r.count else "no images"
            ax.text(1.02, row, text, va="center", fontsize=8.5, color=MUTED)
    ax.axvline(
        overall, color=WRONG, linestyle="--", linewidth=1.2, label=f"all {len(predictions):,} images: {overall:.2%}"
    )
    class_rows(ax, [r.name for r in results])
    ax.set_xlim(0, 1.28)
    ax.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(True, axis="x")
    ax.set(xlabel="accuracy", title="Accuracy of each class")
    fig.legend(loc="outside lower right")
    return fig

"""Which classes are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vision_wrapper._kinds import check_kind
from vision_wrapper.viz._figure import MAX_NAMED, TEXT, Figure, class_rows, figure_with_axes, nothing, short, styled

if TYPE_CHECKING:
    from vision_wrapper.evaluation import Predictions

_MAX_NUMBERS = 25  # classes with a number in each cell


@styled
def plot_confusion_matrix(predictions: Predictions, normalise: bool = False) -> Figure:
    """Counts of true (rows) and predicted classes (columns).

    Args:
        predictions: from `Trainer.predict`.
        normalise: percentages of each true class in place of counts.
    """
    check_kind(predictions, "predictions")
    if not len(predictions):
        return nothing("No predictions to show a confusion matrix of.")
    matrix = predictions.confusion_matrix()
    count = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(14.0, max(3.6, 0.55 * min(count, _MAX_NUMBERS) + 1.4))
    fig, (ax,) = figure_with_axes(side + 1.6, side + 0.9)
    picture = ax.imshow(shares * 100, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    class_rows(ax, predictions.classes, length=20)
    if count <= MAX_NAMED:
        size = min(9, 700 / count)  # points; the rows of 100 classes are 9 high
        labels = [short(name, 20) for name in predictions.classes]
        ax.set_xticks(
            range(count), labels, rotation=90 if count > 25 or max(map(len, labels)) > 2 else 0, parse_math=False
        )
        ax.tick_params(axis="both", length=0, labelsize=size)
    ax.spines[:].set_visible(False)
    numbered = "" if count <= MAX_NAMED else f", by number, of {count}"
    ax.set(xlabel=f"predicted class{numbered}", ylabel=f"true class{numbered}")
    ax.set_title(f"Confusion matrix, {len(predictions):,} images, accuracy {predictions.accuracy():.2%}")
    bar = fig.colorbar(picture, ax=ax, shrink=0.8, pad=0.02, format="{x:.0f}%")
    bar.outline.set_visible(False)  # type: ignore[union-attr]
    bar.set_label("of the true class")
    if count <= _MAX_NUMBERS:
        _write_numbers(ax, matrix, shares, normalise)
    return fig


def _write_numbers(ax, matrix: np.ndarray, shares: np.ndarray, normalise: bool) -> None:
    size = 9 if matrix.max() < 1000 or normalise else 8
    for (row, column), share in np.ndenumerate(shares):
        if matrix[row, column]:
            text = f"{share * 100:.1f}" if normalise else f"{matrix[row, column]}"
            ax.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if share > 0.5 else TEXT)

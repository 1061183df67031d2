"""Images that were misclassified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_wrapper._kinds import check_kind
from vision_wrapper.errors import SettingError
from vision_wrapper.viz._figure import MUTED, RIGHT, WRONG, Figure, Line, Tiles, aspect_of, nothing, styled

if TYPE_CHECKING:
    from vision_wrapper.evaluation import Mistake, Mistakes


@styled
def plot_misclassified(mistakes: Mistakes, columns: int = 5) -> Figure:
    """Raw images with their true and predicted classes, the predicted one's probability, and their index.

    Args:
        mistakes: from `predictions.mistakes()`, whole or sliced.
        columns: images in a row.

    Raises:
        SettingError: the predictions do not know their images, or `columns` is below 1.
    """
    check_kind(mistakes, "mistakes")
    if columns < 1:
        raise SettingError(f"columns must be at least 1, got {columns!r}.")
    if not len(mistakes):
        return nothing("No misclassified images to show.")
    images = mistakes.images()
    tiles = Tiles(len(images), min(columns, len(images)), aspect_of(images), lines=3, width=1.75)
    for position, (image, mistake) in enumerate(zip(images, mistakes, strict=True)):
        tiles.add(position, image, [*names(mistake), (f"{mistake.confidence:.0%}, index {mistake.index}", MUTED)])
    return tiles.figure


def names(mistake: Mistake) -> list[Line]:
    """Two lines of a caption: what it is, and what it was taken for."""
    return [
        (f"true: {mistake.true_name}", RIGHT),
        (f"predicted: {mistake.predicted_name}", WRONG),
    ]

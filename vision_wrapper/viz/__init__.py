"""Figures, a line each. Every `plot_*` returns a matplotlib Figure and shows nothing by itself."""

from __future__ import annotations

from collections.abc import Callable

from vision_wrapper._lookup import Table
from vision_wrapper.viz._figure import Figure
from vision_wrapper.viz.augmented import plot_augmented
from vision_wrapper.viz.calibration import plot_reliability
from vision_wrapper.viz.cam import plot_gradcam
from vision_wrapper.viz.confusion import plot_confusion_matrix
from vision_wrapper.viz.history import plot_history, plot_learning_rate
from vision_wrapper.viz.lr_curve import plot_lr_curve
from vision_wrapper.viz.mistakes import plot_misclassified
from vision_wrapper.viz.per_class import plot_per_class
from vision_wrapper.viz.samples import plot_class_distribution, plot_image_sizes, plot_samples
from vision_wrapper.viz.schedule import plot_schedule

__all__ = [
    "PLOTS",
    "Figure",
    "plot_augmented",
    "plot_class_distribution",
    "plot_confusion_matrix",
    "plot_gradcam",
    "plot_history",
    "plot_image_sizes",
    "plot_learning_rate",
    "plot_lr_curve",
    "plot_misclassified",
    "plot_per_class",
    "plot_reliability",
    "plot_samples",
    "plot_schedule",
]

PLOTS: Table[Callable[..., Figure]] = Table(
    "plot",
    {
        "augmented": plot_augmented,
        "class_distribution": plot_class_distribution,
        "confusion_matrix": plot_confusion_matrix,
        "gradcam": plot_gradcam,
        "history": plot_history,
        "image_sizes": plot_image_sizes,
        "learning_rate": plot_learning_rate,
        "lr_curve": plot_lr_curve,
        "misclassified": plot_misclassified,
        "per_class": plot_per_class,
        "reliability": plot_reliability,
        "samples": plot_samples,
        "schedule": plot_schedule,
    },
)
"""Every plot, by its name without `plot_`."""

"""Curves of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from vision_wrapper._kinds import check_kind
from vision_wrapper.viz._figure import TRAIN, VALIDATION, Figure, epochs_axis, figure_with_axes, nothing, styled

if TYPE_CHECKING:
    from vision_wrapper.trainer import History

_FEW = 40  # epochs that get a dot each


@styled
def plot_history(history: History, combined: bool = False, val_name: str = "validation") -> Figure:
    """Loss and accuracy by epoch.

    Args:
        history: from `Trainer.fit`.
        combined: training and validation in the same axes (1x2); otherwise each in its own (2x2).
        val_name: what the second data set is called, such as "test".
    """
    check_kind(history, "history")
    if not len(history):
        return nothing("No epochs to show: the history is empty.")
    splits = [("train", "training", TRAIN)]
    if any(row.get("val_loss") is not None for row in history.rows):
        splits.append(("val", val_name, VALIDATION))
    kinds = ("loss", "accuracy")
    if combined or len(splits) == 1:
        fig, axes = figure_with_axes(10, 3.8, 1, 2)
        for kind, ax in zip(kinds, axes, strict=True):
            for line, (prefix, name, colour) in enumerate(splits):
                _curve(ax, history, f"{prefix}_{kind}", name, colour, line)
            _finish(ax, kind, kind.capitalize())
            if len(splits) > 1 and ax.lines:
                ax.legend()
        return fig
    fig, axes = figure_with_axes(10, 6.4, 2, 2)
    panels = [(kind, *split) for kind in kinds for split in splits]
    for ax, (kind, prefix, name, colour) in zip(axes, panels, strict=True):
        _curve(ax, history, f"{prefix}_{kind}", name, colour)
        _finish(ax, kind, f"{name[:1].upper()}{name[1:]} {kind}")
    return fig


@styled
def plot_learning_rate(history: History) -> Figure:
    """The learning rate by batch where the history has batches (`fit(batch_history=True)`), otherwise by epoch."""
    check_kind(history, "history")
    by_batch = bool(history.batches)
    rows = history.batches if by_batch else history.rows
    if not len(rows):
        return nothing("No learning rates to show: the history is empty.")
    rates = [row["lr"] for row in rows]
    fig, (ax,) = figure_with_axes(7, 3.6)
    if by_batch:
        ax.plot([row["step"] for row in rows], rates, color=TRAIN, marker="." if len(rows) == 1 else None)
    else:
        ax.plot([row["epoch"] for row in rows], rates, color=TRAIN, marker="o" if len(rows) <= _FEW else None, ms=4)
    epochs_axis(ax, "batch" if by_batch else "epoch")
    ax.set(ylabel="learning rate", title=f"Learning rate by {'batch' if by_batch else 'epoch'}")
    ax.set_ylim(bottom=0)
    return fig


def _curve(ax: Axes, history: History, column: str, name: str, colour: str, line: int = 0) -> None:
    """A column of the history, or, in place number `line` from below, why there is none."""
    points = [(row["epoch"], row[column]) for row in history.rows if row.get(column) is not None]
    if not points:
        note = "not counted:\ntargets or outputs are not classes"  # as the targets of MixUp, and a single output
        ax.text(0.5, 0.06 + 0.16 * line, f"{name} {column.split('_')[1]} {note}", transform=ax.transAxes, ha="center")
        return
    epochs, values = zip(*points, strict=True)
    ax.plot(
        epochs,
        np.asarray(values, dtype=float),
        color=colour,
        label=name,
        marker="o" if len(points) <= _FEW else None,
        ms=4,
    )


def _finish(ax: Axes, kind: str, title: str) -> None:
    epochs_axis(ax)
    ax.set(title=title, ylabel=kind)
    if kind == "accuracy":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))

"""A schedule of learning rates, seen before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_wrapper.errors import SettingError
from vision_wrapper.viz._figure import TRAIN, Figure, epochs_axis, figure_with_axes, nothing, styled

if TYPE_CHECKING:
    from vision_wrapper.trainer.schedules import Schedule


@styled
def plot_schedule(schedule: Schedule, epochs: int, steps_per_epoch: int, lr: float = 0.1) -> Figure:
    """The learning rate of every batch that the schedule would give; nothing is trained.

    Args:
        schedule: from `schedules`, with a `preview`.
        epochs: of the run.
        steps_per_epoch: batches in an epoch, `len(loaders.train)`.
        lr: the optimizer's rate, for schedules that start from it.

    Raises:
        SettingError: the schedule cannot be previewed, or cannot be for this many epochs.
    """
    if not hasattr(schedule, "preview"):
        raise SettingError(
            f"Expected a schedule with a preview, such as schedules.one_cycle(max_lr=0.1), got "
            f"{type(schedule).__name__}. A function of the optimizer becomes one by schedules.from_function."
        )
    if epochs < 1 or steps_per_epoch < 1:
        return nothing(f"No batches to show: {epochs} epochs of {steps_per_epoch} batches.")
    rates = schedule.preview(epochs, steps_per_epoch, lr=lr)
    if not rates:
        return nothing("The schedule gives no learning rates.")
    fig, (ax,) = figure_with_axes(7, 3.6)
    ax.plot(
        [i / steps_per_epoch for i in range(len(rates))], rates, color=TRAIN, marker="o" if len(rates) == 1 else None
    )
    epochs_axis(ax, "epochs done")
    ax.set(ylabel="learning rate", title=f"Learning rate over {len(rates):,} batches")
    ax.set_ylim(0, max(max(rates) * 1.08, 1e-12))
    highest = max(range(len(rates)), key=rates.__getitem__)
    ax.annotate(
        f"{rates[highest]:.3g}",
        (highest / steps_per_epoch, rates[highest]),
        textcoords="offset points",
        xytext=(6, 3),
        fontsize=9,
    )
    return fig

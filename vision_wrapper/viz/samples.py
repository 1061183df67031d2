"""What is in a data set: samples, counts of the classes, sizes of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vision_wrapper._kinds import check_kind
from vision_wrapper._seeding import checked_seed
from vision_wrapper.errors import SettingError
from vision_wrapper.viz._figure import (
    MUTED,
    SPLIT_COLOURS,
    TEXT,
    Figure,
    Tiles,
    aspect_of,
    class_rows,
    figure_with_axes,
    name_of,
    nothing,
    rows_height,
    styled,
)

if TYPE_CHECKING:
    from vision_wrapper.data import ImageData, Split, Stats

_MAX_COUNTS = 40  # classes whose bars carry a number


@styled
def plot_samples(
    split: Split | ImageData,
    count: int = 20,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    *,
    columns: int = 10,
    seed: int | None = None,
) -> Figure:
    """Raw images of a split with their classes, chosen at random.

    Args:
        split: such as `cifar.train`; of a whole data set, the training split, with its names.
        count: how many images.
        classes: the names of the labels; None is those that the split knows.
        per_class: in place of `count`: this many of each class, a row a class.
        columns: images in a row (without `per_class`).
        seed: of the choice; None is the one of `seed_everything`.

    Raises:
        SettingError: a number below 0, or `columns` below 1.
    """
    if hasattr(split, "train") and hasattr(split, "classes"):
        split, classes = split.train, split.classes if classes is None else classes  # type: ignore[union-attr]
    classes = getattr(split, "classes", None) if classes is None else classes
    check_kind(split, "split")
    if count < 0 or columns < 1 or (per_class is not None and per_class < 0):
        raise SettingError(
            f"Expected count and per_class of at least 0, columns of at least 1; got {count}, {per_class}, {columns}."
        )
    random = np.random.default_rng([checked_seed(seed), 0x5A3])  # a stream of its own
    if per_class is not None:
        return _samples_by_class(split, classes, per_class, random)  # type: ignore[arg-type]
    chosen = random.permutation(len(split))[:count]  # type: ignore[arg-type]
    if not len(chosen):
        return nothing("No samples to show.")
    samples = [split[int(i)] for i in chosen]  # type: ignore[index]
    tiles = Tiles(len(samples), min(columns, len(samples)), aspect_of([image for image, _ in samples]), width=1.15)
    for position, (image, label) in enumerate(samples):
        tiles.add(position, image, [(name_of(classes, label), TEXT)])
    return tiles.figure


def _samples_by_class(split: Split, classes: Sequence[str] | None, per_class: int, random: Any) -> Figure:
    labels = np.asarray(split.labels)
    rows = {int(label): random.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)}
    if not rows or not per_class:
        return nothing("No samples to show.")
    columns = max(len(indices) for indices in rows.values())
    images = {label: [split[int(i)][0] for i in indices] for label, indices in rows.items()}
    names = {label: name_of(classes, label) for label in rows}
    left = min(2.2, 0.3 + 0.085 * max(len(name) for name in names.values()))
    aspect = aspect_of([image for row in images.values() for image in row])
    tiles = Tiles(len(rows) * columns, columns, aspect, lines=0, width=0.85, left=left)
    for row, (label, row_images) in enumerate(images.items()):
        tiles.name_row(row, names[label])
        for column, image in enumerate(row_images):
            tiles.add(row * columns + column, image)
    return tiles.figure


@styled
def plot_class_distribution(stats: Stats) -> Figure:
    """How many images of each class every split has. Takes what `data.stats` returns."""
    check_kind(stats, "stats")
    splits = {name: counts for name, counts in stats.counts.items() if sum(counts)}
    if not splits:
        return nothing("No images to count.")
    thickness = 0.8 / len(splits)
    fig, (ax,) = figure_with_axes(8, rows_height(len(stats.classes), 1.3) * (1.0 if len(splits) < 3 else 1.3))
    for i, (name, counts) in enumerate(splits.items()):
        y = np.arange(len(counts)) + (i - (len(splits) - 1) / 2) * thickness
        bars = ax.barh(y, counts, thickness * 0.92, color=SPLIT_COLOURS.get(name), label=f"{name} ({sum(counts):,})")
        if len(counts) <= _MAX_COUNTS:
            ax.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=8, color=MUTED)
    class_rows(ax, stats.classes)
    ax.grid(True, axis="x")
    ax.margins(x=0.1)
    ax.set(xlabel="images", title="Images of each class")
    fig.legend(loc="outside lower right", ncols=len(splits))
    return fig


@styled
def plot_image_sizes(stats: Stats) -> Figure:
    """Widths and heights of the images; the area of a dot is how many have this size."""
    check_kind(stats, "stats")
    splits = {name: sizes for name, sizes in stats.sizes.items() if sizes}
    if not splits:
        return nothing("No images to measure.")
    fig, (ax,) = figure_with_axes(6.4, 5)
    most = max(max(sizes.values()) for sizes in splits.values())
    for name, sizes in splits.items():
        heights, widths = zip(*sizes, strict=True)
        areas = [12 + 240 * count / most for count in sizes.values()]
        label = f"{name}: {sum(sizes.values()):,} images, {_sizes(len(sizes))}"
        ax.scatter(widths, heights, areas, color=SPLIT_COLOURS.get(name), alpha=0.5, linewidths=0, label=label)
    sides = [side for sizes in splits.values() for size in sizes for side in size]
    ax.set_xlim(0, max(sides) * 1.15)
    ax.set_ylim(0, max(sides) * 1.15)
    ax.set_aspect("equal")
    ax.axline((0, 0), slope=1, color=MUTED, linewidth=0.8, linestyle=":")
    if len({size for sizes in splits.values() for size in sizes}) == 1:
        height, width = next(iter(next(iter(splits.values()))))
        ax.annotate(
            f"all {height}x{width} (height x width)",
            (width, height),
            xytext=(-14, -20),
            textcoords="offset points",
            ha="right",
        )
    ax.grid(True)
    ax.set(xlabel="width (pixels)", ylabel="height (pixels)", title="Sizes of the images")
    legend = ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14), borderaxespad=0)
    for handle in legend.legend_handles:
        handle.set_sizes([40])  # type: ignore[union-attr]
    return fig


def _sizes(count: int) -> str:
    return "one size" if count == 1 else f"{count:,} sizes"

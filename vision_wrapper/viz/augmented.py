"""What training sees of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vision_wrapper.errors import SettingError
from vision_wrapper.viz._figure import MUTED, TEXT, Figure, Tiles, aspect_of, name_of, nothing, styled

if TYPE_CHECKING:
    from vision_wrapper.data import Loader


@styled
def plot_augmented(loader: Loader, count: int = 8, looks: int = 4, epoch: int = 0) -> Figure:
    """Raw images, each next to what training sees of it in some epochs, with mixing and the epochs' size.

    Args:
        loader: a training loader, `loaders.train`; its count of epochs is left alone.
        count: how many images, the first ones of the epoch.
        looks: how many epochs, from `epoch` on.
        epoch: the first of them, from 0.

    Raises:
        SettingError: not a loader of `data.make_loaders`, or a number below 0.
    """
    if not hasattr(loader, "inputs"):
        raise SettingError(f"Expected a loader of make_loaders, such as loaders.train, got {type(loader).__name__}.")
    if count < 0 or looks < 0 or epoch < 0:
        raise SettingError(f"Expected count, looks and epoch of at least 0, got {count}, {looks}, {epoch}.")
    indices = np.asarray(loader.order(epoch)[:count])
    if not len(indices) or not looks:
        return nothing("No augmented images to show.")
    seen = [loader.preprocess.denormalise(loader.inputs(epoch + i, indices)) for i in range(looks)]
    group = 1 + looks
    columns = group * (2 if looks <= 5 and len(indices) > 1 else 1)
    tiles = Tiles(len(indices) * group, columns, aspect_of(list(seen[0])), width=1.0, group=group)
    for i, index in enumerate(indices):
        image, label = loader.split[int(index)]
        tiles.add(i * group, image, [(name_of(loader.classes, label), TEXT)])
        for look, batch in enumerate(seen):
            tiles.add(i * group + 1 + look, batch[i], [(f"epoch {epoch + look + 1}", MUTED)])
    return tiles.figure

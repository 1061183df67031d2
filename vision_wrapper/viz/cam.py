"""Grad-CAM: where the network found evidence for a class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from vision_wrapper._kinds import check_kind
from vision_wrapper._lookup import unknown_name
from vision_wrapper._numbers import is_whole
from vision_wrapper.errors import SettingError
from vision_wrapper.viz._figure import MUTED, TEXT, Figure, Line, Tiles, aspect_of, label, name_of, nothing, styled
from vision_wrapper.viz.mistakes import names

if TYPE_CHECKING:
    from torch import nn

    from vision_wrapper.evaluation import Mistakes
    from vision_wrapper.explain.layers import Layers

_STRENGTH = 0.6  # opacity of the strongest evidence
_TILES_IN_A_ROW = 10


@styled
def plot_gradcam(
    model: nn.Module,
    mistakes: Mistakes,
    target: str | int = "predicted",
    layers: Layers | None = None,
    columns: int | None = None,
    method: str = "gradcam",
) -> Figure:
    """Misclassified images as the network saw them, each next to its Grad-CAM maps. Leaves the model as it was.

    Args:
        model: the network that made the mistakes.
        mistakes: from `predictions.mistakes()`, whole or sliced.
        target: the class whose evidence is shown: "predicted", "true", "both", or one class by index or name.
        layers: names or modules, a map for each (`explain.stages` names one for each stage); None takes
            `explain.default_layer`.
        columns: mistakes in a row; None fits them.
        method: a name of `explain.METHODS`.

    Warns where the model predicts most of the images otherwise: it made other mistakes.

    Raises:
        UnknownNameError: an unknown target, layer or method.
        SettingError: the predictions do not know their images and preprocessing, or a layer that Grad-CAM cannot use.
    """
    check_kind(model, "model")
    check_kind(mistakes, "mistakes")
    if not len(mistakes):
        return nothing("No misclassified images to show Grad-CAM for.")
    if columns is not None and columns < 1:
        raise SettingError(f"columns must be at least 1, got {columns!r}.")
    from vision_wrapper import explain
    from vision_wrapper.explain.maps import predicted_classes

    images = mistakes.resized()
    assert mistakes.preprocess is not None
    inputs = mistakes.preprocess.batch(images)
    wanted = _targets(mistakes, target)
    cams = {what: explain.cam(model, inputs, classes, layers, method) for what, classes in wanted.items()}
    _warn_of_another_model(predicted_classes(model, inputs), mistakes)
    used = next(iter(cams.values())).layers
    group = 1 + len(cams) * len(used)
    columns = columns or max(1, _TILES_IN_A_ROW // group)
    tiles = Tiles(
        len(images) * group,
        min(columns, len(images)) * group,
        aspect_of(images),
        width=1.15,
        title=_title(explain.METHODS[method].title, used, list(wanted)),
        group=group,
        header=2,
    )
    for i, image in enumerate(images):
        true, predicted = names(mistakes[i])
        tiles.add_header(i * group, [true, (f"{predicted[0]}, {mistakes[i].confidence:.0%}", predicted[1])])
        tiles.add(i * group, image, [(f"index {mistakes[i].index}", MUTED)])
        shown = [(what, layer) for what in cams for layer in range(len(used))]
        for position, (what, layer) in enumerate(shown, start=i * group + 1):
            cam = cams[what]
            caption = _caption(what if len(cams) > 1 else "", used[layer] if len(used) > 1 else "")
            axes = tiles.add(position, overlay(image, cam.maps[layer, i]), caption)
            if cam.empty[layer, i]:
                label(axes, "no evidence")
    return tiles.figure


def _warn_of_another_model(predicted: list[int], mistakes: Mistakes) -> None:
    """Averaging over views or rounding changes some predictions, but not most of them."""
    same = sum(label == mistake.predicted for label, mistake in zip(predicted, mistakes, strict=True))
    if 2 * same < len(mistakes):
        warnings.warn(
            f"The model predicts {same} of these {len(mistakes)} images as the mistakes have it: it does not seem to "
            "be the network that made them. Take mistakes and model from the same trainer.",
            stacklevel=4,
        )


def overlay(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """A map (H, W) in [0, 1] laid over an image, uint8 (H, W, C), as uint8 (H, W, 3).

    The stronger the evidence, the more its colour covers the image; where there is none the image stays as it is, so
    that a dark image stays dark.
    """
    image = np.asarray(image)
    image = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    colours = matplotlib.colormaps["turbo"](np.asarray(cam, dtype=float))[:, :, :3] * 255  # (H, W, 3)
    opacity = _STRENGTH * np.asarray(cam, dtype=float)[:, :, None]
    return np.rint((1 - opacity) * image + opacity * colours).astype(np.uint8)


def _targets(mistakes: Mistakes, target: str | int) -> dict[str, list[int]]:
    """The class of each mistake, by what is said above the maps."""
    predicted, true = [m.predicted for m in mistakes], [m.target for m in mistakes]
    if target == "both":
        return {"for predicted": predicted, "for true": true}
    if target in ("predicted", "true"):
        return {f"the {target} class": predicted if target == "predicted" else true}
    classes: Sequence[str] = mistakes.classes
    if isinstance(target, str):
        if target not in classes:
            raise unknown_name("target", target, ["predicted", "true", "both", *classes])
        target = list(classes).index(target)
    if not is_whole(target) or not 0 <= target < len(classes):
        raise SettingError(
            f'target must be "predicted", "true", "both" or a class in 0..{len(classes) - 1}, got {target!r}.'
        )
    return {name_of(classes, int(target)): [int(target)] * len(mistakes)}


def _title(method: str, layers: Sequence[str], wanted: Sequence[str]) -> str:
    where = f" at {layers[0]}" if len(layers) == 1 and layers != ("all",) else ""
    return f"{method}{where}" + (f" for {wanted[0]}" if len(wanted) == 1 else "")


def _caption(what: str, layer: str) -> list[Line]:
    text = " ".join(part for part in (layer, what) if part)
    return [(text, TEXT)] if text else []

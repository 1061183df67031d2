"""The browser of mistakes: small pictures of all, class activation maps of the most telling, and what marks them."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vision_wrapper import explain
from vision_wrapper._files import write_bytes, write_json
from vision_wrapper.data import Split
from vision_wrapper.data.check_images import same_images
from vision_wrapper.data.images import to_pil
from vision_wrapper.errors import SettingError
from vision_wrapper.evaluation import Mistake, Mistakes, Predictions
from vision_wrapper.viz.cam import overlay

FOLDER = "gallery"
SHEETS = ("thumbnails", "predicted", "true")
PICTURED = 1500  # mistakes with a picture at most: about a kilobyte each
EXPLAINED = 200  # the most telling ones, with maps for both classes
TRUSTED = 16  # of these are asked how far the maps can be trusted
TRUST_STEPS = 8
COLUMNS = 40  # pictures in a row of a sheet
LONGEST, SHORTEST = 96, 32  # pixels of a picture's longer side, the fewer the more there are
SHEET_PIXELS = 1_200_000  # of one sheet, about a megabyte: the page of photographs too stays under 5 MB
MAP_SIDE = 64  # of small images with maps, which would be coarse in their own size
QUALITY = 88  # of the JPEG sheets


def write_gallery(folder: Path, model: nn.Module, predictions: Predictions, train: Split) -> None:
    """Write what the browser of mistakes shows into `folder/gallery`: sheets of pictures, and gallery.json.

    Args:
        folder: of the run.
        model: the network that made the predictions; it stays as it was.
        predictions: which know their images and their preprocessing.
        train: the training images, in which the same pixels are looked for.
    """
    assert predictions.source is not None and predictions.preprocess is not None
    mistakes = predictions.mistakes(order="confidence")
    shown = mistakes[:PICTURED]
    inputs = shown.resized()
    sheets = {"thumbnails": _sheet(folder, "thumbnails", inputs)}
    empty: list[tuple[bool, bool]] = []
    trusted = ""
    if len(shown):
        explained = shown[:EXPLAINED]
        enlarged = [_enlarged(image) for image in inputs[: len(explained)]]
        try:
            maps, trusted = _maps(model, explained, inputs[: len(explained)], enlarged[0].shape[:2])
        except SettingError as error:  # a network that has no maps
            maps, trusted = {}, f"No class activation maps: {error}"
        for what, found in maps.items():
            pictures = [overlay(image, each) for image, each in zip(enlarged, found.maps[0], strict=True)]
            sheets[what] = _sheet(folder, what, pictures)
        empty = list(zip(*(found.empty[0].tolist() for found in maps.values()), strict=True))
    suspected = {mistake.index for mistake in predictions.suspected_label_errors()}
    learned = same_images(predictions.source, train)
    content = {
        "classes": list(predictions.classes),
        "total": len(mistakes),
        "in_training": len(learned),
        "trust": trusted,
        "sheets": sheets,
        "mistakes": [
            _entry(mistake, place, empty, mistake.index in suspected, _origin(learned.get(mistake.index), train))
            for place, mistake in enumerate(shown)
        ],
    }
    write_json(folder / FOLDER / "gallery.json", content)


def _entry(
    mistake: Mistake, place: int, empty: list[tuple[bool, bool]], suspected: bool, duplicate: str | None
) -> dict[str, Any]:
    return {
        "index": mistake.index,
        "target": mistake.target,
        "predicted": mistake.predicted,
        "confidence": mistake.confidence,
        "loss": mistake.loss if math.isfinite(mistake.loss) else None,  # JSON has no infinity
        "margin": mistake.margin,
        "origin": mistake.origin,
        "place": place,
        "cam": place if place < len(empty) else None,
        "cam_empty": list(empty[place]) if place < len(empty) else None,
        "label": suspected,
        "duplicate": duplicate,
    }


def _origin(index: int | None, train: Split) -> str | None:
    return None if index is None else train.origin(index)


def _maps(
    model: nn.Module, mistakes: Mistakes, images: list[np.ndarray], size: tuple[int, ...]
) -> tuple[dict[str, explain.CamMaps], str]:
    """Maps for the predicted and the true class, at this (height, width), and how far to trust the first."""
    assert mistakes.preprocess is not None
    inputs = mistakes.preprocess.batch(images)
    predicted, true = [m.predicted for m in mistakes], [m.target for m in mistakes]
    found = {"predicted": explain.gradcam(model, inputs, predicted), "true": explain.gradcam(model, inputs, true)}
    layer = found["predicted"].layers[0]
    checked = explain.trust(model, inputs[:TRUSTED], predicted[:TRUSTED], layer, steps=TRUST_STEPS)
    text = f"Grad-CAM at {layer}, on {min(TRUSTED, len(mistakes))} of the images. {checked}"
    return {name: _resized(cams, (size[0], size[1])) for name, cams in found.items()}, text


def _resized(cams: explain.CamMaps, size: tuple[int, int]) -> explain.CamMaps:
    maps = torch.from_numpy(cams.maps)
    scaled = nn.functional.interpolate(maps, size, mode="bilinear", antialias=True) if maps.shape[2:] != size else maps
    return explain.CamMaps(scaled.clamp(0, 1).numpy(), cams.layers, cams.empty)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """A small image with each pixel made a square, so that the map on it is smooth."""
    times = max(1, MAP_SIDE // max(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def _small(image: np.ndarray, count: int) -> Image.Image:
    """An RGB picture, so small that `count` of them have a place on a sheet."""
    longest = int(min(LONGEST, max(SHORTEST, (SHEET_PIXELS / max(count, 1)) ** 0.5)))
    picture = to_pil(image[:, :, :3]).convert("RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture


def _sheet(folder: Path, name: str, images: list[np.ndarray]) -> dict[str, Any]:
    """Put images of one size onto a sheet, small, row by row, and say how it is laid out."""
    pictures = [_small(image, len(images)) for image in images]
    width, height = pictures[0].size if pictures else (1, 1)
    columns = min(COLUMNS, max(1, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    sheet = Image.new("RGB", (columns * width, rows * height))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=QUALITY, subsampling=0)
    write_bytes(folder / FOLDER / f"{name}.jpg", content.getvalue())
    return {"columns": columns, "rows": rows, "aspect": width / height}

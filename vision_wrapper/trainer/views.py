"""Test-time averaging: the views of an image whose logits are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_wrapper._lookup import Table
from vision_wrapper._numbers import is_number
from vision_wrapper.errors import SettingError
from vision_wrapper.trainer.checks import no_logits
from vision_wrapper.trainer.losses import is_of_others


class View(NamedTuple):
    """One view of a batch for test-time averaging.

    Attributes:
        show: from a batch (N, C, H, W) to what the network is shown in its place, of the same shape.
        weight: what its logits count for in the average.
    """

    show: Callable[[Tensor], Tensor]
    weight: float = 1.0


Views: TypeAlias = "str | Sequence[View | Callable[[Tensor], Tensor]] | None"


AS_IT_IS = View(lambda images: images)


def _mirrored(images: Tensor) -> Tensor:
    return images.flip(-1)


def _shifted(rows: int, columns: int) -> Callable[[Tensor], Tensor]:
    """The content moved by so many pixels down and right, -1 to 1 each; edges are reflected."""

    def show(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        return padded[..., 1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]

    return show


def _then_mirrored(show: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: _mirrored(show(images))


_MOVED = (_shifted(-1, -1), _shifted(1, 1))

VIEWS: Table[tuple[View, ...]] = Table(
    "test-time averaging",
    {
        "flip": (AS_IT_IS, View(_mirrored)),
        # Both mirrors of the image and of the image moved up and left, and down and right, which count half: Jordan
        # (2024, arXiv:2404.00498).
        "flip_shift": (
            AS_IT_IS._replace(weight=2.0),
            View(_mirrored, 2.0),
            *(View(show) for show in _MOVED),
            *(View(_then_mirrored(show)) for show in _MOVED),
        ),
    },
)
"""The views that `Trainer.predict(tta=…)` and recipes take by name."""


def views_of(tta: Views) -> tuple[View, ...]:
    """The views of a name in `VIEWS`, or of one's own list; one view, the image as it is, for None.

    Raises `UnknownNameError` for an unknown name, `SettingError` for an empty list or something else in it.
    """
    if tta is None:
        return (AS_IT_IS,)
    if isinstance(tta, str):
        return VIEWS[tta]
    own = [view if isinstance(view, View) else View(view) for view in tta] if isinstance(tta, Sequence) else []
    if not own or not all(
        callable(view.show) and is_number(view.weight) and 0 < view.weight < math.inf for view in own
    ):
        raise SettingError(
            f"tta must be a name ({', '.join(VIEWS)}), None, or functions from a batch (N, C, H, W) to another of the "
            f"same shape; got {tta!r}."
        )
    return tuple(own)


def _shown(view: View, images: Tensor) -> Tensor:
    try:
        shown = view.show(images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # somebody's own function
        if is_of_others(error):
            raise
        raise SettingError(
            f"A view for test-time averaging failed on a batch {tuple(images.shape)}: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(shown, Tensor) or shown.shape != images.shape:
        got = tuple(shown.shape) if isinstance(shown, Tensor) else type(shown).__name__
        raise SettingError(f"A view for test-time averaging must return a batch {tuple(images.shape)}, got {got}.")
    return shown


def averaged_logits(forward: Callable[[Tensor], Tensor], images: Tensor, views: Sequence[View]) -> Tensor:
    """The weighted mean of the float32 logits (N, C) of all views."""
    total = sum(view.weight for view in views)
    logits = []
    for view in views:
        outputs = forward(_shown(view, images))
        if not isinstance(outputs, Tensor):
            raise no_logits(outputs)
        logits.append(outputs.float() * (view.weight / total))
    return logits[0] if len(logits) == 1 else sum(logits[1:], logits[0])

"""What goes wrong most often, looked for before training. Looking changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from vision_wrapper._kinds import check_kind
from vision_wrapper._lookup import check_names
from vision_wrapper._state import preserve_order, preserve_random_states
from vision_wrapper.data.check_images import check_duplicates, check_labels
from vision_wrapper.data.check_loader import check_loader, first_batch
from vision_wrapper.data.check_model import check_model
from vision_wrapper.data.findings import Finding, Findings
from vision_wrapper.data.loader import Loader
from vision_wrapper.data.loaders import Loaders
from vision_wrapper.data.sources import ImageData
from vision_wrapper.errors import SettingError


def check(
    data: ImageData | None = None,
    loaders: Loaders | Mapping[str, Iterable[Any]] | None = None,
    model: nn.Module | None = None,
    *,
    near_duplicates: bool = False,
) -> Findings:
    """Look for the usual mistakes before training; everything is left as it was.

    Every image is read once, for its content hash; of the loaders, the first batches.

    Args:
        data: raw images with labels.
        loaders: of `make_loaders`, or names ("train", "val", "test") with any iterables of (inputs, targets).
        model: from a batch of inputs to logits; it is tried on two images of the first loader.
        near_duplicates: also look for almost equal images in train and test (about a second for 10,000 x 50,000).

    Returns:
        The findings, errors first. Each says what to do.

    Raises:
        SettingError: a model without loaders, a loader that gives no batch, or an argument of another kind.
        UnknownNameError: a loader of another name.
        DataError: batches that are no pairs of tensors, an image that cannot be decoded, or an augmentation that fails.
        DataNotFoundError: an image file that is gone.
    """
    if data is not None and not isinstance(data, ImageData):
        raise SettingError(
            "check takes first what data.load or data.from_arrays returns, then loaders and a model; got "
            f"{type(data).__name__}. Without images: check(loaders=loaders)."
        )
    named = _named(loaders)
    with preserve_random_states(), ExitStack() as stack:
        for loader in named.values():
            stack.enter_context(preserve_order(loader))
        findings = list(_findings(data, named, model, near_duplicates))
    return Findings(sorted(findings, key=lambda finding: finding.severity))


def _named(loaders: Any) -> dict[str, Any]:
    if loaders is not None and not isinstance(loaders, (Loaders, Mapping)):
        raise SettingError(
            "loaders must be what data.make_loaders returns, or a dict of loaders by name, such as "
            f'{{"train": loader}}; got {type(loaders).__name__}.'
        )
    named = loaders._asdict() if isinstance(loaders, Loaders) else dict(loaders or {})
    if not isinstance(loaders, Loaders):
        check_names("loader", named, ("train", "val", "test"))
    return {name: named[name] for name in ("train", "val", "test") if named.get(name) is not None}


def _findings(data: ImageData | None, named: dict[str, Any], model: nn.Module | None, near: bool) -> Iterator[Finding]:
    if data is not None:
        yield from check_labels(data)
        yield from check_duplicates(data, near=near)
    classes = None if data is None else len(data.classes)
    for name, loader in named.items():
        yield from check_loader(name, loader, data)
        if classes is None and isinstance(loader, Loader):
            classes = len(loader.classes)
    if model is None:
        return
    check_kind(model, "model")
    if not named:
        raise SettingError("A model is tried on a batch: give check the loaders too.")
    inputs, targets = first_batch(next(iter(named.values())), 0)
    weight = next((p for p in model.parameters() if p.is_floating_point()), inputs)
    yield from check_model(model, inputs[:2].to(weight.device, weight.dtype), targets, classes)

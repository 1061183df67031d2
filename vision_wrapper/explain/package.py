"""Maps by the grad-cam package, without its faults."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vision_wrapper.explain.methods import BATCH, METHODS


def batch_maps(
    net: nn.Module, layer: str, method: str, images: Tensor, targets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """One layer at a time: grad-cam pairs several by the order in which they ran."""
    with warnings.catch_warnings():  # importing it sets filters
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = images.detach().clone().requires_grad_()  # so that gradients flow whatever is frozen
    # No `with`: grad-cam's context manager swallows IndexError. The transform serves models with autocast inside.
    module = dict(net.named_modules())[layer]
    made: Any = _package_class(method)(net, [module], reshape_transform=torch.Tensor.float)
    # After grad-cam's hook: what follows may change the layer's output in place, and then changes a copy.
    copied = module.register_forward_hook(lambda module, args, output: output.clone())
    try:
        with _no_bars():
            maps = made(images, [ClassifierOutputTarget(target) for target in targets])  # (N, H, W)
        evidence = made.evidence.reshape(len(images), -1)
    finally:
        copied.remove()
        made.activations_and_grads.release()
    return without_the_empty(maps, evidence)


def without_the_empty(maps: np.ndarray, evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, H, W) in [0, 1], 0 where the evidence (N, places), before ReLU, says nothing.

    It is then nowhere positive, no number, or the same everywhere.
    """
    highest, lowest = evidence.max(axis=1), evidence.min(axis=1)
    empty = ~(np.isfinite(evidence).all(axis=1) & (highest > 0) & (highest > lowest))
    maps = np.where(empty[:, None, None], 0, maps)
    return np.clip(maps, 0, 1).astype(np.float32), empty


def _package_class(method: str) -> Any:
    """grad-cam's class of a method, which keeps what it found before negative evidence is cut off."""
    with warnings.catch_warnings():
        import pytorch_grad_cam  # here: it takes seconds to import, and brings matplotlib along

    base: Any = getattr(pytorch_grad_cam, str(METHODS[method].package_class))

    class Keeping(base):
        def get_cam_weights(self, images: Any, layer: Any, targets: Any, activations: Any, gradients: Any) -> Any:
            if method == "ablationcam":
                return _falls_without(self.model, layer, images, targets, activations)
            return super().get_cam_weights(images, layer, targets, activations, gradients)

        def get_cam_image(
            self, images: Any, layer: Any, targets: Any, activations: Any, gradients: Any, smooth: bool = False
        ) -> np.ndarray:
            if method == "eigencam":
                self.evidence = _first_component(activations)
            else:
                self.evidence = super().get_cam_image(images, layer, targets, activations, gradients, smooth)
            return self.evidence

    return Keeping


@torch.no_grad()
def _falls_without(
    net: nn.Module, layer: nn.Module, images: Tensor, targets: list[Any], activations: np.ndarray
) -> np.ndarray:
    """How far the logit of each image falls when a channel of the layer is set to 0, (N, C).

    (grad-cam sets it to -10,000,000 where a layer has negative activations, divides by the logit, whose sign turns the
    map around, and exchanges the layer, also for good after an error.)
    """
    falls = np.zeros(activations.shape[:2])
    for i, (target, kept) in enumerate(zip(targets, torch.from_numpy(activations).to(images.device), strict=True)):
        whole = float(target(net(images[i : i + 1])[0]))
        for channels in torch.arange(len(kept)).split(BATCH):
            ablated = kept.repeat(len(channels), 1, 1, 1)  # (channels, C, h, w)
            ablated[torch.arange(len(channels)), channels] = 0
            exchanged = partial(lambda maps, *_: maps, ablated.to(images.dtype))
            handle = layer.register_forward_hook(exchanged)
            try:
                logits = net(images[i : i + 1].expand(len(channels), -1, -1, -1))
            finally:
                handle.remove()
            falls[i, channels.numpy()] = [whole - float(target(output)) for output in logits]
    return falls


def _first_component(activations: np.ndarray) -> np.ndarray:
    """Activations (N, C, h, w) along their first principal component over the places, (N, h, w).

    A component has no sign of its own: it is turned to where the activations are large. (grad-cam leaves it to chance,
    and computes as many components as there are places.)
    """
    projections = []
    for maps in np.nan_to_num(activations).astype(np.float64):
        rows = maps.reshape(len(maps), -1).T  # (places, C)
        centred = rows - rows.mean(0)
        _, vectors = np.linalg.eigh(centred.T @ centred)  # rising; vectors are columns
        projection = centred @ vectors[:, -1]
        sign = -1.0 if projection @ rows.sum(1) < 0 else 1.0
        projections.append(sign * projection.reshape(maps.shape[1:]))
    return np.stack(projections)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Score-CAM shows a bar for every image."""
    from pytorch_grad_cam import score_cam

    package: Any = score_cam
    bar, package.tqdm = package.tqdm, SimpleNamespace(tqdm=lambda numbers: numbers)
    try:
        yield
    finally:
        package.tqdm = bar

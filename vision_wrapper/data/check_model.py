"""Checks of a model on a batch: its input, its outputs, and the targets that they are to fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vision_wrapper._state import preserve_mode
from vision_wrapper.data.check_loader import check_values
from vision_wrapper.data.findings import Finding

BATCH_OF_ONE = "A batch of one image cannot train a network with batch norm; use another batch_size, or drop_last=True."
IGNORED = -100  # what torch's losses of classes take for no class


def check_batch(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    classes: int | None = None,
    wants_logits: bool = True,
    ignore_index: int = IGNORED,
) -> Iterator[Finding]:
    """Whether a model can be trained on a batch, on the model's device. `Trainer.fit` asks this of its first one.

    Args:
        model: from inputs to logits.
        inputs: (N, …).
        targets: (N,) whole numbers, or anything else, of which less can be said.
        classes: how many there are, where that is known.
        wants_logits: whether the loss takes a softmax itself, as cross-entropy does.
        ignore_index: the target that the loss passes over.
    """
    if len(inputs) != len(targets):
        message = f"A batch has {len(inputs)} inputs but {len(targets)} targets."
        yield Finding("lengths", "error", message, "Pair each input with its target.")
        return
    if len(inputs) == 1 and has_batch_norm(model):
        yield Finding("batch_of_one", "error", BATCH_OF_ONE, "")
    yield from check_values(inputs)
    yield from check_model(model, inputs[:2], targets, classes, wants_logits, ignore_index)


def check_model(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    classes: int | None = None,
    wants_logits: bool = True,
    ignore_index: int = IGNORED,
) -> Iterator[Finding]:
    """Whether a model takes the inputs, has an output for each class, and returns logits; see `check_batch`."""
    with preserve_mode(model), torch.no_grad():
        model.eval()
        try:
            logits = model(inputs)
        except torch.OutOfMemoryError:  # a RuntimeError too, which says nothing of the model
            raise
        except (RuntimeError, ValueError) as error:
            yield does_not_take(model, inputs, error)
            return
    if not isinstance(logits, Tensor):
        yield _no_tensor(model, logits)
        return
    if logits.ndim != 2:
        return
    if wants_logits and not _fit_cross_entropy(targets, logits.shape[1]):
        yield Finding(
            "target_type",
            "error",
            f"Cross-entropy takes int64 targets (N,), or probabilities (N, {logits.shape[1]}); got {targets.dtype} of "
            f"shape {tuple(targets.shape)}.",
            "For classes, use targets.long().flatten().",
        )
        return
    numbers = targets.ndim == 1 and not targets.is_floating_point()
    if numbers and (wants_logits or logits.shape[1] > 1):  # one output may be right for a loss of somebody's own
        yield from check_targets(targets[targets != ignore_index], logits.shape[1])
    if wants_logits or (numbers and logits.shape[1] > 1):
        yield from check_outputs(logits, classes, wants_logits)


def _fit_cross_entropy(targets: Tensor, outputs: int) -> bool:
    classes = targets.ndim == 1 and targets.dtype in (torch.int64, torch.uint8)
    return classes or (targets.is_floating_point() and tuple(targets.shape[1:]) == (outputs,))


def does_not_take(model: nn.Module, inputs: Tensor, error: Exception) -> Finding:
    """The finding for a forward pass that failed."""
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
    advice = "For images, compare its in_channels with the loader's channels."
    if weights != inputs.dtype:
        advice = (
            f"Its weights are {weights}, the inputs {inputs.dtype}: convert these, inputs.to({weights}), or the model, "
            f"model.to({inputs.dtype})."
        )
    return Finding(
        "input_shape",
        "error",
        f"{type(model).__name__} does not take inputs of shape {tuple(inputs.shape)}: {error}",
        advice,
    )


def _no_tensor(model: nn.Module, output: Any) -> Finding:
    """The finding for a network that returns its logits inside of something else, or none."""
    return Finding(
        "output_type",
        "error",
        f"{type(model).__name__} must return its logits, a tensor (N, classes); it returned {type(output).__name__}.",
        "Wrap it in a module whose forward returns the logits alone, such as self.model(images).logits or "
        "self.model(images)[0].",
    )


def check_targets(targets: Tensor, outputs: int) -> Iterator[Finding]:
    """Targets that the model's outputs do not have."""
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, 0)
    if low < 0 or high >= outputs:
        yield Finding(
            "target_outside",
            "error",
            f"Targets must be in 0..{outputs - 1} for the model's {outputs} classes, got {low}..{high}.",
            "Build the model with num_classes=len(data.classes).",
        )


def check_outputs(logits: Tensor, classes: int | None, wants_logits: bool) -> Iterator[Finding]:
    """As many outputs as classes, and logits rather than probabilities or their logarithms."""
    if classes is not None and logits.shape[1] != classes:
        yield Finding(
            "number_of_classes",
            "error" if logits.shape[1] < classes else "warning",
            f"The model has {logits.shape[1]} outputs for {classes} classes.",
            "Build it with num_classes=len(data.classes).",
        )
    # A logarithm is rounded by eps / 2 of itself, so that the probabilities' sum is off by eps / 2 times their entropy,
    # which is log(classes) at most; in bf16, which CPUs' autocast returns, that is 1%.
    eps = torch.finfo(logits.dtype).eps if logits.is_floating_point() else 0.0
    rounding = eps * (1 + math.log(max(logits.shape[1], 1)))
    values, tolerance = logits.float(), max(1e-4, rounding)
    if _sum_to_one(values, tolerance) or (wants_logits and _sum_to_one(values.exp(), tolerance)):
        yield Finding(
            "softmax",
            "warning",
            "The model seems to return probabilities or their logarithms; cross-entropy expects logits.",
            "Leave out its softmax.",
        )


def _sum_to_one(values: Tensor, tolerance: float) -> bool:
    """Whether each row (N, classes) is a distribution."""
    return bool((values >= 0).all() and ((values.sum(1) - 1).abs() < tolerance).all())


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any module normalises over the batch in training; one that is frozen, in eval mode alone, does not."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(module.training or not model.training for module in norms)

"""What a loss function is like, and what to say where it fails."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vision_wrapper.data.check_model import IGNORED
from vision_wrapper.errors import DataError, SettingError, VisionWrapperError


def check_loss(loss_fn: Any) -> None:
    """Raise `SettingError` for what is no loss, or sums over the batch: the history would be off by its size."""
    if isinstance(loss_fn, type) or not callable(loss_fn):
        raise SettingError(
            f"loss_fn is a function of (logits, targets), such as nn.CrossEntropyLoss(), got {loss_fn!r}."
        )
    torchs = str(getattr(getattr(loss_fn, "func", loss_fn), "__module__", "")).startswith("torch.nn.")
    reduction = _arguments(loss_fn).get("reduction", getattr(loss_fn, "reduction", "mean"))
    if torchs and reduction not in ("mean", "batchmean"):
        raise SettingError(f'The loss must be the mean over the batch, reduction="mean", got {reduction!r}.')


def no_mean(loss: Any) -> SettingError:
    """The error for what is no mean over a batch, or has no gradient to learn from."""
    if isinstance(loss, Tensor) and not loss.ndim:
        return SettingError(
            "The loss depends on no parameter that learns: it was detached, or the forward pass uses frozen ones alone."
        )
    got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r}"
    return SettingError(f"loss_fn must return the batch's mean loss, a tensor without dimensions; got {got}.")


def takes_logits(loss_fn: Any) -> bool:
    """Whether a loss is cross-entropy, which takes the softmax itself."""
    return getattr(loss_fn, "func", loss_fn) is nn.functional.cross_entropy or isinstance(loss_fn, nn.CrossEntropyLoss)


def ignored_class(loss_fn: Any) -> int:
    """The target that a loss passes over."""
    return int(_arguments(loss_fn).get("ignore_index", getattr(loss_fn, "ignore_index", IGNORED)))


def counted_and_weight(loss_fn: Any, targets: Tensor) -> tuple[Tensor | None, Any]:
    """Which targets a batch's mean loss is of, bool (N,) or None for all, and the weight that they have together."""
    if not _weighs_classes(loss_fn) or targets.is_floating_point():
        return None, len(targets)
    counted = targets != ignored_class(loss_fn)
    weights = _arguments(loss_fn).get("weight", getattr(loss_fn, "weight", None))
    each = counted if weights is None else weights[torch.where(counted, targets, 0).long()] * counted
    return counted, each.sum()


def _weighs_classes(loss_fn: Any) -> bool:
    """Whether a loss is torch's cross-entropy or likelihood, whose mean goes by the weights of the classes."""
    if isinstance(loss_fn, nn.Module):
        return type(loss_fn).forward in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)
    return getattr(loss_fn, "func", loss_fn) in (nn.functional.cross_entropy, nn.functional.nll_loss)


def _arguments(loss_fn: Any) -> dict[str, Any]:
    """What a functools.partial gives its function."""
    return getattr(loss_fn, "keywords", {})


# What a loss may raise of its arguments: a target that is no class, other shapes, other types.
LOSS_ERRORS = (IndexError, RuntimeError, TypeError, ValueError)


class LossFailed(DataError):
    """A loss could not be computed of a batch; a fit adds which one."""


def is_of_others(error: Exception) -> bool:
    """Whether an error only came up here: torch tells of dead processes, and of full memory, wherever python is."""
    return any(words in str(error) for words in ("DataLoader worker", "out of memory"))


def raise_loss_failed(logits: Tensor, targets: Tensor, error: Exception) -> NoReturn:
    """Raise what a loss raised with its arguments; what is not of the loss stays as it is."""
    if isinstance(error, VisionWrapperError) or is_of_others(error):
        raise error
    raise LossFailed(
        f"The loss of outputs {tuple(logits.shape)} and targets {tuple(targets.shape)} ({targets.dtype}) failed: "
        f"{error} Are there targets that are no class of the model?"
    ) from error

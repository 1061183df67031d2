"""What is found out from the first batch of a loader, before a step is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vision_wrapper._state import preserve_order, preserve_random_states
from vision_wrapper.data import Loader
from vision_wrapper.data.check_loader import check_pair
from vision_wrapper.data.check_model import check_batch
from vision_wrapper.data.findings import Finding
from vision_wrapper.errors import DataError
from vision_wrapper.trainer.batches import evaluated_batches
from vision_wrapper.trainer.checks import no_batch
from vision_wrapper.trainer.losses import ignored_class, takes_logits

if TYPE_CHECKING:
    from vision_wrapper.trainer.trainer import Trainer


def check_validation(trainer: Trainer, loader: Any) -> None:
    """The first batch of a validation loader, before training; iterators lose it, so they are not looked at."""
    if loader is None or isinstance(loader, Iterator):
        return
    with preserve_random_states(), preserve_order(loader):
        first = next(evaluated_batches(trainer, loader), None)
    if not any(trainer.processes.gathered(first is not None)):
        raise no_batch("validation loader")
    check_first_batch(trainer, first, loader, training=False)


def check_first_batch(trainer: Trainer, batch: Any, loader: Any, training: bool = True) -> None:
    """Find out before the first step what would go wrong in it, in any process; nothing is changed."""
    findings = [] if batch is None else _findings(trainer, check_pair(batch), loader)
    errors = [str(f) for f in findings if f.severity == "error" and (training or f.check != "batch_of_one")]
    for error in chain(*trainer.processes.gathered(errors)):
        raise DataError(error)
    for finding in findings:
        if training and finding.severity == "warning":
            warnings.warn(str(finding), stacklevel=5)


def _findings(trainer: Trainer, batch: tuple[Tensor, Tensor], loader: Any) -> list[Finding]:
    inputs, targets = trainer._prepare(*batch)
    classes = len(loader.classes) if isinstance(loader, Loader) else None
    with trainer._autocast:
        wants_logits, ignore_index = takes_logits(trainer.loss_fn), ignored_class(trainer.loss_fn)
        return list(check_batch(trainer.model, inputs, targets, classes, wants_logits, ignore_index))

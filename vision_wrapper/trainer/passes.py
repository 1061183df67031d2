"""Passes in eval mode: loss and accuracy, and the logits of every sample."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vision_wrapper._state import preserve_mode, preserve_order
from vision_wrapper.data import Loader
from vision_wrapper.data.check_loader import check_pair, in_order, shuffles
from vision_wrapper.data.check_model import does_not_take
from vision_wrapper.errors import DataError, SettingError, VisionWrapperError
from vision_wrapper.evaluation import Predictions
from vision_wrapper.trainer.batches import evaluated_batches, interleaved
from vision_wrapper.trainer.checks import no_batch, out_of_memory
from vision_wrapper.trainer.losses import LOSS_ERRORS, counted_and_weight, is_of_others, no_mean, raise_loss_failed
from vision_wrapper.trainer.views import AS_IT_IS, View, Views, averaged_logits, views_of

if TYPE_CHECKING:
    from vision_wrapper.trainer.trainer import Trainer


class Evaluation(NamedTuple):
    """What `Trainer.evaluate` returns.

    With class weights, the loss is the weighted mean over all samples, each by the weight of its class, and not the
    mean of the batches' means. Targets that the loss ignores count for nothing, neither in the loss nor in the
    accuracy. (The history's figures of the training are means of the batches', by their number of samples.)

    Attributes:
        loss: the mean over the samples.
        accuracy: correct / total, in [0, 1]; None where targets are no classes, or the model has a single output.
        correct: how many samples are right; None likewise.
        total: how many samples there are.
    """

    loss: float
    accuracy: float | None
    correct: int | None
    total: int


def evaluate(trainer: Trainer, loader: Any) -> Evaluation:
    """See `Trainer.evaluate`."""
    loss_fn = trainer.loss_fn
    losses, weights, counts, hits, countable = [], [], [], [], True
    with preserve_mode(loss_fn) if isinstance(loss_fn, nn.Module) else nullcontext():
        for logits, targets in _forward_pass(trainer, loader):
            losses.append(_loss(loss_fn, logits, targets))
            counted, weight = counted_and_weight(loss_fn, targets)
            weights.append(weight)
            counts.append(len(targets) if counted is None else counted.sum())
            countable = countable and are_classes(logits, targets)
            if countable:
                right = logits.argmax(1) == targets
                hits.append((right if counted is None else right & counted).sum())
    own = list(zip(*(_read(values) for values in (losses, weights, counts)), strict=True))
    correct = int(torch.stack(hits).sum()) if countable and hits else 0
    gathered = trainer.processes.gathered((own, correct, countable))
    # In the loader's order: the sum does not depend on the number of processes.
    batches = interleaved([batches for batches, _, _ in gathered])
    if not batches:
        raise no_batch()
    total = sum(count for _, _, count in batches)
    if not any(weight for _, weight, _ in batches):
        raise DataError("The loss ignores every target of the loader, or gives it no weight.")
    weighed = [(mean, weight) for mean, weight, _ in batches if weight]  # the mean of none is NaN
    loss = sum(mean * weight for mean, weight in weighed) / sum(weight for _, weight in weighed)
    if not all(countable for _, _, countable in gathered):
        return Evaluation(loss, None, None, total)
    correct = sum(correct for _, correct, _ in gathered)
    return Evaluation(loss, correct / total, correct, total)


def _read(values: list[Any]) -> list[Any]:
    """Numbers, of which those that are still on the device are read at once."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def predict(trainer: Trainer, loader: Any, tta: Views) -> Predictions:
    """See `Trainer.predict`."""
    views = views_of(tta)
    if not isinstance(loader, Loader) and shuffles(loader):  # of ours, the order is known
        raise SettingError("This DataLoader shuffles, so it is not known which sample is which. Use shuffle=False.")
    if not isinstance(loader, Loader) and not in_order(loader):
        raise SettingError(
            "This DataLoader has a sampler of its own, so it is not known which sample is which. Leave it out: for a "
            "part of the samples there is torch.utils.data.Subset."
        )
    if isinstance(loader, Loader) and loader.augments:
        warnings.warn(
            "These predictions are of augmented images, as in training; their mistakes show the raw ones. For the "
            "training images as they are: data.make_loaders(images, preprocess=loaders.preprocess), without augment.",
            stacklevel=3,
        )
    parts = list(_forward_pass(trainer, loader, views))
    if trainer.processes.count > 1:
        own = [(logits.cpu(), targets.cpu()) for logits, targets in parts]
        parts = interleaved(trainer.processes.gathered(own))
    if not parts:
        raise no_batch()
    logits = torch.cat([part[0] for part in parts]).cpu()
    targets = torch.cat([part[1] for part in parts]).cpu()
    if not isinstance(loader, Loader):
        return Predictions(logits, targets, torch.arange(len(targets)))
    indices = torch.from_numpy(loader.order(0)[: len(targets)].copy())
    more = [f"output {i}" for i in range(len(loader.classes), logits.shape[1] if logits.ndim == 2 else 0)]
    classes = [*loader.classes, *more]  # a network may have outputs to spare
    return Predictions(logits, targets, indices, classes, source=loader.split, preprocess=loader.preprocess)


def are_classes(logits: Tensor, targets: Tensor) -> bool:
    """Whether targets are one class a sample, and logits one a class, so that hits can be counted."""
    return logits.ndim == 2 and logits.shape[1] > 1 and targets.ndim == 1 and not targets.is_floating_point()


def _forward_pass(
    trainer: Trainer, loader: Any, views: Sequence[View] = (AS_IT_IS,)
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, targets) of each batch on the device, in eval mode, without gradients."""
    model = trainer.model
    with preserve_mode(model), preserve_order(loader):
        model.eval()
        trainer.processes.broadcast(model.buffers())  # batch norm's are of each process's own batches
        for batch in evaluated_batches(trainer, loader):
            inputs, targets = trainer._prepare(*check_pair(batch))
            try:
                with torch.no_grad(), trainer._autocast:  # what a module keeps may be trained with later
                    logits = averaged_logits(trainer._network, inputs, views)
            except torch.OutOfMemoryError as error:
                raise out_of_memory(loader) from error
            except VisionWrapperError:
                raise
            except (RuntimeError, ValueError) as error:
                if is_of_others(error):
                    raise
                raise DataError(str(does_not_take(model, inputs, error))) from error
            yield logits, targets


def _loss(loss_fn: Any, logits: Tensor, targets: Tensor) -> Tensor:
    try:
        with torch.no_grad():  # a loss may have parameters of its own
            loss = loss_fn(logits, targets)
    except LOSS_ERRORS as error:
        raise_loss_failed(logits, targets, error)
    if not isinstance(loss, Tensor) or loss.ndim:
        raise no_mean(loss)
    return loss

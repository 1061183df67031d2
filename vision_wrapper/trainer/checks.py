"""What a trainer refuses, in words, and the errors of a loop."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vision_wrapper.data import Loader
from vision_wrapper.data.check_model import IGNORED, has_batch_norm
from vision_wrapper.data.findings import first_few
from vision_wrapper.errors import DataError, DeviceMemoryError, NonFiniteLossError, SettingError, VisionWrapperError
from vision_wrapper.trainer.callbacks import Callback

if TYPE_CHECKING:
    from vision_wrapper.trainer.fit import Fit


def check_settings(*, ema: Any, clip_norm: Any, accumulate: Any, l1: Any, compile: Any) -> None:
    """Raise `SettingError` for a value that cannot be."""
    if not (isinstance(compile, bool) or compile == "graphs"):
        raise SettingError(f'compile is True, False or "graphs", got {compile!r}.')
    if compile == "graphs" and accumulate != 1:
        raise SettingError(
            'compile="graphs" takes accumulate=1: a replayed graph writes over the gradients that the last one left.'
        )
    if ema is not None and not (_is_number(ema) and 0 < ema < 1):
        raise SettingError(f"ema is a decay between 0 and 1, such as 0.999, got {ema!r}.")
    if clip_norm is not None and not (_is_number(clip_norm) and clip_norm > 0):
        raise SettingError(f"clip_norm must be a positive number, got {clip_norm!r}.")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise SettingError(f"accumulate must be a whole number of at least 1, got {accumulate!r}.")
    if not (_is_number(l1) and l1 >= 0):
        raise SettingError(f"l1 must be a number of at least 0, got {l1!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_callbacks(callbacks: Sequence[Any]) -> list[Callback]:
    """The callbacks as a list of their own. Raises `SettingError` for anything else."""
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(callback, Callback) for callback in callbacks):
        raise SettingError(f"callbacks must be a list of trainer.Callback objects, got {callbacks!r}.")
    return list(callbacks)


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise `SettingError` for an optimizer that does not belong to the model, or that needs a closure."""
    if not isinstance(model, nn.Module):
        raise SettingError(f"model must be a torch.nn.Module, got {model!r}.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SettingError(
            f"optimizer must be made from the model's parameters, as torch.optim.Adam(…), got {optimizer!r}."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise SettingError("LBFGS evaluates a batch several times a step, which this loop does not; use another one.")
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = sum(id(p) not in own for p in held)
    if foreign:
        what = "none of" if foreign == len(held) else f"only {len(held) - foreign} of {len(held)} from"
        raise SettingError(
            f"The optimizer holds {what} the model's parameters. Make it after the model, from model.parameters()."
        )


def check_still_held(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise `SettingError` where a part of the model was replaced since the optimizer was made, and would not learn."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in model.parameters()}
    new = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if new and held - own:
        raise SettingError(
            f"The optimizer holds parameters that the model no longer has, and not {first_few(new, 3)}: a part was "
            "replaced. Make the optimizer after that, and with it a trainer."
        )


def check_distributable(model: nn.Module, compile: bool | str) -> None:
    """Raise `SettingError` for what several processes cannot train."""
    if isinstance(model, DistributedDataParallel):
        raise SettingError("The model is a DistributedDataParallel already: pass the one inside, model.module.")
    if compile == "graphs":
        raise SettingError('compile="graphs" is for a single process; several take compile=True.')


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


def takes_logits(loss_fn: Any) -> bool:
    """Whether a loss is cross-entropy, which takes the softmax itself."""
    return getattr(loss_fn, "func", loss_fn) is nn.functional.cross_entropy or isinstance(loss_fn, nn.CrossEntropyLoss)


def ignored_class(loss_fn: Any) -> int:
    """The target that a loss passes over."""
    return int(_arguments(loss_fn).get("ignore_index", getattr(loss_fn, "ignore_index", IGNORED)))


def counted_and_weight(loss_fn: Any, targets: Tensor) -> tuple[Tensor | None, Any]:
    """Which targets a batch's mean loss is of, bool (N,) or None for all, and the weight that they have together."""
    own = isinstance(loss_fn, nn.Module) and type(loss_fn).forward is not nn.CrossEntropyLoss.forward
    if own or not takes_logits(loss_fn) or targets.is_floating_point():
        return None, len(targets)
    counted = targets != ignored_class(loss_fn)
    weights = _arguments(loss_fn).get("weight", getattr(loss_fn, "weight", None))
    each = counted if weights is None else weights[torch.where(counted, targets, 0).long()] * counted
    return counted, each.sum()


def _arguments(loss_fn: Any) -> dict[str, Any]:
    """What a functools.partial gives its function."""
    return getattr(loss_fn, "keywords", {})


# What a loss may raise of its arguments: a target that is no class, other shapes, other types.
LOSS_ERRORS = (IndexError, RuntimeError, TypeError, ValueError)


class LossFailed(DataError):
    """A loss could not be computed of a batch; a fit adds which one."""


def raise_loss_failed(logits: Tensor, targets: Tensor, error: Exception) -> NoReturn:
    """Raise what a loss raised with its arguments; what is not of the loss stays as it is."""
    others = ("DataLoader worker", "out of memory")  # torch tells of dead processes wherever python is
    if isinstance(error, VisionWrapperError) or any(words in str(error) for words in others):
        raise error
    raise LossFailed(
        f"The loss of outputs {tuple(logits.shape)} and targets {tuple(targets.shape)} ({targets.dtype}) failed: "
        f"{error} Are there targets that are no class of the model?"
    ) from error


def check_trainable(model: nn.Module) -> None:
    """Raise `SettingError` where every parameter is frozen."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingError("Every parameter of the model is frozen: models.unfreeze(model) thaws it.")


def check_last_batch(model: nn.Module, loader: Any, processes: int) -> None:
    """Raise `SettingError` where a process has one image of an epoch's last batch, and the model batch norm."""
    if not isinstance(loader, Loader) or not has_batch_norm(model):
        return
    rest = 0 if loader.drop_last else len(loader.split) % loader.batch_size
    last = rest or loader.batch_size
    if processes > 1 and last // processes < 2:
        raise SettingError(
            f"The last batch has {last} images for {processes} processes: one would have a single one, which batch "
            "norm cannot train on. Use drop_last=True or another batch_size (it is that of all processes together)."
        )
    if last == 1 and not loader.drop_last:
        raise SettingError(
            f"The last batch has one image ({len(loader.split)} images, batch_size={loader.batch_size}), which batch "
            "norm cannot train on. Use drop_last=True or another batch size."
        )


def check_same_settings(gathered: Sequence[dict[str, Any]]) -> None:
    """Raise `SettingError` where processes that are to train together describe other runs."""
    main = gathered[0]
    for rank, settings in enumerate(gathered):
        different = [f"{k}: {main[k]!r} there, {v!r} here" for k, v in settings.items() if v != main[k]]
        if different:
            raise SettingError(f"Process {rank} is to train another run than process 0 ({'; '.join(different)}).")


def check_pair(batch: Any) -> tuple[Tensor, Tensor]:
    """The batch, which has to be (inputs, targets). Raises `DataError` for anything else."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    parts = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise DataError(f"A loader must yield pairs of tensors (inputs, targets), got {parts}.")


def position(run: Fit) -> str:
    """Where the run stands, counted from 1."""
    return f"Epoch {run.epoch + 1}, batch {run.batch + 1}"


def not_finite(run: Fit, batch: int, loss: float) -> NonFiniteLossError:
    """The error for a loss of NaN or infinity in batch number `batch` of this epoch."""
    where = f"epoch {run.epoch + 1}, batch {batch + 1}, learning rate {float(run.rates[batch]):.3g}"
    samples = ""
    if isinstance(run.loader, Loader):
        order = run.loader.order(run.first_epoch + run.epoch)
        first = batch * run.loader.batch_size
        samples = f" Its sample indices: {order[first : first + run.loader.batch_size].tolist()}."
    return NonFiniteLossError(
        f"The loss became {loss} in {where}. Lower the learning rate (find_lr helps) or set clip_norm; the last good "
        f"checkpoint, if any, is unharmed.{samples}"
    )


def no_batch(loader: str = "loader") -> DataError:
    """The error for a loader without batches."""
    return DataError(f"The {loader} gave no batch. Is it empty, or an iterator that is used up?")


def out_of_memory(loader: Any) -> DeviceMemoryError:
    """The error for a device without room, with the batch size to try next."""
    size = getattr(loader, "batch_size", None)
    if isinstance(loader, Loader) and not loader.shuffle:
        return DeviceMemoryError(
            f"The device ran out of memory without gradients. Set the loader's batch_size, {size} now, to "
            f"{loader.batch_size // 2}."
        )
    advice = f"Try batch_size={max(1, size // 2)}" if isinstance(size, int) else "Try half the batch size"
    return DeviceMemoryError(f"The device ran out of memory. {advice}, with accumulate=2 for the same step.")

"""What a trainer refuses, in words, and the errors of a loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from vision_wrapper._numbers import is_number, number_from_0, positive_number
from vision_wrapper.data import Loader
from vision_wrapper.data.check_loader import last_batch
from vision_wrapper.data.check_model import has_batch_norm
from vision_wrapper.data.findings import first_few
from vision_wrapper.errors import DataError, DeviceMemoryError, NonFiniteLossError, SettingError
from vision_wrapper.trainer.callbacks import Callback
from vision_wrapper.trainer.optimizers import Lookahead

if TYPE_CHECKING:
    from vision_wrapper.trainer.fit import Fit


A_LOSS_THAT_LEARNS = (
    "Make it a part of the model, as in model.loss = loss, before the optimizer: it is then trained, moved and saved "
    "with it."
)
_LOW = 1e-3  # of the rate that an optimizer was made with


def check_settings(*, ema: Any, clip_norm: Any, accumulate: int, l1: Any, compile: Any) -> None:
    """Raise `SettingError` for an invalid value."""
    if not (isinstance(compile, bool) or compile == "graphs"):
        raise SettingError(f'compile is True, False or "graphs", got {compile!r}.')
    if compile == "graphs" and accumulate != 1:
        raise SettingError(
            'compile="graphs" takes accumulate=1: a replayed graph writes over the gradients that the last one left.'
        )
    if ema is not None and not (is_number(ema) and 0 < ema < 1):
        raise SettingError(f"ema is a decay between 0 and 1, such as 0.999, got {ema!r}.")
    if clip_norm is not None:
        positive_number("clip_norm", clip_norm)
    number_from_0("l1", l1)


def check_callbacks(callbacks: Sequence[Any]) -> list[Callback]:
    """The callbacks as a list of their own. Raises `SettingError` for anything else."""
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(callback, Callback) for callback in callbacks):
        raise SettingError(f"callbacks must be a list of trainer.Callback objects, got {callbacks!r}.")
    return list(callbacks)


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Any = None) -> None:
    """Raise `SettingError` for an optimizer that does not belong to the model, or that needs a closure."""
    if not isinstance(model, nn.Module):
        raise SettingError(f"model must be a torch.nn.Module, got {model!r}.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SettingError(
            f"optimizer must be made from the model's parameters, as torch.optim.Adam(…), got {optimizer!r}."
        )
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise SettingError(
            "The model has lazy layers, whose size is not known before they have seen an input. Pass it a batch, "
            "model(images), and make the optimizer after that."
        )
    if isinstance(optimizer.optimizer if isinstance(optimizer, Lookahead) else optimizer, torch.optim.LBFGS):
        raise SettingError("LBFGS evaluates a batch several times a step, which this loop does not; use another one.")
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = sum(id(p) not in own for p in held)
    losses = {id(p) for p in loss_fn.parameters()} if isinstance(loss_fn, nn.Module) else set()
    if any(id(p) in losses - own for p in held):
        raise SettingError(
            f"The optimizer holds parameters of the loss, {type(loss_fn).__name__}. {A_LOSS_THAT_LEARNS}"
        )
    if foreign:
        what = "none of" if foreign == len(held) else f"only {len(held) - foreign} of {len(held)} from"
        raise SettingError(
            f"The optimizer holds {what} the model's parameters. Make it after the model, from model.parameters()."
        )


def check_still_held(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Any = None) -> None:
    """Raise `SettingError` where a part of the model was replaced since the optimizer was made, and would not learn.

    Warn of others that would not, of the loss too.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in model.parameters()}
    new = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if new and held - own:
        raise SettingError(
            f"The optimizer holds parameters that the model no longer has, and not {first_few(new, 3)}: a part was "
            "replaced. Make the optimizer after that, and with it a trainer."
        )
    if new:
        warnings.warn(
            f"{len(new)} parameters are not frozen, but the optimizer does not hold them ({first_few(new, 3)}): they "
            "stay as they are. Make the optimizer of them too, and with it a trainer, or freeze them "
            "(requires_grad_(False)).",
            stacklevel=4,
        )
    if isinstance(loss_fn, nn.Module) and any(p.requires_grad and id(p) not in held for p in loss_fn.parameters()):
        warnings.warn(
            f"The loss, {type(loss_fn).__name__}, has parameters that nothing trains. {A_LOSS_THAT_LEARNS} "
            "Where it is not to learn, freeze it: loss.requires_grad_(False).",
            stacklevel=4,
        )


def check_same_groups(optimizer: torch.optim.Optimizer, begun_with: int) -> None:
    """Raise `SettingError` for groups that were added in a run: neither its schedule nor its checkpoint knows them."""
    if len(optimizer.param_groups) != begun_with:
        raise SettingError(
            f"The optimizer has {len(optimizer.param_groups)} groups, but the run began with {begun_with}. Give it all "
            "parameters from the start, and freeze those that are to learn later (requires_grad_(False))."
        )


def warn_of_low_rates(optimizer: torch.optim.Optimizer) -> None:
    """Warn where the highest rate to come is 0, or next to nothing beside the one that the optimizer was made with."""
    noted = ("lr", "initial_lr", "max_lr")  # the last two by schedulers
    highest = max(float(group.get(name, 0)) for group in optimizer.param_groups for name in noted)
    if highest <= _LOW * float(optimizer.defaults.get("lr", 0)):
        warnings.warn(
            f"Hardly anything will be learned: the highest rate is {highest:.3g}, where an earlier schedule may have "
            "ended. Give the schedule a max_lr, or set the groups' lr.",
            stacklevel=4,
        )


def check_distributable(model: nn.Module, compile: bool | str) -> None:
    """Raise `SettingError` for what several processes cannot train."""
    if isinstance(model, DistributedDataParallel):
        raise SettingError("The model is a DistributedDataParallel already: pass the one inside, model.module.")
    if compile == "graphs":
        raise SettingError('compile="graphs" is for a single process; several take compile=True.')


def check_trainable(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise `SettingError` where every parameter is frozen, or every one that the optimizer holds."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingError("Every parameter of the model is frozen: models.unfreeze(model) thaws it.")
    if not any(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"]):
        raise SettingError(
            "Every parameter that the optimizer holds is frozen, so nothing would be learned. Make it of those that "
            "learn: [p for p in model.parameters() if p.requires_grad]."
        )


def check_last_batch(model: nn.Module, loader: Any, processes: int) -> None:
    """Raise `SettingError` where a process has one image of an epoch's last batch, and the model batch norm."""
    found = last_batch(loader) if has_batch_norm(model) else None
    if found is None:
        return
    images, size, last = found
    if processes > 1 and isinstance(loader, Loader) and last // processes < 2:
        raise SettingError(
            f"The last batch has {last} images for {processes} processes: one would have a single one, which batch "
            "norm cannot train on. Use drop_last=True or another batch_size (it is that of all processes together)."
        )
    if last == 1:
        raise SettingError(
            f"The last batch has one image ({images} images, batch_size={size}), which batch norm cannot train on. Use "
            "drop_last=True or another batch size."
        )


def check_same_settings(gathered: Sequence[dict[str, Any]]) -> None:
    """Raise `SettingError` where processes that are to train together describe other runs."""
    main = gathered[0]
    for rank, settings in enumerate(gathered):
        found = differences(main, settings)
        if found:
            raise SettingError(f"Process {rank} is to train another run than process 0 ({'; '.join(found)}).")


def differences(there: Mapping[str, Any], here: Mapping[str, Any], of: str = "") -> list[str]:
    """The settings in which two runs differ, in words; of settings that have settings, as an optimizer's, the inner."""
    found = []
    for name in {**here, **there}:
        other, own = there.get(name), here.get(name)
        if isinstance(other, Mapping) and isinstance(own, Mapping):
            found += differences(other, own, f"{of}{name} ")
        elif other != own:
            found.append(f"{of}{name}: {other!r} there, {own!r} here")
    return found


def no_logits(outputs: Any) -> SettingError:
    """For a model that returned anything but a tensor."""
    return SettingError(
        f"The model must return a tensor of logits (N, classes), got {type(outputs).__name__}. Wrap it in a module "
        "that returns these alone, in train mode as in eval mode."
    )


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


def check_finite(run: Fit, parameters: Sequence[nn.Parameter]) -> None:
    """Raise `NonFiniteLossError` for weights that are not finite, though no loss was: the last step made them so."""
    finite = [parameter.isfinite().all() for parameter in parameters]
    if finite and not bool(torch.stack(finite).all()):
        raise NonFiniteLossError(
            f"Epoch {run.epoch + 1}: the step of batch {run.batch} made weights NaN or infinite. Lower the learning "
            "rate (find_lr helps) or set clip_norm; the last good checkpoint, if any, is unharmed."
        )


def no_batch(loader: str = "loader") -> DataError:
    """The error for a loader without batches."""
    return DataError(f"The {loader} gave no batch. Is it empty, or an iterator that is used up?")


def out_of_memory(loader: Any, accumulate: int | None = None) -> DeviceMemoryError:
    """The error for a device without room, with the batch size to try next; `accumulate` is that of a training."""
    size = getattr(loader, "batch_size", None)
    half = max(1, size // 2) if isinstance(size, int) else None
    if accumulate is None:
        advice = f"Set the loader's batch_size to {half} (it is {size})" if half else "Give it smaller batches"
        return DeviceMemoryError(f"The device ran out of memory while evaluating. {advice}.")
    advice = f"Try batch_size={half}" if half else "Try half the batch size"
    same_step = f"with accumulate={2 * accumulate} for the same step"
    return DeviceMemoryError(f"The device ran out of memory. {advice}, {same_step}.")


@contextmanager
def memory_errors(loader: Any, accumulate: int | None = None) -> Iterator[None]:
    """Raise `DeviceMemoryError` where the device has no room; arguments as of `out_of_memory`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(loader, accumulate) from error

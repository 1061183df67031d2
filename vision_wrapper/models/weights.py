"""Weights from elsewhere: files, torchvision's names, and the names that pytorch-cifar gives."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError

import torch
from torch import Tensor, nn

from vision_wrapper._lookup import unknown_name
from vision_wrapper._torchvision import torchvision
from vision_wrapper.errors import DamagedFileError, DataNotFoundError, OtherModelError, SettingError

Model = TypeVar("Model", bound=nn.Module)

HEAD = "fc"  # the linear layer at the end, in every network of this library and in torchvision's ResNets


def load_weights(model: Model, weights: str | os.PathLike[str] | None, *, torchvision_name: str | None = None) -> Model:
    """Load a file, or torchvision's weights of that name, into the model, and return it. None loads nothing.

    A head (`fc`) whose shape differs is left as it is: that is fine-tuning on other classes. Any other difference in
    names or shapes raises `OtherModelError`, and the model is unchanged.
    """
    if weights is None:
        return model
    path = Path(weights)
    if path.suffix in (".safetensors", ".pth", ".pt") or path.exists():
        state = read_state_dict(path)
    elif torchvision_name is not None:
        state = _torchvision_state_dict(torchvision_name, str(weights))
    else:
        raise DataNotFoundError(f"There is no file {weights}.")
    own = model.state_dict()
    if state.keys() != own.keys():  # else the names are the model's own, whatever they look like
        state = from_pytorch_cifar(state)
    for name in (f"{HEAD}.weight", f"{HEAD}.bias"):
        if name in state and name in own and state[name].shape != own[name].shape:
            state[name] = own[name]
    check_fits(own, state, str(weights))
    model.load_state_dict(state)
    return model


def check_fits(own: dict[str, Tensor], given: dict[str, Tensor], source: str) -> None:
    """Raise `OtherModelError` unless the two state dicts have the same names and shapes."""
    differences = [f"{name} is missing" for name in own if name not in given]
    differences += [f"{name} is not in the model" for name in given if name not in own]
    differences += [
        f"{name} is {tuple(given[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in given and own[name].shape != given[name].shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise OtherModelError(
            f"The weights in {source} are of another network: {'; '.join(differences[:3])}{more}. Build the model with "
            "the arguments it was saved with."
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth file that holds a state dict and nothing that runs code."""
    if not path.exists():
        raise DataNotFoundError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows as any error of the unpickler, the zip reader or safetensors
        raise DamagedFileError(f"{path} cannot be read as plain weights: {error}.") from error
    for key in ("state_dict", "model", "net"):  # the wrappings in common use
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DamagedFileError(f"{path} does not hold a state dict (names with tensors).")
    return state


def from_pytorch_cifar(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names of kuangliu's pytorch-cifar, renamed to torchvision's; others come back unchanged.

    Its ResNets call the projection `shortcut` and the head `linear`, and a DataParallel wrapper adds `module.`.
    """

    def renamed(name: str) -> str:
        name = name.removeprefix("module.").replace(".shortcut.", ".downsample.")
        return f"{HEAD}{name.removeprefix('linear')}" if name.startswith("linear.") else name

    return {renamed(name): value for name, value in state.items()}


def _torchvision_state_dict(model_name: str, weights_name: str) -> dict[str, Tensor]:
    choices = torchvision().models.get_model_weights(model_name)
    if weights_name not in choices.__members__:
        raise unknown_name(f"weights of {model_name}", weights_name, choices.__members__)
    try:
        return dict(choices[weights_name].get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (URLError, OSError) as error:
        raise DataNotFoundError(
            f"torchvision's {model_name} {weights_name} is not on this machine and could not be downloaded ({error}). "
            "Download the .pth file elsewhere and pass its path as weights=."
        ) from error


def head_of(model: nn.Module) -> nn.Module:
    """The classifying layer: `fc`, or else the last linear layer of the network."""
    head = getattr(model, HEAD, None)
    if isinstance(head, nn.Module):
        return head
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise SettingError(f"{type(model).__name__} has no linear layer, so its head is not known.")
    return linear[-1]


def freeze(model: nn.Module) -> None:
    """Freeze the body: no gradients for anything but the head, and batch statistics that stay as they are.

    The body's modules are put in eval mode, and `Trainer.fit` leaves them there. `unfreeze` takes it back.
    """
    _set_frozen(model, frozen=True)


def unfreeze(model: nn.Module) -> None:
    """Let every parameter learn again, and put every module in train mode."""
    _set_frozen(model, frozen=False)


def _set_frozen(model: nn.Module, frozen: bool) -> None:
    head = head_of(model)
    head_modules, head_parameters = set(head.modules()), set(head.parameters())
    model.train()
    for module in model.modules():
        if module is not model and module not in head_modules and head not in module.modules():
            module.train(not frozen)
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen or parameter in head_parameters)


@torch.no_grad()
def scale_head(model: nn.Module, scale: float) -> None:
    """Multiply the weights and the bias of the head by `scale`, for small logits at the beginning.

    With `parameter_groups(…, head_scale=scale)` training then goes as if the logits of an unscaled head were multiplied
    by `scale`, which Page (2018) found to pay for batch norm networks; 0.125 is his.
    """
    for parameter in head_of(model).parameters():
        parameter.mul_(scale)


def parameter_groups(
    model: nn.Module,
    lr: float,
    body_lr: float | None = None,
    weight_decay: float = 0.0,
    norms_biases_lr: float | None = None,
    norms_biases_decay: float = 0.0,
    head_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: head and body, and of each the weights and the rest (norms and biases).

    Args:
        model: its parameters without `requires_grad` are left out.
        lr: learning rate of the head.
        body_lr: of the body; None means `lr`.
        weight_decay: of the weights.
        norms_biases_lr: learning rate of the body's norms and biases; None means the body's.
        norms_biases_decay: weight decay of all norms and biases.
        head_scale: what `scale_head` multiplied the head by: its rate is multiplied by the square of it, and its weight
            decay divided. With SGD that is training with logits times `head_scale`; with optimizers whose steps do not
            depend on the size of a gradient, such as Adam, it is not.

    Raises:
        SettingError: a rate, a decay or a scale that cannot be.

    Returns:
        Up to four dicts with "name" ("head", "head_norms_biases", "body", "body_norms_biases"), "params", "lr" and
        "weight_decay". Schedules and the LR finder keep the proportion of the groups' rates.
    """
    check_group_numbers(lr, body_lr, weight_decay, norms_biases_lr, norms_biases_decay, head_scale)
    head = set(head_of(model).parameters())
    body_lr = lr if body_lr is None else body_lr
    head_lr, head_decay = lr * head_scale**2, weight_decay / head_scale**2
    kinds = {  # name: rate and weight decay
        "head": (head_lr, head_decay),
        "head_norms_biases": (head_lr, norms_biases_decay / head_scale**2),
        "body": (body_lr, weight_decay),
        "body_norms_biases": (body_lr if norms_biases_lr is None else norms_biases_lr, norms_biases_decay),
    }
    groups: dict[str, dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Norms and biases are vectors.
            name = ("head" if parameter in head else "body") + ("" if parameter.ndim > 1 else "_norms_biases")
            rate, decay = kinds[name]
            group = groups.setdefault(name, {"name": name, "params": [], "lr": rate, "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


def check_group_numbers(
    lr: Any = 0.0,
    body_lr: Any = None,
    weight_decay: Any = 0.0,
    norms_biases_lr: Any = None,
    norms_biases_decay: Any = 0.0,
    head_scale: Any = 1.0,
) -> None:
    """Raise `SettingError` for numbers that `parameter_groups` cannot take."""
    for name, value in (("body_lr", body_lr), ("norms_biases_lr", norms_biases_lr)):
        if value is not None:
            _check_at_least_0(name, value)
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("norms_biases_decay", norms_biases_decay)):
        _check_at_least_0(name, value)
    _check_at_least_0("head_scale", head_scale)
    if head_scale == 0:
        raise SettingError("head_scale must be above 0.")


def _check_at_least_0(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise SettingError(f"{name} must be a number of at least 0, got {value!r}.")

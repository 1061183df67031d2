"""Head and body of a network: what learns, from what size of logits, and at which rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vision_wrapper._kinds import check_kind
from vision_wrapper._numbers import number_from_0, positive_number
from vision_wrapper.errors import SettingError

_HEADS = ("fc", "classifier", "head", "heads")  # what this library, torchvision and timm call the layers at the end


def head_of(model: nn.Module, head: nn.Module | str | None = None) -> nn.Module:
    """The classifying layer: `fc`, `classifier`, `head` or `heads`, or else the last linear layer of the network.

    Args:
        model: any network with a linear layer.
        head: the layer, or its name, where that is another one.

    Raises:
        SettingError: no linear layer; a linear layer that comes after the one of such a name, so that it is not clear
            which of them gives the logits; or a `head` that is no part of the model.
    """
    check_kind(model, "model")
    parts = dict(model.named_modules())
    if head is not None:
        found = parts.get(head) if isinstance(head, str) else head
        if found is None or found is model or not any(found is part for part in parts.values()):
            raise SettingError(f"head must be a part of {type(model).__name__}, or its name; got {head!r}.")
        return found
    linear = [name for name, module in parts.items() if isinstance(module, nn.Linear)]
    if not linear:
        raise SettingError(f"{type(model).__name__} has no linear layer, so its head is not known.")
    named = [name for name in linear if name.split(".")[0] in _HEADS]
    if named and named[-1] != linear[-1]:
        raise SettingError(
            f"It is not clear which layer of {type(model).__name__} gives the logits, {named[-1]} or {linear[-1]}: say "
            f"it, as head={named[-1]!r}."
        )
    return parts[linear[-1]]


def freeze(model: nn.Module, head: nn.Module | str | None = None) -> None:
    """Freeze the body: no gradients for anything but the head, and batch statistics that stay as they are.

    The body's modules are put in eval mode, and `Trainer.fit` leaves them there, unless the whole model is put in eval
    mode afterwards, as by `load_classifier`: freeze after that. `unfreeze` takes it back. `head` and errors are as of
    `head_of`.
    """
    chosen = head_of(model, head)
    head_modules, head_parameters = set(chosen.modules()), set(chosen.parameters())
    model.train()
    for module in model.modules():
        if module is not model and module not in head_modules and chosen not in module.modules():
            module.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in head_parameters)


def unfreeze(model: nn.Module) -> None:
    """Let every parameter learn again, and put every module in train mode."""
    check_kind(model, "model")
    model.train().requires_grad_(True)


@torch.no_grad()
def scale_head(model: nn.Module, scale: float, head: nn.Module | str | None = None) -> None:
    """Multiply the weights and the bias of the head by `scale`, for small logits at the beginning.

    With `parameter_groups(…, head_scale=scale)` training then goes as if the logits of an unscaled head were multiplied
    by `scale`, which Page (2018) found to pay for batch norm networks; 0.125 is his. Raises `SettingError` for a scale
    that is not above 0, and for a head of several layers; `head` and further errors are as of `head_of`.
    """
    scale = positive_number("scale", scale)
    found = head_of(model, head)
    layers = [module for module in found.modules() if next(module.parameters(recurse=False), None) is not None]
    if len(layers) > 1:  # one after the other they would multiply the logits by a power of it
        raise SettingError(
            f"The head to be scaled has {len(layers)} layers with parameters; pass the last one alone, which gives the "
            'logits, such as head="classifier.6".'
        )
    for parameter in found.parameters():
        parameter.mul_(scale)


def parameter_groups(
    model: nn.Module,
    lr: float,
    body_lr: float | None = None,
    weight_decay: float = 0.0,
    norms_biases_lr: float | None = None,
    norms_biases_decay: float = 0.0,
    head_scale: float = 1.0,
    head: nn.Module | str | None = None,
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
        head: as of `head_of`.

    Raises:
        SettingError: an invalid rate, decay or scale, and what `head_of` raises.

    Returns:
        Up to four dicts with "name" ("head", "head_norms_biases", "body", "body_norms_biases"), "params", "lr" and
        "weight_decay". Schedules and the LR finder keep the proportion of the groups' rates.
    """
    check_group_numbers(lr, body_lr, weight_decay, norms_biases_lr, norms_biases_decay, head_scale)
    head_parameters = set(head_of(model, head).parameters())
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
            name = ("head" if parameter in head_parameters else "body") + (
                "" if parameter.ndim > 1 else "_norms_biases"
            )
            rate, decay = map(float, kinds[name])
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
            number_from_0(name, value)
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("norms_biases_decay", norms_biases_decay)):
        number_from_0(name, value)
    positive_number("head_scale", head_scale)

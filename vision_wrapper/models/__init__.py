"""Networks that return logits, and what one does with networks."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import nn

from vision_wrapper._lookup import Table, check_names, takes_any_name
from vision_wrapper.models.custom_resnet import CustomResNet
from vision_wrapper.models.fine_tuning import freeze, head_of, parameter_groups, scale_head, unfreeze
from vision_wrapper.models.resnet import ResNet, resnet18, resnet34
from vision_wrapper.models.summary import summary
from vision_wrapper.models.weights import from_pytorch_cifar, load_weights
from vision_wrapper.models.whitened_convnet import WhitenedConvNet, Whitening

__all__ = [
    "MODELS",
    "CustomResNet",
    "ResNet",
    "WhitenedConvNet",
    "Whitening",
    "build_model",
    "freeze",
    "from_pytorch_cifar",
    "head_of",
    "load_weights",
    "parameter_groups",
    "resnet18",
    "resnet34",
    "scale_head",
    "summary",
    "unfreeze",
]

MODELS: Table[Callable[..., nn.Module]] = Table(
    "model",
    {
        "custom_resnet": CustomResNet,
        "resnet18": resnet18,
        "resnet34": resnet34,
        "whitened_convnet": WhitenedConvNet,
    },
)
"""The networks that `build_model` and recipes take by name."""


def build_model(name: str, **arguments: Any) -> nn.Module:
    """A new network by its name in `MODELS`; the arguments are its constructor's.

    Its `.architecture` is {"name": …, "arguments": {…}}, from which a classifier file rebuilds it.

    Raises:
        UnknownNameError: an unknown model or argument.
    """
    constructor = MODELS[name]
    if not takes_any_name(constructor):
        check_names(f"argument of {name}", arguments, signature(constructor).parameters)
    model = constructor(**arguments)
    if getattr(model, "architecture", None) is None:  # one that was added to MODELS and keeps no record of its own
        arguments.pop("weights", None)
        vars(model)["architecture"] = {"name": name, "arguments": arguments}
    return model


def is_own(model: nn.Module) -> bool:
    """Whether a network is one of this package, or derives from one."""
    return any(kind.__module__.startswith(f"{__name__}.") for kind in type(model).__mro__)

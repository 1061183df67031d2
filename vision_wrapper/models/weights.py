"""Weights from elsewhere: files, torchvision's names, and the names that pytorch-cifar gives."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar
from urllib.error import URLError

import torch
from torch import Tensor, nn

from vision_wrapper._lookup import unknown_name
from vision_wrapper._torchvision import torchvision
from vision_wrapper.errors import DamagedFileError, DataNotFoundError, OtherModelError

HEAD = "fc"  # the linear layer at the end, in the networks of this library and in torchvision's ResNets

Model = TypeVar("Model", bound=nn.Module)


def load_weights(model: Model, weights: str | os.PathLike[str] | None, *, torchvision_name: str | None = None) -> Model:
    """Load a file, or torchvision's weights of that name, into the model, and return it. None loads nothing.

    A head (`fc`) whose shape differs is left as it is: that is fine-tuning on other classes. Any other difference in
    names or shapes raises `OtherModelError`, and the model is unchanged.

    Raises:
        DataNotFoundError: no such file, or torchvision's weights can be neither found nor downloaded.
        DamagedFileError: a file that holds no plain weights.
        UnknownNameError: torchvision has no weights of that name.
        OtherModelError: weights of another network.
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


def check_fits(own: dict[str, Any], given: dict[str, Any], source: str) -> None:
    """Raise `OtherModelError` unless the two state dicts have the same names, and their tensors the same shapes."""
    differences = [f"{name} is missing" for name in own if name not in given]
    differences += [f"{name} is not in the model" for name in given if name not in own]
    shapes, own_shapes = ({k: tuple(v.shape) for k, v in tensors_of(state).items()} for state in (given, own))
    differences += [
        f"{name} is {shapes[name]}, the model has {shape}"
        for name, shape in own_shapes.items()
        if name in shapes and shapes[name] != shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise OtherModelError(
            f"The weights in {source} are of another network: {'; '.join(differences[:3])}{more}. Build the model with "
            "the arguments it was saved with."
        )


def tensors_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, which may also hold what a module's `get_extra_state` returned."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth file that holds a state dict and nothing that runs code."""
    if not path.exists():
        raise DataNotFoundError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise DamagedFileError(
            f"{path} cannot be read as plain weights. Expected is a state dict, which torch.save(model.state_dict(), "
            "path) writes; a whole model is not loaded, because that may run code. A checkpoint is for Trainer.load."
        ) from error
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

"""What a user's function or object is, in words that are the same in every process."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn


def description(value: Any) -> str:
    """A text that two values share where they do the same, as far as that can be told without calling them.

    Of a function: its name, the constants and names in its code, its defaults, and what it holds from around it; not
    what it finds in its module. Of an object: its class and its plain attributes. Of tensors all values, but of
    what learns only the shapes: its values are the run's, not its settings. No addresses.
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}" if value.requires_grad else fingerprint(value)
    if isinstance(value, functools.partial):
        return f"{description(value.func)}({description(value.args)}, {description(value.keywords)})"
    if isinstance(value, MethodType):
        return f"{description(value.__self__)}.{value.__func__.__qualname__}"
    if isinstance(value, FunctionType):
        return f"{_name(value)} {digest(_of_function(value))}"
    if isinstance(value, Mapping):
        return str({str(key): description(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return str([description(item) for item in value])
    if hasattr(value, "__qualname__"):  # a class, or a function that is not written in python
        return _name(value)
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return repr(value)
    return _of_object(value)


def fingerprint(*tensors: Tensor) -> str:
    """A digest of values, shapes and types."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def digest(text: str) -> str:
    """A short digest of a text."""
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _of_object(value: Any) -> str:
    plain = (bool, int, float, str)
    attributes = {k: v for k, v in getattr(value, "__dict__", {}).items() if isinstance(v, plain) and k != "training"}
    tensors = _of_module(value) if isinstance(value, nn.Module) else ""
    return f"{_name(type(value))}({attributes or ''}{tensors})"


def _of_module(module: nn.Module) -> str:
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return fingerprint(*module.state_dict().values())
    parts = [(name, type(part).__qualname__) for name, part in module.named_modules()]
    shapes = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
    return digest(str((parts, shapes)))


def _of_function(function: FunctionType) -> str:
    held = [_held(cell) for cell in function.__closure__ or ()]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return str((_of_code(function.__code__, function.__doc__), held, [_plain(value) for value in defaults]))


def _of_code(code: CodeType, doc: str | None = None) -> Any:
    """Names and constants: the instructions themselves are other ones in each version of python."""
    constants = [_of_code(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts if c != doc]
    return code.co_names, [constant for constant in constants if constant != "None"]


def _constant(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)  # a set has no order


def _held(cell: Any) -> str:
    try:
        return _plain(cell.cell_contents)
    except ValueError:  # not assigned yet
        return ""


def _plain(value: Any) -> str:
    """Without looking into functions again, which may hold each other."""
    if isinstance(value, FunctionType):
        return f"{_name(value)} {digest(str(_of_code(value.__code__, value.__doc__)))}"
    text = description(value) if not isinstance(value, (list, tuple, Mapping)) else repr(value)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)

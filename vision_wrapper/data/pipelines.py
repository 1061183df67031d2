"""The albumentations pipelines that somebody's callable keeps: each draws from generators of its own."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import CodeType
from typing import Any

_DEPTH = 8  # of attributes within attributes
_MANY = 100  # a longer list holds data, not transforms
# Packages whose classes and functions keep no pipelines themselves; what their objects keep is looked at.
_OTHERS = {*sys.stdlib_module_names, "albumentations", "PIL", "cv2", "numpy", "torch", "torchvision", "vision_wrapper"}


def pipelines_in(owner: Any) -> list[Any]:
    """Every albumentations transform that can be reached from a callable, each before those within it.

    From attributes of the object and of its class, from lists and dicts of them, and from what a function encloses or
    names. One that is made during a call is not found.
    """
    if "albumentations" not in sys.modules:
        return []
    return list(_reached(owner, _DEPTH, {}))


def _reached(value: Any, depth: int, seen: dict[int, Any]) -> Iterator[Any]:
    if depth < 0 or id(value) in seen:
        return
    seen[id(value)] = value  # kept, so that nothing else gets its id meanwhile
    if _is_transform(value):
        yield value
    for part in _parts(value):
        yield from _reached(part, depth - 1, seen)


def _is_transform(value: Any) -> bool:
    from albumentations.core.composition import BaseCompose
    from albumentations.core.transforms_interface import BasicTransform

    return isinstance(value, (BaseCompose, BasicTransform))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return list(value.values()) if len(value) <= _MANY else ()
    if isinstance(value, (list, tuple)):
        return value if len(value) <= _MANY else ()
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if inspect.ismethod(value):
        return value.__self__, value.__func__
    if inspect.isfunction(value):
        return _named_by(value)
    if inspect.ismodule(value) or inspect.isclass(value) or not hasattr(value, "__dict__"):
        return ()
    kinds = [kind for kind in type(value).__mro__ if _is_theirs(kind)]
    return [vars(value), *(dict(vars(kind)) for kind in kinds)]


def _named_by(function: Any) -> list[Any]:
    """What a function encloses, has as defaults, and names of its module."""
    if not _is_theirs(function):
        return []
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            found.append(cell.cell_contents)
    names = function.__globals__
    return found + [names[name] for name in _names(function.__code__) if name in names]


def _names(code: CodeType) -> Iterator[str]:
    """All that code names, in functions within it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names(constant)


def _is_theirs(thing: Any) -> bool:
    return str(thing.__module__).split(".")[0] not in _OTHERS

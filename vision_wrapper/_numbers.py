"""Numbers, python's own and numpy's, and plain values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from vision_wrapper.errors import SettingError


def is_number(value: Any) -> bool:
    """Whether it is a real number, infinity and NaN too; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return is_number(value) and 0 < value < math.inf


def whole_number(name: str, value: Any, least: int) -> int:
    """The value as an int. Raises `SettingError` unless it is a whole number of at least `least`."""
    if not is_whole(value) or value < least:
        raise SettingError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """The value, as python's own. Raises `SettingError` unless it is a finite number above 0."""
    if not is_positive(value):
        raise SettingError(f"{name} must be a positive number, got {value!r}.")
    return pythons_own(value)


def number_from_0(name: str, value: Any) -> float:
    """The value, as python's own. Raises `SettingError` unless it is a finite number of at least 0."""
    if not (is_number(value) and 0 <= value < math.inf):
        raise SettingError(f"{name} must be a number of at least 0, got {value!r}.")
    return pythons_own(value)


def pythons_own(value: Any) -> Any:
    """A number of numpy's as python's, which calculates in 64 bits and is written without its type; others as it is."""
    return value.item() if isinstance(value, np.generic) else value


def plain_values(value: Any) -> Any:
    """Numbers and arrays of numpy, and paths, as JSON can hold them, inside dicts, lists and tuples too; all copied."""
    if isinstance(value, Mapping):
        return {plain_values(name): plain_values(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(plain_values(part) for part in value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else pythons_own(value)

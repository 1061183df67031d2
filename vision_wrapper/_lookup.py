"""Finding a name in a table, and saying which names are near when it is not there."""

from __future__ import annotations

import difflib
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from vision_wrapper.errors import SettingError, UnknownNameError

Entry = TypeVar("Entry")


class Table(dict[str, Entry]):
    """A dict of named entries in which an unknown name raises `UnknownNameError` with the nearest names.

    `kind` says what the names stand for ("model", "recipe", …).
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry]):
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: object) -> Entry:
        raise unknown_name(self.kind, name, self)


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for a `name` that is not among the `known` ones."""
    known = sorted(known)
    lowered = {each.lower(): each for each in known}
    near = [lowered[found] for found in difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
    return UnknownNameError(f"Unknown {kind} {name!r}{hint} Known: {', '.join(known)}.")


def takes_any_name(function: Callable[..., Any]) -> bool:
    """Whether a function has `**kwargs`, so that its parameters do not say what it takes."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(function).parameters.values())


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UnknownNameError` for the first of `names` that is not `known`."""
    known = list(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)


def check_different(classes: Sequence[str]) -> None:
    """Raise `SettingError` where two classes have one name: which is meant could not be said."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise SettingError(f"classes must be different names, got {twice[0]!r} more than once.")

"""What the checks of data, loaders and models find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Something that is probably wrong.

    Attributes:
        check: which check found it, such as "missing_class".
        severity: "error" where training cannot work, else "warning".
        message: what was expected and what came.
        fix: what to do, with the line of code where the library can do it.
        indices: of the samples meant, in the split that the message names.
    """

    check: str
    severity: Literal["error", "warning"]
    message: str
    fix: str
    indices: tuple[int, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".rstrip()


class Findings(tuple[Finding, ...]):
    """What `check` found; printed, a line each."""

    def __str__(self) -> str:
        if not self:
            return "Nothing found."
        return "\n".join(f"{finding.severity}: {finding}" for finding in self)


def first_few(names: Sequence[str], count: int = 5) -> str:
    """The first of some names, for a message that would be too long with all of them."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")

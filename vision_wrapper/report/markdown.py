"""The report as a README with its pictures beside it, which is what the classic assignments hand in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vision_wrapper._files import PathLike, one_line, write_text
from vision_wrapper.report.content import epoch_rows, figures, promises, summary_rows
from vision_wrapper.report.run_folder import RunFolder, open_run


def write_markdown(run_dir: PathLike) -> Path:
    """Write `README.md` into a run folder, beside the plots it shows, and return its path.

    What is missing or damaged is named in its place. Raises what `report.write` raises.
    """
    run = open_run(run_dir)
    parts = [f"# {plain(run.name)}", plain(str(run.recipe.get("description", "")))]
    parts += ["## Result", _part(lambda: _table(("", ""), summary_rows(run)))]
    parts += ["## Checklist", _part(lambda: _checklist(run))]
    for section, names in figures(run).items():
        parts += [f"## {section}", *(_picture(run.path, name) for name in names)]
    parts += ["## Epochs", _part(lambda: _table(*epoch_rows(run)))]
    parts += ["## Model", _part(lambda: fenced(run.model))]
    parts += ["## How to repeat it", _part(lambda: fenced(run.command()))]
    path = run.path / "README.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def _checklist(run: RunFolder) -> str:
    marks = {"kept": "x", "broken": " ", "unknown": " "}
    return "\n".join(f"- [{marks[line.state]}] {plain(line.promise)}: {plain(line.measured)}" for line in promises(run))


def _picture(folder: Path, name: str) -> str:
    file = f"plots/{name}.png"
    if not (folder / file).exists():
        return f"*Not available: {file}*"
    return f"![{name.replace('_', ' ')}]({file})"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows)])


def _part(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as error:  # damage shows as any error of what reads it
        return f"*Not available: {plain(str(error) or type(error).__name__)}*"


def plain(text: str) -> str:
    """Text that Markdown and the HTML in it leave as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", one_line(text))


def fenced(text: str) -> str:
    """A block of code, fenced by more backticks than it has."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"

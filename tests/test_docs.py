"""The README and the docs: their code runs, their output is what it is said to be, and the reference is complete.

Blocks of a page share their names and run in order, in an empty folder. The title of a block says how it is checked:

- no title: it runs. A `text` block with the title "Output" right below holds what it prints ("…" stands for anything).
- a path of `examples/`: it stands word for word in that file, which `test_examples.py` runs.
- "Needs …": it has to compile; what it needs (a download, a data set) is not here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import matplotlib
import pytest

import vision_wrapper

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = ("models", "data", "trainer", "evaluation", "explain", "viz", "classifier", "recipes", "report", "errors")
FENCE = re.compile(r'^```(?P<language>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    title: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["title"] or "", m["text"], content[: m.start()].count("\n") + 2)
        for m in FENCE.finditer(content)
    ]


def runnable(page: Path) -> Iterator[tuple[Block, str | None]]:
    """The blocks that are run, with the output that the page shows."""
    blocks = blocks_of(page)
    for block, following in zip(blocks, [*blocks, None][1:], strict=True):
        if block.language == "python" and not block.title:
            yield block, following.text if following and following.title == "Output" else None


def name_of(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", [p for p in PAGES if any(runnable(p))], ids=name_of)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block, expected in runnable(page):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        if expected is not None:
            pattern = re.escape(expected.strip()).replace("…", ".*")
            output = printed.getvalue().strip()
            assert re.fullmatch(pattern, output), f"{page}:{block.line} printed:\n{output}"
        if "except vw.errors" in block.text:
            assert printed.getvalue(), f"{page}:{block.line} did not raise"
    import matplotlib.pyplot

    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_other_blocks_are_what_their_title_says(page: Path) -> None:
    for block in blocks_of(page):
        if block.language != "python" or not block.title:
            continue
        where = f"{page}:{block.line}"
        if block.title.startswith("examples/"):
            assert block.text in (ROOT / block.title).read_text(encoding="utf-8"), f"{where} is not in {block.title}"
        else:
            assert block.title.startswith("Needs "), f"{where} has a title that says nothing about how it is checked"
            compile(block.text, where, "exec")


def commands_of(page: Path) -> list[list[str]]:
    lines = "".join(b.text for b in blocks_of(page) if b.language == "bash").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("vision-wrapper ")]


def test_commands_on_the_pages_exist() -> None:
    commands = [command for page in PAGES for command in commands_of(page)]
    assert {command[1] for command in commands} >= {"train", "evaluate", "predict", "export", "find-lr", "stats"}
    helps: dict[str, str] = {}
    for command in commands:
        name = command[1]
        if name not in helps:
            answer = subprocess.run(
                [sys.executable, "-m", "vision_wrapper", name, "--help"], capture_output=True, text=True, timeout=60
            )
            assert answer.returncode == 0, answer.stderr
            helps[name] = answer.stdout
        for option in (word for word in command if word.startswith("--")):
            assert option in helps[name], f"{' '.join(command)}: {name} has no {option}"


def test_the_tests_that_the_promises_name_exist() -> None:
    named = re.findall(r"`((?:tests|scripts)/[\w.]+)", (ROOT / "docs/promises.md").read_text(encoding="utf-8"))
    assert len(set(named)) > 10 and not [name for name in named if not (ROOT / name).exists()]


def test_links_of_the_readme_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", readme)
    assert any(target.endswith(".png") for target in targets)
    missing = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert not missing


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs/images").glob("*.png"))
    assert pictures
    assert sum(picture.stat().st_size for picture in pictures) < 1_500_000


def public_names() -> Iterator[tuple[str, str]]:
    """(module, name) of every public name."""
    for name in vision_wrapper.__all__:
        yield "vision_wrapper", name
    for module in (*(f"vision_wrapper.{name}" for name in MODULES), "vision_wrapper.trainer.schedules"):
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", None) or own_names(loaded):
            yield module, name


def own_names(module: ModuleType) -> list[str]:
    """The public names of a module without a list: what it defines itself."""
    values = vars(module).items()
    return [n for n, v in values if n[0] != "_" and getattr(v, "__module__", None) == module.__name__]


def test_the_site_builds_strictly_and_its_reference_has_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    objects = pytest.importorskip("mkdocstrings").Inventory
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    with open(site / "objects.inv", "rb") as file:
        documented = set(objects.parse_sphinx(file))
    missing = [f"{module}.{name}" for module, name in public_names() if not is_documented(module, name, documented)]
    assert not missing


def is_documented(module: str, name: str, documented: set[str]) -> bool:
    if name.startswith("__"):
        return True
    value = getattr(importlib.import_module(module), name)
    if isinstance(value, ModuleType):  # its page shows its members
        return any(entry.startswith(value.__name__ + ".") for entry in documented)
    home = getattr(value, "__module__", None) or module
    return bool({f"{module}.{name}", f"{home}.{getattr(value, '__qualname__', name)}"} & documented)

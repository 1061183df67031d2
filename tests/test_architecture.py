"""The shape of the package: imports run downwards only, the public names resolve, importing is quick."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vision_wrapper

ROOT = Path(vision_wrapper.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# From the top; a part may import what stands below it, never beside or above it.
LAYERS = [
    {"cli"},
    {"recipes"},
    {"demo", "report"},
    {"viz"},
    {"trainer", "classifier"},
    {"explain", "evaluation"},
    {"data", "models"},
    {"errors"},  # and whatever starts with an underscore
]
EXEMPT = {"__init__", "__main__"}  # the package's own face


def part_of(file: Path) -> str:
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def layer(part: str) -> int:
    if part.startswith("_"):
        return len(LAYERS) - 1
    for depth, parts in enumerate(LAYERS):
        if part in parts:
            return depth
    raise AssertionError(f"vision_wrapper.{part} has no place in LAYERS")


def imports(file: Path, functions: bool = True):
    """(absolute module, name or None, line) of every import that runs; those for type checkers alone do not."""
    package = ["vision_wrapper", *file.relative_to(ROOT).parts[:-1]]

    def walk(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from walk(child)
            return
        if not functions and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield module, alias.name, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return list(walk(ast.parse(file.read_text(encoding="utf-8"))))


def imported_part(module: str, name: str | None) -> str | None:
    """The part of the package that an import reaches; None for another package or the package's own `__version__`."""
    head, *rest = module.split(".")
    if head != "vision_wrapper":
        return None
    if rest:
        return rest[0]
    if name is None or (name.startswith("__") and name.endswith("__")):
        return None
    return vision_wrapper._HOMES.get(name, name)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_downwards(file):
    part = part_of(file)
    if part in EXEMPT:
        return
    for module, name, line in imports(file):
        target = imported_part(module, name)
        if target is None or target == part:
            continue
        private = part.startswith("_") or part == "errors"
        below = layer(target) > layer(part) or (private and layer(target) == layer(part))
        assert below, f"{file.relative_to(ROOT)}:{line}: {part} imports {target}, which is not below it"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_matplotlib_is_imported_in_viz_alone(file):
    if part_of(file) != "viz":
        assert not [line for module, _, line in imports(file) if module.split(".")[0] == "matplotlib"]


def test_the_walk_sees_every_form_of_import(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "x.py").write_text(
        "import vision_wrapper.viz\nfrom vision_wrapper import cli\nfrom ..trainer import a\nfrom . import b\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vision_wrapper.report\n"
        "def f():\n    from vision_wrapper.recipes import run\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    parts = [imported_part(module, name) for module, name, _ in imports(folder / "x.py")]
    assert parts == ["viz", "cli", "trainer", "data", None, "recipes"]
    assert "recipes" not in [imported_part(m, n) for m, n, _ in imports(folder / "x.py", functions=False)]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_loads_neither_torch_nor_matplotlib():
    heavy = "{'torch', 'torchvision', 'matplotlib', 'numpy', 'albumentations', 'sklearn', 'PIL'}"
    assert run(f"import sys, vision_wrapper; print({heavy} & set(sys.modules))").strip() == "set()"


def test_data_and_models_load_no_matplotlib():
    code = "import sys, vision_wrapper as vw; vw.data, vw.models; print('matplotlib.pyplot' in sys.modules)"
    assert run(code).strip() == "False"


def test_help_needs_no_torch():
    code = (
        "import sys\n"
        "for name in ('torch', 'matplotlib'): sys.modules[name] = None\n"  # importing either fails
        "from vision_wrapper.cli import main\n"
        "sys.argv = ['vision-wrapper', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
    )
    assert "train" in run(code)


def public_modules() -> Iterator[str]:
    yield "vision_wrapper"
    for name in vision_wrapper.__all__:
        if (ROOT / name / "__init__.py").exists() or (ROOT / f"{name}.py").exists():
            yield f"vision_wrapper.{name}"


@pytest.mark.parametrize("module", list(public_modules()))
def test_all_is_sorted_and_every_name_resolves(module):
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    if names is None:
        pytest.skip(f"{module} has no __all__")
    by_kind = sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))  # CONSTANTS, Classes, functions
    assert list(names) in (by_kind, sorted(names))
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(loaded, name) is not None


def test_the_package_lists_its_names_and_refuses_others():
    assert vision_wrapper.__all__ == sorted(vision_wrapper.__all__) == dir(vision_wrapper)
    with pytest.raises(
        AttributeError, match=r"no attribute 'tainer'; did you mean trainer .* Public names: Predictions"
    ):
        vision_wrapper.tainer  # noqa: B018


def test_every_error_is_the_librarys():
    from vision_wrapper import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 5
    for kind in kinds:
        assert issubclass(kind, errors.VisionWrapperError)
        assert kind is errors.VisionWrapperError or any(b.__module__ == "builtins" for b in kind.__mro__[:-3])

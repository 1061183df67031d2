"""Every example runs in an empty folder, is short, and the assignment becomes a notebook."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ASSIGNMENT = EXAMPLES / "cifar10_assignment.py"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
SHORT = [script for script in SCRIPTS if script != ASSIGNMENT]
# What an example leaves in runs/, and what it says.
MADE = {
    "explain_mistakes": ["mistakes/gradcam.png", "mistakes/mistakes.csv"],
    "find_learning_rate": ["find_learning_rate.png", "schedule.png"],
    "own_folder": ["own_folder.safetensors"],
    "own_model": ["own_model.safetensors"],
    "train": ["train.csv", "train.png"],
}
SAYS = {"resume": "Same weights as without the interruption: True", "own_callback": "Stopped after"}


def name_of(script: Path) -> str:
    return script.stem


@pytest.mark.parametrize("script", SHORT, ids=name_of)
def test_example_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    for file in MADE.get(script.stem, []):
        assert (tmp_path / "runs" / file).stat().st_size > 0
    assert SAYS.get(script.stem, "") in capsys.readouterr().out
    assert {entry.name for entry in tmp_path.iterdir()} <= {"runs"}, "an example writes to runs/ alone"


@pytest.mark.parametrize("script", SHORT, ids=name_of)
def test_example_is_short_and_says_its_idea(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert text.startswith('"""')


def test_every_idea_has_an_example() -> None:
    ideas = {"train", "find_learning_rate", "own_folder", "own_model", "own_callback", "resume", "explain_mistakes"}
    assert ideas | {"fine_tune"} <= {script.stem for script in SHORT}


def test_the_assignment_becomes_a_notebook_that_runs(tmp_path: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    nbformat = pytest.importorskip("nbformat")
    notebook = jupytext.read(ASSIGNMENT)
    nbformat.validate(nbformat.from_dict(notebook))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source == "%pip install -q vision-wrapper"
    assert sum(cell.cell_type == "markdown" for cell in notebook.cells) > 8

    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook.cells.remove(code[0])  # it is installed already, and a test asks no package index
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISION_WRAPPER_QUICK", "1")
        client.execute()
    pictures = [out for cell in code for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) >= 8, "every figure of the notebook is shown"
    for file in ("gradcam.png", "history.csv", "model.safetensors"):
        assert (tmp_path / "runs/assignment-quick" / file).stat().st_size > 0

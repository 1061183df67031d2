"""The report as a README with its pictures beside it, which is what the classic assignments hand in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vision_wrapper._files import PathLike, printable, write_text
from vision_wrapper.report.checklist import checklist
from vision_wrapper.report.page import expected, watched
from vision_wrapper.report.run_folder import RunFolder, open_run

_PICTURES = (
    ("Training images", ("samples", "class_distribution")),
    ("Learning rate finder", ("lr_curve",)),
    ("Curves", ("history", "learning_rate")),
    ("Confusion matrix", ("confusion_matrix",)),
    ("Accuracy of each class", ("per_class",)),
    ("Misclassified images", ("misclassified",)),
    ("Grad-CAM of the same images, for the predicted class", ("gradcam_predicted",)),
    ("Grad-CAM of the same images, for the true class", ("gradcam_true",)),
    ("Calibration", ("reliability",)),
)


def write_markdown(run_dir: PathLike) -> Path:
    """Write `README.md` into a run folder, beside the plots it shows, and return its path.

    What is missing or damaged is named in its place. Raises what `report.write` raises.
    """
    run = open_run(run_dir)
    parts = [f"# {plain(run.name)}", plain(str(run.recipe.get("description", "")))]
    parts += ["## Result", _part(lambda: _result(run)), "## Checklist", _part(lambda: _checklist(run))]
    for title, names in _PICTURES:
        there = [name for name in names if (run.path / "plots" / f"{name}.png").exists()]
        if there or names != ("lr_curve",):
            missing = [f"*Not available: plots/{name}.png*" for name in names if name not in there]
            parts += [f"## {title}", *(f"![{name.replace('_', ' ')}](plots/{name}.png)" for name in there), *missing]
    parts += ["## Epochs", _part(lambda: _epochs(run))]
    parts += ["## Model", _part(lambda: fenced((run.path / "model.txt").read_text(encoding="utf-8")))]
    parts += ["## How to repeat it", _part(lambda: fenced(run.command()))]
    path = run.path / "README.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def _result(run: RunFolder) -> str:
    predictions, rows = run.predictions, run.rows
    low, high = predictions.accuracy_interval()
    averaged = run.results.get("tta_accuracy")
    trained = rows[-1]["train_accuracy"]
    lines = [
        ("test accuracy, last epoch", f"{predictions.accuracy():.2%} (95% interval {low:.2%} to {high:.2%})"),
        *([(f"averaged over views ({run.results['tta']})", f"{averaged:.2%}")] if averaged is not None else []),
        ("training accuracy, last epoch", "not counted" if trained is None else f"{trained:.2%}"),
        ("epochs", str(len(rows))),
        ("watched after each epoch", watched(run)),
        ("data", os.path.basename(str(run.identity["data"]))),
        ("seed", str(run.recipe["seed"])),
        ("published", run.recipe.get("published") or "no published figure"),
        ("measured before with this library", expected(run.recipe.get("expected"))),
    ]
    return _table(("", ""), lines)


def _checklist(run: RunFolder) -> str:
    marks = {"kept": "x", "broken": " ", "unknown": " "}
    lines = checklist(run.recipe, run.rows, run.predictions, run.curve, str(run.identity.get("data")))
    return "\n".join(f"- [{marks[line.state]}] {plain(line.promise)}: {plain(line.measured)}" for line in lines)


def _epochs(run: RunFolder) -> str:
    names = list(run.rows[0])
    rows = [tuple("" if row[name] is None else f"{row[name]:.4g}" for name in names) for row in run.rows]
    return _table(tuple(name.replace("_", " ") for name in names), rows)


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
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(printable(text).split()))


def fenced(text: str) -> str:
    """A block of code, fenced by more backticks than it has."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"

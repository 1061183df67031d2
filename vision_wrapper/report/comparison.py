"""Two runs side by side, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_wrapper._files import PathLike, write_text
from vision_wrapper.errors import SettingError
from vision_wrapper.evaluation import ClassResult, Predictions
from vision_wrapper.report.content import FIGURES, accuracy_of, watched
from vision_wrapper.report.html import bdi, columns, escape, page, part, pictures, table
from vision_wrapper.report.run_folder import RunFolder, open_run


def compare(a: PathLike, b: PathLike, out: PathLike | None = None) -> Path:
    """Write a report of two runs, and return its path.

    Where both were tested on the same images, it says on how many they differ, and how likely so large a difference
    would be by chance of the images (McNemar's exact test). That is about these two networks; whether their recipes
    differ takes several seeds, as `recipes.compare` runs them.

    Args:
        a: a run folder.
        b: another one.
        out: the file; None is `comparison.html` in `a`.

    Raises what `report.write` raises, and `SettingError` where both folders are one.
    """
    first, second = open_run(a), open_run(b)
    if first.path.resolve() == second.path.resolve():
        raise SettingError(f"Both runs are {first.path}. Give two run folders.")
    sections = {
        "Summary": part(lambda: _summary(first, second)),
        "On the same images": part(lambda: _paired(first, second)),
        "Accuracy of each class": part(lambda: _classes(first.predictions, second.predictions)),
        "What differs in the recipes": part(lambda: _recipes(first, second)),
        "Curves": _side_by_side(first, second, "Curves"),
        "Confusion matrices": _side_by_side(first, second, "Confusion matrix"),
        "Calibration": _side_by_side(first, second, "Calibration"),
    }
    path = first.path / "comparison.html" if out is None else Path(out)
    write_text(path, page(f"A: {_label(first)}, B: {_label(second)}", sections))
    return path


def _label(run: RunFolder) -> str:
    return f"{run.name} (seed {run.recipe.get('seed')})"


def _summary(*runs: RunFolder) -> str:
    def row(title: str, value: Any) -> tuple[str, ...]:
        return (title, *(escape(str(value(run))) for run in runs))

    def interval(run: RunFolder) -> str:
        low, high = run.predictions.accuracy_interval()
        return f"{low:.2%} to {high:.2%}"

    rows = [
        row("Run", lambda run: run.path),
        row("Test accuracy, last epoch", lambda run: f"{run.predictions.accuracy():.2%}"),
        row("95% interval (Wilson)", interval),
        row("Negative log-likelihood, nats", lambda run: f"{run.predictions.negative_log_likelihood():.4f}"),
        row("Expected calibration error", lambda run: f"{run.predictions.calibration().ece:.4f}"),
        row("Epochs", lambda run: len(run.rows)),
        row("Training time, s", lambda run: f"{sum(r['seconds'] for r in run.rows):.0f}"),
        row("Watched after each epoch", watched),
        row("Data", lambda run: run.identity["data"]),
    ]
    return columns(("", "A", "B"), rows)


def _paired(a: RunFolder, b: RunFolder) -> str:
    first, second = a.predictions, b.predictions
    if not _same_images(a, b):
        return "<p>The two runs were tested on different images, so they cannot be paired.</p>"
    right_a, right_b = first.correct, second.correct
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return table(
        [
            ("Both right", int((right_a & right_b).sum())),
            ("Only A right", only_a),
            ("Only B right", only_b),
            ("Both wrong", int((~right_a & ~right_b).sum())),
            ("Difference in accuracy, A less B", f"{100 * (only_a - only_b) / max(len(first), 1):+.2f} points"),
            ("So far or farther by chance of the images (McNemar)", f"p = {mcnemar(only_a, only_b):.3g}"),
        ]
    )


def _same_images(a: RunFolder, b: RunFolder) -> bool:
    """Whether both were tested on the same images, in the same order."""
    first, second = a.predictions, b.predictions
    in_order = first.indices.equal(second.indices) and first.targets.equal(second.targets)
    return in_order and a.identity["content"]["test"] == b.identity["content"]["test"]


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided exact p value of McNemar's test (1947), from the images on which one of two alone is right."""
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue)


def _classes(a: Predictions, b: Predictions) -> str:
    if a.classes != b.classes:
        return "<p>The two runs have different classes.</p>"
    rows = [
        (bdi(x.name), accuracy_of(x), accuracy_of(y), _difference(x, y))
        for x, y in zip(a.per_class(), b.per_class(), strict=True)
    ]
    return columns(("class", "A", "B", "difference, points"), rows)


def _difference(a: ClassResult, b: ClassResult) -> str:
    return f"{100 * (a.accuracy - b.accuracy):+.2f}" if a.count and b.count else "–"


def _recipes(a: RunFolder, b: RunFolder) -> str:
    fields = [field for field in {**a.recipe, **b.recipe} if a.recipe.get(field) != b.recipe.get(field)]
    if not fields:
        return "<p>Nothing: the recipes are the same.</p>"
    rows = [(escape(f), *(escape(str(run.recipe.get(f))) for run in (a, b))) for f in fields]
    return columns(("field", "A", "B"), rows)


def _side_by_side(a: RunFolder, b: RunFolder, section: str) -> str:
    return "".join(
        f"<h3>{letter}: {escape(_label(run))}</h3>" + pictures(run.path, FIGURES[section])
        for letter, run in (("A", a), ("B", b))
    )

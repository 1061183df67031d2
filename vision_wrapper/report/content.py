"""What the reports of a run show, whatever they are written in."""

from __future__ import annotations

from typing import Any

from vision_wrapper.evaluation import ClassResult, Predictions
from vision_wrapper.report.checklist import Promise, checklist
from vision_wrapper.report.run_folder import RunFolder

FINDER = "Learning rate finder"  # only where the recipe asked it
FIGURES = {  # by section, the names of the files in plots/
    "Training images": ("samples", "class_distribution"),
    FINDER: ("lr_curve",),
    "Curves": ("history", "learning_rate"),
    "Confusion matrix": ("confusion_matrix",),
    "Accuracy of each class": ("per_class",),
    "Calibration": ("reliability",),
    "Misclassified images": ("misclassified",),
    "Grad-CAM of the same images, for the predicted class": ("gradcam_predicted",),
    "Grad-CAM of the same images, for the true class": ("gradcam_true",),
}


def figures(run: RunFolder) -> dict[str, tuple[str, ...]]:
    """The sections of `FIGURES` that a report of this run has, whether or not their files are there."""
    finder = (run.path / "plots" / f"{FIGURES[FINDER][0]}.png").exists()
    return {section: names for section, names in FIGURES.items() if section != FINDER or finder}


def summary_rows(run: RunFolder) -> list[tuple[str, str]]:
    """Names and values of what the run reached, and how."""
    recipe, predictions, rows = run.recipe, run.predictions, run.rows
    right = int(predictions.correct.sum())
    low, high = predictions.accuracy_interval()
    return [
        ("Test accuracy, last epoch", f"{predictions.accuracy():.2%}  ({right} of {len(predictions)})"),
        ("95% interval (Wilson)", f"{low:.2%} to {high:.2%}"),
        *_tta_rows(run),
        ("Training accuracy, last epoch", _share(rows[-1]["train_accuracy"])),
        ("Epochs", str(len(rows))),
        ("Training time", f"{sum(row['seconds'] for row in rows):.0f} s"),
        ("Watched after each epoch", watched(run)),
        ("Data", str(run.identity["data"])),
        *([("Weights", str(run.identity["weights"]))] if "weights" in run.identity else []),
        ("Seeds", f"1 (seed {recipe['seed']})"),
        ("Published", recipe.get("published") or "no published figure"),
        ("Measured before with this library", expected(recipe.get("expected"))),
    ]


def _tta_rows(run: RunFolder) -> list[tuple[str, str]]:
    """The accuracy with test-time averaging, where the recipe has one and results.json is whole."""
    try:
        accuracy, views = run.results["tta_accuracy"], run.results["tta"]
        return [] if accuracy is None else [(f"Averaged over views ({views})", f"{accuracy:.2%}")]
    except Exception:  # the section on repeating the run needs all of the file, and names its damage
        return []


def _share(value: float | None) -> str:
    """A share of the history, which it lacks where targets are mixed."""
    return "not counted: its targets are no classes" if value is None else f"{value:.2%}"


def watched(run: RunFolder) -> str:
    """What was looked at after each epoch."""
    return str(run.identity["watched"])


def expected(found: dict[str, Any] | None) -> str:
    """What the recipe reached before, in words."""
    if found is None:
        return "not measured with these settings"
    spread = "" if found["spread"] is None else f" ± {100 * found['spread']:.2f}"
    tta = "" if found["tta_accuracy"] is None else f", {found['tta_accuracy']:.2%} averaged over views"
    failed = f", and {found['failed']} that failed" if found.get("failed") else ""
    return (
        f"{found['accuracy']:.2%}{spread}{tta}; seeds: {found['seeds']}{failed}; {found['data']}; {found['hardware']}"
    )


def promises(run: RunFolder) -> list[Promise]:
    """The checklist; without predictions it says of what it knows nothing."""
    predictions: Predictions | None
    try:
        predictions = run.predictions
    except Exception:  # damage shows as any error of what reads it
        predictions = None
    # Images that were passed may be a part of the data set whose name they have.
    data = "" if run.identity.get("passed") else str(run.identity.get("data"))
    return checklist(run.recipe, run.rows, predictions, run.curve, data)


def epoch_rows(run: RunFolder) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The names of the history's columns, and its rows as text."""
    names = list(run.rows[0])
    rows = [tuple("" if row[name] is None else f"{row[name]:.4g}" for name in names) for row in run.rows]
    return tuple(name.replace("_", " ") for name in names), rows


def accuracy_of(row: ClassResult) -> str:
    """In percent; a class without images has none."""
    return f"{row.accuracy:.2%}" if row.count else "–"

"""The report of a run: one self-contained HTML file, made from what lies in the run folder."""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

from vision_wrapper._files import PathLike, read_json, write_text
from vision_wrapper.errors import DamagedFileError, SettingError
from vision_wrapper.evaluation import Predictions

# Heading, and the pictures below it, in the order of the page.
_PICTURES = (
    ("Curves", ("history", "learning_rate", "lr_curve")),
    ("Confusion matrix", ("confusion_matrix",)),
    ("Accuracy of each class", ("per_class",)),
    ("Calibration", ("reliability",)),
    ("Misclassified images", ("misclassified",)),
    ("Grad-CAM of the same images, for the predicted class", ("gradcam_predicted",)),
    ("Grad-CAM of the same images, for the true class", ("gradcam_true",)),
    ("Training images", ("samples", "class_distribution")),
)
_OPTIONAL = {"lr_curve"}  # only where the recipe asks the LR finder


def write(run_dir: PathLike) -> Path:
    """Write `report.html` into a run folder, and return its path.

    What is missing or damaged there is named in its place. Raises `SettingError` where the folder is no run,
    `DamagedFileError` where its recipe.json is damaged.
    """
    folder = Path(run_dir)
    if not (folder / "recipe.json").exists():
        raise SettingError(f"{folder} is no run folder (no recipe.json). Give the folder that `train` named.")
    identity = read_json(folder / "recipe.json")
    if not isinstance(identity, dict) or not isinstance(identity.get("recipe"), dict):
        raise DamagedFileError(f"{folder / 'recipe.json'} does not hold a recipe.")
    recipe = identity["recipe"]
    sections = [
        _section("Summary", _part(lambda: _summary(folder, identity))),
        *(_section(title, "".join(_picture(folder, name) for name in names)) for title, names in _PICTURES),
        _section("Epochs", _part(lambda: _epochs(folder))),
        _section("Model", _part(lambda: f"<pre>{_escape(_read(folder / 'model.txt'))}</pre>")),
        _section("Recipe", _table([(k, _plain(v)) for k, v in recipe.items() if v not in (None, "", {}, [])])),
        _section("Environment", _part(lambda: _table(list(read_json(folder / "environment.json").items())))),
        _section("Repeat this run", f"<pre>{_escape(_command(identity))}</pre>"),
    ]
    page = Template(_template()).substitute(
        title=_escape(str(recipe.get("name", folder.name))), body="\n".join(sections)
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _summary(folder: Path, identity: dict[str, Any]) -> str:
    with (folder / "history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    recipe = identity["recipe"]
    watched = "held-out training images" if recipe.get("val_fraction") else "the test set"
    predictions = Predictions.load(folder / "predictions.npz")
    low, high = predictions.accuracy_interval()
    right = round(predictions.accuracy() * len(predictions))
    return f"<p>{_escape(recipe['description'])}</p>" + _table(
        [
            ("Test accuracy, last epoch", f"{predictions.accuracy():.2%}  ({right} of {len(predictions)})"),
            ("95% interval (Wilson)", f"{low:.2%} to {high:.2%}"),
            *_averaged(folder),
            ("Training accuracy, last epoch", _share(rows[-1]["train_accuracy"])),
            ("Epochs", str(len(rows))),
            ("Training time", f"{sum(float(row['seconds']) for row in rows):.0f} s"),
            ("Watched after each epoch", watched),
            ("Data", str(identity["data"])),
            ("Seeds", f"1 (seed {recipe['seed']})"),
            ("Published", recipe.get("published") or "no published figure"),
            ("Measured before with this library", _expected(recipe.get("expected"))),
        ]
    )


def _averaged(folder: Path) -> list[tuple[str, str]]:
    """The accuracy with test-time averaging, where the recipe has one."""
    path = folder / "results.json"
    figures = read_json(path) if path.exists() else {}
    if figures.get("tta_accuracy") is None:
        return []
    return [(f"Averaged over views ({figures['tta']})", f"{figures['tta_accuracy']:.2%}")]


def _expected(found: dict[str, Any] | None) -> str:
    """What the recipe reached before, in words."""
    if found is None:
        return "not measured with these settings"
    spread = "" if found["spread"] is None else f" ± {100 * found['spread']:.2f}"
    averaged = "" if found["tta_accuracy"] is None else f", {found['tta_accuracy']:.2%} averaged over views"
    return f"{found['accuracy']:.2%}{spread}{averaged}; seeds: {found['seeds']}; {found['data']}; {found['hardware']}"


def _epochs(folder: Path) -> str:
    with (folder / "history.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    head = "".join(f"<th scope=col>{_escape(name.replace('_', ' '))}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_short(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _part(make: Callable[[], str]) -> str:
    """A part of the page, or why it is not there."""
    try:
        return make()
    except Exception as error:  # damage shows as any error of what reads it
        return f"<p class=missing role=note>Not available: {_escape(str(error) or type(error).__name__)}</p>"


def _picture(folder: Path, name: str) -> str:
    path = folder / "plots" / f"{name}.png"
    if name in _OPTIONAL and not path.exists():
        return ""

    def make() -> str:
        code = base64.b64encode(path.read_bytes()).decode()
        return f'<img alt="{name.replace("_", " ")}" src="data:image/png;base64,{code}">'

    return _part(make)


def _command(identity: dict[str, Any]) -> str:
    recipe = identity["recipe"]
    return (
        f"vision-wrapper train {recipe.get('name')} --data {identity.get('data')} --epochs {recipe.get('epochs')} "
        f"--seed {recipe.get('seed')}"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(rows: list[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><th scope=row>{_escape(str(k))}</th><td>{_escape(str(v))}</td></tr>" for k, v in rows)
    return f"<div class=wide><table>{cells}</table></div>"


def _share(cell: str) -> str:
    """A share of the history, which it lacks where targets are mixed."""
    return f"{float(cell):.2%}" if cell else "not counted: its targets are no classes"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "" if value is None else str(value)


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return _escape(cell)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _template() -> str:
    return (Path(__file__).parent / "report_template.html").read_text(encoding="utf-8")

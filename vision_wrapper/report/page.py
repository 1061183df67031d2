"""The HTML page: sections of text, tables and pictures, and the browser of mistakes."""

from __future__ import annotations

import base64
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from vision_wrapper._files import PathLike, read_json, write_text
from vision_wrapper.evaluation import Predictions
from vision_wrapper.report.content import FIGURES, accuracy_of, epoch_rows, figures, promises, summary_rows
from vision_wrapper.report.gallery import FOLDER, SHEETS
from vision_wrapper.report.html import HERE, bdi, columns, escape, page, part, pictures, table
from vision_wrapper.report.run_folder import RunFolder, open_run

MOST_CLASSES = 30  # of a confusion matrix that is a table; of more, only the figure is shown


def write(run_dir: PathLike) -> Path:
    """Write `report.html` into a run folder, and return its path.

    One file with everything in it, which asks nothing of the network. What is missing or damaged in the run folder is
    named in its place. Raises `SettingError` where the folder is no run, `DamagedFileError` where its recipe.json is
    damaged.
    """
    run = open_run(run_dir)
    gallery = _gallery(run.path)
    shown = {section: pictures(run.path, names) for section, names in figures(run).items()}
    shown["Confusion matrix"] = part(lambda: _confusion(run, clickable=not isinstance(gallery, Exception)))
    shown["Accuracy of each class"] = part(lambda: _classes(run.predictions)) + shown["Accuracy of each class"]
    shown["Calibration"] = part(lambda: _calibration(run.predictions)) + shown["Calibration"]
    sections = {
        "Summary": part(lambda: _summary(run)),
        "Checklist": part(lambda: _checklist(run)),
        **shown,
        "Mistakes": part(lambda: _browser(gallery)),
        "Epochs": part(lambda: columns(*epoch_rows(run))),
        "Model": part(lambda: f"<pre>{escape(run.model)}</pre>"),
        "Recipe": table([(k, _plain(v)) for k, v in run.recipe.items() if v not in (None, "", {}, [])]),
        "Environment": part(lambda: table(list(read_json(run.path / "environment.json").items()))),
        "Repeat this run": part(lambda: f"<pre>{escape(run.command())}</pre>"),
    }
    path = run.path / "report.html"
    content, styles = (None, "") if isinstance(gallery, Exception) else gallery
    write_text(path, page(run.name, sections, content, styles))
    return path


def _summary(run: RunFolder) -> str:
    return f"<p>{escape(str(run.recipe['description']))}</p>" + table(summary_rows(run))


def _checklist(run: RunFolder) -> str:
    words = {"kept": "kept", "broken": "not kept", "unknown": "not known"}
    rows = [
        (f"<span class={line.state}>{words[line.state]}</span>", escape(line.promise), escape(line.measured))
        for line in promises(run)
    ]
    return columns(("State", "The recipe says", "Measured"), rows)


def _confusion(run: RunFolder, clickable: bool) -> str:
    """A table whose off-diagonal cells show their images, where these are there; of many classes, the figure."""
    predictions, classes = run.predictions, run.predictions.classes
    if len(classes) > MOST_CLASSES:
        return pictures(run.path, FIGURES["Confusion matrix"])
    matrix = predictions.confusion_matrix()
    head = "".join(f"<th scope=col>{bdi(name)}</th>" for name in classes)
    rows = []
    for true, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        cells = "".join(
            _confusion_cell(true, predicted, int(count), int(counts.sum()), classes, clickable)
            for predicted, count in enumerate(counts)
        )
        rows.append(f"<tr><th scope=row>{bdi(name)}</th>{cells}</tr>")
    return (
        "<div class=wide><table class=confusion><caption>Rows are true classes, columns predicted ones."
        f"{' A cell with mistakes shows them below.' if clickable else ''}</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confusion_cell(
    true: int, predicted: int, count: int, total: int, classes: tuple[str, ...], clickable: bool
) -> str:
    if true == predicted:
        return f"<td class=right>{count}</td>"
    if not count or not clickable:
        return f"<td>{count or ''}</td>"
    said = escape(f"{count} of {classes[true]} taken for {classes[predicted]}: show them")
    share = min(0.75, 0.12 + 2 * count / max(total, 1))
    return (
        f'<td><button type=button data-true={true} data-predicted={predicted} style="--share:{share:.2f}" '
        f'aria-label="{said}">{count}</button></td>'
    )


def _classes(predictions: Predictions) -> str:
    rows = [
        (
            bdi(row.name), accuracy_of(row), f"{row.correct} of {row.count}", f"{row.precision:.2%}",
            f"{row.f1:.3f}",
        )
        for row in predictions.per_class()
    ]  # fmt: skip
    return columns(("class", "accuracy (recall)", "right", "precision", "F1"), rows)


def _calibration(predictions: Predictions) -> str:
    found = predictions.calibration()
    return table(
        [
            ("Expected calibration error, 15 bins", f"{found.ece:.4f}"),
            ("Negative log-likelihood", f"{predictions.negative_log_likelihood():.4f} nats"),
        ]
    )


def _browser(gallery: tuple[Any, str] | Exception) -> str:
    """The frame that the script fills; without a script it says so."""
    if isinstance(gallery, Exception):
        raise gallery
    content, _ = gallery
    learned, trust = content["in_training"], content["trust"]
    notes = [f"{learned} test images are also in the training set, by their pixels."] if learned else []
    notes += [str(trust)] if trust else []
    return Template((HERE / "browser.html").read_text(encoding="utf-8")).substitute(
        notes="".join(f"<p>{escape(note)}</p>" for note in notes),
        classes="".join(f"<option value={i}>{escape(str(name))}</option>" for i, name in enumerate(content["classes"])),
    )


def _gallery(folder: Path) -> tuple[Any, str] | Exception:
    """What the script shows, and the style that holds the sheets of pictures; or why they cannot be read."""
    try:
        content = read_json(folder / FOLDER / "gallery.json")
        sheets = {name: _sheet(folder / FOLDER / f"{name}.jpg") for name in SHEETS if name in content["sheets"]}
        _ = [content[name] for name in ("classes", "total", "mistakes", "in_training", "trust")]
    except Exception as error:  # the section of the browser says it
        return error
    rules = "".join(
        f".sheet-{name} {{ background-image: url(data:image/jpeg;base64,{code}); }}\n" for name, code in sheets.items()
    )
    return content, f"<style>{rules}</style>"


def _sheet(path: Path) -> str:
    """A sheet of pictures as base64, looked at first."""
    with Image.open(path) as sheet:
        sheet.load()
    return base64.b64encode(path.read_bytes()).decode()


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "" if value is None else str(value)

"""The HTML page: sections of text, tables and pictures, and the browser of mistakes."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from vision_wrapper._files import PathLike, printable, read_json, write_text
from vision_wrapper.evaluation import ClassResult, Predictions
from vision_wrapper.report.checklist import checklist
from vision_wrapper.report.gallery import FOLDER, SHEETS
from vision_wrapper.report.run_folder import RunFolder, open_run

HERE = Path(__file__).parent
MOST_CLASSES = 30  # of a confusion matrix that is a table; of more, only the figure is shown


def write(run_dir: PathLike) -> Path:
    """Write `report.html` into a run folder, and return its path.

    One file with everything in it, which asks nothing of the network. What is missing or damaged in the run folder is
    named in its place. Raises `SettingError` where the folder is no run, `DamagedFileError` where its recipe.json is
    damaged.
    """
    run = open_run(run_dir)
    gallery = _gallery(run.path)
    sections = {
        "Summary": part(lambda: _summary(run)),
        "Checklist": part(lambda: _checklist(run)),
        "Curves": _pictures(run, ("history", "learning_rate")) + _optional_picture(run, "lr_curve"),
        "Data": _pictures(run, ("samples", "class_distribution")),
        "Confusion matrix": part(lambda: _confusion(run, clickable=not isinstance(gallery, Exception))),
        "Accuracy of each class": part(lambda: _classes(run.predictions)) + _pictures(run, ("per_class",)),
        "Calibration": part(lambda: _calibration(run.predictions)) + _pictures(run, ("reliability",)),
        "Mistakes": part(lambda: _browser(gallery)),
        "The most confident mistakes": _pictures(run, ("misclassified", "gradcam_predicted", "gradcam_true")),
        "Epochs": part(lambda: _epochs(run)),
        "Model": part(lambda: f"<pre>{escape(_read(run.path / 'model.txt'))}</pre>"),
        "Recipe": table([(k, _plain(v)) for k, v in run.recipe.items() if v not in (None, "", {}, [])]),
        "Environment": part(lambda: table(list(read_json(run.path / "environment.json").items()))),
        "Repeat this run": part(lambda: f"<pre>{escape(run.command())}</pre>"),
    }
    path = run.path / "report.html"
    content, styles = (None, "") if isinstance(gallery, Exception) else gallery
    write_text(path, page(run.name, sections, content, styles))
    return path


def page(title: str, sections: dict[str, str], data: Any = None, styles: str = "") -> str:
    """The whole file; `data` is what the browser of mistakes shows."""
    script = (HERE / "gallery.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    # As text in a script element, nothing may look like the end of one.
    plain = json.dumps(data).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Template((HERE / "template.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        contents="".join(f'<li><a href="#{anchors[name]}">{name}</a></li>' for name in sections),
        body="\n".join(
            f'<section id="{anchors[name]}"><h2>{name}</h2>{content}</section>' for name, content in sections.items()
        ),
        styles=styles,
        data=plain,
        script=script,
        script_hash=f"sha256-{digest}",
    )


# ---- sections


def _summary(run: RunFolder) -> str:
    recipe, predictions, rows = run.recipe, run.predictions, run.rows
    low, high = predictions.accuracy_interval()
    right = int(predictions.correct.sum())
    return f"<p>{escape(str(recipe['description']))}</p>" + table(
        [
            ("Test accuracy, last epoch", f"{predictions.accuracy():.2%}  ({right} of {len(predictions)})"),
            ("95% interval (Wilson)", f"{low:.2%} to {high:.2%}"),
            *_averaged(run),
            ("Training accuracy, last epoch", _share(rows[-1]["train_accuracy"])),
            ("Epochs", str(len(rows))),
            ("Training time", f"{sum(row['seconds'] for row in rows):.0f} s"),
            ("Watched after each epoch", watched(run)),
            ("Data", str(run.identity["data"])),
            ("Seeds", f"1 (seed {recipe['seed']})"),
            ("Published", recipe.get("published") or "no published figure"),
            ("Measured before with this library", expected(recipe.get("expected"))),
        ]
    )


def watched(run: RunFolder) -> str:
    """What was looked at after each epoch."""
    return str(run.identity["watched"])


def _averaged(run: RunFolder) -> list[tuple[str, str]]:
    """The accuracy with test-time averaging, where the recipe has one."""
    figures = run.results if (run.path / "results.json").exists() else {}
    if figures.get("tta_accuracy") is None:
        return []
    return [(f"Averaged over views ({figures['tta']})", f"{figures['tta_accuracy']:.2%}")]


def expected(found: dict[str, Any] | None) -> str:
    """What the recipe reached before, in words."""
    if found is None:
        return "not measured with these settings"
    spread = "" if found["spread"] is None else f" ± {100 * found['spread']:.2f}"
    averaged = "" if found["tta_accuracy"] is None else f", {found['tta_accuracy']:.2%} averaged over views"
    return f"{found['accuracy']:.2%}{spread}{averaged}; seeds: {found['seeds']}; {found['data']}; {found['hardware']}"


def _checklist(run: RunFolder) -> str:
    try:
        predictions = run.predictions
    except Exception:  # the checklist says of what it knows nothing
        predictions = None
    words = {"kept": "kept", "broken": "not kept", "unknown": "not known"}
    rows = "".join(
        f"<tr><td class={line.state}>{words[line.state]}</td><td>{escape(line.promise)}</td>"
        f"<td>{escape(line.measured)}</td></tr>"
        for line in checklist(run.recipe, run.rows, predictions, run.curve, str(run.identity.get("data")))
    )
    head = "<tr><th scope=col>State</th><th scope=col>The recipe says</th><th scope=col>Measured</th></tr>"
    return f"<div class=wide><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>"


def _confusion(run: RunFolder, clickable: bool) -> str:
    """A table whose off-diagonal cells show their images, where these are there; of many classes, the figure."""
    predictions, classes = run.predictions, run.predictions.classes
    if len(classes) > MOST_CLASSES:
        return _pictures(run, ("confusion_matrix",))
    matrix = predictions.confusion_matrix()
    head = "".join(f"<th scope=col>{name_of(name)}</th>" for name in classes)
    rows = []
    for true, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        cells = "".join(
            _confusion_cell(true, predicted, int(count), int(counts.sum()), classes, clickable)
            for predicted, count in enumerate(counts)
        )
        rows.append(f"<tr><th scope=row>{name_of(name)}</th>{cells}</tr>")
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
            name_of(row.name), accuracy_of(row), f"{row.correct} of {row.count}", f"{row.precision:.2%}",
            f"{row.f1:.3f}",
        )
        for row in predictions.per_class()
    ]  # fmt: skip
    return columns(("class", "accuracy (recall)", "right", "precision", "F1"), rows)


def accuracy_of(row: ClassResult) -> str:
    """In percent; a class without images has none."""
    return f"{row.accuracy:.2%}" if row.count else "–"


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
    classes = "".join(f"<option value={i}>{escape(str(name))}</option>" for i, name in enumerate(content["classes"]))
    selects = {
        "true": ("True class", f"<option value=''>all</option>{classes}"),
        "predicted": ("Predicted class", f"<option value=''>all</option>{classes}"),
        "mark": (
            "Marked",
            "<option value=''>all</option><option value=cam>with maps</option><option value=label>suspected "
            "label</option><option value=duplicate>also in training</option>",
        ),
        "order": (
            "Order",
            "<option value=confidence>confidence</option><option value=loss>loss</option><option value=margin>margin"
            "</option><option value=index>index</option>",
        ),
    }
    controls = "".join(
        f"<label>{title}<select id=by-{name}>{options}</select></label>" for name, (title, options) in selects.items()
    )
    learned = content["in_training"]
    notes = [f"{learned} test images are also in the training set, by their pixels."] if learned else []
    notes += [str(content["trust"])] if content["trust"] else []
    return (
        "".join(f"<p>{escape(note)}</p>" for note in notes) + "<div id=gallery hidden>"
        f"<div class=controls>{controls}<button type=button id=all>Show all</button></div>"
        "<p id=count role=status aria-live=polite></p>"
        "<p>Arrow keys move, Enter enlarges, Escape closes.</p>"
        "<div class=tiles id=tiles role=group aria-label='Mistakes'></div>"
        "<dialog id=enlarged aria-labelledby=enlarged-title><h3 id=enlarged-title aria-live=polite></h3>"
        "<div class=pictures id=enlarged-pictures></div><table id=enlarged-facts></table>"
        "<p class=controls><button type=button id=previous>← Previous</button>"
        "<button type=button id=next>Next →</button>"
        "<button type=button id=close>Close</button></p></dialog></div>"
        "<noscript><p>The browser of mistakes needs JavaScript; the most confident ones are shown below.</p></noscript>"
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


def _epochs(run: RunFolder) -> str:
    names = list(run.rows[0])
    rows = [tuple("" if row[name] is None else f"{row[name]:.4g}" for name in names) for row in run.rows]
    return columns(tuple(name.replace("_", " ") for name in names), rows)


# ---- pieces


def part(make: Callable[[], str]) -> str:
    """A part of the page, or why it is not there."""
    try:
        return make()
    except Exception as error:  # damage shows as any error of what reads it
        return f"<p class=missing role=note>Not available: {escape(str(error) or type(error).__name__)}</p>"


def picture(folder: Path, name: str) -> str:
    """A figure of the run, inside the page."""

    def make() -> str:
        code = base64.b64encode((folder / "plots" / f"{name}.png").read_bytes()).decode()
        return f'<img alt="{name.replace("_", " ")}" src="data:image/png;base64,{code}">'

    return part(make)


def _pictures(run: RunFolder, names: Iterable[str]) -> str:
    return "".join(picture(run.path, name) for name in names)


def _optional_picture(run: RunFolder, name: str) -> str:
    return picture(run.path, name) if (run.path / "plots" / f"{name}.png").exists() else ""


def table(rows: list[tuple[str, Any]]) -> str:
    """Names and values."""
    cells = "".join(f"<tr><th scope=row>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in rows)
    return f"<div class=wide><table>{cells}</table></div>"


def columns(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table with a head; the cells are HTML."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def name_of(text: str) -> str:
    """A name of somebody's own, which may run from right to left, as HTML."""
    return f"<bdi>{escape(text)}</bdi>"


def escape(text: str) -> str:
    """Text that stays text, also where it is no UTF-8."""
    return html.escape(printable(text), quote=True)


def _share(value: float | None) -> str:
    """A share of the history, which it lacks where targets are mixed."""
    return "not counted: its targets are no classes" if value is None else f"{value:.2%}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "" if value is None else str(value)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")

"""The frame of a report's HTML page, and the pieces that its sections are made of."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template
from typing import Any

from vision_wrapper._files import printable, read_bytes

HERE = Path(__file__).parent


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


def part(make: Callable[[], str]) -> str:
    """A part of the page, or why it is not there."""
    try:
        return make()
    except Exception as error:  # damage shows as any error of what reads it
        return f"<p class=missing role=note>Not available: {escape(str(error) or type(error).__name__)}</p>"


def picture(folder: Path, name: str) -> str:
    """A figure of the run, inside the page."""

    def make() -> str:
        code = base64.b64encode(read_bytes(folder / "plots" / f"{name}.png")).decode()
        return f'<img alt="{name.replace("_", " ")}" src="data:image/png;base64,{code}">'

    return part(make)


def pictures(folder: Path, names: Iterable[str]) -> str:
    """Several of them, one after the other."""
    return "".join(picture(folder, name) for name in names)


def table(rows: list[tuple[str, Any]]) -> str:
    """Names and values."""
    cells = "".join(f"<tr><th scope=row>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in rows)
    return f"<div class=wide><table>{cells}</table></div>"


def columns(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table with a head; the cells are HTML."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def bdi(text: str) -> str:
    """A name of somebody's own, which may run from right to left, as HTML."""
    return f"<bdi>{escape(text)}</bdi>"


def escape(text: str) -> str:
    """Text that stays text, also where it is no UTF-8."""
    return html.escape(printable(text), quote=True)

"""What every figure shares: the Figure class, colours, fonts, grids of images, axes of class names."""

from __future__ import annotations

import functools
import io
import textwrap
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib import figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vision_wrapper._files import one_line, printable

P = ParamSpec("P")

TRAIN, VALIDATION, TEST = "#2563a8", "#d9622b", "#2b8a5a"
SPLIT_COLOURS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
RIGHT, WRONG = "#2b7a4b", "#b8322a"
TEXT, MUTED, GRID = "#1f2933", "#6b7280", "#e3e7ec"

# Names of classes are shown as they are: a "$" starts no formula.
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": TEXT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlecolor": TEXT,
    "axes.labelsize": 10,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": "#9aa5b1",
    "axes.facecolor": "white",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "grid.color": GRID,
    "grid.linestyle": "-",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "savefig.bbox": None,
    "savefig.facecolor": "white",
    "xtick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "xtick.labelsize": 9,
    "ytick.color": MUTED,
    "ytick.labelcolor": TEXT,
    "ytick.labelsize": 9,
}


# Tried in turn for the letters that DejaVu Sans lacks, where they are installed.
OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC",
    "Hiragino Sans", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil",
)  # fmt: skip


def style() -> Any:
    """`STYLE`, with the user's own fonts (`rcParams["font.family"]`) after DejaVu Sans, and those of other scripts.

    The name of a family among them, as "sans-serif", stands for the user's list of it (`rcParams["font.sans-serif"]`).
    """
    own = [name for name in matplotlib.rcParams["font.family"] if name not in STYLE["font.family"]]
    return {**STYLE, "font.family": [*STYLE["font.family"], *own, *_other_fonts()]}


@functools.cache
def _other_fonts() -> list[str]:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in OTHER_SCRIPTS if name in installed]


class Figure(figure.Figure):
    """A matplotlib Figure that pyplot does not know of: a notebook shows it once, and none is left open."""

    def __init__(self, width: float, height: float, layout: str | None = "constrained"):
        super().__init__(figsize=(width, height), dpi=100, layout=layout)  # type: ignore[arg-type]
        FigureCanvasAgg(self)
        if layout == "constrained":
            self.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)  # inches

    def draw(self, renderer: Any) -> None:
        """Draw with this package's style, as labels of ticks are made only now."""
        with matplotlib.rc_context(style()):
            super().draw(renderer)

    def to_png(self) -> bytes:
        """The content of a PNG file, whatever the user's settings of `savefig` are."""
        buffer = io.BytesIO()
        with matplotlib.rc_context({**style(), "savefig.transparent": False}):
            self.savefig(buffer, format="png", dpi="figure")
        return buffer.getvalue()

    _repr_png_ = to_png  # what notebooks ask for


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a plotting function with this package's style, and leave the user's settings as they were."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(style()):
            return function(*args, **kwargs)

    return wrapper


def nothing(reason: str) -> Figure:
    """The figure of nothing to show: it says why."""
    fig = Figure(6, 1.6)
    fig.text(0.5, 0.5, textwrap.fill(printable(reason), 70), ha="center", va="center", color=MUTED, fontsize=11)
    return fig


def figure_with_axes(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure in inches with `rows` x `columns` axes, row by row."""
    fig = Figure(width, height)
    return fig, list(fig.subplots(rows, columns, squeeze=False).flat)


def epochs_axis(axes: Axes, label: str = "epoch") -> None:
    """Whole numbers on the x axis, and a light grid."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(True)


def plain_numbers(axis: Any) -> None:
    """Ticks such as 0.001 and 1e-06, in place of formulas; those between powers of ten where few powers are in view."""

    def between(value: float, _: Any) -> str:
        low, high = sorted(axis.get_view_interval())
        powers = sum(low <= tick <= high for tick in axis.get_majorticklocs())
        text = f"{value:g}"
        first = text.replace(".", "").lstrip("0")[:1]
        return text if powers == 0 or (powers == 1 and first in "25") else ""

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(between))


def remark(fig: Figure, text: str, colour: str = MUTED) -> None:
    """A sentence below a figure, in as many lines as it takes."""
    characters = int(fig.get_figwidth() / CHARACTER * 0.95)
    fig.supxlabel(textwrap.fill(" ".join(text.split()), characters), color=colour, fontsize=CAPTION_SIZE)


def short(text: object, length: int) -> str:
    """The text as wide as at most `length` characters, all printable, on one line; its middle makes room."""
    text = one_line(text)
    if sum(map(_width, text)) <= length:
        return text
    head = _beginning(text, (length - 1) * 2 // 3)
    tail = _beginning(text[::-1], length - 1 - sum(map(_width, head)))[::-1]
    return f"{head}…{tail}"


def _beginning(text: str, width: float) -> str:
    """As much of the text as is not wider than so many characters."""
    return text[: bisect_right([*accumulate(map(_width, text))], width)]


def _width(character: str) -> float:
    """In units of the typical small letter: capitals take more, Chinese, Japanese and Korean characters two."""
    if unicodedata.east_asian_width(character) in "WF":
        return 2.0
    return 1.3 if character.isupper() else 1.0


def name_of(classes: Sequence[str] | None, label: int) -> str:
    """The name of a label, as a font can draw it; the label itself where there are no names."""
    return printable(str(classes[label])) if classes is not None and 0 <= label < len(classes) else str(label)


# ---- axes of class names

MAX_NAMED = 120  # classes with a name of their own on an axis
ROW = 0.24  # inches a class


def rows_height(count: int, extra: float) -> float:
    """Inches for a row a class, and `extra` for the rest."""
    return max(2.2, min(count, MAX_NAMED) * ROW + extra)


def class_rows(axes: Axes, classes: Sequence[str], length: int = 28) -> None:
    """A row for each class from top to bottom, with its name where there is room."""
    axes.set_ylim(len(classes) - 0.5, -0.5)
    if len(classes) <= MAX_NAMED:
        axes.set_yticks(range(len(classes)), [short(name, length) for name in classes], parse_math=False)
    else:
        axes.set_ylabel(f"{len(classes)} classes, by number")
    axes.tick_params(axis="y", length=0)


# ---- grids of images

CAPTION_SIZE = 8.5  # points
LINE = 0.165  # inches a line of a caption
CHARACTER = 0.073  # inches, on average, at CAPTION_SIZE
GAP = 0.12
MARGIN = 0.15

Line = tuple[str, str]  # text and colour


class Tiles:
    """Images of one size in a grid, with captions above them. Placed by hand: a layout engine takes seconds for 100.

    Args:
        count: how many tiles.
        columns: how many in a row.
        aspect: height of the images by their width.
        lines: how many lines a caption may have.
        width: of an image, in inches.
        title: of the figure.
        left: inches at the left, for names of rows.
        group: tiles that belong together; a wider gap follows them, and their caption is as wide as they are.
        header: lines above each group.
    """

    def __init__(
        self,
        count: int,
        columns: int,
        aspect: float = 1.0,
        lines: int = 1,
        width: float = 1.6,
        title: str = "",
        left: float = 0.0,
        group: int = 1,
        header: int = 0,
    ):
        self.columns, self.width, self.image_height = columns, width, width * min(max(aspect, 0.4), 2.5)
        self.lines, self.left, self.group, self.header = lines, left, group, header
        rows = max(1, -(-count // columns))
        self.row_height = self.image_height + (lines + header) * LINE + GAP
        self.top = MARGIN + (0.4 if title else 0.0)
        self.group_gap = GAP * 2 if group > 1 else 0.0
        inner = columns * (width + GAP) + (-(-columns // group) - 1) * self.group_gap - GAP
        self.size = (left + inner + 2 * MARGIN, self.top + rows * self.row_height - GAP + MARGIN)
        self.size = (max(self.size[0], len(title) * 0.098 + 2 * MARGIN), self.size[1])
        self.figure = Figure(*self.size, layout=None)
        if title:
            self.write(MARGIN, MARGIN + 0.13, title, fontsize=11, fontweight="bold", va="center")

    def add(self, position: int, image: np.ndarray, caption: Sequence[Line] = ()) -> Axes:
        """Show an image, uint8 (H, W, C), at a position of the grid."""
        x, y = self._corner(position)
        top = y + (self.lines + self.header) * LINE
        width, height = self.size
        axes = self.figure.add_axes(
            (x / width, 1 - (top + self.image_height) / height, self.width / width, self.image_height / height)
        )
        show_image(axes, image)
        length = int(self.width / CHARACTER)
        for i, (text, colour) in enumerate(caption):
            line = top - (len(caption) - i) * LINE + LINE / 2
            self.write(x, line, short(text, length), color=colour, fontsize=CAPTION_SIZE, va="center")
        return axes

    def add_header(self, position: int, caption: Sequence[Line]) -> None:
        """Text above the group of tiles that begins at a position."""
        x, y = self._corner(position)
        length = int((self.group * (self.width + GAP)) / CHARACTER)
        for i, (text, colour) in enumerate(caption):
            self.write(
                x, y + i * LINE + LINE / 2, short(text, length), color=colour, fontsize=CAPTION_SIZE, va="center"
            )

    def name_row(self, row: int, name: str) -> None:
        """The name of a row of images, at its left."""
        _, y = self._corner(row * self.columns)
        middle = y + (self.lines + self.header) * LINE + self.image_height / 2
        text = short(name, int(self.left / CHARACTER * 0.9))
        self.write(MARGIN + self.left - GAP, middle, text, ha="right", va="center", fontsize=9)

    def write(self, x: float, y: float, text: str, **properties: Any) -> None:
        """Text at inches from the left and the top."""
        self.figure.text(x / self.size[0], 1 - y / self.size[1], printable(text), parse_math=False, **properties)

    def _corner(self, position: int) -> tuple[float, float]:
        row, column = divmod(position, self.columns)
        x = MARGIN + self.left + column * (self.width + GAP) + (column // self.group) * self.group_gap
        return x, self.top + row * self.row_height


def show_image(axes: Axes, image: np.ndarray) -> None:
    """uint8 (H, W, C) as it is: grey where C is 1, pixels as squares where there are few, width to height as stored."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    image = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]
    few = max(image.shape[:2]) <= 128
    axes.imshow(
        image[:, :, 0] if image.shape[2] == 1 else image,
        cmap="gray",
        vmin=0,
        vmax=255,
        aspect="equal",
        interpolation="nearest" if few else "antialiased",
    )
    axes.set_axis_off()


def label(axes: Axes, text: str) -> None:
    """Text on the middle of an image."""
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "boxstyle": "round,pad=0.25"}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=8, bbox=box)


def aspect_of(images: Sequence[np.ndarray]) -> float:
    """Height by width of the typical image."""
    return float(np.median([image.shape[0] / image.shape[1] for image in images])) if len(images) else 1.0

"""The samples that a model took for others, with their images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, overload

import numpy as np

from vision_wrapper._files import PathLike, one_line, write_text
from vision_wrapper._lookup import unknown_name
from vision_wrapper._numbers import is_whole
from vision_wrapper.data.splits import image_for
from vision_wrapper.errors import SettingError

if TYPE_CHECKING:
    from vision_wrapper.data import Preprocess, Split

SHOWN = 20  # mistakes that are printed


@dataclass(frozen=True)
class Mistake:
    """A sample that was classified wrongly.

    Attributes:
        index: of the sample in its data set.
        target: the true class.
        predicted: the class with the highest logit.
        true_name: name of the true class.
        predicted_name: name of the predicted class.
        confidence: probability of the predicted class.
        loss: cross-entropy in nats, -log(probability of the true class).
        margin: probability of the predicted class minus that of the true one.
        origin: where the image comes from, its file or "index 12".
    """

    index: int
    target: int
    predicted: int
    true_name: str
    predicted_name: str
    confidence: float
    loss: float
    margin: float
    origin: str


class Mistakes(Sequence[Mistake]):
    """Wrongly classified samples, in order. A slice is again `Mistakes`.

    `source` is the split they come from (raw images), or None; `preprocess` what makes a network's input of them.
    """

    def __init__(
        self,
        mistakes: Sequence[Mistake],
        classes: Sequence[str],
        source: Split | None = None,
        preprocess: Preprocess | None = None,
    ):
        self._mistakes = list(mistakes)
        self.classes, self.source, self.preprocess = tuple(classes), source, preprocess

    def __len__(self) -> int:
        return len(self._mistakes)

    @overload
    def __getitem__(self, index: int) -> Mistake: ...

    @overload
    def __getitem__(self, index: slice) -> Mistakes: ...

    def __getitem__(self, index: int | slice) -> Mistake | Mistakes:
        return self._with(self._mistakes[index]) if isinstance(index, slice) else self._mistakes[index]

    def __repr__(self) -> str:
        return f"<Mistakes: {len(self)} samples of {len(self.classes)} classes>"

    def _with(self, mistakes: list[Mistake]) -> Mistakes:
        return Mistakes(mistakes, self.classes, self.source, self.preprocess)

    def where(self, true: str | int | None = None, predicted: str | int | None = None) -> Mistakes:
        """Those of a `true` class, or taken for a `predicted` one, or both; classes by name or index.

        Raises:
            UnknownNameError: a name that no class has.
            SettingError: an index outside the classes.
        """
        true, predicted = self._class_index(true), self._class_index(predicted)
        return self._with([m for m in self if true in (None, m.target) and predicted in (None, m.predicted)])

    def _class_index(self, given: str | int | None) -> int | None:
        return None if given is None else class_index(self.classes, given)

    def __str__(self) -> str:
        """A table of the first twenty."""
        head = ("index", "true", "predicted", "confidence", "from")
        rows = [
            (str(m.index), one_line(m.true_name), one_line(m.predicted_name), f"{m.confidence:.1%}", one_line(m.origin))
            for m in self._mistakes[:SHOWN]
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)]
        more = [f"… and {len(self) - SHOWN} more"] if len(self) > SHOWN else []
        return "\n".join(line.rstrip() for line in [*lines, *more])

    def image(self, i: int, decode_size: tuple[int, int] | None = None) -> np.ndarray:
        """The raw image of the i-th of these, uint8 (H, W, C); `decode_size` of a photograph as in `data.decode`.

        Raises `SettingError` where `source` is None.
        """
        if self.source is None:
            raise SettingError(
                "These predictions do not know their images. Give the split they were made on: "
                "Predictions(…, source=data.test), or Predictions.load(path, source=data.test)."
            )
        return image_for(self.source, self[i].index, decode_size)

    def images(self, decode_size: tuple[int, int] | None = None) -> list[np.ndarray]:
        """The raw images of all of these, each uint8 (H, W, C); see `image`."""
        return [self.image(i, decode_size) for i in range(len(self))]

    def resized(self) -> list[np.ndarray]:
        """The images as the network saw them, but for normalisation: uint8 (H, W, C) of its input's size.

        One whole photograph at a time is held. Raises `SettingError` where `source` or `preprocess` is None.
        """
        preprocess = self.preprocess
        if preprocess is None:
            raise SettingError(
                "These mistakes do not know how images become inputs. Take them from "
                "trainer.predict(loader).mistakes(), or pass source= and preprocess= to Predictions."
            )
        raw = (self.image(i, preprocess.decode_size) for i in range(len(self)))
        return [preprocess.resize(preprocess.as_array(image)) for image in raw]

    def to_csv(self, path: PathLike) -> None:
        """Write a table with a header and a row for each, atomically. Raises `FileWriteError`."""
        text = io.StringIO()
        # With another end of line, a "\r" in a name would not be quoted, and would read back as a new row.
        table = csv.DictWriter(text, [field.name for field in fields(Mistake)], lineterminator="\r\n")
        table.writeheader()
        table.writerows(asdict(mistake) for mistake in self)
        write_text(path, text.getvalue())


def class_index(classes: Sequence[str], given: str | int) -> int:
    """The index of a class that is given by name or index.

    Raises `UnknownNameError` for a name that no class has, `SettingError` for an index outside.
    """
    if isinstance(given, str):
        if given not in classes:
            raise unknown_name("class", given, classes)
        return list(classes).index(given)
    if not is_whole(given) or not 0 <= given < len(classes):
        raise SettingError(f"There are {len(classes)} classes, with names or indices from 0; got {given!r}.")
    return int(given)

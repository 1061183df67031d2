"""What happened in a run: a row an epoch, and a row a batch on request."""

from __future__ import annotations

import csv
import io
from typing import Any

from vision_wrapper._files import PathLike, read_json, write_json, write_text
from vision_wrapper._lookup import check_names
from vision_wrapper.errors import DamagedFileError, MissingPackageError

COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


class History:
    """Rows with `epoch` (from 1), `lr`, losses, accuracies in [0, 1] and `seconds`.

    `lr` is that of the last step and, of several groups, of the one with the largest. `len(history)` counts epochs;
    `history[-1]` is a row (a dict), `history["val_accuracy"]` a column (a list). Validation columns hold None where
    nothing was validated. `history.batches` has rows with `step`, `epoch`, `lr` and `loss` if `fit(batch_history=True)`
    was asked for.
    """

    def __init__(self, rows: list[dict[str, Any]] | None = None, batches: list[dict[str, Any]] | None = None):
        self.rows = rows or []
        self.batches = batches or []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            check_names("column of a history", [key], COLUMNS)
            return [row[key] for row in self.rows]
        return self.rows[key]

    def __repr__(self) -> str:
        last = f", last {self.rows[-1]}" if self.rows else ""
        return f"History({len(self)} epochs{last})"

    def to_csv(self, path: PathLike) -> None:
        """Write the rows by epoch as CSV; None is an empty cell."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list[str](COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(path, text.getvalue())

    def to_json(self, path: PathLike) -> None:
        """Write everything as JSON; `from_json` reads it."""
        write_json(path, {"epochs": self.rows, "batches": self.batches})

    @classmethod
    def from_json(cls, path: PathLike) -> History:
        """Read what `to_json` wrote. Raises `DataNotFoundError` or `DamagedFileError`."""
        content = read_json(path)
        try:
            rows = [{column: row[column] for column in COLUMNS} for row in content["epochs"]]
            return cls(rows, list(content["batches"]))
        except (KeyError, TypeError) as error:
            raise DamagedFileError(f"{path} does not hold a history: {error!r} is missing or misplaced.") from error

    def to_dataframe(self, batches: bool = False) -> Any:
        """A pandas DataFrame of the rows by epoch, or by batch. Raises `MissingPackageError` without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise MissingPackageError("to_dataframe needs pandas: pip install pandas") from error
        if batches:
            return pandas.DataFrame(self.batches, columns=["step", "epoch", "lr", "loss"])
        return pandas.DataFrame(self.rows, columns=list(COLUMNS))

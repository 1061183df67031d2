"""What happened in a run: a row an epoch, and a row a batch on request."""

from __future__ import annotations

import csv
import io
from typing import Any

from vision_wrapper._files import PathLike, read_json, write_json, write_text
from vision_wrapper._lookup import check_names
from vision_wrapper.errors import DamagedFileError, MissingPackageError, SettingError

COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
MONITORED = ("val_loss", "val_accuracy", "train_loss", "train_accuracy")


class History:
    """A row an epoch: `epoch` (from 1), `lr`, losses, accuracies in [0, 1] and `seconds`.

    `len(history)` counts epochs; `history[-1]` is a row (a dict), `history["val_accuracy"]` a column (a list).
    Validation columns hold None where nothing was validated. Losses are those of the trainer's `loss_fn`: with label
    smoothing in it, `val_loss` has it too. `lr` is the rate of the epoch's last step; where the optimizer has several
    groups, that of the group with the largest.

    Attributes:
        rows: the rows by epoch, as dicts.
        batches: rows with `step`, `epoch`, `lr` and `loss`, where `fit(batch_history=True)` asked for them.
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


def check_monitor(monitor: str) -> None:
    """Raise `SettingError` for what is no loss or accuracy of a history."""
    if monitor not in MONITORED:
        raise SettingError(f"monitor must be one of {', '.join(MONITORED)}, got {monitor!r}.")


def check_validated(monitor: str, validates: bool, who: str) -> None:
    """Raise `SettingError` where `who` watches what there is none of without validation."""
    if monitor.startswith("val_") and not validates:
        raise SettingError(f"{who} watches {monitor}: give fit a validation loader.")


def watched(row: dict[str, Any], monitor: str, who: str) -> float:
    """What `who` watches, of an epoch. Raises `SettingError` where there is no such number."""
    if row[monitor] is None:
        raise SettingError(
            f"{who} watches {monitor}, but no accuracy is counted: the targets are not indices of classes (MixUp and "
            "CutMix make them probabilities). Watch a loss."
        )
    return row[monitor]

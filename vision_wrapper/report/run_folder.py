"""A run folder, read: what every report and every command that takes one begins with."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vision_wrapper._files import PathLike, read_bytes, read_json
from vision_wrapper.data import DATASETS
from vision_wrapper.errors import DamagedFileError, SettingError
from vision_wrapper.evaluation import Predictions


@dataclass
class RunFolder:
    """A run folder; each part is read when it is asked for, and raises where it is missing or damaged."""

    path: Path
    identity: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's fields."""
        return self.identity["recipe"]

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.recipe.get("name", self.path.name))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The history's rows, at least one; numbers as numbers, None where there is none."""
        path = self.path / "history.csv"
        try:
            table = csv.DictReader(read_bytes(path).decode("utf-8").splitlines())
            rows = [{k: float(v) if v else None for k, v in row.items()} for row in table]
        except (TypeError, ValueError) as error:
            raise DamagedFileError(f"{path} does not hold the epochs of a run: {error}.") from error
        if not rows:
            raise DamagedFileError(f"{path} holds no epochs.")
        return rows

    @cached_property
    def model(self) -> str:
        """The network's summary."""
        return read_bytes(self.path / "model.txt").decode("utf-8")

    @cached_property
    def results(self) -> dict[str, Any]:
        """The figures of the last epoch."""
        return read_json(self.path / "results.json")

    @cached_property
    def predictions(self) -> Predictions:
        """Of the test set after the last epoch, with the names of the classes where they are known."""
        try:
            classes = self.results["classes"]
        except Exception:  # figures without names are better than none
            classes = None
        return Predictions.load(self.path / "predictions.npz", classes=classes)

    @cached_property
    def curve(self) -> dict[str, Any] | None:
        """Of the LR finder, where the recipe asked it."""
        path = self.path / "lr_curve.json"
        return read_json(path) if path.exists() else None

    def command(self) -> str:
        """What repeats the run: a command, or Python where the recipe is somebody's own, or what it takes."""
        changes = self.results.get("changes")
        data, root = str(self.identity.get("data")), str(self.identity.get("root"))
        if self.identity["passed"]:
            return (
                f"The data were passed in Python, called {data!r}: pass them again,\n"
                f"recipes.run({self.name!r}, data=…, seed={self.recipe.get('seed')}), with the fields of recipe.json."
            )
        if changes is None:
            return (
                "import json\nfrom vision_wrapper import recipes\n\n"
                f"fields = json.load(open({str(self.path / 'recipe.json')!r}))['recipe']\n"
                f"recipes.run(recipes.Recipe.from_dict(fields), data={data!r}, root={root!r}"
                f"{', skip_unreadable=True' if self.identity.get('skip_unreadable') else ''})"
            )
        words = ["vision-wrapper", "train", self.name, "--data", data, "--seed", str(self.recipe.get("seed"))]
        words += ["--root", root] if data in DATASETS else []
        words += ["--skip-unreadable"] if self.identity.get("skip_unreadable") else []
        for field, value in changes.items():
            words += ["--set", f"{field}={json.dumps(value)}"]
        return shlex.join(words)


def open_run(run_dir: PathLike) -> RunFolder:
    """Raises `SettingError` where the folder is no run, `DamagedFileError` where its recipe.json is damaged."""
    folder = Path(run_dir)
    if not (folder / "recipe.json").exists():
        raise SettingError(f"{folder} is no run folder (no recipe.json). Give the folder that `train` named.")
    identity = read_json(folder / "recipe.json")
    if not isinstance(identity, dict) or not isinstance(identity.get("recipe"), dict):
        raise DamagedFileError(f"{folder / 'recipe.json'} does not hold a recipe.")
    return RunFolder(folder, identity)

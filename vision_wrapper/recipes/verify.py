"""The proof that a run which is killed and resumed is the run: kill it, resume it, and compare every bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vision_wrapper._files import PathLike, read_json, read_tensors, write_json
from vision_wrapper._numbers import plain_values, whole_number
from vision_wrapper.errors import SettingError, VisionWrapperError
from vision_wrapper.recipes.recipe import Recipe
from vision_wrapper.recipes.run import run
from vision_wrapper.recipes.table import plan_of

POLL = 0.0005  # seconds between two looks at the run folder
MOMENTS = ("at a random moment", "while a checkpoint was written", "right after an epoch, while evaluating")


@dataclass(frozen=True)
class ResumeProof:
    """What `verify_resume` saw.

    Attributes:
        kills: the moment that each kill hit.
        differences: what differed from the run that was never interrupted; empty where nothing did.
    """

    kills: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether everything was equal, bit for bit."""
        return not self.differences

    def __str__(self) -> str:
        where = ", ".join(f"{count} {moment}" for moment, count in Counter(self.kills).items())
        result = "bit for bit the run that was never interrupted" if self.same else "; ".join(self.differences)
        return f"Killed {len(self.kills)} times ({where}) and resumed: {result}."


def verify_resume(
    recipe: str | Recipe,
    data: PathLike | None = None,
    root: PathLike = "data",
    *,
    kills: int = 10,
    moments_seed: int = 0,
    **settings: Any,
) -> ResumeProof:
    """Train a recipe once without interruption, and again with processes that are killed (SIGKILL) and resumed.

    Weights, optimizer, schedule, averages, random states, history (but for its seconds) and predictions of the two are
    compared bit for bit. Every process starts anew, so with large data sets take few epochs.

    Args:
        recipe: a name of `RECIPES`, or a Recipe.
        data: a name of `DATASETS` or a folder of images; None is the recipe's own.
        root: where named data sets are kept.
        kills: how many; one after the other at the three kinds of moments of `MOMENTS`.
        moments_seed: of the random moments.
        settings: fields of the recipe to change; on CUDA `deterministic=True` is needed.

    Raises `SettingError` for `kills` below 1, `VisionWrapperError` where the recipe cannot be trained at all.
    """
    plan = plan_of(recipe, settings)
    data, root = plain_values(data), os.fspath(root)
    if data is not None and not isinstance(data, str):
        raise SettingError(f"verify_resume starts processes of its own: data is a name or a folder, got {data!r}.")
    kills, generator = whole_number("kills", kills, 1), random.Random(moments_seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        started = time.monotonic()
        _finish(_start(plan, data, root, base / "whole"))
        seconds = time.monotonic() - started
        hit: list[str] = []
        differences: list[str] = []
        begun = 0
        while len(hit) < kills:  # a run that ends before it is killed is compared, and another one is begun
            cut = base / f"cut{begun}"
            begun += 1
            while len(hit) < kills:
                moment = MOMENTS[len(hit) % len(MOMENTS)]
                if not _killed(plan, data, root, cut, moment, generator, seconds):
                    break
                hit.append(moment)
            _finish(_start(plan, data, root, cut))
            differences += _differences(base / "whole", cut)
        return ResumeProof(tuple(hit), tuple(dict.fromkeys(differences)))


def _start(plan: Recipe, data: str | None, root: str, out: Path, seconds: float = 0.0) -> subprocess.Popen[str]:
    """A process of its own that trains; `seconds` between two checkpoints, 0 is one after each batch."""
    call = out.with_name(f"{out.name}.json")
    arguments = {"data": data, "root": root, "out": str(out), "checkpoint_seconds": seconds}
    write_json(call, {"recipe": plan.as_dict(), "arguments": arguments})
    code = "import sys; from vision_wrapper.recipes import verify; verify._train(sys.argv[1])"
    return subprocess.Popen([sys.executable, "-c", code, str(call)], stderr=subprocess.PIPE, text=True)


def _train(call: str) -> None:
    """What the process does."""
    content = read_json(call)
    try:
        run(Recipe.from_dict(content["recipe"]), callbacks=[], **content["arguments"])
    except VisionWrapperError as error:
        sys.exit(str(error))


def _finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SettingError(f"The recipe could not be trained: {said.strip()}")


def _killed(
    plan: Recipe, data: str | None, root: str, out: Path, moment: str, generator: random.Random, seconds: float
) -> bool:
    """Start or resume the run and kill it at that moment; False where it ended before."""
    evaluating = moment == MOMENTS[2]
    before = _written(out)
    process = _start(plan, data, root, out, seconds=1e9 if evaluating else 0.0)
    try:
        if moment == MOMENTS[1]:
            for _ in range(generator.randrange(1, 8)):  # writes that are let pass
                _wait(process, lambda: _writing(out))
                _wait(process, lambda: not _writing(out))
            _wait(process, lambda: _writing(out))
        else:
            _wait(process, lambda: _written(out) != before)
            time.sleep(generator.uniform(0, 0.01 if evaluating else 0.3 * seconds))
        ended = process.poll() is not None
    finally:
        process.kill()
    _, said = process.communicate()
    if ended and process.returncode:
        raise SettingError(f"The recipe could not be trained: {said.strip()}")
    return not ended


def _wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(POLL)


def _writing(out: Path) -> bool:
    return any(out.glob(".last.ckpt.*.part"))


def _written(out: Path) -> int:
    checkpoint = out / "last.ckpt"
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0


# ---- comparing


def _differences(whole: Path, cut: Path) -> list[str]:
    """Names of what is not equal, bit for bit."""
    found = []
    for name, read in (("checkpoint", _checkpoint), ("history", _history), ("predictions", _predictions)):
        a, b = read(whole), read(cut)
        found += [f"{name}: {path} differs" for path in sorted(a.keys() | b.keys()) if a.get(path) != b.get(path)]
    return found


def _checkpoint(folder: Path) -> dict[str, Any]:
    state, _ = read_tensors(folder / "last.ckpt", "checkpoint")
    return {path: value for path, value in _leaves(state).items() if "seconds" not in path}


def _history(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return {path: value for path, value in _leaves(content).items() if "seconds" not in path}


def _predictions(folder: Path) -> dict[str, Any]:
    with np.load(folder / "predictions.npz") as arrays:
        return _leaves(dict(arrays))


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every value in nested dicts and lists by its path; tensors and arrays as their type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return {path: (str(value.dtype), value.shape, value.tobytes())}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if items is None:
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, inner in items:
        leaves.update(_leaves(inner, f"{path}.{key}".lstrip(".")))
    return leaves

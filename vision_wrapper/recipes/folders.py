"""Run folders: made whole, found again, and taken away."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from vision_wrapper._files import check_writable, read_json, write_json
from vision_wrapper.errors import FileWriteError, OtherRunError, SettingError, VisionWrapperError
from vision_wrapper.recipes.identity import differences_between


def new_folder(recipe_name: str) -> Path:
    """A name under runs/ that is free."""
    name = f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (Path("runs") / f"{name}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    return next(folder for folder in candidates if not folder.exists())


def unfinished_run(identity: dict[str, Any]) -> Path | None:
    """The newest run under runs/ that was the same and did not end, so that the same command again goes on."""
    folders = Path("runs").glob(f"{glob.escape(identity['recipe']['name'])}-*/")
    for folder in sorted(folders, reverse=True):
        if (folder / "recipe.json").exists() and not is_finished(folder):
            with contextlib.suppress(VisionWrapperError):  # a damaged one is not it
                if not differences_between(read_json(folder / "recipe.json"), identity):
                    return folder
    return None


def open_folder(folder: Path, identity: dict[str, Any]) -> bool:
    """Make the run folder, whole, and say so; or check that the one that is there is of the same run."""
    if (folder / "recipe.json").exists():
        differences = differences_between(read_json(folder / "recipe.json"), identity)
        if differences:
            raise OtherRunError(
                f"{folder} holds another run ({'; '.join(differences[:4])}). Choose another folder with out= (--out)."
            )
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(
            f"{folder} is there, but is no run folder (no recipe.json). Choose another with out= (--out)."
        )
    if folder.exists():  # and empty; it may be a disk of its own, or where somebody stands
        write_json(folder / "recipe.json", identity)
        return True
    check_writable(folder)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        write_json(temporary / "recipe.json", identity)
        os.replace(temporary, folder)
    except OSError as error:
        raise FileWriteError(error.errno, f"The run folder {folder} could not be made: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def remove_folder(folder: Path) -> None:
    """Take away the files of a run folder, and the folder."""
    for entry in folder.iterdir():
        if not entry.is_dir():
            entry.unlink()
    with contextlib.suppress(OSError):  # a mount point stays
        folder.rmdir()


def is_finished(folder: Path) -> bool:
    """Whether all that a run ends with is there; what is missing is made again from its last checkpoint."""
    return all((folder / name).exists() for name in ("history.json", "predictions.npz", "results.json", "report.html"))

"""Run folders: where a run lies, what tells it from another, and whether it ended."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from vision_wrapper import data as image_data
from vision_wrapper._files import PathLike, read_json, write_json
from vision_wrapper.data import ImageData
from vision_wrapper.data.loaders import fingerprint
from vision_wrapper.errors import FileWriteError, OtherRunError, SettingError, VisionWrapperError
from vision_wrapper.recipes.recipe import INFORMATIVE, Recipe


def identity_of(plan: Recipe, source: Any, images: ImageData, root: Any, skip_unreadable: bool) -> dict[str, Any]:
    """What makes a run the same run, and what was watched in it.

    Folders stand by their whole path, so that the run is found from elsewhere too; images that were passed by the name
    that they have, which may be that of a data set of which they are a part.
    """
    named = isinstance(source, str) and source in image_data.DATASETS
    identity = {
        "recipe": plan.as_dict(),
        "data": images.name if isinstance(source, ImageData) else source if named else os.path.abspath(source),
        "passed": isinstance(source, ImageData),
        "content": content_of(images),
        "root": os.path.abspath(root),
        "watched": plan.watches if images.val is None else "the validation images",
    }
    if skip_unreadable:
        identity["skip_unreadable"] = True
    return identity


def content_of(images: ImageData) -> dict[str, str]:
    """Fingerprints that tell these images from others of the same name."""
    return {name: fingerprint(split) for name, split in (("train", images.train), ("test", images.test))}


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
                f"{folder} holds another run ({'; '.join(differences[:4])}). Choose another folder with out=."
            )
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder} is there, but is no run folder (no recipe.json). Choose another with out=.")
    if folder.exists():  # and empty; it may be a disk of its own, or where somebody stands
        write_json(folder / "recipe.json", identity)
        return True
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        write_json(temporary / "recipe.json", identity)
        os.replace(temporary, folder)
    except OSError as error:
        raise FileWriteError(error.errno, f"The run folder {folder} could not be made: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def differences_between(there: Any, here: dict[str, Any]) -> list[str]:
    """What differs between the identities of two runs, in words."""
    if not isinstance(there, dict) or not isinstance(there.get("recipe"), dict):
        return ["recipe.json holds no recipe"]
    kept, wanted = ({**identity["recipe"], "data": identity.get("data")} for identity in (there, here))
    defaults = Recipe("default", "").as_dict()  # of fields that came after a run
    differences = [
        f"{name}: {kept.get(name, defaults.get(name))!r} there, {value!r} here"
        for name, value in wanted.items()
        if kept.get(name, defaults.get(name)) != value and name not in INFORMATIVE
    ]
    if there.get("content", here["content"]) != here["content"]:
        differences.append("its images were others")
    return differences


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


def read_run(folder: PathLike) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a run folder, and its identity (`data`, `root`). Raises `SettingError` where it is none."""
    folder = Path(folder)
    if not (folder / "recipe.json").exists():
        raise SettingError(f"{folder} is no run folder (no recipe.json). Give the folder that `train` named.")
    identity = read_json(folder / "recipe.json")
    try:
        where = {name: os.fspath(identity[name]) for name in ("data", "root")}
        return Recipe.from_dict(identity["recipe"]), {**identity, **where}
    except (KeyError, TypeError) as error:
        raise SettingError(f"{folder / 'recipe.json'} does not hold a recipe: {error}.") from error

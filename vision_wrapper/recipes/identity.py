"""What makes a run the same run: its recipe, its data and their content, as recipe.json keeps them."""

from __future__ import annotations

import os
from typing import Any

from vision_wrapper import data as image_data
from vision_wrapper._files import PathLike
from vision_wrapper.data import ImageData
from vision_wrapper.data.samples import whole_fingerprint
from vision_wrapper.errors import DamagedFileError
from vision_wrapper.recipes.recipe import INFORMATIVE, Recipe
from vision_wrapper.report.run_folder import open_run


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
    """Fingerprints that tell these images from others of the same name, though a single one differs."""
    return {name: whole_fingerprint(split) for name, split in images.splits()}


def differences_between(there: Any, here: dict[str, Any]) -> list[str]:
    """What differs between the identities of two runs, in words."""
    if not isinstance(there, dict) or not isinstance(there.get("recipe"), dict):
        return ["recipe.json holds no recipe"]
    # Equal images are the same data wherever they lie now; of other ones it helps to know where they lay.
    same_images = there.get("content") == here["content"]
    kept, wanted = (
        {**identity["recipe"], "data": None if same_images else identity.get("data")} for identity in (there, here)
    )
    defaults = Recipe("default", "").as_dict()  # of fields that came after a run
    differences = [
        f"{name}: {kept.get(name, defaults.get(name))!r} there, {value!r} here"
        for name, value in wanted.items()
        if kept.get(name, defaults.get(name)) != value and name not in INFORMATIVE
    ]
    if not same_images:
        differences.append("its images were others")
    return differences


def read_run(folder: PathLike) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a run folder, and its identity (`data`, `root`, `content`, …).

    Raises `SettingError` where the folder is no run, `DamagedFileError` where its recipe.json is damaged.
    """
    run = open_run(folder)
    for name, kind in (("data", str), ("root", str), ("content", dict)):
        if not isinstance(run.identity.get(name), kind):
            raise DamagedFileError(f"{run.path / 'recipe.json'} does not say the {name} of the run.")
    try:
        return Recipe.from_dict(run.recipe), run.identity
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f"{run.path / 'recipe.json'} does not hold a recipe: {error}.") from error

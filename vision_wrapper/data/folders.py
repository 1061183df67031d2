"""Folders of images: the classes and the files in them, by split."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vision_wrapper._seeding import checked_seed
from vision_wrapper.data.images import IMAGE_SUFFIXES, decode
from vision_wrapper.data.splits import FolderSplit, Split, Subset, stratified_split
from vision_wrapper.errors import DataError, DataNotFoundError

SPELLINGS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}  # in small letters, to the name that is read


def load_folder(
    path: Path, *, channels: int, test_fraction: float, seed: int | None, skip_unreadable: bool
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits "train", "test" and, where the folder has one of its own, "val", and the names of the classes.

    Takes and raises what `load` does.
    """
    parts = {part: path / part for part in ("train", "val", "test") if os.path.isdir(path / part)}
    _check_spelling(path, parts)
    if parts and "train" not in parts:
        raise DataError(
            f"{path} has {' and '.join(f'{part}/' for part in parts)} but no train/. Add {path / 'train'}/CLASS/*, or "
            f"put the classes straight into {path}."
        )
    if not parts:
        classes = _class_names(path)
        everything = _list_folder(path, classes, channels, skip_unreadable, every_class=True)
        rest, held_out = stratified_split(everything.labels, test_fraction, checked_seed(seed), classes)
        return {"train": Subset(everything, rest), "test": Subset(everything, held_out)}, classes
    if len(parts) == 1:
        others = any(_is_folder(entry) for entry in _entries(path) if entry.name != "train")
        raise DataError(
            f"{path} has train/ but neither test/ nor val/. Add one, or put the classes straight into {path}, of which "
            f"a part is then held out.{' If train/ is a class, rename it, such as to trains/.' if others else ''}"
        )
    classes = _class_names(parts["train"])
    for part in parts:
        unknown = set(_class_names(parts[part], at_least=1)) - set(classes)
        if unknown:
            raise DataError(
                f"{parts[part]} has classes that {parts['train']} lacks: {', '.join(sorted(unknown))}. A class must be "
                "in train/ to be learned; remove its folder or add training images."
            )
    splits: dict[str, Split] = {
        part: _list_folder(folder, classes, channels, skip_unreadable, every_class=part == "train")
        for part, folder in parts.items()
    }
    if "test" not in splits:
        splits["test"] = splits.pop("val")
    return splits, classes


def _check_spelling(path: Path, parts: Mapping[str, Path]) -> None:
    """Raise for folders that are called like splits but not as they are read: as classes, or not at all."""
    folders = [entry.name for entry in _entries(path) if _is_folder(entry)]
    renamed = {
        name: SPELLINGS[name.lower()]
        for name in folders
        if name.lower() in SPELLINGS and not any(os.path.samefile(path / name, part) for part in parts.values())
    }
    if renamed and (parts or len(renamed) == len(folders)):
        to_do = ", ".join(f"{name}/ to {part}/" for name, part in renamed.items())
        raise DataError(
            f"{path} has {' and '.join(f'{name}/' for name in renamed)}, but the folders of splits are called train/, "
            f"val/ and test/. Rename {to_do}; or move away what is not to be read."
        )


def _class_names(folder: Path, at_least: int = 2) -> tuple[str, ...]:
    names = tuple(entry.name for entry in _entries(folder) if _is_folder(entry))
    if len(names) < at_least:
        found = f"one class ({names[0]})" if names else "no class folders"
        raise DataError(
            f"{folder} has {found}; expected at least two folders, one for each class, with its images inside."
        )
    return names


def _list_folder(
    folder: Path, classes: Sequence[str], channels: int, skip_unreadable: bool, every_class: bool
) -> FolderSplit:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(_image_files(folder / name)) if os.path.isdir(folder / name) else []
        if skip_unreadable:
            files = _readable(files)
        if every_class and not files:
            raise DataError(
                f"{folder / name} has no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))}). Add some, or remove "
                "the folder."
            )
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"{folder} has no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))}).")
    return FolderSplit(paths, np.asarray(labels, dtype=np.int64), channels, classes)


def _readable(files: Sequence[str]) -> list[str]:
    """The files that can be decoded; a warning names the others."""
    readable = []
    for file in files:
        try:
            decode(file)
            readable.append(file)
        except (DataError, DataNotFoundError) as error:  # a link that leads nowhere is not found
            warnings.warn(f"Left out: {error}", stacklevel=2)
    return readable


def _image_files(folder: Path) -> Iterator[str]:
    """Images in a folder and in those below it, each folder once however many links lead to it."""
    waiting, seen = [str(folder)], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        entries, status = _entries(here), os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if _is_folder(entry):
                waiting.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and _is_file(entry):
                yield entry.path


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, without the hidden (such as .ipynb_checkpoints with its copies)."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataNotFoundError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # which raises for a link to itself


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Not a pipe or a device, which could be read for ever. A link that leads nowhere is a file that is missing."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()

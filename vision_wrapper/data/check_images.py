"""Checks of raw images and labels: classes, and images that occur twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision_wrapper.data.findings import Finding, first_few
from vision_wrapper.data.images import to_pil
from vision_wrapper.data.sources import ImageData
from vision_wrapper.data.splits import ArraySplit, Split, innermost

IMBALANCE = 10  # times as many images of the largest class as of the smallest
NEAR = 0.975  # correlation of two thumbnails; of CIFAR-10's cars, what lies above is the same picture again
FLAT = 8.0  # of 255: deviation of a thumbnail below which every image is like every other
_BLOCK = 2048  # thumbnails compared at once


def check_labels(data: ImageData) -> Iterator[Finding]:
    """Labels outside the classes, classes without images, classes with far more images than others."""
    for name, split in data.splits():
        labels = np.asarray(split.labels)
        outside = np.flatnonzero((labels < 0) | (labels >= len(data.classes)))
        if len(outside):
            yield Finding(
                "label_outside",
                "error",
                f"{name} has {len(outside)} labels outside 0..{len(data.classes) - 1}, such as {labels[outside[0]]} at "
                f"index {outside[0]}.",
                "Name every class, or correct the labels.",
                tuple(outside.tolist()),
            )
            continue
        counts = np.bincount(labels, minlength=len(data.classes))
        missing = [data.classes[i] for i in np.flatnonzero(counts == 0)]
        if missing:
            yield Finding(
                "missing_class",
                "error" if name == "train" else "warning",
                f"{name} has no image of {len(missing)} of {len(data.classes)} classes: {first_few(missing)}.",
                "Add images of them, or leave the classes out.",
            )
        if name == "train" and not missing and counts.max() > IMBALANCE * counts.min():
            largest, smallest = int(counts.argmax()), int(counts.argmin())
            yield Finding(
                "imbalance",
                "warning",
                f"train has {counts[largest]} images of {data.classes[largest]} but {counts[smallest]} of "
                f"{data.classes[smallest]}.",
                "Weigh the classes: Trainer(..., loss_fn=nn.CrossEntropyLoss(weight=data.class_weights(images))), or "
                "draw them equally often: data.make_loaders(images, balanced=True).",
            )


def check_duplicates(data: ImageData, near: bool = False) -> Iterator[Finding]:
    """Images that are in train and in test, by their pixels, and equal training images with different labels."""
    digests = {name: _map(split, _digest) for name, split in data.splits()}
    train = digests.pop("train")
    first = _first_indices(train)
    yield from _check_conflicts(data, train, first)
    for name, found in digests.items():
        shared = {i: [first[digest]] for i, digest in enumerate(found) if digest in first}
        if shared:
            others = set(found)
            everywhere = [i for i, digest in enumerate(train) if digest in others]
            yield _in_both("duplicate", "identical", data, name, shared, everywhere)
        if near:
            alike = _near_duplicates(getattr(data, name), data.train)
            alike = {i: like for i, like in alike.items() if i not in shared}
            if alike:
                everywhere = sorted({j for like in alike.values() for j in like})
                yield _in_both("near_duplicate", "almost identical", data, name, alike, everywhere)


def _check_conflicts(data: ImageData, digests: list[bytes], first: dict[bytes, int]) -> Iterator[Finding]:
    """Equal training images with different labels."""
    labels, conflicts = data.train.labels, []
    for index, digest in enumerate(digests):
        if labels[first[digest]] != labels[index]:
            conflicts += [first[digest], index]
    if conflicts:
        a, b = conflicts[:2]
        yield Finding(
            "conflicting_labels",
            "warning",
            f"train has {len(conflicts) // 2} images that occur with two labels, such as {data.train.origin(a)} "
            f"({_name(data, int(labels[a]))}) and {data.train.origin(b)} ({_name(data, int(labels[b]))}).",
            "Correct a label, or leave the images out: data.leave_out(images, train=finding.indices).",
            tuple(sorted(set(conflicts))),
        )


def _name(data: ImageData, label: int) -> str:
    """The class of a label, or the label itself where there is no such class, which is a finding of its own."""
    return data.classes[label] if 0 <= label < len(data.classes) else str(label)


def same_images(split: Split, others: Split) -> dict[int, int]:
    """For each index of `split` whose pixels `others` has too: the first index there."""
    first = _first_indices(_map(others, _digest))
    return {index: first[digest] for index, digest in enumerate(_map(split, _digest)) if digest in first}


def _first_indices(digests: Iterable[bytes]) -> dict[bytes, int]:
    first: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        first.setdefault(digest, index)
    return first


def _in_both(
    check: str, what: str, data: ImageData, name: str, pairs: dict[int, list[int]], indices: list[int]
) -> Finding:
    there, here = next(iter(pairs.items()))
    return Finding(
        check,
        "warning",
        f"{len(pairs)} images of {name} are also in train ({what}), such as {getattr(data, name).origin(there)} and "
        f"{data.train.origin(here[0])}: accuracy on them is measured on images seen in training.",
        "Leave them out of train: data.leave_out(images, train=finding.indices).",
        tuple(indices),
    )


def _digest(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """The image in 8x8 pixels of RGB, float32 (192,); of C channels that Pillow has no mode for, (C * 64,)."""
    if image.shape[2] in (1, 3):
        parts = [to_pil(image).convert("RGB")]
    else:
        parts = [Image.fromarray(np.ascontiguousarray(image[:, :, c])) for c in range(image.shape[2])]
    small = [np.asarray(part.resize((8, 8), Image.Resampling.BOX), dtype=np.float32) for part in parts]
    return np.concatenate(small, axis=None)


def _near_duplicates(split: Split, others: Split) -> dict[int, list[int]]:
    """For each index of `split` that has one: the indices of almost equal images of `others`.

    Correlation sees the same picture through other brightness and contrast, and through slight crops.
    """
    mine, theirs = (_standardised(torch.from_numpy(np.stack(_map(part, _thumbnail)))) for part in (split, others))
    found: dict[int, list[int]] = {}
    for start in range(0, len(mine), _BLOCK):
        correlation = mine[start : start + _BLOCK] @ theirs.T
        for i, j in (correlation > NEAR).nonzero().tolist():
            found.setdefault(start + i, []).append(j)
    return found


def _standardised(thumbnails: Tensor) -> Tensor:
    """Rows (N, values) of mean 0 and length 1; flat ones are all 0, like nothing."""
    centred = thumbnails - thumbnails.mean(1, keepdim=True)
    busy = centred.std(1, keepdim=True) > FLAT
    return torch.where(busy, centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-6), torch.zeros(()))


def _map(split: Split, function: Callable[[np.ndarray], Any]) -> list[Any]:
    """A function of each raw image, in order; files are decoded by several threads."""

    def of(index: int) -> Any:
        return function(split[index][0])

    if isinstance(innermost(split), ArraySplit):
        return [of(index) for index in range(len(split))]
    with ThreadPoolExecutor() as threads:
        return list(threads.map(of, range(len(split))))

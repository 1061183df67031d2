"""What goes wrong most often, looked for before training. Looking changes nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vision_wrapper._state import preserve_mode, preserve_order, preserve_random_states, samplers
from vision_wrapper.data.loaders import Loader, Loaders
from vision_wrapper.data.sources import ImageData
from vision_wrapper.data.splits import ArraySplit, Split, Subset, innermost
from vision_wrapper.data.stats import mean_and_std
from vision_wrapper.errors import SettingError

IMBALANCE = 10  # times as many images of the largest class as of the smallest
SAMPLED = 512  # images from which statistics are judged: their mean is then known to about 0.01
MEAN_TOLERANCE, STD_TOLERANCE = 0.1, 1.5  # of pixels in [0, 1]; ImageNet's statistics fit CIFAR-10 within these
DRAWS = 16  # looks of one image by each worker; with a flip alone two workers agree by chance once in 65,536
NEAR = 0.975  # correlation of two thumbnails; of CIFAR-10's cars, what lies above is the same picture again
FLAT = 8.0  # of 255: deviation of a thumbnail below which every image is like every other
BATCH_OF_ONE = "A batch of one image cannot train a network with batch norm; use another batch_size, or drop_last=True."
IGNORED = -100  # what torch's losses of classes take for no class
_BLOCK = 2048  # thumbnails compared at once


@dataclass(frozen=True)
class Finding:
    """Something that is probably wrong.

    Attributes:
        check: which check found it, such as "missing_class".
        severity: "error" where training cannot work, else "warning".
        message: what was expected and what came.
        fix: what to do, with the line of code where the library can do it.
        indices: of the samples meant, in the split that the message names.
    """

    check: str
    severity: Literal["error", "warning"]
    message: str
    fix: str
    indices: tuple[int, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".rstrip()


class Findings(tuple[Finding, ...]):
    """What `check` found; printed, a line each."""

    def __str__(self) -> str:
        if not self:
            return "Nothing found."
        return "\n".join(f"{finding.severity}: {finding}" for finding in self)


def check(
    data: ImageData | None = None,
    loaders: Loaders | Mapping[str, Iterable[Any]] | None = None,
    model: nn.Module | None = None,
    *,
    near_duplicates: bool = False,
) -> Findings:
    """Look for the usual mistakes before training; everything is left as it was.

    Every image is read once, for its content hash; of the loaders, the first batches.

    Args:
        data: raw images with labels.
        loaders: of `make_loaders`, or names ("train", "val", "test") with any iterables of (inputs, targets).
        model: from a batch of inputs to logits; it is tried on two images of the first loader.
        near_duplicates: also look for almost equal images in train and test (about a second for 10,000 x 50,000).

    Returns:
        The findings, errors first. Each says what to do.
    """
    named = _named(loaders)
    with preserve_random_states(), ExitStack() as stack:
        for loader in named.values():
            stack.enter_context(preserve_order(loader))
        findings = list(_findings(data, named, model, near_duplicates))
    return Findings(sorted(findings, key=lambda finding: finding.severity))


def _named(loaders: Any) -> dict[str, Any]:
    named = loaders._asdict() if isinstance(loaders, Loaders) else dict(loaders or {})
    return {name: loader for name, loader in named.items() if name in ("train", "val", "test") and loader is not None}


def _findings(data: ImageData | None, named: dict[str, Any], model: nn.Module | None, near: bool) -> Iterator[Finding]:
    if data is not None:
        yield from check_labels(data)
        yield from check_duplicates(data, near=near)
    classes = None if data is None else len(data.classes)
    for name, loader in named.items():
        yield from check_loader(name, loader, data)
        if classes is None and isinstance(loader, Loader):
            classes = len(loader.classes)
    if model is None:
        return
    if not named:
        raise SettingError("A model is tried on a batch: give check the loaders too.")
    inputs, targets = _first_batch(next(iter(named.values())), 0)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    yield from check_model(model, inputs[:2].to(device), targets, classes)


# ---- labels


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
                f"{name} has no image of {len(missing)} of {len(data.classes)} classes: {_some(missing)}.",
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


# ---- duplicates


def check_duplicates(data: ImageData, near: bool = False) -> Iterator[Finding]:
    """Images that are in train and in test, by their pixels, and equal training images with different labels."""
    digests = {name: _map(split, _digest) for name, split in data.splits()}
    first: dict[bytes, int] = {}
    conflicts = []
    for index, digest in enumerate(digests["train"]):
        other = first.setdefault(digest, index)
        if data.train.labels[other] != data.train.labels[index]:
            conflicts += [other, index]
    if conflicts:
        a, b = conflicts[:2]
        yield Finding(
            "conflicting_labels",
            "warning",
            f"train has {len(conflicts) // 2} images that occur with two labels, such as {data.train.origin(a)} "
            f"({data.classes[data.train.labels[a]]}) and {data.train.origin(b)} "
            f"({data.classes[data.train.labels[b]]}).",
            "Correct a label, or leave the images out: data.leave_out(images, train=finding.indices).",
            tuple(sorted(set(conflicts))),
        )
    for name in digests:
        if name == "train":
            continue
        shared = {i: [first[digest]] for i, digest in enumerate(digests[name]) if digest in first}
        if shared:
            others = set(digests[name])
            everywhere = [i for i, digest in enumerate(digests["train"]) if digest in others]
            yield _in_both("duplicate", "the same", data, name, shared, everywhere)
        if near:
            alike = _near_duplicates(getattr(data, name), data.train)
            alike = {i: found for i, found in alike.items() if i not in shared}
            if alike:
                everywhere = sorted({j for found in alike.values() for j in found})
                yield _in_both("near_duplicate", "almost the same", data, name, alike, everywhere)


def same_images(split: Split, others: Split) -> dict[int, int]:
    """For each index of `split` whose pixels `others` has too: the first index there."""
    first: dict[bytes, int] = {}
    for index, digest in enumerate(_map(others, _digest)):
        first.setdefault(digest, index)
    found = ((index, first.get(digest)) for index, digest in enumerate(_map(split, _digest)))
    return {index: other for index, other in found if other is not None}


def _in_both(
    check: str, what: str, data: ImageData, name: str, pairs: dict[int, list[int]], indices: list[int]
) -> Finding:
    there, here = next(iter(pairs.items()))
    return Finding(
        check,
        "warning",
        f"{len(pairs)} images of {name} are {what} as one of train, such as {getattr(data, name).origin(there)} and "
        f"{data.train.origin(here[0])}: the accuracy is of images that were learned.",
        "Leave them out of train: data.leave_out(images, train=finding.indices).",
        tuple(indices),
    )


def _digest(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """The image in 8x8 pixels of RGB, float32 (192,)."""
    rgb = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
    return np.asarray(rgb.resize((8, 8), Image.Resampling.BOX), dtype=np.float32).ravel()


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
    """Rows (N, 192) of mean 0 and length 1; flat ones are all 0, like nothing."""
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


# ---- loaders


def check_loader(name: str, loader: Any, data: ImageData | None = None) -> Iterator[Finding]:
    """What a loader's first batches show: values, targets, randomness where there must be none, workers' streams."""
    inputs, _ = _first_batch(loader, 0)
    yield from check_values(inputs, name)
    if isinstance(loader, Loader) and (name == "train" or data is not None):
        yield from _check_statistics(name, loader, data)
    if name == "train":
        yield from _check_last_batch(loader)
        yield from _check_streams(loader)
        return
    again, _ = _first_batch(loader, 1)
    if not torch.equal(inputs, again):
        shuffled = shuffles(loader)
        yield Finding(
            "random_evaluation",
            "error",
            f"The {name} loader gives other {'images' if shuffled else 'looks of its images'} each time.",
            "Do not shuffle it: predictions could not be told apart."
            if shuffled
            else "Augment the training images alone, as data.make_loaders does.",
        )


def shuffles(loader: Any) -> bool:
    """Whether a loader draws its order at random."""
    if isinstance(loader, Loader):
        return loader.shuffle
    kinds = torch.utils.data
    random = (kinds.RandomSampler, kinds.SubsetRandomSampler, kinds.WeightedRandomSampler)
    return any(isinstance(s, random) or getattr(s, "shuffle", None) is True for s in samplers(loader))


def check_values(inputs: Tensor, name: str = "train") -> Iterator[Finding]:
    """Images (N, 1 or 3, H, W) that are not normalised, normalised twice, or not numbers."""
    if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        return
    values = inputs.detach().float()
    low, high, mean, std = (float(v) for v in (values.min(), values.max(), values.mean(), values.std()))
    found = (
        f"Images of the {name} loader have values from {low:.3g} to {high:.3g}, mean {mean:.2g}, deviation {std:.2g}"
    )
    fix = "Use data.make_loaders, or divide by 255, subtract data.stats(images).mean and divide by its std."
    if not values.isfinite().all():
        yield Finding("not_finite", "error", f"Images of the {name} loader have NaN or infinite values.", fix)
    elif high > 20:
        yield Finding("not_scaled", "warning", f"{found}: they are pixels in 0..255, not normalised.", fix)
    elif low >= 0 and high <= 1:
        yield Finding("not_normalised", "warning", f"{found}: they are pixels in 0..1, not normalised.", fix)
    elif std > 2.5:
        yield Finding("normalised_twice", "warning", f"{found}: they seem to be normalised twice.", fix)


def _check_statistics(name: str, loader: Loader, data: ImageData | None) -> Iterator[Finding]:
    split = loader.split if data is None else data.train
    step = -(-len(split) // SAMPLED)
    found_mean, found_std = mean_and_std(Subset(split, np.arange(0, len(split), step)))
    mean, std = loader.preprocess.mean, loader.preprocess.std
    far = any(abs(a - b) > MEAN_TOLERANCE for a, b in zip(found_mean, mean, strict=True))
    ratios = [max(a, 1e-6) / b for a, b in zip(found_std, std, strict=True)]
    if far or any(not 1 / STD_TOLERANCE < ratio < STD_TOLERANCE for ratio in ratios):
        given, found = ([f"{v:.3f}" for v in (*m, *s)] for m, s in ((mean, std), (found_mean, found_std)))
        yield Finding(
            "statistics",
            "warning",
            f"The {name} loader normalises by mean and std {', '.join(given)}, but the training images have about "
            f"{', '.join(found)}.",
            "Leave preprocess= out, unless the weights were trained with it.",
        )


def _check_last_batch(loader: Any) -> Iterator[Finding]:
    dataset = loader.split if isinstance(loader, Loader) else getattr(loader, "dataset", None)
    size = getattr(loader, "batch_size", None)
    try:
        count = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return
    if size and size > 1 and count % size == 1 and not getattr(loader, "drop_last", False):
        yield Finding(
            "last_batch",
            "warning",
            f"The last training batch has one image ({count} images, batch_size={size}), too few for batch norm.",
            "Use drop_last=True, or another batch size.",
        )


def _check_streams(loader: Any) -> Iterator[Finding]:
    """Whether augmentations repeat where they must not, or are not repeatable.

    Each worker of torch's DataLoader is given the same image `DRAWS` times. The loaders of this library seed what an
    augmentation may draw from, but for a generator of its own.
    """
    if isinstance(loader, Loader):
        indices = loader.order(0)[:DRAWS]
        if not torch.equal(*(loader.inputs(0, indices) for _ in range(2))):
            yield Finding(
                "own_generator",
                "error",
                "The same image of the same epoch is augmented differently each time: the augmentation has a random "
                "generator of its own, so that workers may draw alike, and a resumed run is another.",
                "Draw from random, np.random or torch, which are seeded for each image.",
            )
        return
    workers = getattr(loader, "num_workers", 0)
    indexed = isinstance(loader, torch.utils.data.DataLoader) and hasattr(loader.dataset, "__getitem__")
    if not workers or not indexed or isinstance(loader.dataset, torch.utils.data.IterableDataset):
        return
    same_image = torch.utils.data.Subset(loader.dataset, [0] * (DRAWS * workers))
    probe = torch.utils.data.DataLoader(
        same_image,
        batch_size=1,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    epochs = [[batch[0].clone() for batch in probe] for _ in range(2)]
    random = any(not torch.equal(image, epochs[0][0]) for image in epochs[0])
    if not random:
        return
    fix = "Use data.make_loaders, or seed the augmentation in worker_init_fn from torch.initial_seed()."
    by_worker = [epochs[0][worker::workers] for worker in range(workers)]  # batches are dealt in turn
    if workers > 1 and all(_all_equal(by_worker[0], other) for other in by_worker[1:]):
        yield Finding("same_streams", "error", f"The {workers} workers draw the same augmentations.", fix)
    if _all_equal(*epochs):
        yield Finding("same_epochs", "error", "Every epoch draws the same augmentations.", fix)


def _all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _first_batch(loader: Any, epoch: int) -> tuple[Tensor, Tensor]:
    first = next(loader.batches(epoch) if isinstance(loader, Loader) else iter(loader), None)
    if first is None:
        raise SettingError("A loader gave no batch. Is it empty, or an iterator that is used up?")
    return first[0], first[1]


# ---- model


def check_batch(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    classes: int | None = None,
    wants_logits: bool = True,
    ignore_index: int = IGNORED,
) -> Iterator[Finding]:
    """Whether a model can be trained on a batch, on the model's device. `Trainer.fit` asks this of its first one.

    Args:
        model: from inputs to logits.
        inputs: (N, …).
        targets: (N,) whole numbers, or anything else, of which less can be said.
        classes: how many there are, where that is known.
        wants_logits: whether the loss takes a softmax itself, as cross-entropy does.
        ignore_index: the target that the loss passes over.
    """
    if len(inputs) != len(targets):
        message = f"A batch has {len(inputs)} inputs but {len(targets)} targets."
        yield Finding("lengths", "error", message, "Pair each input with its target.")
        return
    if len(inputs) == 1 and has_batch_norm(model):
        yield Finding("batch_of_one", "error", BATCH_OF_ONE, "")
    yield from check_values(inputs)
    yield from check_model(model, inputs[:2], targets, classes, wants_logits, ignore_index)


def check_model(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    classes: int | None = None,
    wants_logits: bool = True,
    ignore_index: int = IGNORED,
) -> Iterator[Finding]:
    """Whether a model takes the inputs, has an output for each class, and returns logits; see `check_batch`."""
    with preserve_mode(model), torch.no_grad():
        model.eval()
        try:
            logits = model(inputs)
        except (RuntimeError, ValueError) as error:
            yield does_not_take(model, inputs, error)
            return
    if logits.ndim != 2:
        return
    if wants_logits and not _fit_cross_entropy(targets, logits.shape[1]):
        yield Finding(
            "target_type",
            "error",
            f"Cross-entropy takes int64 targets (N,), or probabilities (N, {logits.shape[1]}); got {targets.dtype} of "
            f"shape {tuple(targets.shape)}.",
            "For classes, use targets.long().flatten().",
        )
        return
    numbers = targets.ndim == 1 and not targets.is_floating_point()
    if numbers and (wants_logits or logits.shape[1] > 1):  # one output may be right for a loss of somebody's own
        yield from check_targets(targets[targets != ignore_index], logits.shape[1])
    if wants_logits or (numbers and logits.shape[1] > 1):
        yield from check_outputs(logits, classes, wants_logits)


def _fit_cross_entropy(targets: Tensor, outputs: int) -> bool:
    classes = targets.ndim == 1 and targets.dtype in (torch.int64, torch.uint8)
    return classes or (targets.is_floating_point() and tuple(targets.shape[1:]) == (outputs,))


def does_not_take(model: nn.Module, inputs: Tensor, error: Exception) -> Finding:
    """The finding for a forward pass that failed."""
    return Finding(
        "input_shape",
        "error",
        f"{type(model).__name__} does not take inputs of shape {tuple(inputs.shape)}: {error}",
        "For images, compare its in_channels with the loader's channels.",
    )


def check_targets(targets: Tensor, outputs: int) -> Iterator[Finding]:
    """Targets that the model's outputs do not have."""
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, 0)
    if low < 0 or high >= outputs:
        yield Finding(
            "target_outside",
            "error",
            f"Targets must be in 0..{outputs - 1} for the model's {outputs} classes, got {low}..{high}.",
            "Build the model with num_classes=len(data.classes).",
        )


def check_outputs(logits: Tensor, classes: int | None, wants_logits: bool) -> Iterator[Finding]:
    """As many outputs as classes, and logits rather than probabilities or their logarithms."""
    if classes is not None and logits.shape[1] != classes:
        yield Finding(
            "number_of_classes",
            "error" if logits.shape[1] < classes else "warning",
            f"The model has {logits.shape[1]} outputs for {classes} classes.",
            "Build it with num_classes=len(data.classes).",
        )
    # A logarithm is rounded by eps / 2 of itself, so that the probabilities' sum is off by eps / 2 times their entropy,
    # which is log(classes) at most; in bf16, which CPUs' autocast returns, that is 1%.
    eps = torch.finfo(logits.dtype).eps if logits.is_floating_point() else 0.0
    rounding = eps * (1 + math.log(max(logits.shape[1], 1)))
    values, tolerance = logits.float(), max(1e-4, rounding)
    if _sum_to_one(values, tolerance) or (wants_logits and _sum_to_one(values.exp(), tolerance)):
        yield Finding(
            "softmax",
            "warning",
            "The model seems to return probabilities or their logarithms; cross-entropy expects logits.",
            "Leave out its softmax.",
        )


def _sum_to_one(values: Tensor, tolerance: float) -> bool:
    """Whether each row (N, classes) is a distribution."""
    return bool((values >= 0).all() and ((values.sum(1) - 1).abs() < tolerance).all())


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any module normalises over the batch in training; one that is frozen, in eval mode alone, does not."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(module.training or not model.training for module in norms)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")

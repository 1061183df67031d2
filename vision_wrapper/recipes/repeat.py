"""A recipe over several seeds, two recipes over the same seeds, and whether their difference is shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_wrapper._distributed import join
from vision_wrapper._files import PathLike
from vision_wrapper._numbers import plain_values
from vision_wrapper._seeding import checked_seed
from vision_wrapper.data import ImageData
from vision_wrapper.errors import SettingError
from vision_wrapper.recipes.evidence import mean_interval
from vision_wrapper.recipes.identity import content_of, read_run
from vision_wrapper.recipes.recipe import Recipe
from vision_wrapper.recipes.results import read_results
from vision_wrapper.recipes.run import load_images, run, source_of
from vision_wrapper.recipes.table import plan_of
from vision_wrapper.trainer import Callback, History


@dataclass(frozen=True)
class Repeats:
    """A recipe's runs, one a seed; accuracies are the last epoch's on the test set, in [0, 1].

    Attributes:
        recipe: what was run.
        seeds: of the runs.
        accuracies: one a seed.
        tta_accuracies: with the recipe's test-time averaging; None where it has none.
        images_per_second: of training, one a seed.
        data: their name, or the folder they lie in.
        test_images: how many an accuracy is of.
        run_dirs: the run folders.
        content: fingerprints of the images, by split.
        epochs: that were trained, one a seed: fewer than the recipe's where a callback ended a run.
        random_weights: whether the runs began from random weights, since the recipe's pretrained ones were not at hand.
    """

    recipe: Recipe
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    tta_accuracies: tuple[float, ...] | None
    images_per_second: tuple[float, ...]
    data: str
    test_images: int
    run_dirs: tuple[Path, ...]
    content: dict[str, str]
    epochs: tuple[int, ...]
    random_weights: bool = False

    @property
    def mean(self) -> float:
        """The mean accuracy over the seeds, in [0, 1]."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the accuracies between seeds; None for a single one."""
        return statistics.stdev(self.accuracies) if len(self.seeds) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean over all seeds lies in [0, 1], with 95% confidence (Student's t); None for a single seed."""
        found = mean_interval(self.accuracies, 1 / self.test_images)
        return None if found is None else (max(found[0], 0.0), min(found[1], 1.0))

    def __str__(self) -> str:
        text = f"{self.recipe.name} on {self.data}: {self.mean:.2%}"
        if self.spread is not None and self.interval is not None:
            low, high = self.interval
            text += f" ± {100 * self.spread:.2f} ({_seeds(self.seeds)}; mean's 95% interval {low:.2%} to {high:.2%})"
        else:
            text += " (one seed: no spread)"
        if self.tta_accuracies is not None:
            text += f"; {statistics.fmean(self.tta_accuracies):.2%} with {self.recipe.tta}"
        return text + _reservations(self, self.recipe.name)


@dataclass(frozen=True)
class Comparison:
    """Two recipes over the same seeds. Differences are `a` less `b`, seed by seed, in [-1, 1]."""

    a: Repeats
    b: Repeats

    def __post_init__(self):
        (a, b) = ((runs.seeds, runs.test_images, runs.content["test"]) for runs in (self.a, self.b))
        if a != b:
            raise SettingError(
                f"Only runs of the same seeds and test images can be paired: seeds {a[0]} on {a[1]} images of "
                f"{self.a.data} (fingerprint {a[2]}), {b[0]} on {b[1]} of {self.b.data} ({b[2]})."
            )
        names = _names(self.a.recipe, self.b.recipe)
        random = [name for name, runs in zip(names, (self.a, self.b), strict=True) if runs.random_weights]
        if len(random) == 1 and self.a.recipe.pretrained and self.b.recipe.pretrained:
            raise SettingError(
                f"The runs of {random[0]} began from random weights, those of the other recipe from pretrained ones: "
                "the difference would be that of the weights. Remove them, and run the same again where the "
                "pretrained weights are to be had."
            )

    @property
    def differences(self) -> tuple[float, ...]:
        """The accuracy of `a` less that of `b`, one a seed."""
        return tuple(x - y for x, y in zip(self.a.accuracies, self.b.accuracies, strict=True))

    @property
    def difference(self) -> float:
        """The mean of the differences."""
        return statistics.fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean difference over all seeds lies, with 95% confidence (paired t); None for a single seed.

        It speaks of this test set. Another one of as many images would move both accuracies.
        """
        return mean_interval(self.differences, 1 / self.a.test_images)

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def __str__(self) -> str:
        points, (a, b) = 100 * self.difference, _names(self.a.recipe, self.b.recipe)
        seeds = f"{_seeds(self.a.seeds)} on {self.a.data}"
        reservations = _reservations(self.a, a) + _reservations(self.b, b)
        if self.interval is None:
            return (
                f"A difference of {a} and {b} is not shown: {points:+.2f} points, {seeds}, which has no interval"
                f"{reservations}."
            )
        low, high = (100 * bound for bound in self.interval)
        found = f"{points:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}, {seeds}"
        if not self.shown:
            return f"A difference of {a} and {b} is not shown: {found}{reservations}."
        better, other = (a, b) if points > 0 else (b, a)
        return f"{better} is better than {other}: {found} ({a} less {b}){reservations}."


def repeat(
    recipe: str | Recipe,
    seeds: int | Sequence[int] = 5,
    data: PathLike | ImageData | None = None,
    root: PathLike = "data",
    out: PathLike | None = None,
    *,
    callbacks: Sequence[Callback] | None = None,
    device: str | None = None,
    skip_unreadable: bool = False,
    **settings: Any,
) -> Repeats:
    """Run a recipe once a seed. The same call again goes on, and leaves finished runs as they are.

    Args:
        recipe: a name of `RECIPES`, or a Recipe.
        seeds: how many, from 0 on, or which.
        data: as of `run`.
        root: as of `run`.
        out: the folder of the run folders `seed-0`, `seed-1`, …; None is `runs/RECIPE-seeds`.
        callbacks: as of `Trainer`, in every run.
        device: as of `Trainer`.
        skip_unreadable: as of `run`.
        settings: fields of the recipe to change.

    Raises what `run` raises, and `SettingError` for invalid seeds.
    """
    plan, chosen = _plan(recipe, settings), _checked_seeds(seeds)
    source_of(plan, data)
    base = Path("runs") / f"{plan.name}-seeds" if out is None else Path(out)
    folders = []
    for seed in chosen:
        place = base / f"seed-{seed}"
        options: dict[str, Any] = {"device": device, "skip_unreadable": skip_unreadable}
        result = run(plan, data, root, place, callbacks=callbacks, seed=seed, **options)
        if not result.finished:
            raise KeyboardInterrupt  # as Ctrl-C does elsewhere; the same call goes on
        folders.append(result.run_dir)
    return read_repeats(plan, chosen, folders)


def compare(
    a: str | Recipe,
    b: str | Recipe,
    seeds: int | Sequence[int] = 5,
    data: PathLike | ImageData | None = None,
    root: PathLike = "data",
    out: PathLike | None = None,
    *,
    callbacks: Sequence[Callback] | None = None,
    device: str | None = None,
    skip_unreadable: bool = False,
    **settings: Any,
) -> Comparison:
    """Run two recipes over the same seeds. Print the result: it says whether a difference is shown.

    Arguments and errors as in `repeat`; `settings` change both. Two recipes of one name, such as one and a changed copy
    of it, need an `out`, in which the second one's folder gets "-b".
    """
    plans = [_plan(recipe, settings) for recipe in (a, b)]  # what cannot be is said before anything is trained
    _checked_seeds(seeds)
    sources = [source_of(plan, data) for plan in plans]
    if data is None and sources[0] != sources[1]:
        raise SettingError(f"The recipes are for {sources[0]} and {sources[1]}: pass data=, for both.")
    _check_channels(plans, sources, root, skip_unreadable)
    if plans[0].name == plans[1].name and out is None:
        raise SettingError(f"Both recipes are called {plans[0].name!r}: pass out=, or give one another name.")
    names = _names(*plans)
    base = Path("runs") if out is None else Path(out)
    options: dict[str, Any] = {"device": device, "skip_unreadable": skip_unreadable}
    first, second = (
        repeat(plan, seeds, data, root, base / f"{name}-seeds", callbacks=callbacks, **options)
        for plan, name in zip(plans, names, strict=True)
    )
    return Comparison(first, second)


def _names(a: Recipe, b: Recipe) -> tuple[str, str]:
    """What two recipes are called beside each other: by their names, the second one with "-b" where these are equal."""
    return a.name, f"{b.name}-b" if a.name == b.name else b.name


def _check_channels(plans: Sequence[Recipe], sources: Sequence[Any], root: PathLike, skip_unreadable: bool) -> None:
    """Raise `SettingError` where grey and coloured forms of the test images count as different ones."""
    if plans[0].channels == plans[1].channels:
        return
    loaded = (
        join().main_first(lambda p=plan, s=source: load_images(p, s, root, skip_unreadable))
        for plan, source in zip(plans, sources, strict=True)
    )
    first, second = (content_of(images)["test"] for images in loaded)
    if first != second:
        raise SettingError(
            f"With channels={plans[0].channels} and channels={plans[1].channels} the test images are different ones, "
            "whose accuracies cannot be paired. Give both recipes the same channels."
        )


def _plan(recipe: str | Recipe, settings: dict[str, Any]) -> Recipe:
    if "seed" in settings:
        raise SettingError("The seeds are given by seeds=, such as seeds=[7], or by --seeds 5, and not by seed.")
    return plan_of(recipe, settings)


def read_repeats(plan: Recipe, seeds: Sequence[int], folders: Sequence[Path]) -> Repeats:
    """The figures of finished run folders, one a seed.

    Raises `SettingError` where some began from random weights, since their pretrained ones could not be had.
    """
    begun = {folder: read_run(folder)[1].get("weights") for folder in folders}
    if len(set(begun.values())) > 1:
        random = ", ".join(str(folder) for folder, weights in begun.items() if weights)
        raise SettingError(
            f"Some of the runs began from random weights, which have no common mean with the others: {random}. Remove "
            "them, and run the same again where the pretrained weights are to be had."
        )
    results = [read_results(folder) for folder in folders]
    tta_accuracies = [result["tta_accuracy"] for result in results]
    identity = read_run(folders[0])[1]
    return Repeats(
        plan,
        tuple(seeds),
        tuple(result["accuracy"] for result in results),
        None if None in tta_accuracies else tuple(tta_accuracies),
        tuple(result["images_per_second"] for result in results),
        identity["data"],
        results[0]["test_images"],
        tuple(folders),
        identity["content"],
        tuple(len(History.from_json(folder / "history.json")) for folder in folders),
        any(begun.values()),
    )


def _checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    seeds = plain_values(seeds)
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise SettingError(f"seeds must be at least 1, or a list of seeds, got {seeds!r}.")
        return tuple(range(seeds))
    if not isinstance(seeds, Sequence) or isinstance(seeds, (str, bytes)) or not seeds or None in seeds:
        raise SettingError(f"seeds must be a number of seeds, or a list of different ones, got {seeds!r}.")
    chosen = tuple(checked_seed(seed) for seed in seeds)
    if len(set(chosen)) != len(chosen):
        raise SettingError(f"seeds must be different, got {seeds!r}.")
    return chosen


def _reservations(runs: Repeats, name: str) -> str:
    """In words, what of the runs was not as their recipe, called `name` there, has it; empty where all was."""
    said = ""
    if set(runs.epochs) != {runs.recipe.epochs}:
        said += f"; {name} was trained for {', '.join(map(str, runs.epochs))} of {runs.recipe.epochs} epochs"
    if runs.random_weights:
        said += f"; {name} began from random weights, not from pretrained ones"
    return said


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"

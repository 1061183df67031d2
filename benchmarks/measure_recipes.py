"""Measure what is not measured yet: python benchmarks/measure_recipes.py [RECIPE ...] [--cifar10 FOLDER] [--seeds N]

For each recipe and seed without a record, the recipe is run in full, and a few figures of the run are kept in
docs/evidence/RECIPE.json. After each run the summary that fills `Recipe.expected` and the table of docs/recipes.md are
written anew. Stopped anywhere, the same command goes on; a recipe that fails is named, and the others are run. FOLDER
holds CIFAR-10, train/CLASS/*.png and test/CLASS/*.png; the recipe `folder` needs --photos. With --page nothing is run.
--winograd is for processors that have no bf16: see winograd.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import winograd
from measure import filled, machine

from vision_wrapper import data, recipes
from vision_wrapper._files import read_json, write_json, write_text
from vision_wrapper.errors import VisionWrapperError
from vision_wrapper.recipes import RECIPES, Recipe, evidence
from vision_wrapper.recipes.repeat import mean_interval
from vision_wrapper.trainer import EpochLog
from vision_wrapper.trainer.precision import choose_device, choose_precision

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = DOCS / "evidence"
PAGE = DOCS / "recipes.md"
CIFAR10_IMAGES = (50_000, 10_000)
# What each new recipe has to pass, over the same seeds.
COMPARED = (
    ("custom-resnet-fast", "custom-resnet-page"),
    ("custom-resnet-best", "custom-resnet-page"),
    ("resnet18-layernorm-best", "resnet18-layernorm"),
)


# ---- records


def records_of(recipe: Recipe) -> list[dict[str, Any]]:
    """The records of runs with the recipe's present settings, by seed."""
    path = RECORDS / f"{recipe.name}.json"
    kept = read_json(path) if path.exists() else None
    if kept is None or not evidence.same_settings(kept["settings"], recipe):
        return []
    return kept["runs"]


def keep(recipe: Recipe, record: dict[str, Any]) -> None:
    """Add a record; those of other settings go."""
    runs = sorted([*records_of(recipe), record], key=lambda run: run["seed"])
    write_json(RECORDS / f"{recipe.name}.json", {"settings": evidence.settings_of(recipe), "runs": runs})


def record_of(result: recipes.Result, data_name: str) -> dict[str, Any]:
    """A few figures of a finished run, and what they depend on."""
    figures = read_json(result.run_dir / "results.json")
    kept = ("accuracy", "tta_accuracy", "train_loss", "seconds", "images_per_second", "training_images", "test_images")
    return {
        "seed": result.recipe.seed,
        "epochs": len(result.history),
        **{name: figures[name] for name in kept},
        "train_accuracy": result.history[-1]["train_accuracy"],
        "data": data_name,
        **_made_on(result.run_dir),
        "date": date.today().isoformat(),
    }


def _starts(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.starts.json")


def note_start(folder: Path, recipe: Recipe, how: str) -> None:
    """Keep beside a run's folder what the run is started on; it may go on elsewhere.

    `how` says what the machine does otherwise.
    """
    found = machine()
    precision = choose_precision(recipe.precision, choose_device())
    threads, cores = found["threads"], found["cores"]
    processor = f"{found['processor']}, {cores if threads >= cores else f'{threads} of {cores}'} cores"
    start = {
        "hardware": (found["gpu"] or processor) + ("" if precision == "fp32" else f", {precision}") + how,
        "version": found["vision_wrapper"],
        "torch": found["torch"],
        "commit": found["commit"],
    }
    starts = read_json(_starts(folder)) if _starts(folder).exists() else []
    if start not in starts:
        write_json(_starts(folder), [*starts, start])


def _made_on(folder: Path) -> dict[str, str]:
    """What a run was made on, from its first start to its last."""
    starts = read_json(_starts(folder))
    return {name: "; ".join(dict.fromkeys(start[name] for start in starts)) for name in starts[0]}


def digest(recipe: Recipe) -> str:
    """Of the settings that are not the default: a field that comes later, with its default, leaves it as it is."""
    default = evidence.settings_of(Recipe("default", ""))
    settings = {name: value for name, value in evidence.settings_of(recipe).items() if value != default[name]}
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def summarise_all() -> dict[str, Any]:
    """What `measured.json` holds: settings and summary of each recipe with records."""
    summary = {}
    for recipe in RECIPES.values():
        runs = records_of(recipe)
        if runs:
            expected = asdict(evidence.summarise(runs))
            summary[recipe.name] = {"settings": evidence.settings_of(recipe), "expected": expected}
    return summary


# ---- the page


def with_summary(summary: dict[str, Any]) -> dict[str, Recipe]:
    """The recipes with what the summary says of them."""
    return {
        name: recipe.changed(expected=recipes.Expected(**summary[name]["expected"]))
        if name in summary
        else recipe.changed(expected=None)
        for name, recipe in RECIPES.items()
    }


def page(summary: dict[str, Any]) -> str:
    """docs/recipes.md with its generated part."""
    return filled(PAGE.read_text(encoding="utf-8"), "measured", generated(with_summary(summary)))


def generated(measured: dict[str, Recipe]) -> Iterator[str]:
    yield "| " + " | ".join(evidence.COLUMNS) + " |"
    yield "|---" * len(evidence.COLUMNS) + "|"
    for row in evidence.rows(measured):
        cells = [f"`{row['recipe']}`", *(row[column] for column in evidence.COLUMNS[1:])]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    for a, b in COMPARED:
        yield f"- `{a}` less `{b}`: {difference(RECIPES[a], RECIPES[b])}"
    for name, recipe in measured.items():
        if recipe.expected is not None:
            seeds = ", ".join(str(run["seed"]) for run in records_of(RECIPES[name]))
            where = evidence.provenance(recipe.expected)
            yield f"- `{name}`: seeds {seeds}; {where}; [records](evidence/{name}.json)"


def difference(a: Recipe, b: Recipe) -> str:
    """The paired difference over the seeds that both have, with its interval."""
    first, second = ({run["seed"]: run for run in records_of(recipe)} for recipe in (a, b))
    common = sorted(first.keys() & second.keys())
    if not common:
        return "not measured"
    values = [first[seed]["accuracy"] - second[seed]["accuracy"] for seed in common]
    lengths = f"; {a.epochs} epochs against {b.epochs}" if a.epochs != b.epochs else ""
    return _in_words(values, 1 / first[common[0]]["test_images"]) + lengths


def _in_words(values: list[float], rounding: float) -> str:
    mean, interval = 100 * sum(values) / len(values), mean_interval(values, rounding)
    if interval is None:
        return f"{mean:+.2f} points with one seed, which has no interval: not shown"
    low, high = (100 * bound for bound in interval)
    shown = "" if not low <= 0 <= high else ": not shown"
    return f"{mean:+.2f} points (95% interval {low:+.2f} to {high:+.2f}, {len(values)} seeds){shown}"


def write_all() -> None:
    summary = summarise_all()
    write_text(evidence.MEASURED, json.dumps(summary, indent=2) + "\n")
    write_text(PAGE, page(summary))


# ---- running


def cifar10(folder: str, cache: str) -> data.ImageData:
    """CIFAR-10 in memory."""
    images = data.cached(data.load(folder), cache)
    if (len(images.train), len(images.test)) != CIFAR10_IMAGES or len(images.classes) != 10:
        raise SystemExit(f"{folder} is not the whole of CIFAR-10: {len(images.train)} and {len(images.test)} images.")
    return images


def missing(names: list[str], seeds: int) -> Iterator[tuple[Recipe, int]]:
    """What has no record yet: one seed of every recipe before the next, short runs first."""
    chosen = sorted((RECIPES[name] for name in names or RECIPES), key=lambda recipe: recipe.epochs)
    for seed in range(seeds):
        for recipe in chosen:
            if seed not in {run["seed"] for run in records_of(recipe)}:
                yield recipe, seed


def sources(options: argparse.Namespace, cache: str) -> dict[str, Any]:
    """What recipes are run on, by the name of their data."""
    found: dict[str, Any] = {"digits": "digits"}
    if options.cifar10:
        found["cifar10"] = cifar10(options.cifar10, cache)
    if options.photos:
        found[""] = options.photos
    return found


def measure(recipe: Recipe, seed: int, source: Any, options: argparse.Namespace, how: str) -> None:
    """Run a recipe with a seed to its end, and keep its record."""
    folder = Path(options.out) / recipe.name / digest(recipe) / f"seed-{seed}"
    note_start(folder, recipe, how)
    with warnings.catch_warnings():
        # Without its pretrained weights a recipe would be another one.
        warnings.filterwarnings("error", "Training begins from random weights")
        result = recipes.run(recipe, source, out=folder, callbacks=[EpochLog()], seed=seed)
    if not result.finished:
        raise SystemExit("Interrupted: the same command goes on.")
    keep(recipe, record_of(result, recipe.data or f"photographs: {Path(source).name}"))
    write_all()


def measure_all(options: argparse.Namespace) -> None:
    """Run what has no record."""
    how = winograd.install() if options.winograd else ""
    failed = []
    with tempfile.TemporaryDirectory() as cache:
        source = sources(options, cache)
        for recipe, seed in missing(options.recipes, options.seeds):
            if recipe.data not in source:
                print(f"{recipe.name}: needs {'--cifar10' if recipe.data else '--photos'}", flush=True)
                continue
            print(f"{recipe.name}, seed {seed}", flush=True)
            try:
                measure(recipe, seed, source[recipe.data], options, how)
            except (VisionWrapperError, UserWarning) as error:
                print(f"{recipe.name}, seed {seed}: {error}", flush=True)
                failed.append(recipe.name)
    if failed:
        raise SystemExit(f"Not measured: {', '.join(dict.fromkeys(failed))}.")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="all, where none is named")
    parser.add_argument("--cifar10", metavar="FOLDER", help="without it only recipes of other data are run")
    parser.add_argument("--photos", metavar="FOLDER", help="photographs, CLASS/*, for the recipe `folder`")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="runs/measured", help="the run folders")
    parser.add_argument("--page", action="store_true", help="run nothing: write the summary and the table anew")
    parser.add_argument("--winograd", action="store_true", help=winograd.HELP)
    options = parser.parse_args()
    if not options.page:
        measure_all(options)
    write_all()


if __name__ == "__main__":
    main()

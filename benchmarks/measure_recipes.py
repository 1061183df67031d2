"""Measure what is not measured yet: python benchmarks/measure_recipes.py [RECIPE ...] [--cifar10 FOLDER] [--seeds N]

For each recipe and seed without a record, the recipe is run in full, and a few figures of the run are kept in
docs/evidence/RECIPE.json. After each run the summary that fills `Recipe.expected` and the table of docs/recipes.md are
written anew. Stopped anywhere, the same command goes on. FOLDER holds CIFAR-10, train/CLASS/*.png and
test/CLASS/*.png. With --page nothing is run. --winograd is for processors that have no bf16: see winograd.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import winograd
from measure import filled, machine

from vision_wrapper import data, recipes
from vision_wrapper._files import read_json, write_json, write_text
from vision_wrapper.recipes import RECIPES, Recipe, evidence
from vision_wrapper.recipes.repeat import mean_interval
from vision_wrapper.trainer import EpochLog

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


def record_of(result: recipes.Result, data_name: str, how: str = "") -> dict[str, Any]:
    """A few figures of a finished run, and what they depend on; `how` says what the machine did otherwise."""
    figures, computer = read_json(result.run_dir / "results.json"), machine()
    kept = ("accuracy", "tta_accuracy", "train_loss", "seconds", "images_per_second", "training_images", "test_images")
    hardware = computer["gpu"] or f"{computer['processor']}, {computer['cores']} cores"
    return {
        "seed": result.recipe.seed,
        "epochs": len(result.history),
        **{name: figures[name] for name in kept},
        "data": data_name,
        "hardware": hardware + how,
        "version": computer["vision_wrapper"],
        "torch": computer["torch"],
        "date": date.today().isoformat(),
        "commit": computer["commit"],
    }


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
            yield f"- {provenance(recipe.expected, name)}"


def provenance(found: recipes.Expected, name: str) -> str:
    """What the figures of a recipe were measured on."""
    seeds = ", ".join(str(run["seed"]) for run in records_of(RECIPES[name]))
    where = f"{found.data}; {found.hardware}; version {found.version}"
    return f"`{name}`: seeds {seeds}; {where}; [records](evidence/{name}.json)"


def difference(a: Recipe, b: Recipe) -> str:
    """The paired difference over the seeds that both have, with its interval."""
    first, second = ({run["seed"]: run for run in records_of(recipe)} for recipe in (a, b))
    common = sorted(first.keys() & second.keys())
    if not common:
        return "not measured"
    values = [first[seed]["accuracy"] - second[seed]["accuracy"] for seed in common]
    mean, interval = 100 * sum(values) / len(values), mean_interval(values, 1 / first[common[0]]["test_images"])
    if interval is None:
        return f"{mean:+.2f} points with one seed, which has no interval: not shown"
    low, high = (100 * bound for bound in interval)
    shown = "" if not low <= 0 <= high else ": not shown"
    return f"{mean:+.2f} points (95% interval {low:+.2f} to {high:+.2f}, {len(common)} seeds){shown}"


def write_all() -> None:
    summary = summarise_all()
    write_text(evidence.MEASURED, json.dumps(summary, indent=2) + "\n")
    write_text(PAGE, page(summary))


# ---- running


def cifar10(folder: str | None, cache: str) -> data.ImageData | None:
    """CIFAR-10 in memory; None without a folder."""
    if folder is None:
        return None
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="all, where none is named")
    parser.add_argument("--cifar10", metavar="FOLDER", help="without it only recipes of other data are run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="runs/measured", help="the run folders")
    parser.add_argument("--page", action="store_true", help="run nothing: write the summary and the table anew")
    parser.add_argument("--winograd", action="store_true", help=winograd.HELP)
    options = parser.parse_args()
    how = winograd.install() if options.winograd else ""
    if not options.page:
        with tempfile.TemporaryDirectory() as cache:
            images = cifar10(options.cifar10, cache)
            for recipe, seed in missing(options.recipes, options.seeds):
                if not recipe.data or (recipe.data == "cifar10" and images is None):
                    print(
                        f"{recipe.name}: needs {'CIFAR-10' if recipe.data else 'photographs of your own'}", flush=True
                    )
                    continue
                print(f"{recipe.name}, seed {seed}", flush=True)
                result = recipes.run(
                    recipe,
                    images if recipe.data == "cifar10" else None,
                    out=Path(options.out) / recipe.name / f"seed-{seed}",
                    callbacks=[EpochLog()],
                    seed=seed,
                )
                if not result.finished:
                    raise SystemExit("Interrupted: the same command goes on.")
                keep(recipe, record_of(result, recipe.data, how))
                write_all()
    write_all()


if __name__ == "__main__":
    main()

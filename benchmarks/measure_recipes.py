"""Measure what is not measured yet: python benchmarks/measure_recipes.py [RECIPE ...] [--cifar10 FOLDER] [--seeds N]

For each recipe and seed without a record, the recipe is run in full, and a few figures of the run are kept in
docs/evidence/RECIPE.json. After each run the summary that fills `Recipe.expected` and the table of docs/recipes.md are
written anew. Stopped anywhere, the same command goes on. A run whose loss ceases to be a number, or whose LR finder has
no suggestion, is kept as failed, for --retry; whatever else stops a run says nothing of its recipe, and is not kept.
Either way the others are run. FOLDER holds CIFAR-10, train/CLASS/*.png and test/CLASS/*.png; the recipe `folder` needs
--photos. With --page nothing is run. --winograd shortens a run on a CPU: see winograd.py.
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
from measure import filled, machine, refuse_unknown

from vision_wrapper import data, recipes
from vision_wrapper._files import read_json, write_json, write_text
from vision_wrapper.errors import DataError, NoLearningRateError, NonFiniteLossError
from vision_wrapper.recipes import RECIPES, Recipe, evidence
from vision_wrapper.recipes.evidence import mean_interval
from vision_wrapper.recipes.identity import content_of, read_run
from vision_wrapper.recipes.run import load_images
from vision_wrapper.trainer import Callback, EpochLog
from vision_wrapper.trainer.callbacks import Run
from vision_wrapper.trainer.precision import choose_device

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = DOCS / "evidence"
PAGE = DOCS / "recipes.md"
RECIPES_OWN = (NonFiniteLossError, NoLearningRateError)  # errors that say something of a recipe
CIFAR10_IMAGES = (50_000, 10_000)
# What each new recipe has to pass, over the same seeds.
COMPARED = (
    ("custom-resnet-fast", "custom-resnet-page"),
    ("custom-resnet-best", "custom-resnet-page"),
    ("resnet18-layernorm-best", "resnet18-layernorm"),
)


# ---- records


def kept_of(recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """What is kept of runs with the recipe's present settings, by seed: `runs`, and those that `failed`."""
    path = RECORDS / f"{recipe.name}.json"
    kept = read_json(path) if path.exists() else {}
    same = evidence.same_meaning(kept, recipe)
    return {name: kept.get(name, []) if same else [] for name in ("runs", "failed")}


def records_of(recipe: Recipe) -> list[dict[str, Any]]:
    return kept_of(recipe)["runs"]


def keep(recipe: Recipe, record: dict[str, Any], among: str = "runs") -> None:
    """Add a record in place of what there was of its seed; those of other settings go."""
    kept = {name: [r for r in records if r["seed"] != record["seed"]] for name, records in kept_of(recipe).items()}
    kept[among] = sorted([*kept[among], record], key=lambda run: run["seed"])
    write_json(RECORDS / f"{recipe.name}.json", {**evidence.meaning(recipe), **kept})


def failure_of(seed: int, error: Exception, folder: Path) -> dict[str, Any]:
    """What is kept of a run that failed: a mean over the others alone may be too good."""
    made_on = _made_on(folder) if _starts(folder).exists() else {}
    return {"seed": seed, "error": f"{type(error).__name__}: {error}", **made_on, "date": date.today().isoformat()}


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
        "content": read_run(result.run_dir)[1]["content"],
        **_made_on(result.run_dir),
        "date": date.today().isoformat(),
    }


class NoteStart(Callback):
    """Note what a run is started on when it trains: not where it is refused, or has ended before."""

    def __init__(self, folder: Path, how: str):
        self.folder, self.how = folder, how

    def on_fit_start(self, run: Run) -> None:
        note_start(self.folder, run.trainer.precision, self.how)


def _starts(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.starts.json")


def note_start(folder: Path, precision: str, how: str) -> None:
    """Keep beside a run's folder what the run is started on, and in which number format; it may go on elsewhere.

    `how` says what is done otherwise on a processor; it has no part in another run.
    """
    found, device = machine(), choose_device()
    how = how if device.type == "cpu" else ""
    threads, cores = found["threads"], found["cores"]
    processor = f"{found['processor']}, {cores if threads >= cores else f'{threads} of {cores}'} cores"
    computes = processor if device.type == "cpu" else found["gpu"] or f"{processor}, {device.type}"
    start = {
        "hardware": computes + ("" if precision == "fp32" else f", {precision}") + how,
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


def own_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that are not the default: a field that comes later, with its default, leaves them as they are."""
    default = evidence.settings_of(Recipe("default", ""))
    return {name: value for name, value in evidence.settings_of(recipe).items() if value != default[name]}


def digest(recipe: Recipe) -> str:
    """Of the settings and what they stand for; an argument of a network or an optimizer that comes later changes it."""
    return digest_of({**own_settings(recipe), "resolved": evidence.resolved(recipe)})


def digest_of(values: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def summarise_all() -> dict[str, Any]:
    """What `measured.json` holds: settings and summary of each recipe with records."""
    summary = {}
    for recipe in RECIPES.values():
        runs = records_of(recipe)
        if runs:
            expected = asdict(evidence.summarise(runs, failed=len(kept_of(recipe)["failed"])))
            summary[recipe.name] = {**evidence.meaning(recipe), "expected": expected}
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
        seeds = _seeds(kept_of(RECIPES[name]))
        if seeds:
            where = "" if recipe.expected is None else f"{evidence.provenance(recipe.expected)}; "
            yield f"- `{name}`: {seeds}; {where}[records](evidence/{name}.json)"


def _seeds(kept: dict[str, list[dict[str, Any]]]) -> str:
    """The seeds that were measured, and how many failed, with their errors."""
    runs, failed = kept["runs"], kept["failed"]
    said = "seeds " + ", ".join(str(run["seed"]) for run in runs) if runs else ""
    if not failed:
        return said
    errors = "; ".join(f"seed {run['seed']}, {' '.join(run['error'].split())}" for run in failed)
    counts = f"{len(runs)} of {len(runs) + len(failed)} seeds, {len(failed)} failed ({errors})"
    return f"{said}: {counts}" if said else counts


def difference(a: Recipe, b: Recipe) -> str:
    """The paired difference over the seeds that both have, with its interval."""
    first, second = ({run["seed"]: run for run in records_of(recipe)} for recipe in (a, b))
    common = sorted(first.keys() & second.keys())
    if not common:
        return "not measured"
    evidence.check_one_data([*first.values(), *second.values()])
    values = [first[seed]["accuracy"] - second[seed]["accuracy"] for seed in common]
    counts = {recipe.name: len(kept_of(recipe)["failed"]) for recipe in (a, b)}
    failed = "".join(f"; {count} of {name}'s seeds failed and do not count" for name, count in counts.items() if count)
    lengths = f"; {a.epochs} epochs against {b.epochs}" if a.epochs != b.epochs else ""
    made_on = [", ".join(dict.fromkeys(runs[seed]["hardware"] for seed in common)) for runs in (first, second)]
    machines = f"; {made_on[0]} against {made_on[1]}" if made_on[0] != made_on[1] else ""
    return _in_words(values, 1 / first[common[0]]["test_images"]) + failed + lengths + machines


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


def missing(names: list[str], seeds: int, retry: bool = False) -> Iterator[tuple[Recipe, int]]:
    """What has no record yet: one seed of every recipe before the next, short runs first.

    What failed would most likely fail again: it is run anew only with `retry`.
    """
    chosen = sorted((RECIPES[name] for name in names or RECIPES), key=lambda recipe: recipe.epochs)
    for seed in range(seeds):
        for recipe in chosen:
            kept = kept_of(recipe)
            if seed not in {run["seed"] for run in kept["runs"] + ([] if retry else kept["failed"])}:
                yield recipe, seed


def sources(options: argparse.Namespace, cache: str) -> dict[str, Any]:
    """What recipes are run on, by the name of their data."""
    found: dict[str, Any] = {"digits": "digits"}
    if options.cifar10:
        found["cifar10"] = cifar10(options.cifar10, cache)
    if options.photos:
        found[""] = options.photos
    return found


def run_folder(recipe: Recipe, seed: int, options: argparse.Namespace) -> Path:
    return Path(options.out) / recipe.name / digest(recipe) / f"seed-{seed}"


def measure(recipe: Recipe, seed: int, source: Any, options: argparse.Namespace, how: str) -> None:
    """Run a recipe with a seed to its end, and keep its record."""
    folder = run_folder(recipe, seed, options)
    callbacks = [EpochLog(), NoteStart(folder, how)]
    with warnings.catch_warnings():
        # Without its pretrained weights a recipe would be another one.
        warnings.filterwarnings("error", "Training begins from random weights")
        result = recipes.run(recipe, source, out=folder, callbacks=callbacks, seed=seed)
    if not result.finished:
        raise SystemExit("Interrupted: the same command goes on.")
    keep(recipe, record_of(result, recipe.data or f"photographs: {Path(source).name}"))


def check_images(recipe: Recipe, source: Any) -> None:
    """Raise `DataError` where the images are not those of the records of the same data: a table is of one data set."""
    images = load_images(recipe, source, "data")
    records = [record for other in RECIPES.values() if other.data == recipe.data for record in records_of(other)]
    try:
        evidence.check_one_data([*records, {"content": content_of(images)}])
    except DataError as error:
        raise DataError(f"These images are not those of the records. {error}") from error


def measure_all(options: argparse.Namespace) -> None:
    """Run what has no record."""
    how = winograd.install() if options.winograd else ""
    not_measured = []
    with tempfile.TemporaryDirectory() as cache:
        source = sources(options, cache)
        for recipe, seed in missing(options.recipes, options.seeds, options.retry):
            if recipe.data not in source:
                print(f"{recipe.name}: needs {'--cifar10' if recipe.data else '--photos'}", flush=True)
                continue
            print(f"{recipe.name}, seed {seed}", flush=True)
            try:
                check_images(recipe, source[recipe.data])
                measure(recipe, seed, source[recipe.data], options, how)
            except Exception as error:  # whatever it is, the others are measured
                print(f"{recipe.name}, seed {seed}: {error}", flush=True)
                not_measured.append(recipe.name)
                if isinstance(error, RECIPES_OWN):  # else it is of the data or the machine
                    keep(recipe, failure_of(seed, error, run_folder(recipe, seed, options)), "failed")
            write_all()
    if not_measured:
        raise SystemExit(f"Not measured: {', '.join(dict.fromkeys(not_measured))}.")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="all, where none is named")
    parser.add_argument("--cifar10", metavar="FOLDER", help="without it only recipes of other data are run")
    parser.add_argument("--photos", metavar="FOLDER", help="photographs, CLASS/*, for the recipe `folder`")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="runs/measured", help="the run folders")
    parser.add_argument("--page", action="store_true", help="run nothing: write the summary and the table anew")
    parser.add_argument("--retry", action="store_true", help="run those too that failed")
    parser.add_argument("--winograd", action="store_true", help=winograd.HELP)
    options = parser.parse_args()
    refuse_unknown(parser, "recipe", options.recipes, RECIPES)
    if not options.page:
        measure_all(options)
    write_all()


if __name__ == "__main__":
    main()

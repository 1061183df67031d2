"""Which means pay, on training images alone: python benchmarks/try_means.py FOLDER [--seeds N] [MEANS ...]

A narrow custom ResNet is trained on 10,000 of CIFAR-10's training images and judged on 5,000 others; the test set is
not looked at. "As it is" are the settings that `custom-resnet-fast` had first, with an average of weights; each other
trial differs from them in the one thing that its name says. Records go to
docs/evidence/trials.json and into the table of docs/recipes.md; stopped anywhere, the same command goes on. FOLDER
holds CIFAR-10 as train/CLASS/*.png and test/CLASS/*.png. With --page nothing is run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import filled
from measure_recipes import PAGE, RECORDS, record_of

from vision_wrapper import data, recipes
from vision_wrapper._files import read_json, write_json, write_text
from vision_wrapper.recipes import RECIPES, evidence
from vision_wrapper.recipes.repeat import mean_interval
from vision_wrapper.trainer import EpochLog

TRIALS = RECORDS / "trials.json"
TRAINED, JUDGED = 10_000, 5_000  # of the 50,000 training images
NARROW = (16, 32, 64, 128)  # a sixteenth of the network's work
EPOCHS = 6
HALF = EPOCHS / 2

BASE = RECIPES["custom-resnet-fast"].changed(
    name="trial",
    data="",
    model_args={"widths": NARROW},
    batch_size=128,
    epochs=EPOCHS,
    ema=0.99,
    expected=None,
    goal=None,
)
# What each trial changes.
MEANS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without label smoothing": {"label_smoothing": 0.0},
    "without the average of weights": {"ema": None},
    "without head scale": {"head_scale": 1.0},
    "weight decay on norms and biases too": {
        "groups": {**(BASE.groups or {}), "norms_biases_decay": 5e-4},
    },
    "random flip, black padding": {"augment": "crop_flip"},
    "with cutout": {"augment": "crop_alternating_flip_cutout", "augment_args": {"hole_size": 8}},
    "with mixup": {"augment": "crop_alternating_flip_mixup"},
    "with cutmix": {"augment": "crop_alternating_flip_cutmix"},
    "lookahead for the average": {"ema": None, "lookahead": {"steps": 5, "share": 0.5}},
    "Muon": {
        "optimizer": "muon", "optimizer_args": {},
        "schedule_args": {**BASE.schedule_args, "max_lr": 0.24, "min_lr": 0.01},
    },
    "ghost batch norm": {"model_args": {"widths": NARROW, "norm": "ghost"}},
    "CELU": {"model_args": {"widths": NARROW, "activation": "celu"}},
    "GELU": {"model_args": {"widths": NARROW, "activation": "gelu"}},
    "Dirac initialisation": {"model_args": {"widths": NARROW, "init": "dirac"}},
    "progressive size": {"progressive_size": ((0, 0.75), (HALF, 1.0))},
}  # fmt: skip


def training_images_alone(folder: str, cache: str) -> data.ImageData:
    """A part of the training images to train on, and another one in place of the test set."""
    images = data.cached(data.load(folder), cache)
    order = np.random.default_rng(0).permutation(len(images.train))
    parts = order[:TRAINED], order[TRAINED : TRAINED + JUDGED]
    train, judged = (data.Subset(images.train, np.sort(part)) for part in parts)
    return data.ImageData("cifar10's training images", train, judged, images.classes)


def kept_runs() -> list[dict[str, Any]]:
    """The records of trials as they are now defined."""
    kept = read_json(TRIALS) if TRIALS.exists() else {"runs": []}
    return [run for run in kept["runs"] if run["settings"] == settings_of(run["trial"])]


def settings_of(trial: str) -> str | None:
    """A digest of what a trial runs; None for one that is no more."""
    if trial not in MEANS:
        return None
    settings = evidence.settings_of(BASE.changed(**MEANS[trial]))
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def keep(record: dict[str, Any]) -> None:
    write_json(TRIALS, {"runs": [*kept_runs(), {**record, "settings": settings_of(record["trial"])}]})
    write_page()


def write_page() -> None:
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), "tried", generated()))


def generated() -> Iterator[str]:
    """The table: held-out accuracy of each trial, and the paired difference from the base."""
    found: dict[str, dict[int, float]] = {name: {} for name in MEANS}
    runs = kept_runs()
    for run in runs:
        found[run["trial"]][run["seed"]] = run["accuracy"]
    yield "| what is different | held-out accuracy, % | difference, points | seeds |"
    yield "|---|---:|---:|---:|"
    base = found["as it is"]
    for name, values in found.items():
        if not values:
            yield f"| {name} | not tried | | |"
            continue
        mean = 100 * sum(values.values()) / len(values)
        common = sorted(base.keys() & values.keys())
        said = "" if name == "as it is" else difference([values[s] - base[s] for s in common])
        yield f"| {name} | {mean:.2f} | {said} | {len(values)} |"
    if runs:
        yield f"\n{runs[-1]['hardware']}; torch {runs[-1]['torch']}; [records](evidence/trials.json)"


def difference(values: list[float]) -> str:
    if not values:
        return "no seed in common"
    mean, interval = 100 * sum(values) / len(values), mean_interval(values, 1 / JUDGED)
    if interval is None:
        return f"{mean:+.2f}, not shown"
    low, high = (100 * bound for bound in interval)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" + (", not shown" if low <= 0 <= high else "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("means", nargs="*", metavar="MEANS", help="all, where none is named")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/trials", help="the run folders")
    parser.add_argument("--page", action="store_true", help="run nothing: write the table anew")
    options = parser.parse_args()
    if not options.page:
        if options.folder is None:
            parser.error("FOLDER is needed: CIFAR-10 as train/CLASS/*.png and test/CLASS/*.png")
        with tempfile.TemporaryDirectory() as cache:
            images = training_images_alone(options.folder, cache)
            for seed in range(options.seeds):
                for name in options.means or MEANS:
                    if any(run["trial"] == name and run["seed"] == seed for run in kept_runs()):
                        continue
                    print(f"{name}, seed {seed}", flush=True)
                    plan = BASE.changed(**MEANS[name])
                    out = Path(options.out) / name.replace(" ", "-") / f"seed-{seed}"
                    result = recipes.run(plan, images, out=out, callbacks=[EpochLog()], seed=seed)
                    if not result.finished:
                        raise SystemExit("Interrupted: the same command goes on.")
                    keep({"trial": name, **record_of(result, "10,000 and 5,000 of CIFAR-10's training images")})
    write_page()


if __name__ == "__main__":
    main()

"""Which means pay, on training images alone: python benchmarks/try_means.py STUDY FOLDER [--seeds N] [TRIAL ...]

A network, narrow but in the study "wide", is trained on a part of CIFAR-10's training images and judged on another; the
test set is not looked at. Each trial differs from "as it is" in what its name says: in the studies "short" (6 epochs of
10,000 images) and "whole" (the recipe's own 10 epochs of 45,000) from the settings that `custom-resnet-fast` had first,
in "wide" (40,000) from its own but for the head's rate, in "whitened" from those of `speedrun`, in "adam-peak" and
"sgd-peak" (8 epochs of 45,000) from those of `custom-resnet-onecycle` and `custom-resnet-sgd`, with peaks of their own.
Records go to docs/evidence/trials.json and into the tables of docs/trials.md; stopped anywhere, the same command goes
on. FOLDER holds CIFAR-10 as train/CLASS/*.png and test/CLASS/*.png. With --page nothing is run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import winograd
from measure import filled, refuse_unknown
from measure_recipes import DOCS, RECORDS, NoteStart, digest, digest_of, own_settings, record_of

from vision_wrapper import data, recipes
from vision_wrapper._files import read_json, write_text
from vision_wrapper.errors import NonFiniteLossError
from vision_wrapper.recipes import Recipe
from vision_wrapper.recipes.evidence import check_one_data, mean_interval, resolved, same_meaning
from vision_wrapper.recipes.identity import content_of
from vision_wrapper.trainer import EpochLog

TRIALS = RECORDS / "trials.json"
OTHERWISE = "made otherwise"  # says a row that was computed in another way than its base
PAGE = DOCS / "trials.md"
BASE = "as it is"  # the trial that the others are compared with
NARROW = (16, 32, 64, 128)  # a sixteenth of the network's work


@dataclass(frozen=True)
class Study:
    """Trials of one base: training images to train on, to judge on, the seed that parts them, and what is changed.

    `closed` says why it can no more be gone on with, where the code has changed what the settings do.
    """

    trained: int
    judged: int
    split: int
    base: Recipe
    trials: dict[str, dict[str, Any]]
    closed: str = ""

    def plan(self, trial: str) -> Recipe:
        return self.base.changed(**self.trials[trial])

    @property
    def data(self) -> str:
        return f"{self.trained:,} and {self.judged:,} of CIFAR-10's training images"

    @property
    def parts(self) -> list[Any]:
        """What decides what a trial reaches, beside its settings: the images, and code that is no more."""
        return [self.trained, self.judged, self.split, self.closed]

    def digest(self, trial: str) -> str:
        return digest_of({"plan": digest(self.plan(trial)), "parts": self.parts})

    def meaning(self, trial: str) -> dict[str, Any]:
        """All that decides what a trial reaches, as it is kept."""
        plan = self.plan(trial)
        return {"parts": self.parts, "settings": own_settings(plan), "resolved": resolved(plan)}

    def still_has(self, trial: str, meaning: dict[str, Any]) -> bool:
        """Whether a trial is still what it was; fields and arguments that came later have their default in it."""
        return trial in self.trials and meaning["parts"] == self.parts and same_meaning(meaning, self.plan(trial))


# What custom-resnet-fast was at first, written out: a change of a recipe is none of the trials.
FIRST = Recipe(
    "trial",
    "A narrow custom ResNet with Nesterov SGD.",
    data="",
    model_args={"widths": NARROW},
    head_scale=0.125,
    optimizer="sgd",
    lr=0.5,
    optimizer_args={"momentum": 0.9, "nesterov": True},
    groups={"weight_decay": 5e-4},
    schedule="one_cycle",
    schedule_args={"max_lr": 0.5, "min_lr": 0.02, "final_lr": 0.0, "peak_epoch": 2},
    epochs=10,
    augment="crop_alternating_flip",
    label_smoothing=0.2,
    drop_last=True,
    tta="flip_shift",
)
# custom-resnet-fast at its full width, but for the head: it learns at the rate that the narrow network chose.
WIDE = FIRST.changed(
    description="The custom ResNet with Muon, its filters beginning as identities.",
    model_args={"init": "dirac"},
    optimizer="muon",
    optimizer_args={},
    groups={"body_lr": 0.08, "weight_decay": 5e-4},
    schedule="linear",
    schedule_args={},
)
# What speedrun is: half the images in batches half as large, so that it makes as many steps.
WHITENED = Recipe(
    "trial",
    "A narrow network whose first layer is whitened, with Muon.",
    data="",
    model="whitened_convnet",
    model_args={"widths": (32, 64, 64)},
    whiten=True,
    head_scale=1 / 9,
    optimizer="muon",
    lr=1.66,
    groups={"body_lr": 0.24, "norms_biases_lr": 106.0, "weight_decay": 2.4e-3},
    schedule="linear",
    batch_size=1000,
    epochs=8,
    augment="crop_alternating_flip",
    augment_args={"pad": 2},
    label_smoothing=0.2,
    drop_last=True,
    tta="flip_shift",
)
# What custom-resnet-onecycle and custom-resnet-sgd are, in 8 epochs and with peaks of their own.
ADAM_PEAK = Recipe(
    "trial",
    "A narrow custom ResNet with Adam and the assignment's cycle.",
    model_args={"widths": NARROW},
    optimizer="adam",
    lr=0.01,
    optimizer_args={"weight_decay": 1e-4},
    schedule="one_cycle",
    schedule_args={"max_lr": 0.01, "min_lr": 0.001, "peak_epoch": 5 * (8 / 24), "annihilate": False},
    epochs=8,
    augment="crop_flip_cutout",
    tta="flip",
)
SGD_PEAK = Recipe(
    "trial",
    "A narrow custom ResNet with SGD and one cosine cycle.",
    model_args={"widths": NARROW, "bias": True},
    optimizer="sgd",
    lr=0.01,
    optimizer_args={"momentum": 0.9},
    schedule="one_cycle",
    schedule_args={"max_lr": 0.1, "peak_epoch": 5 * (8 / 24), "anneal": "cos"},
    epochs=8,
    augment="crop_flip_holes",
    tta="flip",
)
_MUON = {"optimizer": "muon", "optimizer_args": {}}
# Muon's rate falls from the first step, as in airbench; norms and biases have it too, the head keeps SGD's.
_MUON_LINEAR = {**_MUON, "schedule": "linear", "schedule_args": {}}
_MUON_08 = {**_MUON_LINEAR, "groups": {"body_lr": 0.08, "weight_decay": 5e-4}}
_SHORT = FIRST.changed(batch_size=128, epochs=6, ema=0.99)
_SHORT_MUON = {**_MUON, "schedule_args": {**_SHORT.schedule_args, "max_lr": 0.24, "min_lr": 0.01}}
_CUTOUT = {"augment": "crop_alternating_flip_cutout", "augment_args": {"hole_size": 8}}
STUDIES = {
    "short": Study(
        10_000,
        5_000,
        0,
        _SHORT,
        {
            BASE: {},
            "without label smoothing": {"label_smoothing": 0.0},
            "without the average of weights": {"ema": None},
            "without head scale": {"head_scale": 1.0},
            "weight decay on norms and biases too": {
                "groups": {**(_SHORT.groups or {}), "norms_biases_decay": 5e-4},
            },
            "random flip, black padding": {"augment": "crop_flip"},
            "with cutout": _CUTOUT,
            "with mixup": {"augment": "crop_alternating_flip_mixup"},
            "with cutmix": {"augment": "crop_alternating_flip_cutmix"},
            "lookahead for the average": {"ema": None, "lookahead": {"steps": 5, "share": 0.5}},
            "Muon": _SHORT_MUON,
            "ghost batch norm": {"model_args": {"widths": NARROW, "norm": "ghost"}},
            "CELU": {"model_args": {"widths": NARROW, "activation": "celu"}},
            "GELU": {"model_args": {"widths": NARROW, "activation": "gelu"}},
            "Dirac initialisation": {"model_args": {"widths": NARROW, "init": "dirac"}},
            "progressive size": {"progressive_size": ((0, 0.75), (3, 1.0))},
            "together: Muon, without the average": {**_SHORT_MUON, "ema": None},
            "together: Muon, without the average, with cutout": {**_SHORT_MUON, "ema": None, **_CUTOUT},
            "together: CELU, ghost batch norm, decay on norms and biases, without the average": {
                "ema": None,
                "groups": {**(_SHORT.groups or {}), "norms_biases_decay": 5e-4},
                "model_args": {"widths": NARROW, "activation": "celu", "norm": "ghost"},
            },
            "together: Muon, CELU, progressive size, without the average": {
                **_SHORT_MUON,
                "ema": None,
                "model_args": {"widths": NARROW, "activation": "celu"},
                "progressive_size": ((0, 0.75), (3, 1.0)),
            },
        },
        closed="the average of weights began at the random weights, and now begins as a plain mean",
    ),
    "whole": Study(
        45_000,
        5_000,
        1,
        FIRST,
        {
            BASE: {},
            "Muon, filters 0.08": _MUON_08,
            "Muon, filters 0.08, norms and biases 0.5": {
                **_MUON_LINEAR,
                "groups": {"body_lr": 0.08, "norms_biases_lr": 0.5, "weight_decay": 5e-4},
            },
            "Muon, filters 0.16": {**_MUON_LINEAR, "groups": {"body_lr": 0.16, "weight_decay": 5e-4}},
            "Muon, filters 0.08, Dirac initialisation": {
                **_MUON_08,
                "model_args": {"widths": NARROW, "init": "dirac"},
            },
            "Muon, filters 0.08, cutout": {**_MUON_08, **_CUTOUT},
            "Muon, filters 0.08, CELU": {**_MUON_08, "model_args": {"widths": NARROW, "activation": "celu"}},
        },
    ),
    "wide": Study(
        40_000,
        10_000,
        3,
        WIDE,
        {
            BASE: {},
            "CELU": {"model_args": {"init": "dirac", "activation": "celu"}},
            "ghost batch norm": {"model_args": {"init": "dirac", "norm": "ghost"}},
            "cutout": _CUTOUT,
            "head at 0.125": {"lr": 0.125},
            "head at 0.03": {"lr": 0.03},
            "head at 0.03, cutout": {"lr": 0.03, **_CUTOUT},
        },
    ),
    "whitened": Study(
        25_000,
        5_000,
        2,
        WHITENED,
        {
            BASE: {},
            "without whitening": {"whiten": False},
            "random flip": {"augment": "crop_flip", "augment_args": {"pad": 2, "pad_mode": "reflect"}},
            "black padding": {"augment_args": {"pad": 2, "pad_mode": "constant"}},
            "without label smoothing": {"label_smoothing": 0.0},
            "norms and biases at the filters' rate": {"groups": {"body_lr": 0.24, "weight_decay": 2.4e-3}},
        },
    ),
    "adam-peak": Study(
        45_000,
        5_000,
        1,
        ADAM_PEAK,
        {
            BASE: {},
            **{
                f"peak {rate:g}": {"schedule_args": {**ADAM_PEAK.schedule_args, "max_lr": rate, "min_lr": rate / 10}}
                for rate in (6e-5, 3e-4, 2e-3, 3e-2, 1e-1)
            },
        },
    ),
    "sgd-peak": Study(
        45_000,
        5_000,
        1,
        SGD_PEAK,
        {
            BASE: {},
            **{
                f"peak {rate:g}": {"schedule_args": {**SGD_PEAK.schedule_args, "max_lr": rate}}
                for rate in (4e-3, 2e-2, 4e-1)
            },
        },
    ),
}


def training_images_alone(study: Study, folder: str, cache: str) -> data.ImageData:
    """A part of the training images to train on, and another one in place of the test set."""
    images = data.cached(data.load(folder), cache)
    order = np.random.default_rng(study.split).permutation(len(images.train))
    parts = order[: study.trained], order[study.trained : study.trained + study.judged]
    train, judged = (data.Subset(images.train, np.sort(part)) for part in parts)
    return data.ImageData("cifar10's training images", train, judged, images.classes)


def kept() -> dict[str, Any]:
    """All `runs`, also of trials that are no more or are others now, and by their digest what they were runs of."""
    return read_json(TRIALS) if TRIALS.exists() else {"runs": [], "meanings": {}}


def kept_runs() -> list[dict[str, Any]]:
    """The records of trials as they are now defined."""
    found = kept()
    return [
        run
        for run in found["runs"]
        if run["study"] in STUDIES and STUDIES[run["study"]].still_has(run["trial"], found["meanings"][run["settings"]])
    ]


def keep(record: dict[str, Any]) -> None:
    study, found = STUDIES[record["study"]], kept()
    settings = study.digest(record["trial"])
    meanings = {**found["meanings"], settings: study.meaning(record["trial"])}
    write_text(TRIALS, in_lines({"runs": [*found["runs"], {**record, "settings": settings}], "meanings": meanings}))
    write_page()


def in_lines(found: dict[str, Any]) -> str:
    """What `kept` gives as JSON, a line for each run and each meaning."""
    runs = ",\n".join(json.dumps(run) for run in found["runs"])
    meanings = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found["meanings"].items())
    return f'{{"runs": [\n{runs}\n],\n"meanings": {{\n{meanings}\n}}}}\n'


def write_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for study in STUDIES:
        text = filled(text, f"tried, {study}", generated(study))
    write_text(PAGE, text)


def generated(study: str) -> Iterator[str]:
    """The table: held-out accuracy of each trial, and the paired difference from the base."""
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in STUDIES[study].trials}
    runs = [run for run in kept_runs() if run["study"] == study]
    check_one_data(runs)
    for run in runs:
        found[run["trial"]][run["seed"]] = run
    yield "| what is different | held-out accuracy, % | difference, points | seeds |"
    yield "|---|---:|---:|---:|"
    rows = [_row(name, tried, found[BASE], STUDIES[study].judged) for name, tried in found.items()]
    yield from rows
    if any(OTHERWISE in row for row in rows):
        why = "in another number format than its base, or by other convolutions, on one seed at least"
        yield f"\n{OTHERWISE.capitalize()}: {why}."
    if STUDIES[study].closed:
        yield f"\nClosed: {STUDIES[study].closed}."
    for hardware, version in sorted({(run["hardware"], run["torch"]) for run in runs}):
        yield f"\n{hardware}; torch {version}; [records](evidence/trials.json)"


def _row(name: str, tried: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]], judged: int) -> str:
    """A trial's mean and difference, both over the seeds that the base has too: else they would not go together."""
    if not tried:
        return f"| {name} | not tried | | |"
    common = sorted(base.keys() & tried.keys())
    seeds = common or sorted(tried)
    mean = 100 * sum(tried[seed]["accuracy"] for seed in seeds) / len(seeds)
    differences = [tried[seed]["accuracy"] - base[seed]["accuracy"] for seed in common]
    said = "" if name == BASE else difference(differences, judged)
    alike = all(tried[seed]["hardware"] == base[seed]["hardware"] for seed in common)
    return f"| {name} | {mean:.2f} | {said} | {len(seeds)}{'' if alike else f', {OTHERWISE}'} |"


def difference(values: list[float], judged: int) -> str:
    if not values:
        return "no seed in common"
    mean, interval = 100 * sum(values) / len(values), mean_interval(values, 1 / judged)
    if interval is None:
        return f"{mean:+.2f}, not shown"
    low, high = (100 * bound for bound in interval)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" + (", not shown" if low <= 0 <= high else "")


def run_all(options: argparse.Namespace) -> None:
    """Run the trials that have no record, one seed of all before the next."""
    study = STUDIES[options.study]
    if study.closed:
        raise SystemExit(f"The study {options.study!r} is closed: {study.closed}.")
    how, diverged = winograd.install() if options.winograd else "", []
    with tempfile.TemporaryDirectory() as cache:
        images = training_images_alone(study, options.folder, cache)
        earlier = [run for run in kept_runs() if run["study"] == options.study]
        check_one_data([*earlier, {"content": content_of(images)}])
        for name, seed in missing(options):
            print(f"{options.study}: {name}, seed {seed}", flush=True)
            plan = study.plan(name)
            out = Path(options.out) / options.study / study.digest(name) / f"seed-{seed}"
            callbacks = [EpochLog(), NoteStart(out, how)]
            try:
                result = recipes.run(plan, images, out=out, callbacks=callbacks, seed=seed)
            except NonFiniteLossError as error:
                print(f"{name}, seed {seed}: {error}", flush=True)
                diverged.append(f"{name}, seed {seed}")
                continue
            if not result.finished:
                raise SystemExit("Interrupted: the same command goes on.")
            keep({"study": options.study, "trial": name, **record_of(result, study.data)})
    if diverged:
        raise SystemExit(f"Diverged, which the page has to say by hand: {'; '.join(diverged)}.")


def missing(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """The trials and seeds without a record; the base goes along with those named, to be compared with."""
    for seed in range(options.seeds):
        for name in dict.fromkeys([BASE, *(options.trials or STUDIES[options.study].trials)]):
            if not any((r["study"], r["trial"], r["seed"]) == (options.study, name, seed) for r in kept_runs()):
                yield name, seed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", nargs="?", choices=STUDIES)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help="all, where none is named; the base goes along")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/trials", help="the run folders")
    parser.add_argument("--winograd", action="store_true", help=winograd.HELP)
    parser.add_argument("--page", action="store_true", help="run nothing: write the tables anew")
    options = parser.parse_args()
    if not options.page:
        if options.folder is None:
            parser.error("STUDY and FOLDER are needed: CIFAR-10 as train/CLASS/*.png and test/CLASS/*.png")
        refuse_unknown(parser, f"trial of {options.study}", options.trials, STUDIES[options.study].trials)
        run_all(options)
    write_page()


if __name__ == "__main__":
    main()

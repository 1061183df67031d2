"""The learning rate finder's curves behind its `max_lr`: python benchmarks/lr_curves.py FOLDER

The finder is run with the settings of the studies "adam-peak" and "sgd-peak" of try_means.py, on their training images,
and with the whole `custom-resnet-onecycle`. The curves go to docs/evidence/lr_finder.json and what they give into a
table of docs/trials.md. FOLDER holds CIFAR-10 as train/CLASS/*.png and test/CLASS/*.png. With --page nothing is run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from typing import Any

from measure import filled, machine, rounded
from measure_recipes import RECORDS
from try_means import PAGE, STUDIES, training_images_alone

from vision_wrapper import data, recipes
from vision_wrapper._files import read_json, write_text

CURVES = RECORDS / "lr_finder.json"
RECIPE = "custom-resnet-onecycle"
SEEDS = {"adam-peak": (0, 1), "sgd-peak": (0, 1), RECIPE: (0,)}
HEADS = {"adam-peak": "Adam, two seeds", "sgd-peak": "SGD, two seeds", RECIPE: f"the whole `{RECIPE}`"}


def curves(folder: str) -> Iterator[dict[str, Any]]:
    """The finder's curve of each setting and seed."""
    for settings, seeds in SEEDS.items():
        with tempfile.TemporaryDirectory() as cache:
            if settings in STUDIES:
                images, plan = training_images_alone(STUDIES[settings], folder, cache), STUDIES[settings].base
            else:
                images, plan = data.cached(data.load(folder), cache), recipes.RECIPES[settings]
            for seed in seeds:
                curve = recipes.find_lr(plan, images, seed=seed)
                print(f"{settings}, seed {seed}: {curve.reason}", flush=True)
                yield {
                    "settings": settings,
                    "seed": seed,
                    "suggestion": curve.suggestion,
                    "max_lr": curve.max_lr,
                    "lrs": [rounded(rate) for rate in curve.lrs],
                    "losses": [rounded(loss) for loss in curve.losses],
                }


def generated() -> Iterator[str]:
    """The table of what the kept curves give."""
    kept = read_json(CURVES)
    yield f"| what the finder gives | {' | '.join(HEADS[settings] for settings in SEEDS)} |"
    yield f"|---|{'---|' * len(SEEDS)}"
    for what, name in (("the steepest point", "suggestion"), ("a fifth of the lowest point's rate", "max_lr")):
        cells = (", ".join(f"{c[name]:.2g}" for c in kept["curves"] if c["settings"] == each) for each in SEEDS)
        yield f"| {what} | {' | '.join(cells)} |"
    made_on = f"{kept['machine']['processor']}, {kept['machine']['threads']} threads; torch {kept['machine']['torch']}"
    yield f"\n{made_on}; [curves](evidence/lr_finder.json)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--page", action="store_true", help="run nothing: write the table anew")
    options = parser.parse_args()
    if not options.page:
        if options.folder is None:
            parser.error("FOLDER is needed: CIFAR-10 as train/CLASS/*.png and test/CLASS/*.png")
        found = list(curves(options.folder))
        lines = ",\n".join(json.dumps(curve) for curve in found)
        write_text(CURVES, f'{{"machine": {json.dumps(machine())},\n"curves": [\n{lines}\n]}}\n')
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), "lr finder", generated()))


if __name__ == "__main__":
    main()

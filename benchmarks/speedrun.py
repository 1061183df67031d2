"""Seconds of training to a test accuracy on CIFAR-10, on a GPU: python benchmarks/speedrun.py FOLDER [--runs N]

The recipe `speedrun`, and the 94% script of the package `airbench` (pip install airbench), on the same GPU, in turn.
Accuracies are the last epoch's with flips and shifts averaged, as airbench's default is. A first run of each, which
compiles and chooses algorithms, does not count. FOLDER holds train/CLASS and test/CLASS.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import save, spread

import vision_wrapper as vw
from vision_wrapper import data, recipes
from vision_wrapper.recipes.run import loaders_of, model_of, trainer_of
from vision_wrapper.trainer.precision import choose_device


def in_memory(folder: str, cache: str, limit: int | None) -> data.ImageData:
    images = data.cached(data.load(folder), cache)
    if limit is None:
        return images
    train, test = (
        data.Subset(split, np.linspace(0, len(split) - 1, min(limit, len(split))).astype(int))
        for split in (images.train, images.test)
    )
    return data.ImageData(images.name, train, test, images.classes)


def ours(images: data.ImageData, plan: recipes.Recipe, seed: int) -> tuple[float, float]:
    """(seconds of training, accuracy). The clock starts with the raw images on the GPU, as airbench's does."""
    torch.backends.cudnn.benchmark = False  # airbench sets it when it is imported, the library never
    vw.seed_everything(seed)
    plan = plan.changed(seed=seed)
    loaders = loaders_of(plan, images)
    loaders.train.device = choose_device()
    next(loaders.train.batches(0))
    wait(loaders.train.device)
    started = time.perf_counter()
    trainer = trainer_of(plan, *model_of(plan, len(images.classes)), loaders, callbacks=[])
    trainer.fit(loaders.train, epochs=plan.epochs, schedule=plan.build_schedule())
    wait(trainer.device)
    return time.perf_counter() - started, trainer.predict(loaders.test, tta=plan.tta).accuracy()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def write_for_airbench(images: data.ImageData, folder: Path) -> None:
    """The files that airbench else makes from a download."""
    (folder / "cifar10").mkdir()
    for name, split in (("train", images.train), ("test", images.test)):
        content = {
            "images": torch.from_numpy(split.images.copy()),  # type: ignore[attr-defined]
            "labels": torch.from_numpy(split.labels),
            "classes": list(images.classes),
        }
        torch.save(content, folder / "cifar10" / f"{name}.pt")


def airbench_run() -> tuple[float, float]:
    """(seconds of training, accuracy), without the time in which it reads its data."""
    import airbench

    torch.backends.cudnn.benchmark = True  # as it sets it when it is imported
    settings = airbench.lib_airbench94.hyp
    train = airbench.CifarLoader(
        "cifar10", train=True, batch_size=settings["opt"]["batch_size"], aug=settings["aug"], altflip=True
    )
    started = synchronised()
    test = airbench.CifarLoader("cifar10", train=False)  # train94 makes one too
    reading = synchronised() - started
    started = synchronised()
    model = airbench.train94(train_loader=train, verbose=False)
    seconds = synchronised() - started - reading
    return seconds, airbench.evaluate(model, test, tta_level=2)


def synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="train and test on so many images, to try the script")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        images = in_memory(os.path.abspath(options.folder), f"{place}/cache", options.limit)
        changes = {"epochs": options.epochs, "batch_size": options.batch_size}
        plan = recipes.RECIPES["speedrun"].changed(**{k: v for k, v in changes.items() if v is not None})
        contestants = {"vision-wrapper": partial(ours, images, plan)}
        if torch.cuda.is_available() and options.limit is None:
            write_for_airbench(images, Path(place))
            os.chdir(place)
            contestants["airbench94"] = lambda seed: airbench_run()
        found = {name: [] for name in contestants}
        for seed in range(options.runs + 1):
            for name, run in contestants.items():
                found[name].append(run(seed))
                print(f"{name} run {seed}: {found[name][-1][0]:.2f} s, {found[name][-1][1]:.2%}", flush=True)
    counted = {name: values[1:] or values for name, values in found.items()}
    result = {
        name: {
            "seconds": spread([seconds for seconds, _ in values]),
            "mean accuracy": statistics.fmean(accuracy for _, accuracy in values),
            "standard deviation": statistics.stdev(a for _, a in values) if len(values) > 1 else None,
            "runs": len(values),
        }
        for name, values in counted.items()
    }
    if options.limit is None:
        save("speedrun", result)


if __name__ == "__main__":
    main()

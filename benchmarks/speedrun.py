"""Seconds of training to a test accuracy on CIFAR-10, on a GPU: python benchmarks/speedrun.py FOLDER [--runs N]

The custom ResNet for ten epochs, by this library, and the 94% script of the package `airbench` (pip install airbench)
on the same GPU, in turn. Accuracies are the last epoch's, ours with flips averaged, airbench's by its own default. A
first run of each, which compiles and chooses algorithms, does not count. FOLDER holds train/CLASS and test/CLASS.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from measure import save, spread

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.trainer import Trainer, schedules
from vision_wrapper.trainer.precision import choose_device

HEAD_SCALE = 0.125  # of the logits, in the form of weights, rate and decay (Page 2018)
PEAK_LR, WEIGHT_DECAY = 0.5, 5e-4


def in_memory(folder: str, cache: str, limit: int | None) -> data.ImageData:
    images = data.cached(data.load(folder), cache)
    if limit is None:
        return images
    some = {name: data.Subset(split, range(0, len(split), len(split) // limit)) for name, split in images.splits()}
    return data.ImageData(images.name, some["train"], some["test"], images.classes)


def optimizer_of(model: models.CustomResNet) -> torch.optim.Optimizer:
    """Convolutions with weight decay, norms without, and a head whose logits begin smaller."""
    head = {id(p) for p in model.fc.parameters()}
    with torch.no_grad():
        for parameter in model.fc.parameters():
            parameter.mul_(HEAD_SCALE)
    body = [p for p in model.parameters() if id(p) not in head]
    groups = [
        {"params": [p for p in body if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in body if p.ndim == 1]},
        {"params": list(model.fc.parameters()), "lr": PEAK_LR * HEAD_SCALE**2},
    ]
    return torch.optim.SGD(groups, lr=PEAK_LR, momentum=0.9, nesterov=True, fused=True)


def ours(images: data.ImageData, batch_size: int, epochs: int, seed: int) -> tuple[float, float]:
    """(seconds of training, accuracy). The clock starts with the raw images on the GPU, as airbench's does."""
    torch.backends.cudnn.benchmark = False  # airbench sets it when it is imported, the library never
    vw.seed_everything(seed)
    loaders = data.make_loaders(images, "crop_alternating_flip", batch_size, drop_last=True, seed=seed)
    loaders.train.device = choose_device()
    next(loaders.train.batches(0))
    wait(loaders.train.device)
    started = time.perf_counter()
    model = models.CustomResNet(num_classes=10)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.2)
    trainer = Trainer(model, optimizer_of(model), loss, callbacks=[])
    schedule = schedules.one_cycle(max_lr=PEAK_LR, min_lr=PEAK_LR / 25, final_lr=1e-5, peak_epoch=epochs / 5)
    trainer.fit(loaders.train, epochs=epochs, schedule=schedule)
    wait(trainer.device)
    return time.perf_counter() - started, trainer.predict(loaders.test, tta="flip").accuracy()


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
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="train and test on so many images, to try the script")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        images = in_memory(os.path.abspath(options.folder), f"{place}/cache", options.limit)
        contestants = {"vision-wrapper": partial(ours, images, options.batch_size, options.epochs)}
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

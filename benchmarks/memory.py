"""Memory and time as data sets grow, and the peak of a training step: python benchmarks/memory.py

- Folders of 1,000 to 1,000,000 image files (links to a hundred PNG files of 32x32): what listing them takes, and how
  much the process and its two workers grow over 60 batches of 64.
- Arrays of 1,000 to 1,000,000 images of 8x8: what a loader adds to them, and a batch's time.
- The peak of three training steps of the custom ResNet, of fit and of a bare loop, each in a new process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from measure import save
from PIL import Image

from vision_wrapper import data

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
WARM, BATCHES, BATCH_SIZE, ORIGINALS = 10, 60, 64, 100

PEAK = """
import resource, sys, torch
from vision_wrapper import models
from vision_wrapper.trainer import Trainer
model = models.CustomResNet(num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
batches = [(torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,)))] * 3
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "fit":
    Trainer(model, optimizer, callbacks=[], device="cpu", precision="fp32").fit(batches, epochs=1)
else:
    for inputs, targets in batches:
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def megabytes() -> float:
    """Of this process and its children: their own pages, and their part of shared ones."""
    processes = [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
    found = 0
    for process in processes:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found / 1024


def linked_files(folder: Path, count: int) -> None:
    """Two classes of links to a few image files."""
    random = np.random.default_rng(0)
    originals = []
    for number in range(ORIGINALS):
        originals.append(folder / f"original{number}.png")
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(originals[-1])
    for name in "ab":
        (folder / "images" / name).mkdir(parents=True)
    for number in range(count):
        os.link(originals[number % ORIGINALS], folder / "images" / "ab"[number % 2] / f"{number}.png")


def folder_run(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        linked_files(Path(place), count)
        before, started = megabytes(), time.perf_counter()
        images = data.load(Path(place) / "images")
        listed, seconds = megabytes(), time.perf_counter() - started
        preprocess = data.Preprocess((32, 32), 3, (0.5,) * 3, (0.25,) * 3)
        loader = data.make_loaders(images, "crop_flip", BATCH_SIZE, preprocess=preprocess, num_workers=2).train
        passes = (batch for epoch in range(100) for batch in loader.batches(epoch))
        list(islice(passes, WARM))
        warm = megabytes()
        list(islice(passes, BATCHES))
        return {"listing, s": seconds, "listing, MB": listed - before, f"{BATCHES} batches, MB": megabytes() - warm}


def array_run(count: int) -> dict[str, float]:
    pixels = np.zeros((count, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(count) % 10
    images = data.from_arrays((pixels, labels), (pixels[:10], labels[:10]))
    before = megabytes()
    preprocess = data.Preprocess((8, 8), 3, (0.5,) * 3, (0.25,) * 3)
    loader = data.make_loaders(images, "crop_flip", BATCH_SIZE, preprocess=preprocess).train
    passes = (batch for epoch in range(100) for batch in loader.batches(epoch))
    list(islice(passes, WARM))
    started = time.perf_counter()
    list(islice(passes, BATCHES))
    seconds = (time.perf_counter() - started) / BATCHES
    return {"images, MB": pixels.nbytes / 2**20, "loader, MB": megabytes() - before, "a batch, ms": 1000 * seconds}


def peak(how: str) -> float:
    run = [sys.executable, "-c", PEAK, how]
    return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in values.items()}


def main() -> None:
    result = {
        "folders": {f"{count:,} files": rounded(folder_run(count)) for count in COUNTS},
        "arrays": {f"{count:,} images": rounded(array_run(count)) for count in COUNTS},
        "peak of training steps, MB": rounded({"fit": peak("fit"), "bare loop": peak("bare")}),
    }
    save("memory", result)


if __name__ == "__main__":
    main()

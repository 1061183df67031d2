"""Images a second of the training loaders, one thread: whole batches, and albumentations image by image.

    python benchmarks/input_pipelines.py [AUGMENTATION]

Both pass over the same 5,000 random images of 32x32 in batches of 512, in turn, nine times. It prints medians with the
smallest and the largest, and the ratio of the medians.
"""

import json
import statistics
import sys
import time

import numpy as np
import torch

from vision_wrapper import data
from vision_wrapper.data import AUGMENTATIONS
from vision_wrapper.data.augment import _albumentations

IMAGES, ROUNDS = 5000, 9


def images_per_second(loader: data.Loader, epoch: int, channels_last: bool) -> float:
    started = time.perf_counter()
    for _ in loader.batches(epoch, channels_last=channels_last):
        pass
    return IMAGES / (time.perf_counter() - started)


def main() -> None:
    torch.set_num_threads(1)
    name = sys.argv[1] if len(sys.argv) > 1 else "crop_flip_cutout"
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(IMAGES) % 10
    images = data.from_arrays((pixels, labels), (pixels[:10], labels[:10]))
    preprocess = data.make_loaders(images).preprocess
    operations = [operation.compile((32, 32), preprocess.mean) for operation in AUGMENTATIONS[name]]
    loaders = {
        "whole batches": data.make_loaders(images, name, 512).train,
        "albumentations": data.make_loaders(images, _albumentations().Compose(operations), 512).train,
    }
    found: dict[str, list[float]] = {path: [] for path in loaders}
    for epoch in range(ROUNDS):  # in turn, so that a noisy machine disturbs both alike
        for path, loader in loaders.items():
            found[path].append(images_per_second(loader, epoch, channels_last=path == "whole batches"))
    summary = {
        path: {"median": round(statistics.median(v)), "least": round(min(v)), "most": round(max(v))}
        for path, v in found.items()
    }
    ratio = summary["whole batches"]["median"] / summary["albumentations"]["median"]
    print(json.dumps({"augmentation": name, "images_per_second": summary, "ratio": round(ratio, 1)}, indent=2))


if __name__ == "__main__":
    main()

"""Images a second of the input pipelines, in turn on one thread: python benchmarks/input_pipelines.py

- Images of 32x32 in memory: whole batches, the same augmentation by albumentations image by image, and torchvision's
  transforms on tensors, all to normalised float batches of 512.
- JPEG photographs of three sizes, decoded and resized to 224x224: ours, torchvision on PIL images and on tensors,
  albumentations with its default (which skips pixels) and with an averaging filter; and ours from the uint8 cache.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from measure import in_turn, ratios, save, spread
from PIL import Image

from vision_wrapper import data
from vision_wrapper.data import AUGMENTATIONS
from vision_wrapper.data.augment import Compiled, import_albumentations

IMAGES, ROUNDS, BATCH_SIZE = 5000, 9, 512
CHAINS = ("crop_flip", "crop_flip_cutout", "crop_alternating_flip_cutout", "crop_rotate_cutout", "crop_flip_mixup")
PHOTOGRAPHS = {(500, 375): 48, (1600, 1200): 12, (4000, 3000): 3}  # (width, height): how many
SIZE = 224


def rate(count: int, batches: Callable[[], Iterable]) -> Callable[[], float]:
    """Images a second of processor time."""

    def run() -> float:
        started = time.process_time()
        for _ in batches():
            pass
        return count / (time.process_time() - started)

    return run


def compare(contestants: dict[str, Callable[[], float]], ours: str) -> dict:
    found = in_turn(contestants, ROUNDS)
    return {
        "images a second": {name: spread(values) for name, values in found.items()},
        "ours over theirs": ratios(found, ours),
    }


# ---- images in memory


def arrays() -> data.ImageData:
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(IMAGES) % 10
    return data.from_arrays((pixels, labels), (pixels[:10], labels[:10]))


def in_memory(name: str) -> dict:
    images = arrays()
    ours = data.make_loaders(images, name, BATCH_SIZE)
    mean = ours.preprocess.mean
    operations = [o.compile((32, 32), mean) for o in AUGMENTATIONS[name] if isinstance(o, Compiled)]
    theirs = data.make_loaders(images, import_albumentations().Compose(operations), BATCH_SIZE).train
    contestants = {
        "whole batches": rate(IMAGES, lambda: ours.train.batches(0, channels_last=True)),
        "albumentations": rate(IMAGES, lambda: theirs.batches(0)),
    }
    if name == "crop_flip":
        contestants["torchvision on tensors"] = rate(IMAGES, lambda: torchvision_batches(images, ours.preprocess))
    return compare(contestants, "whole batches")


def torchvision_batches(images: data.ImageData, preprocess: data.Preprocess) -> Iterable[torch.Tensor]:
    from torchvision.transforms import v2

    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocess.mean, preprocess.std)])
    transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), normalise])
    pixels = torch.from_numpy(images.train.images).permute(0, 3, 1, 2)
    for first in range(0, IMAGES, BATCH_SIZE):
        yield torch.stack([transform(image) for image in pixels[first : first + BATCH_SIZE]])


# ---- photographs


def photographs(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    """JPEG files with structure of all scales, of the quality that cameras write."""
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        blots = random.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        large = np.asarray(Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = large + random.normal(0, 8, large.shape)
        label = folder / "train" / "ab"[number % 2]
        label.mkdir(parents=True, exist_ok=True)
        paths.append(str(label / f"{number}.jpg"))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return sorted(paths)


def from_files(size: tuple[int, int], count: int) -> dict:
    import cv2
    import torchvision
    from torchvision.transforms import v2

    cv2.setNumThreads(1)
    albumentations = import_albumentations()
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), size, count)
        Path(folder, "test").symlink_to(Path(folder, "train"))
        images = data.load(folder)
        loader = data.make_loaders(images, size=SIZE, num_workers=0, batch_size=8).test
        kept = data.make_loaders(data.cached(images, Path(folder) / "cache", SIZE), batch_size=8).test
        resize = v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE)])
        averaging = {"interpolation": cv2.INTER_AREA}

        def albumentations_with(**how: int) -> Callable[[str], np.ndarray]:
            cut = albumentations.Compose(
                [albumentations.SmallestMaxSize(SIZE, **how), albumentations.CenterCrop(SIZE, SIZE)]
            )
            return lambda path: cut(image=cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))["image"]

        def on_pil(path: str) -> np.ndarray:
            with Image.open(path) as image:
                return np.asarray(resize(image.convert("RGB")))

        def each(function: Callable[[str], object]) -> Callable[[], float]:
            return rate(count, lambda: map(function, paths))

        return compare(
            {
                "vision-wrapper": rate(count, lambda: loader._produce([(0, np.arange(count))])),
                "from the cache": rate(count, lambda: kept._produce([(0, np.arange(count))])),
                "torchvision, PIL": each(on_pil),
                "torchvision, tensors": each(lambda path: resize(torchvision.io.decode_image(path, mode="RGB"))),
                "albumentations, averaging": each(albumentations_with(**averaging)),
                "albumentations, skipping": each(albumentations_with()),
            },
            "vision-wrapper",
        )


def main() -> None:
    torch.set_num_threads(1)
    memory = {name: in_memory(name) for name in CHAINS}
    files = {"x".join(map(str, size)): from_files(size, count) for size, count in PHOTOGRAPHS.items()}
    save("input_pipelines", {"images of 32x32 in memory": memory, "photographs to 224x224": files})


if __name__ == "__main__":
    main()

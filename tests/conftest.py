"""What the tests share: small data, and a machine that several test processes share."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the package index

import numpy as np
import pytest
import torch
from PIL import Image

from vision_wrapper import _seeding, data

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it, and so would a fit


@pytest.fixture(autouse=True)
def default_seed():
    """Every test starts and leaves with the default seed, and with the same random states."""
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    _seeding._default_seed = 0


def states() -> tuple:
    """The random states of python, numpy and torch, to be compared."""
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state().tolist()


def random_images(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 (count, size, size, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let this process have so many bytes of address space beyond what it has. Where Linux is not, no limit is set."""
    if not os.path.exists("/proc/self/statm"):
        yield
        return
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


@pytest.fixture
def tiny() -> data.ImageData:
    """24 training and 9 test images of 16x16, RGB, three classes in turn."""
    return data.from_arrays(
        train=(random_images(24, 16), np.arange(24) % 3),
        test=(random_images(9, 16, seed=1), np.arange(9) % 3),
        classes=("ant", "bee", "cat"),
    )


@pytest.fixture(scope="module")
def images() -> data.ImageData:
    """45 training and 15 test images of 16x16 whose class is their colour, so that a network learns them."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = rng.integers(0, 80, (60, 16, 16, 3)).astype(np.uint8)
    pixels[np.arange(60), :, :, labels] += 120
    return data.from_arrays((pixels[:45], labels[:45]), (pixels[45:], labels[45:]), ("circle", "square", "star"))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """train/ and test/ with the classes cat and dog: 4 and 2 PNG files of 12x10 pixels (width x height) each."""
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("dog", "cat"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def cifar_folder() -> Path:
    """The folder of CIFAR-10's real images, train/CLASS/*.png and test/CLASS/*.png."""
    folder = os.environ.get("VISION_WRAPPER_CIFAR10")
    if not folder:
        pytest.skip("VISION_WRAPPER_CIFAR10 does not name the folder of CIFAR-10's images")
    return Path(folder)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=found, args=options)
        yield opened
        opened.close()

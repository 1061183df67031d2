"""Exact statistics of raw images."""

import weakref
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision_wrapper import data
from vision_wrapper.data import DATASETS
from vision_wrapper.data.stats import mean_and_std


def by_numpy(images):
    """Of a list of uint8 (H, W, C), in one float64 array."""
    pixels = np.concatenate([image.reshape(-1, image.shape[-1]) for image in images]) / 255
    return tuple(pixels.mean(0)), tuple(pixels.std(0))


def test_arrays(tiny):
    found = data.stats(tiny)
    mean, std = by_numpy(tiny.train.images)
    assert found.mean == pytest.approx(mean, abs=1e-12) and found.std == pytest.approx(std, abs=1e-12)
    assert found.classes == ("ant", "bee", "cat")
    assert found.counts == {"train": (8, 8, 8), "test": (3, 3, 3)}
    assert found.sizes == {"train": {(16, 16): 24}, "test": {(16, 16): 9}}
    assert mean_and_std(tiny.train) == (found.mean, found.std)


@given(seed=st.integers(0, 1000), count=st.integers(1, 1100), channels=st.sampled_from([1, 3, 4]))
@settings(max_examples=15, deadline=None)
def test_any_number_of_images_in_chunks(seed, count, channels):
    images = random_images(count, 3, channels, seed)
    labels = np.arange(count) % 2
    own = data.from_arrays((images, labels), (images[:1], labels[:1]), classes=("a", "b"), channels=channels)
    mean, std = by_numpy(images)
    found = data.stats(own)
    assert found.mean == pytest.approx(mean, abs=1e-12) and found.std == pytest.approx(std, abs=1e-12)


def test_grey_images_shown_as_rgb_have_three_equal_values():
    grey, labels = random_images(6, channels=1), np.arange(6) % 2
    found = data.stats(data.from_arrays((grey, labels), (grey, labels)))
    mean, std = by_numpy(grey)
    assert found.mean == pytest.approx(mean * 3) and found.std == pytest.approx(std * 3)


def test_a_split_of_ones_own_that_cannot_be_hashed():
    @dataclass
    class Own:
        labels: np.ndarray
        channels: int = 3
        classes: tuple[str, ...] = ("a", "b")

        def __len__(self):
            return len(self.labels)

        def __getitem__(self, index):
            return np.full((4, 4, 3), 51 * index, np.uint8), int(self.labels[index])

        def origin(self, index):
            return str(index)

    own = Own(np.array([0, 1, 0, 1]))
    images = data.ImageData("own", own, own, own.classes)
    assert data.stats(images).mean == pytest.approx((0.3,) * 3)
    assert len(data.make_loaders(images, batch_size=2, num_workers=0).train) == 2


def test_what_is_drawn_on_an_image_stays_out_of_the_data(tiny):
    before = tiny.train[0][0].copy()
    tiny.train[0][0][:] = 7
    assert np.array_equal(tiny.train[0][0], before) and (before != 7).any()


@pytest.mark.parametrize("size", [20, 400])  # small images in one thread, large ones in several
def test_a_folder_of_several_sizes(tmp_path, size):
    random = np.random.default_rng(0)
    raw = []
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                image = random.integers(0, 256, (size + i, size, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{i}.png", compress_level=1)
                if part == "train":
                    raw.append(image)
    found = data.stats(data.load(tmp_path))
    mean, std = by_numpy(raw)
    assert found.mean == pytest.approx(mean, abs=1e-12) and found.std == pytest.approx(std, abs=1e-12)
    assert found.sizes["train"] == {(size, size): 2, (size + 1, size): 2, (size + 2, size): 2}
    assert "train 6 images of" in str(found)


class Photographs:
    """A split of large images that counts how many of them are held at once."""

    labels, channels, classes = np.zeros(100, dtype=np.int64), 3, ()

    def __init__(self):
        self.made, self.held = [], 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = np.full((400, 400, 3), index, dtype=np.uint8)
        self.made.append(weakref.ref(image))
        self.held = max(self.held, sum(made() is not None for made in self.made))
        return image, 0


def test_of_large_images_each_thread_holds_one():
    photographs = Photographs()
    assert mean_and_std(photographs)[0] == pytest.approx((49.5 / 255,) * 3)
    assert photographs.held <= 2 * 32  # as many threads as there may be, and what each has just let go of


def test_files_are_decoded_once_for_a_listing(image_folder, monkeypatch):
    folder = data.load(image_folder)
    first = data.stats(folder)
    monkeypatch.setattr(data.splits, "decode", lambda *_: pytest.fail("decoded again"))
    assert data.stats(folder) == first and mean_and_std(folder.train) == (first.mean, first.std)


def test_the_statistics_are_of_the_training_split_alone(tiny):
    other = data.from_arrays((tiny.train.images, tiny.train.labels), (tiny.test.images // 2, tiny.test.labels))
    assert data.stats(other).mean == data.stats(tiny).mean


def test_a_validation_split_is_counted(tiny):
    images, labels = tiny.train.images, tiny.train.labels
    found = data.stats(data.from_arrays((images, labels), (images, labels), val=(images[:4], labels[:4])))
    assert found.counts["val"] == (2, 1, 1) and list(found.counts) == ["train", "val", "test"]


def test_the_text_has_everything(tiny):
    text = str(data.stats(tiny))
    assert all(words in text for words in ("mean", "std", "24 images of 16x16", "ant", "bee", "cat"))


def check_table(name, found):
    source = DATASETS[name]
    repeat = len(found.mean) // len(source.mean)
    assert found.mean == pytest.approx(source.mean * repeat, abs=1e-8)
    assert found.std == pytest.approx(source.std * repeat, abs=1e-8)


def test_the_tables_statistics_of_digits():
    digits = data.load("digits")
    check_table("digits", data.stats(digits))
    assert digits.mean == DATASETS["digits"].mean * 3


@pytest.mark.slow
def test_the_tables_statistics_of_cifar10(cifar_folder):
    folder = data.load(cifar_folder)
    found = mean_and_std(folder.train)
    assert found[0] == pytest.approx(DATASETS["cifar10"].mean, abs=1e-8)
    assert found[1] == pytest.approx(DATASETS["cifar10"].std, abs=1e-8)

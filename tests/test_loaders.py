"""Loaders: batches in an order and with a look that the seed and the epoch decide, whatever makes them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from conftest import random_images, states
from loading import GlobalNoise, by_index, collect, same
from PIL import Image

import vision_wrapper as vw
from vision_wrapper import data
from vision_wrapper.data import AUGMENTATIONS, Preprocess, make_loaders
from vision_wrapper.errors import DataError, SettingError, UnknownNameError

# ---- batches


def test_batches_are_normalised_floats_and_labels(tiny):
    loaders = make_loaders(tiny, batch_size=10)
    assert len(loaders.train) == 3 and len(loaders.test) == 1 and loaders.val is None
    sizes = []
    for images, targets in loaders.train:
        assert images.dtype == torch.float32 and targets.dtype == torch.int64
        assert images.shape[1:] == (3, 16, 16) and images.is_contiguous() and targets.shape == (len(images),)
        sizes.append(len(images))
    assert sizes == [10, 10, 4]


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_of_pixels_in_0_to_1(channels):
    raw = random_images(30, 12, channels)
    own = data.from_arrays((raw, np.arange(30) % 2), (raw, np.arange(30) % 2), channels=channels)
    loaders = make_loaders(own, batch_size=7)
    pixels = raw / 255
    expected = ((pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))).transpose(0, 3, 1, 2)
    assert np.allclose(collect(loaders.test)[0].numpy(), expected, atol=1e-5)
    train = by_index(loaders.train, 0)
    assert np.allclose(np.stack([train[i] for i in range(30)]), expected, atol=1e-5)
    assert np.allclose(loaders.preprocess(raw[3]).numpy(), expected[3], atol=1e-5)


def test_padding_and_holes_come_before_normalisation(tiny):
    preprocess = Preprocess(16, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    black = [torch.tensor((0 - m) / s) for m, s in zip(preprocess.mean, preprocess.std, strict=True)]
    white = data.from_arrays(*(((np.full_like(s.images, 255)), s.labels) for s in (tiny.train, tiny.test)))
    images, _ = collect(make_loaders(white, "crop_flip_cutout", preprocess=preprocess).train)
    for channel, value in enumerate(black):
        dark = torch.isclose(images[:, channel], value, atol=1e-5)
        bright = torch.isclose(
            images[:, channel], torch.tensor((1 - preprocess.mean[channel]) / preprocess.std[channel])
        )
        assert (dark | bright).all() and (dark.sum((1, 2)) >= 64).all()  # a hole of 8x8, and padding
    mean = collect(make_loaders(white, (data.Cutout(8, fill="mean"),), preprocess=preprocess).train)[0]
    assert ((mean.abs() < 0.02).sum((2, 3)) == 64).all()  # a hole filled with the mean is zero


def test_one_grey_channel_stored_is_three_shown():
    raw, labels = random_images(8, channels=1), np.arange(8) % 2
    images, _ = collect(make_loaders(data.from_arrays((raw, labels), (raw, labels))).test)
    assert images.shape == (8, 3, 8, 8) and torch.allclose(images[:, 0], images[:, 2])


def test_drop_last(tiny):
    loader = make_loaders(tiny, batch_size=7, drop_last=True).train
    assert len(loader) == 3 and [len(t) for _, t in loader] == [7, 7, 7]
    assert sum(len(t) for _, t in make_loaders(tiny, batch_size=7, drop_last=True).test) == 9
    with pytest.raises(SettingError, match="leaves no batch: 24 training images"):
        make_loaders(tiny, batch_size=25, drop_last=True)


# ---- order and epochs


def test_the_order_depends_on_seed_and_epoch_alone(tiny):
    loader = make_loaders(tiny, batch_size=5, seed=1).train
    assert sorted(loader.order(0)) == list(range(24))
    assert np.array_equal(loader.order(3), make_loaders(tiny, "flip", batch_size=9, seed=1).train.order(3))
    orders = [loader.order(e) for e in range(3)] + [make_loaders(tiny, seed=2).train.order(0)]
    assert len({tuple(order) for order in orders}) == 4
    assert torch.equal(collect(loader.batches(2))[1], torch.from_numpy(tiny.train.labels[loader.order(2)]))


def test_a_plain_pass_is_the_next_epoch_and_batches_is_not(tiny):
    loader = make_loaders(tiny, "crop_flip", batch_size=5).train
    wanted = [collect(loader.batches(epoch))[0] for epoch in range(3)]
    assert loader.epoch == 0
    for epoch in range(3):
        assert loader.epoch == epoch
        assert torch.equal(collect(loader)[0], wanted[epoch])
    next(iter(loader))  # begun is enough
    assert loader.epoch == 4
    list(loader.batches(0)), len(loader), loader.order(7), loader.describe()
    assert loader.epoch == 4


def test_an_epoch_can_be_entered_in_the_middle(tiny):
    loader = make_loaders(tiny, "crop_flip", batch_size=5).train
    whole = list(loader.batches(1))
    for start in range(len(whole) + 2):
        rest = list(loader.batches(1, start))
        assert len(rest) == max(0, len(whole) - start)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[start:], rest, strict=True))


def test_evaluation_is_never_shuffled_nor_augmented(tiny):
    loaders = make_loaders(tiny, "crop_flip_cutout", batch_size=4, val_fraction=0.25, num_workers=0)
    assert loaders.val is not None
    for loader in (loaders.test, loaders.val):
        raw = torch.stack([loaders.preprocess(loader.split[i][0]) for i in range(len(loader.split))])
        for _ in range(2):
            images, targets = collect(loader)
            assert torch.equal(images, raw) and torch.equal(targets, torch.from_numpy(loader.split.labels))
        assert loader.order(5).tolist() == list(range(len(loader.split))) and loader.epoch == 0


def test_the_seed_of_seed_everything_is_the_default(tiny):
    vw.seed_everything(9)
    loader = make_loaders(tiny, "flip").train
    assert loader.seed == 9
    assert same(by_index(loader, 0), by_index(make_loaders(tiny, "flip", seed=9).train, 0))


# ---- contract 2: seed, epoch and index alone; `test_loader_workers` has more of it


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batch_size_changes_no_image(name, tiny):
    augment = tuple(
        data.Cutout(4, o.holes, o.fill, o.p) if isinstance(o, data.Cutout) else o for o in AUGMENTATIONS[name]
    )  # as small as the images
    wanted = by_index(make_loaders(tiny, augment, batch_size=24, seed=3).train, 1)
    for batch_size in (1, 7):
        assert same(by_index(make_loaders(tiny, augment, batch_size=batch_size, seed=3).train, 1), wanted)


def test_num_workers_none_is_none_in_memory_and_some_for_files(tiny, image_folder):
    assert make_loaders(tiny, val_fraction=0.25).train.num_workers == 0
    loaders = make_loaders(data.load(image_folder / "train"))  # subsets of a listing
    assert 1 <= loaders.train.num_workers <= 8
    assert make_loaders(tiny, num_workers=3).train.num_workers == 3


# ---- held-out part, sizes, settings


def test_val_fraction_is_stratified_and_by_seed(tiny):
    loaders = make_loaders(tiny, val_fraction=0.25, seed=1)
    assert loaders.val is not None
    assert np.bincount(loaders.val.split.labels).tolist() == [2, 2, 2] and len(loaders.train.split) == 18
    parts = [set(loader.split.indices.tolist()) for loader in (loaders.train, loaders.val)]
    assert parts[0] | parts[1] == set(range(24)) and not parts[0] & parts[1]
    others = [set(make_loaders(tiny, val_fraction=0.25, seed=s).val.split.indices.tolist()) for s in range(2, 6)]
    assert any(other != parts[1] for other in others)
    image, label = loaders.val.split[0]
    index = int(loaders.val.split.indices[0])
    assert np.array_equal(image, tiny.train.images[index]) and label == tiny.train.labels[index]
    assert loaders.val.split.origin(0) == f"index {index}"


def test_the_sources_own_val_is_used(tiny):
    pair = (tiny.train.images, tiny.train.labels)
    own = data.from_arrays(pair, pair, val=(pair[0][:6], pair[1][:6]))
    loaders = make_loaders(own)
    assert loaders.val is not None and len(loaders.val.split) == 6
    with pytest.raises(SettingError, match="validation split of its own"):
        make_loaders(own, val_fraction=0.2)


def test_images_of_one_size_keep_it_and_others_become_224(image_folder):
    assert make_loaders(data.load(image_folder), num_workers=0).preprocess.size == (10, 12)
    Image.new("RGB", (40, 30), "red").save(image_folder / "train" / "cat" / "z.png")
    for augment in ("none", "crop_flip", "photo", GlobalNoise()):
        loaders = make_loaders(data.load(image_folder), augment, num_workers=0, batch_size=9)
        assert next(iter(loaders.train))[0].shape == (9, 3, 224, 224)
    loaders = make_loaders(data.load(image_folder), "photo", num_workers=0, size=(20, 24))
    assert next(iter(loaders.train))[0].shape[2:] == next(iter(loaders.test))[0].shape[2:] == (20, 24)
    assert make_loaders(data.load(image_folder), num_workers=0, size=32).preprocess.size == (32, 32)


def test_resizing_covers_and_cuts_at_the_centre():
    preprocess = Preprocess((8, 8), 3, (0.5,) * 3, (0.5,) * 3)
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    assert (preprocess.resize(wide) == 200).all()
    assert preprocess.resize(np.full((3, 5, 3), 9, np.uint8)).shape == (8, 8, 3)
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    assert abs(preprocess.resize(checks).astype(int) - 127).max() < 20  # averaged, not sampled


def test_statistics_come_from_the_raw_training_split_or_the_table(tiny):
    loaders = make_loaders(tiny, "crop_flip_cutout", size=32)
    found = data.stats(tiny)
    assert loaders.preprocess.mean == found.mean and loaders.preprocess.std == found.std
    digits = data.load("digits")
    assert make_loaders(digits).preprocess.mean == data.DATASETS["digits"].mean * 3


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"batch_size": 0}, SettingError, "batch_size must be .* got 0"),
        ({"batch_size": 2.0}, SettingError, "batch_size"),
        ({"batch_size": True}, SettingError, "batch_size"),
        ({"val_fraction": 1.0}, SettingError, "val_fraction"),
        ({"num_workers": -1}, SettingError, "num_workers"),
        ({"seed": -1}, SettingError, "seed"),
        ({"size": 0}, SettingError, "size"),
        ({"size": 16.0}, SettingError, r"size must be pixels, or \(height, width\) in pixels, got 16.0"),
        ({"preprocess": (0.5, 0.2)}, SettingError, "preprocess must be a data.Preprocess"),
        ({"size": 16, "preprocess": Preprocess(16, 3, (0.5,) * 3, (0.5,) * 3)}, SettingError, "pass one of them"),
        ({"preprocess": Preprocess(16, 1, (0.5,), (0.5,))}, DataError, "Load them with channels=1"),
        ({"augment": "crop_flip_cutuot"}, UnknownNameError, "did you mean 'crop_flip_cutout'"),
        ({"augment": (data.Cutout(17),)}, SettingError, "does not fit"),
        ({"augment": (data.Cutout(fill=(0.49, 0.48, 0.45)),)}, SettingError, "0..255"),
    ],
)
def test_settings_that_cannot_be(tiny, arguments, error, words):
    with pytest.raises(error, match=words):
        make_loaders(tiny, **arguments)


def test_preprocess_checks_its_values():
    for arguments in (
        (16, 3, (0.5,), (0.5,)),
        (16, 1, (125.0,), (60.0,)),  # of pixels in 0..255
        (16, 1, (0.5,), (0.0,)),
        ((16, 16, 3), 1, (0.5,), (0.5,)),
    ):
        with pytest.raises(SettingError):
            Preprocess(*arguments)
    preprocess = Preprocess(8, 3, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(DataError, match="Normalisation is done here"):
        preprocess(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(DataError, match=r"\(H, W, 3\), got shape \(8, 8, 5\)"):
        preprocess(np.zeros((8, 8, 5), np.uint8))


def test_a_channel_that_is_the_same_everywhere_is_said(tiny):
    green = tiny.train.images * np.array([0, 1, 0], dtype=np.uint8)
    with pytest.raises(SettingError, match="pixels of a channel are equal: load the images in grey"):
        make_loaders(data.from_arrays((green, tiny.train.labels), (green, tiny.train.labels)))


def test_preprocess_takes_what_a_raw_image_comes_as():
    grey, rgb = random_images(1, 8, 1)[0], random_images(1, 8, 3)[0]
    to_rgb, to_grey = Preprocess(8, 3, (0.5,) * 3, (0.5,) * 3), Preprocess(8, 1, (0.5,), (0.5,))
    assert torch.equal(to_rgb(grey), to_rgb(grey[..., 0])) and torch.equal(
        to_rgb(grey), to_rgb(Image.fromarray(grey[..., 0]))
    )
    assert torch.equal(to_rgb(grey)[0], to_rgb(grey)[2]) and to_rgb(torch.from_numpy(rgb)).shape == (3, 8, 8)
    assert torch.equal(to_grey(rgb), to_grey(Image.fromarray(rgb).convert("L")))
    assert torch.equal(to_rgb.batch([rgb, grey])[0], to_rgb(rgb))


def test_preprocess_goes_to_another_process_without_what_it_keeps_on_a_device():
    """Memory of MPS, or of CUDA under Windows, cannot be sent to a worker."""
    preprocess = Preprocess(8, 3, (0.5,) * 3, (0.25,) * 3)
    preprocess.normalise(torch.zeros(1, 8, 8, 3, dtype=torch.uint8, device="meta"))
    arrived = pickle.loads(pickle.dumps(preprocess))
    assert arrived == preprocess and vars(arrived).keys() == {"size", "channels", "mean", "std"}


def test_a_class_too_small_for_val_fraction_says_how_many_it_needs(tmp_path):
    for name, count in (("a", 9), ("b", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    images = data.load(tmp_path)  # one of the two is tested on
    words = (
        r"b has 1 image for training; at least two are needed, as val_fraction=0.1 .*three in a folder.*val_fraction=0"
    )
    with pytest.raises(DataError, match=words):
        make_loaders(images, val_fraction=0.1)


def test_whole_numbers_of_numpy_make_loaders(tiny):
    loaders = make_loaders(tiny, batch_size=np.int64(8), num_workers=np.int32(0), size=np.int64(16))
    assert loaders.preprocess.size == (16, 16)
    assert type(loaders.train.batch_size) is int and type(loaders.train.num_workers) is int
    assert len(next(iter(loaders.train))[0]) == 8


def test_describe_tells_runs_apart(tiny):
    import json

    def text(**arguments):
        return json.dumps(make_loaders(tiny, **arguments).train.describe())

    base = text(augment="flip")
    assert base == text(augment="flip", num_workers=2)  # workers change nothing
    others = [{"augment": "crop"}, {"augment": "flip", "batch_size": 9}, {"augment": "flip", "seed": 5}]
    others += [{"augment": "flip", "size": 20}, {"augment": "flip", "val_fraction": 0.25}]
    assert len({base, *(text(**arguments) for arguments in others)}) == 6


def test_making_and_passing_over_loaders_leaves_the_random_states(tiny):
    before = states()
    loaders = make_loaders(tiny, GlobalNoise(), val_fraction=0.25)
    list(loaders.train), list(loaders.test)
    assert states() == before
    iterator = iter(loaders.train)
    next(iterator)  # between batches too
    assert states() == before


def test_cifar10_from_its_folder(cifar_folder):
    preprocess = Preprocess(32, 3, data.DATASETS["cifar10"].mean, data.DATASETS["cifar10"].std)
    folder = data.load(cifar_folder)
    plain = make_loaders(folder, "crop_flip_cutout", batch_size=64, num_workers=0, preprocess=preprocess).train
    images, targets = next(plain.batches(0))
    assert images.shape == (64, 3, 32, 32) and abs(images.mean()) < 0.5 and 0.7 < images.std() < 1.3
    assert targets.tolist() == folder.train.labels[plain.order(0)[:64]].tolist()


def test_an_augmentation_that_raises_is_named(tiny):
    def broken(image):
        raise IndexError("no such pixel")

    with pytest.raises(DataError, match=r"augmentation .*broken failed on image 0 .*no such pixel"):
        data.make_loaders(tiny, broken)


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (lambda image: image[..., :1], r"lambda.* made an image of shape \(16, 16, 1\).*keep the channels"),
        (lambda image: torch.zeros(3), r"must return a uint8 image \(H, W, C\) .* got torch.float32 of shape \(3,\)"),
    ],
    ids=["grey", "vector"],
)
def test_an_augmentation_that_returns_no_such_image_is_named(tiny, augment, words):
    with pytest.raises(DataError, match=words):
        data.make_loaders(tiny, augment)


def test_a_sequential_of_torchvisions_transforms_gets_pil_images(tiny):
    transforms = pytest.importorskip("torchvision.transforms")
    sequential = torch.nn.Sequential(transforms.RandomHorizontalFlip(), transforms.RandomCrop(16, padding=2))
    images, _ = next(iter(data.make_loaders(tiny, sequential, batch_size=4).train))
    assert images.shape == (4, 3, 16, 16)


def test_another_data_set_is_told_from_the_first(tiny):
    before = data.make_loaders(tiny).train.describe()
    tiny.train.images[0, 0, 0] ^= 1
    assert data.make_loaders(tiny, preprocess=data.make_loaders(tiny).preprocess).train.describe() != before


def test_progressive_sizes_begin_small_and_end_whole(tiny):
    loaders = data.make_loaders(
        tiny, "crop_flip", batch_size=8, seed=1, progressive_size=[(0, 0.5), (1.5, 0.75), (3, 1)]
    )
    plain = data.make_loaders(tiny, "crop_flip", batch_size=8, seed=1)
    sizes = [tuple(next(iter(loaders.train.batches(epoch)))[0].shape[2:]) for epoch in range(5)]
    assert sizes == [(8, 8), (8, 8), (12, 12), (16, 16), (16, 16)]
    small, _ = next(iter(loaders.train.batches(0, channels_last=True)))
    whole, _ = next(iter(plain.train.batches(0)))
    assert small.is_contiguous(memory_format=torch.channels_last)
    averaged = torch.nn.functional.interpolate(whole, (8, 8), mode="bilinear", antialias=True)
    assert torch.allclose(small, averaged, atol=1e-5)  # the same look, smaller
    assert next(iter(loaders.test))[0].shape[2:] == (16, 16)
    assert loaders.train.describe() != plain.train.describe()
    assert "progressive_size" not in plain.train.describe()


@pytest.mark.parametrize("steps", [[(1, 0.5)], [(0, 0.5), (0, 1)], [(0, 1.5)], [(0, 0)], "half", [(0,)], [("a", 0.5)]])
def test_progressive_sizes_that_cannot_be(tiny, steps):
    with pytest.raises(SettingError, match="progressive_size"):
        data.make_loaders(tiny, progressive_size=steps)


def test_samples_are_chosen_by_indices_or_by_a_mask(tiny):
    mask = tiny.train.labels == 1
    chosen = data.Subset(tiny.train, mask)
    assert len(chosen) == len(chosen.labels) == mask.sum() and set(chosen.labels) == {1}
    assert [chosen[i][1] for i in range(len(chosen))] == [1] * len(chosen)
    assert set(data.leave_out(tiny, train=mask).train.labels) == set(tiny.train.labels) - {1}
    assert len(data.Subset(tiny.train, [])) == 0
    for wrong in (mask[:-1], [0.0], ["0"], [[0]]):
        with pytest.raises(DataError, match="indices of samples, whole numbers, or a mask of 24 bools"):
            data.Subset(tiny.train, wrong)
    for wrong in ([24], [-1]):
        with pytest.raises(DataError, match="The split has 24 samples; got indices from"):
            data.Subset(tiny.train, wrong)

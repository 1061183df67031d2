"""Whole batches: the same distribution as albumentations' form, the same geometry, a look by seed, epoch and index."""

import cv2
import numpy as np
import pytest
import torch
from conftest import random_images

from vision_wrapper import data
from vision_wrapper.data import AUGMENTATIONS, Cutout, Flip, Pad, RandomCrop, Rotate, augment, batched
from vision_wrapper.data.augment import Augmenter

albumentations = augment._albumentations()
SIZE, MEAN = (16, 16), (0.2, 0.4, 0.6)
BATCHED = [name for name, operations in AUGMENTATIONS.items() if name not in ("none", "photo")]


def forms(operations, seed=0):
    one = Augmenter(operations, SIZE, MEAN, seed)
    whole = batched.batch_augmenter(one, (*SIZE, 3))
    assert whole is not None
    return one, whole


@pytest.mark.parametrize("name", BATCHED)
def test_the_distribution_is_albumentations(name):
    """Mean and variance of every pixel over many looks of one image, within five and a half standard errors."""
    image, looks = random_images(1, 16)[0], 1500
    one, whole = forms(name)
    single = np.stack([one(image, 0, i) for i in range(looks)]).astype(np.float64)
    batch = whole(np.repeat(image[None], looks, axis=0), 0, np.arange(looks)).astype(np.float64)
    for moment in (lambda x: x, lambda x: x**2):
        a, b = moment(single), moment(batch)
        error = np.sqrt((a.var(0) + b.var(0)) / looks) + 1e-6
        z = (a.mean(0) - b.mean(0)) / error
        assert np.abs(z).max() < 5.5


def positions(count):
    """Each pixel holds its row, its column and 255."""
    rows, columns = np.mgrid[0:16, 0:16]
    return np.repeat(np.stack([rows, columns, np.full((16, 16), 255)], axis=-1).astype(np.uint8)[None], count, axis=0)


def test_crops_take_every_place_as_often():
    batch = forms((Pad(2), RandomCrop()))[1](positions(5000), 0, np.arange(5000))
    inside = batch[:, 8, 8]  # row 8 and column 8 of the crop show the shift of -2..2
    shifts = inside[:, :2].astype(int) - 8
    counts = np.zeros((5, 5), dtype=int)
    np.add.at(counts, (shifts[:, 0] + 2, shifts[:, 1] + 2), 1)
    assert counts.sum() == 5000 and counts.min() > 140 and counts.max() < 260
    assert (batch[shifts[:, 0] == -2][:, :2] == 0).all()  # what was padded


def test_reflection_and_fills():
    reflected = forms((Pad(2, mode="reflect"), RandomCrop()))[1](positions(64), 0, np.arange(64))
    assert (reflected[..., 2] == 255).all()
    filled = forms((Pad(2, fill="mean"), RandomCrop()))[1](np.zeros((200, 16, 16, 3), np.uint8), 0, np.arange(200))
    assert {tuple(pixel) for pixel in filled.reshape(-1, 3)} == {(0, 0, 0), (51, 102, 153)}


def test_flips_are_mirrors_half_of_the_time():
    batch = forms((Flip(0.3),))[1](positions(4000), 0, np.arange(4000))
    flipped = batch[:, 0, 0, 1] == 15
    assert (batch[flipped] == positions(1)[:, :, ::-1]).all() and (batch[~flipped] == positions(1)).all()
    assert 0.26 < flipped.mean() < 0.34


def test_holes_lie_inside_and_everywhere():
    batch = forms((Cutout(4, fill=(1, 2, 3), p=0.5),))[1](np.zeros((6000, 16, 16, 3), np.uint8), 0, np.arange(6000))
    cut = (batch == (1, 2, 3)).all(-1)
    assert set(np.unique(cut.sum((1, 2)))) == {0, 16} and 0.47 < cut.any((1, 2)).mean() < 0.53
    tops = cut[cut.any((1, 2))].any(2).argmax(1)
    assert set(tops) == set(range(13)) and np.bincount(tops).min() > 0.6 * np.bincount(tops).mean()


@pytest.mark.parametrize("angle", [-20.0, -3.7, 0.0, 11.0])
def test_a_rotation_is_albumentations_rotation(angle):
    """The same angle gives the same pixels."""
    images = random_images(1, 16)
    share = np.array([(angle / 20 + 1) / 2])
    turned = batched._rotate(Rotate(20.0, fill=7), images.copy(), lambda: share, batched.Form(SIZE, MEAN))[0]
    theirs = albumentations.Rotate(limit=(angle, angle), border_mode=cv2.BORDER_CONSTANT, fill=7, p=1.0)
    assert np.abs(turned.astype(int) - theirs(image=images[0])["image"]).max() <= 1


@pytest.mark.parametrize("name", BATCHED)
def test_a_look_depends_on_seed_epoch_and_index_alone(name):
    images, indices = random_images(12, 16), np.arange(12)
    _, whole = forms(name, seed=3)
    together = whole(images.copy(), 5, indices)
    order = np.random.default_rng(0).permutation(12)
    assert (whole(images[order].copy(), 5, order) == together[order]).all()
    alone = [whole(images[i : i + 1].copy(), 5, indices[i : i + 1])[0] for i in indices]
    assert (np.stack(alone) == together).all()
    assert (whole(images.copy(), 6, indices) != together).any() and (
        forms(name, seed=4)[1](images.copy(), 5, indices) != together
    ).any()


def test_draws_are_uniform_and_independent():
    """Of seeds, epochs, indices and draws that follow each other."""

    def numbers(seed, epoch, draw):
        keys = batched._mixed(batched._mixed(np.uint64(seed), np.uint64(epoch)), np.arange(500, dtype=np.uint64))
        return (batched._mixed(keys, np.uint64(draw)) >> np.uint64(11)) * 2.0**-53

    u = np.stack([numbers(s, e, d) for s in range(4) for e in range(4) for d in range(8)]).reshape(4, 4, 8, 500)
    assert u.min() >= 0 and u.max() < 1 and len(np.unique(u)) == u.size
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size) and abs(u.var() - 1 / 12) < 0.002
    for axis in range(4):
        a, b = np.take(u, range(u.shape[axis] - 1), axis), np.take(u, range(1, u.shape[axis]), axis)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_the_loader_says_which_path_it_takes(tiny, image_folder):
    assert data.make_loaders(tiny, "crop_flip_cutout").train.path == "whole batches"
    assert data.make_loaders(tiny, "crop_flip", val_fraction=0.25).val.path == "whole batches"
    assert data.make_loaders(tiny, lambda image: image).train.path == "image by image"
    assert data.make_loaders(tiny, (Pad(4),)).train.path == "image by image"  # the sizes would not be those
    assert data.make_loaders(tiny, "crop_flip", size=24).train.path == "image by image"
    assert data.make_loaders(data.load(image_folder), "crop_flip").train.path == "image by image"


def test_subsets_and_grey_images_go_in_batches_too():
    images = random_images(20, 16, channels=1)
    labels = np.arange(20) % 2
    grey = data.from_arrays((images, labels), (images, labels))
    loaders = data.make_loaders(grey, "crop_flip", val_fraction=0.2, batch_size=4)
    assert loaders.train.path == loaders.val.path == "whole batches"
    batch, targets = next(iter(loaders.val))
    wanted = np.stack([loaders.val.split[i][0] for i in range(len(batch))])
    assert batch.shape == (4, 3, 16, 16) and torch.equal(batch, loaders.preprocess.batch(wanted))
    assert targets.tolist() == loaders.val.split.labels[:4].tolist()
    before = images.copy()
    list(loaders.train)
    assert (images == before).all()  # augmenting writes to copies


def test_both_memory_formats_have_the_same_values(tiny):
    loader = data.make_loaders(tiny, "crop_flip", batch_size=7).train
    for (plain, _), (last, _) in zip(loader.batches(2), loader.batches(2, channels_last=True), strict=True):
        assert torch.equal(plain, last)
        assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)

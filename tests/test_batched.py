"""Whole batches: the same distribution as albumentations' form, the same geometry, a look by seed, epoch and index."""

import cv2
import numpy as np
import pytest
import torch
from conftest import random_images

from vision_wrapper import data, models, viz
from vision_wrapper._seeding import BatchRandom
from vision_wrapper.data import (
    AUGMENTATIONS,
    AlternatingFlip,
    CutMix,
    Cutout,
    Flip,
    MixUp,
    Pad,
    RandomCrop,
    Rotate,
    augment,
    batched,
    samples,
)
from vision_wrapper.data.augmenter import Augmenter
from vision_wrapper.errors import SettingError
from vision_wrapper.trainer import Trainer

albumentations = augment.import_albumentations()
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


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_given_parameters_give_albumentations_pixels(mode):
    images, form = random_images(6, 16), batched.Form(SIZE, MEAN)
    pad, (tops, lefts), mirrored = Pad(3, mode, fill="mean"), np.array([range(6), [6, 3, 0, 1, 5, 2]]), np.arange(6) > 2
    batch = batched._crop(RandomCrop(), batched._pad(pad, images.copy(), form), form, tops, lefts)
    batch = batched._flip(Flip(), batch, form, mirrored)
    for i, image in enumerate(images):
        crop = albumentations.Crop(lefts[i], tops[i], lefts[i] + 16, tops[i] + 16)
        chain = [pad.compile(SIZE, MEAN), crop, albumentations.HorizontalFlip(p=float(mirrored[i]))]
        assert (albumentations.Compose(chain)(image=image)["image"] == batch[i]).all()


@pytest.mark.parametrize("angle", [-20.0, -3.7, 0.0, 11.0])
def test_a_rotation_is_albumentations_rotation(angle):
    """The same angle gives the same pixels."""
    images = random_images(1, 16)
    form, angles = batched.Form(SIZE, MEAN), np.array([angle], dtype=np.float32)
    turned = batched._rotate(Rotate(20.0, fill=7), images.copy(), form, angles)[0]
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


@pytest.mark.parametrize("stream", [0, 1])
def test_draws_are_uniform_and_independent(stream):
    """Of seeds, epochs, indices and draws that follow each other."""

    def numbers(seed, epoch):
        random = BatchRandom(seed, epoch, np.arange(500), stream)
        return [random.uniform() for _ in range(8)]

    u = np.array([numbers(s, e) for s in range(4) for e in range(4)]).reshape(4, 4, 8, 500)
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


# ---- alternating flip


def alternating_looks(how, looks=40):
    """Whether each image is mirrored, (epochs, looks)."""
    one, whole = forms((AlternatingFlip(),), seed=5)
    if how == "whole batches":
        batches = [whole(positions(looks), epoch, np.arange(looks)) for epoch in range(6)]
    else:
        batches = [np.stack([one(positions(1)[0], epoch, i) for i in range(looks)]) for epoch in range(6)]
    return np.stack([batch[:, 0, 0, 1] == 15 for batch in batches])


@pytest.mark.parametrize("how", ["whole batches", "image by image"])
def test_each_pair_of_epochs_shows_both_mirrors(how):
    mirrored = alternating_looks(how)
    assert (mirrored[:-1] != mirrored[1:]).all()
    assert 8 < mirrored[0].sum() < 32  # half of them begin mirrored
    assert (mirrored == alternating_looks("whole batches")).all()


# ---- on the device: the same code runs on the CPU's tensors


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("channels", [1, 3])
def test_on_a_device_the_pixels_are_the_same(name, channels):
    size = (20, 16)
    mean = MEAN[:channels]
    whole = batched.batch_augmenter(Augmenter(name, size, mean, 7), (*size, channels))
    images = np.ascontiguousarray(random_images(60, 20, channels)[:, :, :16])
    assert whole.exact_on_device == ("rotate" not in name)  # whose interpolation would be the device's own
    if whole.exact_on_device:
        wanted = whole(images.copy(), 3, np.arange(60))
        assert (whole.on_device(torch.from_numpy(images), 3, np.arange(60)).numpy() == wanted).all()


@pytest.mark.parametrize(("pixels", "side"), [(4, 4), (8, 8), (9, 4), (2, 1), (3, 16)])
def test_reflections_on_a_device_go_back_and_forth(pixels, side):
    images, form = random_images(3, side), batched.Form((side, side), MEAN)
    wanted = batched._pad(Pad(pixels, "reflect"), images, form)
    assert (batched._gpu_pad(Pad(pixels, "reflect"), torch.from_numpy(images), form).numpy() == wanted).all()


@pytest.mark.parametrize("name", BATCHED)
def test_images_that_lie_transposed_are_augmented_as_others(name):
    images, labels = random_images(24, 16), np.arange(24) % 3
    transposed = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert not transposed.flags.c_contiguous
    for operations in (name, (RandomCrop(),), (Cutout(4),)):
        batches = [
            next(data.make_loaders(data.from_arrays((x, labels), (x, labels)), operations, 24).train.batches(0))[0]
            for x in (images, transposed)
        ]
        assert torch.equal(*batches)


def test_rotations_of_many_channels_go_image_by_image():
    images, labels = random_images(8, 16, channels=5), np.arange(8) % 2
    loader = data.make_loaders(data.from_arrays((images, labels), (images, labels)), (Flip(), Rotate(5.0)), 4).train
    assert loader.path == "image by image"


@pytest.mark.parametrize("held_out", [0.0, 0.25])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_loader_with_images_on_the_device_gives_the_same(held_out, channels):
    images, labels = random_images(24, 16, channels), np.arange(24) % 3
    arrays = data.from_arrays((images, labels), (images, labels))
    loader = data.make_loaders(arrays, "crop_flip_mixup", batch_size=5, val_fraction=held_out).train
    wanted = list(loader.batches(1))
    loader._device_samples = lambda: samples.DeviceSamples(loader._samples, torch.device("cpu"))
    for (images, targets), (same_images, same_targets) in zip(wanted, loader.batches(1), strict=True):
        assert torch.equal(images, same_images) and torch.equal(targets, same_targets)


# ---- pairs


def mixing_loader(operation, count=12, batch_size=5, **settings):
    """Each image has one colour, which is its class."""
    labels = np.arange(count) % 4
    images = np.broadcast_to((60 * labels)[:, None, None, None], (count, 16, 16, 3)).astype(np.uint8)
    arrays = data.from_arrays((images, labels), (images, labels))
    return data.make_loaders(arrays, (operation,), batch_size, seed=2, **settings).train


@pytest.mark.parametrize("operation", [MixUp(0.4), CutMix(), CutMix(p=0.5)])
def test_images_and_targets_are_mixed_in_the_same_proportion(operation):
    loader = mixing_loader(operation, count=400, batch_size=400)
    images, targets = next(iter(loader))
    assert targets.shape == (400, 4) and torch.allclose(targets.sum(1), torch.ones(400))
    scale, shift = loader.preprocess._constants(torch.device("cpu"))
    raw = (images - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
    assert torch.allclose(raw.mean((1, 2, 3)) / 60, (targets * torch.arange(4.0)).sum(1), atol=1e-3)
    own = torch.from_numpy(loader.split.labels[loader.order(0)])
    untouched = (targets.amax(1) == 1).float().mean()
    assert untouched < 0.5 if operation.p == 1 else untouched > 0.5  # partners of the same class change nothing
    order = loader.order(0)
    partners = torch.from_numpy(loader.split.labels[loader._mixer.partners(order, 0, order)])
    of_both = targets.gather(1, own[:, None]) + targets.gather(1, partners[:, None]) * (own != partners)[:, None]
    assert torch.allclose(of_both, torch.ones(400, 1)) and len(set(loader._mixer.partners(order, 0, order))) > 200


def test_the_shares_are_those_of_the_beta_distribution():
    u = BatchRandom(0, 0, np.arange(20_000)).uniform()
    for alpha in (0.2, 1.0, 2.0):
        shares = batched._beta(alpha, u)
        assert abs(shares.mean() - 0.5) < 0.01 and abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.003


def test_boxes_cover_the_share_that_was_drawn():
    random = BatchRandom(0, 0, np.arange(4000))
    kept = np.full(4000, 0.75)
    areas = batched._boxes(random, kept, 16, 12).sum((1, 2))
    assert areas.max() == 8 * 6  # a quarter of the area, half of each side; less at the edges
    assert 0.2 < (areas == 48).mean() < 0.5 and areas.min() > 0


@pytest.mark.parametrize("operation", [MixUp(), CutMix()])
def test_a_mixed_look_depends_on_seed_epoch_and_index_alone(operation):
    def looks(**settings):
        loader = mixing_loader(operation, **settings)
        batches = list(loader.batches(3))
        order = np.argsort(loader.order(3))
        return [torch.cat([batch[part] for batch in batches])[order] for part in (0, 1)]

    wanted = looks()
    for settings in ({"batch_size": 4}, {"batch_size": 12}, {"num_workers": 2}):
        assert all(torch.equal(a, b) for a, b in zip(looks(**settings), wanted, strict=True))
    later = list(mixing_loader(operation).batches(3, start=1))
    assert torch.equal(later[0][0], list(mixing_loader(operation).batches(3))[1][0])


@pytest.mark.parametrize("operations", [(MixUp(), Flip()), (MixUp(), CutMix()), (MixUp(alpha=0),), (CutMix(p=1.5),)])
def test_mixing_comes_last_and_once(tiny, operations):
    with pytest.raises(SettingError, match=r"MixUp|CutMix"):
        data.make_loaders(tiny, operations)


def test_photographs_are_mixed_too(image_folder):
    loader = data.make_loaders(
        data.load(image_folder), (data.RandomResizedCrop(), AlternatingFlip(), CutMix()), 4
    ).train
    images, targets = next(iter(loader))
    assert loader.path == "image by image" and images.shape[0] == 4 and targets.is_floating_point()


def test_training_with_mixed_targets(tiny):
    mixed = data.make_loaders(tiny, "crop_flip_mixup", batch_size=8)
    model = models.CustomResNet(len(tiny.classes), widths=(4, 4, 4, 4))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), callbacks=[])
    history = trainer.fit(mixed.train, mixed.test, epochs=2)
    assert history[-1]["train_accuracy"] is None and history[-1]["val_accuracy"] is not None
    assert viz.plot_history(history) is not None
    assert trainer.find_lr(mixed.train, num_iter=12).losses


@pytest.mark.parametrize("augment", ["flip", (Cutout(4),), (RandomCrop(),), "crop_flip_cutout"], ids=str)
def test_grey_images_turned_from_channels_first_are_augmented_alike(augment):
    """An axis of length 1 has any stride and is contiguous still."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (20, 1, 16, 16), dtype=np.uint8)
    labels = np.arange(20) % 2

    def batch(pixels):
        images = data.from_arrays((pixels, labels), (pixels, labels), channels=1)
        return next(data.make_loaders(images, augment, batch_size=20, seed=1).train.batches(0))[0]

    turned = first.transpose(0, 2, 3, 1)
    assert torch.equal(batch(turned), batch(np.ascontiguousarray(turned.reshape(-1)).reshape(20, 16, 16, 1)))

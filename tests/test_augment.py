"""Augmentations: what they do to an image, and that an image's look depends on seed, epoch and index alone."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import random
import subprocess
import sys

import albumentations as A
import albumentations.pytorch
import numpy as np
import pytest
import torch
from conftest import random_images, states
from PIL import Image
from torchvision.transforms import v2

from vision_wrapper import data
from vision_wrapper.data import (
    AUGMENTATIONS,
    ColorJitter,
    Cutout,
    Flip,
    MixUp,
    Pad,
    RandomCrop,
    RandomResizedCrop,
    Rotate,
)
from vision_wrapper.data.augmenter import Augmenter
from vision_wrapper.data.batched import batch_augmenter
from vision_wrapper.errors import DataError, SettingError, UnknownNameError

MEAN = (0.49, 0.48, 0.45)


def augmenter(augment, size=16, mean=MEAN, seed=0):
    return Augmenter(augment, (size, size), mean, seed)


def looks(augment, epoch=0, count=40, size=16, image=None, **arguments):
    """The same image as it looks at many indices."""
    image = random_images(1, size, seed=9)[0] if image is None else image
    apply = augmenter(augment, size, **arguments)
    return np.stack([apply(image, epoch, i) for i in range(count)])


# ---- the table


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_gives_images_of_the_models_size(name, channels):
    image = random_images(1, 32, channels)[0]
    before = image.copy()
    apply = Augmenter(name, (32, 32), MEAN[:channels], 0)
    results = [apply(image, 0, i) for i in range(20)]
    assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)
    assert np.array_equal(image, before)  # the raw image is untouched
    distinct = {r.tobytes() for r in results}
    assert (distinct == {image.tobytes()}) if name == "none" else len(distinct) > 1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_by_seed_epoch_and_index_alone(name):
    size = 32
    image = random_images(1, size)[0]
    first = augmenter(name, size)
    wanted = {(e, i): first(image, e, i) for e in (0, 1) for i in range(6)}
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    again = pickle.loads(pickle.dumps(augmenter(name, size)))
    for (epoch, index), look in reversed(wanted.items()):
        assert np.array_equal(again(image, epoch, index), look)
    if name != "none":
        other = augmenter(name, size, seed=1)
        assert any(not np.array_equal(other(image, 0, i), wanted[0, i]) for i in range(6))
        assert any(not np.array_equal(wanted[1, i], wanted[0, i]) for i in range(6))


def test_the_experiments_augmentations_are_in_the_table():
    assert AUGMENTATIONS["crop_flip_cutout"] == (Pad(4), RandomCrop(), Flip(), Cutout(8))
    assert AUGMENTATIONS["crop_flip_holes"] == (Pad(4), RandomCrop(), Flip(0.8), Cutout(8, holes=8, p=0.5))
    assert AUGMENTATIONS["small_crop_flip_holes"] == (Pad(3), RandomCrop(), Flip(), Cutout(8, holes=8))
    assert AUGMENTATIONS["crop_rotate_cutout"] == (Pad(4), RandomCrop(), Rotate(5.0), Cutout(16, p=0.5))
    assert AUGMENTATIONS["crop_flip_cutout_mean"][-1] == Cutout(8, fill="mean")


# ---- each operation, on an image whose pixels tell where they come from


def positions(size):
    """uint8 (size, size, 3): row + 1, column + 1, 255. Zeros are fill."""
    rows, columns = np.mgrid[1 : size + 1, 1 : size + 1]
    return np.dstack([rows, columns, np.full_like(rows, 255)]).astype(np.uint8)


@pytest.mark.parametrize(
    ("fill", "value"), [(0, (0, 0, 0)), (7, (7, 7, 7)), ((1, 2, 3), (1, 2, 3)), ("mean", (125, 122, 115))]
)
@pytest.mark.parametrize("holes", [1, 2])
def test_a_cutout_lies_inside_the_image_and_has_its_value(fill, value, holes):
    images = looks((Cutout(6, holes=holes, fill=fill),), count=60, image=np.full((16, 16, 3), 200, np.uint8))
    corners = set()
    for image in images:
        cut = (image != 200).any(-1)
        assert (image[cut] == value).all()
        if holes == 1:
            rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
            assert len(rows) == len(columns) == 6 and cut.sum() == 36
            corners.add((int(rows[0]), int(columns[0])))
        else:
            assert 36 <= cut.sum() <= 72
    if holes == 1:
        assert {0, 10} <= {row for row, _ in corners} and {0, 10} <= {column for _, column in corners}


def test_the_probability_of_a_cutout_and_of_a_flip():
    image = np.full((16, 16, 3), 200, np.uint8)
    cut = (looks((Cutout(4, p=0.25),), count=800, image=image) != 200).any((1, 2, 3)).mean()
    assert 0.19 < cut < 0.31
    image = positions(16)
    flipped = looks((Flip(p=0.8),), count=800, image=image)
    mirrored = [np.array_equal(f, image[:, ::-1]) for f in flipped]
    assert all(m or np.array_equal(f, image) for m, f in zip(mirrored, flipped, strict=True))
    assert 0.74 < np.mean(mirrored) < 0.86


@pytest.mark.parametrize("fill", [0, (9, 8, 7)])
def test_pad_and_crop_shift_by_up_to_the_padding(fill):
    shifts = set()
    for image in looks((Pad(3, fill=fill), RandomCrop()), count=400, image=positions(16)):
        inside = image[..., 2] == 255
        row, column = (int(v) for v in np.argwhere(inside)[0])
        down, right = row - int(image[row, column, 0]) + 1, column - int(image[row, column, 1]) + 1
        assert abs(down) <= 3 and abs(right) <= 3
        expected = np.broadcast_to(np.array(fill, np.uint8), (16, 16, 3)).copy()
        target = tuple(slice(max(0, s), 16 + min(0, s)) for s in (down, right))
        source = tuple(slice(max(0, -s), 16 - max(0, s)) for s in (down, right))
        expected[target] = positions(16)[source]
        assert np.array_equal(image, expected)
        shifts.add((down, right))
    assert len(shifts) == 49


@pytest.mark.parametrize("operations", [(Pad(2), Pad(2), RandomCrop()), (Pad(1, "reflect"), Pad(3), RandomCrop())])
def test_every_pad_adds_its_pixels_in_files_as_in_memory(operations):
    image = positions(16)
    batch = batch_augmenter(augmenter(operations), (16, 16, 3))
    together = batch(np.repeat(image[None], 300, axis=0), 0, np.arange(300))
    for found in (looks(operations, count=300, image=image), np.asarray(together)):
        shifts = {tuple(int(v) for v in np.argwhere(look[..., 2] == 255)[0]) for look in found}
        assert max(row for row, _ in shifts) >= 3 and max(column for _, column in shifts) >= 3


def test_a_crop_that_is_made_smaller_averages_its_pixels():
    """Black and white by turns: grey, where a filter that looks at few pixels gives either."""
    image = np.repeat((np.indices((320, 320)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    for look in looks((RandomResizedCrop(scale=(0.9, 1.0)),), count=10, size=16, image=image):
        assert look.min() >= 118 and look.max() <= 138


def test_reflection_padding_has_no_border():
    images = looks((Pad(4, mode="reflect"), RandomCrop()), count=100, image=positions(16))
    assert (images[..., 2] == 255).all() and len({i.tobytes() for i in images}) > 40


def test_rotation_fills_the_corners():
    image = np.full((33, 33, 3), 200, np.uint8)
    images = looks((Rotate(30.0, fill=(1, 2, 3)),), count=30, size=33, image=image)
    assert (images[:, 16, 16] == 200).all()
    assert sum((i[0, 0] == (1, 2, 3)).all() for i in images) > 15
    assert np.array_equal(looks((Rotate(0.0),), count=3, image=positions(16))[1], positions(16))


def test_photo_takes_images_of_any_size():
    assert augmenter("photo").takes_any_size and not augmenter("crop_flip").takes_any_size
    for shape in ((40, 25), (16, 16), (9, 120)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        assert augmenter("photo")(image, 0, 0).shape == (16, 16, 3)
    assert len({i.tobytes() for i in looks((RandomResizedCrop(scale=(0.5, 1.0)),))}) > 30


def test_colours_change_within_their_span():
    image = np.full((16, 16, 3), 100, np.uint8)
    values = looks((ColorJitter(0.2),), count=100, image=image)[:, 0, 0, 0].astype(float)
    assert values.min() >= 79 and values.max() <= 121 and values.std() > 5


# ---- changes


def test_changes():
    changed = data.augmentation("crop_flip_cutout", pad=2, flip_p=0.3, hole_size=4, holes=3, hole_p=0.5, fill=9)
    assert changed == (Pad(2, fill=9), RandomCrop(), Flip(0.3), Cutout(4, holes=3, fill=9, p=0.5))
    assert data.augmentation("crop_rotate", degrees=15.0)[-1].degrees == 15.0
    assert data.augmentation("crop", pad_mode="reflect") == (Pad(4, mode="reflect"), RandomCrop())
    assert repr(data.augmentation("flip", flip_p=np.float32(0.5))) == "(Flip(p=0.5),)"
    assert data.augmentation("flip") == AUGMENTATIONS["flip"]


def test_changes_that_cannot_be():
    with pytest.raises(UnknownNameError, match="Unknown augmentation 'crop_flp'; did you mean 'crop_flip'"):
        data.augmentation("crop_flp")
    with pytest.raises(UnknownNameError, match="'hole_sise'; did you mean 'hole_size'"):
        data.augmentation("crop_flip_cutout", hole_sise=3)
    with pytest.raises(SettingError, match="no operation that hole_size= could change"):
        data.augmentation("flip", hole_size=4)
    with pytest.raises(SettingError, match="no operation that fill="):
        data.augmentation("flip", fill=4)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (Pad(-1), "pixels must be a whole number of pixels, at least 0, got Pad"),
        (Flip(p=2), r"p must be a probability in \[0, 1\], got Flip\(p=2\)"),
        (Rotate(-5.0), "degrees must be a number of degrees, at least 0"),
        (Cutout(2.5), "size must be a whole number of pixels, at least 1"),
        (Cutout(0), "size must be"),
        (Cutout(8, holes=0), "holes must be a whole number of at least 1"),
        (RandomResizedCrop(scale=0.5), r"scale must be \(least, most\) of the area"),
        (RandomResizedCrop(scale=(0.5, 2)), "scale must be"),
        (RandomResizedCrop(ratio=(0, 1)), r"ratio must be \(least, most\), above 0"),
        (ColorJitter(2), r"strength must be a number in \[0, 1\]"),
        (MixUp(alpha="0.2"), "alpha must be a number above 0"),
    ],
    ids=str,
)
def test_a_value_that_an_operation_cannot_have(operation, words):
    with pytest.raises(SettingError, match=words):
        augmenter((operation,))


@pytest.mark.parametrize("fill", [0.49, (0.49, 0.48, 0.45), 1.0, 256, -1, True, "median", None, (1, 2)])
@pytest.mark.parametrize("operation", [Pad, Cutout, Rotate])
def test_a_fill_in_another_scale_is_an_error(operation, fill):
    with pytest.raises(SettingError, match="fill"):
        augmenter((operation(fill=fill),))


def test_values_that_cannot_be():
    with pytest.raises(SettingError, match="does not fit into an image"):
        augmenter((Cutout(17),))
    with pytest.raises(SettingError, match='"constant" or "reflect"'):
        augmenter((Pad(mode="edge"),))
    for wrong in ((A.HorizontalFlip(),), ["flip"]):
        with pytest.raises(SettingError, match="Compose"):
            augmenter(wrong)
    for wrong in (3, None, {"flip"}):
        with pytest.raises(SettingError, match="augment must be a name"):
            augmenter(wrong)


# ---- the user's own


class Noisy:
    """Draws from all three global generators."""

    def __call__(self, image):
        shift = random.randrange(50) + int(np.random.randint(50)) + int(torch.randint(50, ()))
        return (image.astype(int) + shift).clip(0, 255).astype(np.uint8)


class OwnAlbumentation(A.ImageOnlyTransform):
    def apply(self, img, **_):
        return np.full_like(img, self.py_random.randrange(200) + int(self.random_generator.integers(50)))


class OwnTorchvision(torch.nn.Module):
    def forward(self, image):
        return v2.functional.horizontal_flip(image) if torch.rand(()) < 0.5 else image


def darker(image, **_):
    return image // 2 + np.uint8(np.random.randint(50) + random.randrange(50) + int(torch.randint(20, ())))


class Wraps:
    """As everybody adapts albumentations to torchvision's data sets: a pipeline of the class, one of the object."""

    crop = A.RandomCrop(12, 12)
    shared = A.Compose([A.RandomCrop(12, 12), A.RandomBrightnessContrast(p=1.0)])

    def __init__(self):
        self.transform = A.Compose([A.HorizontalFlip(), A.RandomBrightnessContrast(p=1.0)])

    def __call__(self, image):
        return self.transform(image=self.crop(image=image)["image"])["image"]


PIPELINE = A.Compose([A.RandomCrop(12, 12), A.RandomBrightnessContrast(p=1.0)])


def with_a_global_pipeline(image):
    return PIPELINE(image=image)["image"]


def with_a_pipeline(pipelines, image):
    return pipelines[0](image=image)["image"]


def with_a_pipeline_made_inside(image):
    return A.Compose([A.RandomCrop(12, 12), A.RandomBrightnessContrast(p=1.0)])(image=image)["image"]


OWN = {
    "compose of a function": lambda: A.Compose([A.Lambda(image=darker)]),
    "pipelines in an object": Wraps,
    "pipeline of a module": lambda: with_a_global_pipeline,
    "pipeline in a function of a compose": lambda: A.Compose(
        [A.Lambda(image=lambda image, **_: PIPELINE(image=image)["image"])]
    ),
    "pipeline in a partial": lambda: functools.partial(with_a_pipeline, [PIPELINE]),
    "pipeline of another class": lambda: lambda image: Wraps.shared(image=image)["image"],
    "pipeline made inside": lambda: with_a_pipeline_made_inside,
    "compose": lambda: A.Compose([A.RandomCrop(12, 12), A.HorizontalFlip(), A.RandomBrightnessContrast(p=1.0)]),
    "compose with a seed": lambda: A.Compose([A.RandomCrop(12, 12)], seed=3),
    "nested": lambda: A.Compose(
        [A.OneOf([A.VerticalFlip(), A.Compose([A.RandomCrop(12, 12)])], p=0.8), A.ShiftScaleRotate(p=1.0)]
    ),
    "one transform": lambda: A.RandomCrop(12, 12),
    "own albumentation": OwnAlbumentation,
    "to tensor": lambda: A.Compose([A.RandomCrop(12, 12), A.pytorch.ToTensorV2()]),
    "torchvision": lambda: v2.Compose([v2.RandomCrop(12), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4)]),
    "torchvision tensor": lambda: v2.Compose([v2.PILToTensor(), v2.RandomCrop(12)]),
    "trivial augment": v2.TrivialAugmentWide,
    "callable": Noisy,
    "partial": lambda: functools.partial(np.roll, shift=0, axis=0),
}


@pytest.mark.parametrize("kind", ["compose of a function", *(name for name in OWN if "pipeline" in name)])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_own_augmentation_draws_anew_for_every_image_and_epoch(kind, workers):
    image = random_images(1, 16)
    alike = data.from_arrays((image.repeat(24, 0), np.arange(24) % 3), (image.repeat(3, 0), np.arange(3)))
    state = PIPELINE.random_generator.bit_generator.state, PIPELINE.py_random.getstate()
    loader = data.make_loaders(alike, augment=OWN[kind](), batch_size=4, seed=4, size=12, num_workers=workers).train
    looks = [look.tobytes() for epoch in (0, 1) for images, _ in loader.batches(epoch) for look in images.numpy()]
    assert len(looks) == 48 and len(set(looks)) > 25  # a repeating one has 4 or 8
    assert (PIPELINE.random_generator.bit_generator.state, PIPELINE.py_random.getstate()) == state


def test_pipelines_have_their_own_generators_outside_of_an_augmentation(tiny):
    loader = data.make_loaders(tiny, augment=with_a_global_pipeline, size=12).train
    next(loader.batches(0))
    image, pipelines = random_images(1, 16)[0], [A.Compose([A.RandomCrop(12, 12)], seed=3) for _ in range(2)]
    assert np.array_equal(*(pipeline(image=image)["image"] for pipeline in pipelines))
    again = pickle.loads(pickle.dumps(pipelines[0]))
    assert np.array_equal(again(image=image)["image"], pipelines[0](image=image)["image"])
    with pytest.raises(AttributeError, match="py_random"):
        A.HorizontalFlip.__new__(A.HorizontalFlip).py_random  # noqa: B018

    def nested(image):  # a look at another loader inside an augmentation
        inner = loader.inputs(1, np.array([0]))
        assert torch.equal(inner, loader.inputs(1, np.array([0])))
        return PIPELINE(image=image)["image"]

    looks = [data.make_loaders(tiny, augment=nested, size=12).train.inputs(0, np.arange(3)) for _ in range(2)]
    assert torch.equal(*looks)


class OwnGenerator:
    """Draws from a generator that nobody else knows."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self, image):
        return np.roll(image, self.generator.integers(16), axis=1)


def test_a_generator_of_ones_own_is_found(tiny):
    loaders = data.make_loaders(tiny, augment=OwnGenerator())
    found = [finding for finding in data.check(tiny, loaders) if finding.check == "own_generator"]
    assert len(found) == 1 and found[0].severity == "error" and "np.random" in str(found[0])
    for augment in (Noisy(), Wraps(), "crop_flip"):
        found = data.check(tiny, data.make_loaders(tiny, augment=augment, size=12))
        assert "own_generator" not in [finding.check for finding in found]


def test_an_augmentation_that_writes_on_its_argument_leaves_the_images_alone(tiny):
    def blacken(image, **_):
        image[:] = 0
        return image

    before = tiny.train[0][0].copy()
    for augment in (blacken, A.Compose([A.Lambda(image=blacken)])):
        images, _ = next(data.make_loaders(tiny, augment=augment).train.batches(0))
        assert len(images.unique()) <= 3 and np.array_equal(tiny.train[0][0], before)


def test_a_hole_of_normalised_values_is_refused(tiny):
    for fill in (v2.RandomErasing(p=1, value=(0.49, 0.48, 0.45)), v2.Compose([v2.RandomRotation(5, fill=-0.4)])):
        with pytest.raises(SettingError, match=r"0\.\.255"):
            data.make_loaders(tiny, augment=fill)
    data.make_loaders(tiny, augment=v2.Compose([v2.RandomErasing(p=1, value=125.0)]))
    floats = [
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomErasing(p=1, value=0.5),
        v2.ToDtype(torch.uint8, scale=True),
    ]
    data.make_loaders(tiny, augment=v2.Compose([v2.ToImage(), *floats]))


@pytest.mark.filterwarnings("ignore:ShiftScaleRotate")
@pytest.mark.parametrize("kind", OWN)
def test_an_own_augmentation_is_reproducible_and_leaves_its_owner_alone(kind, tiny):
    augment = OWN[kind]()
    theirs = copy.deepcopy(augment)
    loader = data.make_loaders(tiny, augment=augment, batch_size=5, seed=4, size=12).train
    before = states()
    batches = [images.numpy() for images, _ in loader.batches(0)]
    assert states() == before
    if isinstance(augment, A.Compose):  # its own random state is as it was
        image = random_images(1, 16)[0]
        if augment.seed is not None:
            assert np.array_equal(augment(image=image)["image"], theirs(image=image)["image"])
    random.seed(8), np.random.seed(8), torch.manual_seed(8)
    again = data.make_loaders(tiny, augment=OWN[kind](), batch_size=7, seed=4, size=12).train
    assert np.array_equal(np.concatenate(batches), np.concatenate([i.numpy() for i, _ in again.batches(0)]))
    if kind != "partial":
        by_index = dict(zip(loader.order(0).tolist(), np.concatenate(batches), strict=True))
        later = dict(
            zip(loader.order(1).tolist(), np.concatenate([i.numpy() for i, _ in loader.batches(1)]), strict=True)
        )
        assert sum(not np.array_equal(by_index[i], later[i]) for i in by_index) > 3


def test_an_own_callable_cannot_draw_on_the_raw_images(tiny):
    def scribble(image):
        image[:] = 0
        return image

    before = tiny.train.images.copy()
    images, _ = next(iter(data.make_loaders(tiny, augment=scribble).train))
    assert len(images.unique()) <= 3  # it did draw
    assert np.array_equal(tiny.train.images, before)


def normalised_float(image):
    return (image / 255 - 0.5).astype(np.float32)


@pytest.mark.parametrize(
    "augment",
    [
        A.Compose([A.HorizontalFlip(), A.Normalize()]),
        A.Compose([A.ToFloat()]),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)]),
        normalised_float,
        lambda image: None,
    ],
)
def test_normalising_in_an_own_augmentation_is_an_error_before_training(augment, tiny):
    with pytest.raises(DataError, match=r"must return a uint8 image .* got .*the loader normalises afterwards"):
        data.make_loaders(tiny, augment=augment)


@pytest.mark.filterwarnings("ignore:ShiftScaleRotate")
def test_the_description_is_the_same_in_every_process():
    texts = [Augmenter(OWN[kind](), (16, 16), MEAN, 0).description for kind in OWN]
    texts += [augmenter(a).description for a in ("flip", normalised_float, lambda image: image, AUGMENTATIONS["flip"])]
    assert all(texts) and not any("0x" in text for text in texts)
    assert augmenter("flip").description == "flip"
    assert augmenter(normalised_float).description.split()[0].endswith(".normalised_float")


def test_grey_images_reach_torchvision_as_grey():
    seen = []

    class Look(v2.RandomHorizontalFlip):
        def forward(self, image):
            seen.append(image.mode)
            return super().forward(image)

    for channels in (1, 3):
        result = Augmenter(Look(), (8, 8), MEAN[:channels], 0)(random_images(1, 8, channels)[0], 0, 0)
        assert result.shape == (8, 8, channels)
    assert seen == ["L", "RGB"]


def test_a_pil_image_may_be_returned():
    result = augmenter(lambda image: Image.fromarray(image).rotate(90))(positions(16), 0, 0)
    assert np.array_equal(result, np.rot90(positions(16)))


# ---- albumentations' traps


def test_outdated_arguments_are_errors_here():
    with pytest.raises(UserWarning, match="not valid"):
        A.CoarseDropout(max_holes=1)


def test_importing_albumentations_asks_nobody():
    code = (
        "import sys, os, urllib.request\n"
        "def asked(*a, **k): sys.exit('asked the network')\n"
        "urllib.request.urlopen = asked\n"
        "urllib.request.OpenerDirector.open = asked\n"
        "from vision_wrapper.data.augmenter import Augmenter\n"
        "Augmenter('flip', (8, 8), (0.5,), 0)\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'\n"
        "assert 'albumentations' in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_compose_that_cannot_be_shown_is_described_by_its_parts(tiny):
    """Of one with a transform that takes its style from other images, albumentations has no repr."""
    style = A.Compose([A.FDA(metadata_key="style", p=0.0), A.HorizontalFlip(p=1.0)])
    named = A.Compose([A.FDA(metadata_key="style")])
    assert "FDA" in Augmenter(style, (16, 16), (0.5,) * 3, seed=0).description
    with pytest.raises(DataError, match=r"The augmentation Compose\(\[FDA"):
        data.make_loaders(tiny, augment=named)

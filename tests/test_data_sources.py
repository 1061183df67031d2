"""Where images come from: arrays, folders, data sets by name."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vision_wrapper as vw
from vision_wrapper import data
from vision_wrapper.data import DATASETS
from vision_wrapper.data.splits import stratified_split
from vision_wrapper.errors import DataError, DataNotFoundError, SettingError, UnknownNameError

# ---- digits


def test_digits_are_scikit_learns_offline():
    digits = data.load("digits", root="/nonexistent")
    assert len(digits.train) + len(digits.test) == 1797
    assert digits.classes == tuple("0123456789")
    image, label = digits.train[0]
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and isinstance(label, int)
    assert (image[..., 0] == image[..., 1]).all() and image.max() > 200
    grey = data.load("digits", channels=1)
    assert grey.train[0][0].shape == (32, 32, 1) and (grey.train[0][0][..., 0] == image[..., 0]).all()
    assert min(np.bincount(digits.test.labels)) >= 34  # stratified


def test_the_split_of_digits_does_not_follow_the_seed():

    before = data.load("digits").test.labels
    vw.seed_everything(5)
    assert np.array_equal(data.load("digits", seed=3).test.labels, before)


def test_every_data_set_is_described_and_has_statistics():
    for source in DATASETS.values():
        assert source.description and len(source.mean) == len(source.std) in (1, 3)


# ---- arrays


def test_from_arrays_grey_and_rgb():
    grey, labels = random_images(6, channels=1)[..., 0], np.arange(6) % 2
    for images in (grey, grey[..., None]):
        own = data.from_arrays((images, labels), (images[:2], labels[:2]))
        assert own.channels == 3 and own.classes == ("0", "1") and own.val is None
        assert np.array_equal(own.train[3][0], np.repeat(grey[3][..., None], 3, -1)) and own.train[3][1] == 1
    one = data.from_arrays((grey, labels), (grey, labels), channels=1)
    assert one.train[0][0].shape == (8, 8, 1)
    five = data.from_arrays((random_images(6, channels=5), labels), (random_images(2, channels=5), labels[:2]))
    assert five.channels == 5 and five.train[0][0].shape == (8, 8, 5)


def test_from_arrays_takes_tensors_lists_and_a_validation_split():
    images, labels = torch.from_numpy(random_images(6)), torch.arange(6) % 2
    own = data.from_arrays((images, labels), (images[:2], [0, 1]), classes=["a", "b"], val=(images[:3], labels[:3]))
    assert own.val is not None and len(own.val) == 3 and own.train.labels.dtype == np.int64
    assert [name for name, _ in own.splits()] == ["train", "val", "test"]
    assert own.train.origin(4) == "index 4"


IMAGES, LABELS = random_images(6), np.arange(6) % 2


@pytest.mark.parametrize(
    ("train", "arguments", "words"),
    [
        ((IMAGES / 255, LABELS), {}, "uint8 with 0..255, got float64.*astype"),
        ((IMAGES.astype(np.int64), LABELS), {}, r"uint8 with 0..255, got int64.*in 0..255: images.astype\('uint8'\)"),
        ((torch.rand(6, 8, 8, requires_grad=True), LABELS), {}, "requires grad"),
        ((IMAGES[0, 0], LABELS), {}, r"\(N, H, W\) or \(N, H, W, C\)"),
        ((IMAGES[:0], LABELS[:0]), {"classes": ["a", "b"]}, "not empty"),
        ((IMAGES.transpose(0, 3, 1, 2), LABELS), {"channels": 3}, r"8 channels .*transpose\(0, 2, 3, 1\)"),
        ((IMAGES, LABELS), {"channels": 1}, "3 channels .*expected 1"),
        ((IMAGES, LABELS[:, None]), {}, r"got int64 of shape \(6, 1\). For \(N, 1\): labels.ravel\(\)"),
        ((IMAGES, LABELS[:5]), {}, r"labels must be whole numbers of shape \(6,\)"),
        ((IMAGES, LABELS / 2), {"classes": ["a", "b"]}, "labels must be whole numbers"),
        ((IMAGES, LABELS + 1), {"classes": ["a", "b"]}, r"0\.\.1 for 2 classes; label 1 is 2"),
        ((IMAGES, LABELS - 1), {"classes": ["a", "b"]}, r"0\.\.1 for 2 classes; label 0 is -1"),
        ((IMAGES, LABELS * 0), {}, "at least two classes"),
        ((IMAGES, LABELS), {"classes": ["a", "a"]}, "different names"),
        ((IMAGES, LABELS), {"val": (IMAGES[..., :1], LABELS)}, "same number of channels"),
        ((IMAGES[..., :1], LABELS), {}, "same number of channels"),
        ((IMAGES,), {"classes": ["a", "b"]}, "pair"),
        ((IMAGES, LABELS, LABELS), {}, "pair"),
        (IMAGES, {"classes": ["a", "b"]}, "pair"),
    ],
)
def test_arrays_that_cannot_be(train, arguments, words):
    with pytest.raises(DataError, match=words):
        data.from_arrays(train, (IMAGES, LABELS), **arguments)


def test_a_test_label_outside_the_training_labels():
    with pytest.raises(DataError, match=r"test labels must be in 0..1"):
        data.from_arrays((IMAGES, LABELS), (IMAGES, LABELS + 1))


def test_classes_are_a_sequence_of_names():
    pair = random_images(4), np.arange(4) % 2
    assert data.from_arrays(pair, pair, classes=np.array(["ant", "bee"])).classes == ("ant", "bee")
    for classes in ("ab", ("ant", "ant"), 2):
        with pytest.raises(DataError, match="sequence of different names"):
            data.from_arrays(pair, pair, classes=classes)


def test_an_entry_of_the_table_may_have_a_validation_split(tiny, monkeypatch):
    whole = data.from_arrays(
        *(((split.images, split.labels)) for split in (tiny.train, tiny.test)), val=(tiny.test.images, tiny.test.labels)
    )
    entry = data.DataSource(lambda root, channels: whole, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "mine")
    monkeypatch.setitem(DATASETS, "mine", entry)
    found = data.load("mine")
    assert found.name == "mine" and found.mean == (0.5, 0.4, 0.3) and len(found.val) == len(tiny.test)
    assert data.make_loaders(found).val is not None


# ---- folders


def test_a_folder_with_train_and_test(image_folder):
    folder = data.load(image_folder)
    assert folder.classes == ("cat", "dog") and folder.name == "images" and folder.mean is None
    assert folder.train.labels.tolist() == [0] * 4 + [1] * 4 and len(folder.test) == 4
    image, label = folder.train[5]
    path = image_folder / "train" / "dog" / "1.png"
    assert folder.train.origin(5) == str(path) and label == 1
    assert np.array_equal(image, np.asarray(Image.open(path))) and image.shape == (10, 12, 3)
    assert data.load(str(image_folder), channels=1).train[0][0].shape == (10, 12, 1)


def test_the_folder_one_is_in(image_folder, monkeypatch):
    monkeypatch.chdir(image_folder)
    assert data.load(".").name == "images"


def test_val_serves_as_test_or_stands_beside_it(image_folder):
    (image_folder / "test").rename(image_folder / "val")
    folder = data.load(image_folder)
    assert len(folder.test) == 4 and folder.val is None
    both = image_folder / "test" / "cat"
    both.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(both / "x.png")
    folder = data.load(image_folder)  # a class may be missing in test
    assert len(folder.test) == 1 and folder.val is not None and len(folder.val) == 4


def test_classes_alone_are_split_by_seed_and_stratified(image_folder):
    root = image_folder / "train"
    first = data.load(root, test_fraction=0.25, seed=1)
    assert np.bincount(first.train.labels).tolist() == [3, 3] and np.bincount(first.test.labels).tolist() == [1, 1]
    names = [split.origin(i) for _, split in first.splits() for i in range(len(split))]
    assert len(set(names)) == 8
    held_out = {tuple(sorted(data.load(root, seed=s).test.origin(i) for i in range(2))) for s in range(10)}
    assert len(held_out) > 1
    again = data.load(root, test_fraction=0.25, seed=1)
    assert [again.test.origin(i) for i in range(2)] == [first.test.origin(i) for i in range(2)]


def test_files_are_listed_sorted_and_not_opened(image_folder, monkeypatch):
    deep = image_folder / "train" / "cat" / "2023" / "may"
    deep.mkdir(parents=True)
    (deep / "UPPER.JPEG").write_bytes(b"not opened")
    for ignored in ("notes.txt", ".hidden.png", "Thumbs.db"):
        (image_folder / "train" / "cat" / ignored).write_bytes(b"")
    (image_folder / "train" / ".cache").mkdir()
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    folder = data.load(image_folder)
    cats = folder.train.paths[:5]
    assert cats == sorted(cats) and cats[-2].endswith("2023/may/UPPER.JPEG") and len(folder.train) == 9


def test_folder_errors(tmp_path, image_folder):
    cases = []

    def case(words, error=DataError):
        folder = tmp_path / f"case{len(cases)}"
        folder.mkdir()
        cases.append((folder, words, error))
        return folder

    case("no class folders; expected at least two")
    (case(r"one class \(a\)") / "a").mkdir()
    both = case("a has no images .*Add some")
    (both / "a").mkdir()
    (both / "b").mkdir()
    only = case("neither test/ nor val/")
    (only / "train" / "a").mkdir(parents=True)
    backwards = case("test/ but no train/")
    for name in ("a", "b"):
        (backwards / "test" / name).mkdir(parents=True)
    for folder, words, error in cases:
        with pytest.raises(error, match=words):
            data.load(folder)
    one = image_folder / "train" / "pony"
    one.mkdir()
    Image.new("RGB", (4, 4)).save(one / "x.png")
    with pytest.raises(DataError, match="Class pony has 1 image; at least two"):
        data.load(image_folder / "train")
    (image_folder / "test" / "ape").mkdir()
    with pytest.raises(DataError, match=r"lacks: ape.*remove its folder or add"):
        data.load(image_folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("Train", "Test"), r"Rename Test/ to test/, Train/ to train/"),
        (("training", "validation"), "training/ to train/, validation/ to val/"),
        (("Training", "Testing"), "Testing/ to test/, Training/ to train/"),
        (("train", "test", "validation"), r"has validation/, but .*Rename validation/ to val/; or move"),
        (("train", "test", "VALID"), "VALID/ to val/"),
        (("Train", "test"), "Rename Train/ to train/"),
    ],
)
def test_splits_spelled_otherwise_are_neither_classes_nor_passed_over(names, words, image_folder):
    for name in names:
        shutil.copytree(image_folder / "train", image_folder.parent / "other" / name)
    with pytest.raises(DataError, match=words):
        data.load(image_folder.parent / "other")


def test_a_class_may_be_called_like_a_split(image_folder):
    for source, name in (("dog", "testing"), ("cat", "valid")):
        (image_folder / "train" / source).rename(image_folder / "train" / name)
        (image_folder / "test" / source).rename(image_folder / "test" / name)
    (image_folder / "validation").symlink_to(image_folder / "test")  # another name of what is read
    assert data.load(image_folder).classes == ("testing", "valid")
    (image_folder / "train" / "ham").mkdir()
    Image.new("RGB", (4, 4)).save(image_folder / "train" / "ham" / "0.png")
    Image.new("RGB", (4, 4)).save(image_folder / "train" / "ham" / "1.png")
    assert len(data.load(image_folder / "train").classes) == 3


@pytest.mark.parametrize("name", ["no/such/folder", "./cats", "cats.d"])
def test_a_folder_that_does_not_exist(name):
    with pytest.raises(DataNotFoundError, match=r"does not exist. Expected .*train/CLASS"):
        data.load(name)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(DataNotFoundError, match="is a file, not a folder"):
        data.load(tmp_path / "x")


def test_an_unknown_name_is_neither_a_data_set_nor_a_folder():
    with pytest.raises(
        UnknownNameError, match=r"Unknown data set 'cifar_10'; did you mean 'cifar10'.*Nor is there a folder"
    ):
        data.load("cifar_10")


def test_settings_that_cannot_be(image_folder):
    with pytest.raises(SettingError, match="channels must be 3"):
        data.load("digits", channels=4)
    for fraction in (0, 1, -0.1):
        with pytest.raises(SettingError, match="between 0 and 1"):
            data.load(image_folder / "train", test_fraction=fraction)


def test_a_truncated_image_is_named_and_skipped_only_where_asked(image_folder):
    broken = image_folder / "train" / "cat" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    link = image_folder / "train" / "dog" / "gone.png"
    link.symlink_to(image_folder / "nowhere.png")
    folder = data.load(image_folder)
    with pytest.raises(DataError, match=r"train/cat/2\.png cannot be decoded.*skip_unreadable=True"):
        folder.train[2]
    with pytest.raises(DataError, match=r"train/cat/2\.png"):
        data.stats(folder)
    with pytest.warns(UserWarning, match="Left out: ") as caught:
        skipped = data.load(image_folder, skip_unreadable=True)
    assert len(skipped.train) == 7 and len(caught) == 2
    assert any("2.png" in str(w.message) for w in caught) and any("gone.png" in str(w.message) for w in caught)
    data.stats(skipped)


def test_a_file_that_vanishes_is_named(image_folder):
    folder = data.load(image_folder)
    os.remove(folder.train.paths[1])
    with pytest.raises(DataNotFoundError, match=r"cat/1\.png\. If it was there"):
        folder.train[1]


def test_hidden_folders_and_links_in_a_circle_are_passed_over(image_folder):
    cats = image_folder / "train/cat"
    (cats / ".ipynb_checkpoints").mkdir()
    (cats / ".ipynb_checkpoints/0-checkpoint.png").write_bytes((cats / "0.png").read_bytes())
    (cats / "self").symlink_to(image_folder / "train", target_is_directory=True)
    (cats / "circle").symlink_to(cats, target_is_directory=True)
    (cats / "more").mkdir()
    (cats / "more/9.PNG").write_bytes((cats / "0.png").read_bytes())
    names = [os.path.relpath(path, cats) for path in data.load(image_folder).train.paths if "/cat/" in path]
    assert "more/9.PNG" in names and not any("checkpoint" in name or name.startswith("circle") for name in names)


def test_splits_know_the_names_of_their_labels(image_folder, tiny):
    assert data.load(image_folder).test.classes == ("cat", "dog")
    assert tiny.train.classes == ("ant", "bee", "cat") == data.make_loaders(tiny, val_fraction=0.5).val.split.classes
    assert data.load("digits").train.classes == tuple("0123456789")


def test_a_split_gives_one_image_at_a_time(image_folder, tiny):
    for split in (tiny.train, data.load(image_folder).train, data.Subset(tiny.train, [2, 0, 1])):
        for index, same in ((np.int64(1), 1), (-1, len(split) - 1)):
            assert np.array_equal(split[index][0], split[same][0])
        for several in (slice(2), [0, 1], np.arange(2), 1.0, None):
            with pytest.raises(SettingError, match=r"one image at a time.*Subset\(split, range\(5\)\)"):
                split[several]


@pytest.mark.parametrize("name", ["", None, 5])
def test_what_is_no_name_is_said(name):
    with pytest.raises(SettingError, match="name of a data set or the path"):
        data.load(name)


def test_loaders_and_stats_want_a_data_set():
    for function in (data.make_loaders, data.stats):
        with pytest.raises(SettingError, match=r"data\.load"):
            function("digits")


def test_odd_entries_of_a_folder(image_folder):
    cats = image_folder / "train/cat"
    os.mkfifo(cats / "pipe.png")  # to be opened by nobody
    (cats / "itself").symlink_to(cats / "itself")
    (cats / "null.png").symlink_to("/dev/zero")
    (image_folder / "train/loop").symlink_to(image_folder / "train/loop")
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i"):  # each leads to all others: 9! ways
        (cats / name).mkdir()
        for other in "abcdefghi":
            (cats / name / f"to-{other}").symlink_to(cats / other)
    (cats / "a/z.png").write_bytes((cats / "0.png").read_bytes())
    loaded = data.load(image_folder)
    assert loaded.classes == ("cat", "dog") and len(loaded.train) == 9
    data.stats(loaded)


def test_folders_deeper_than_functions_can_call_each_other(image_folder):
    deep = image_folder / "train/cat" / "/".join("x" * 1200)
    try:
        for folder in [*reversed(deep.parents), deep]:
            folder.mkdir(exist_ok=True)
        shutil.copy(image_folder / "train/cat/0.png", deep)
        assert len(data.load(image_folder).train) == 9
    finally:
        (deep / "0.png").unlink(missing_ok=True)
        os.removedirs(deep)  # pytest could not


def test_a_folder_that_may_not_be_read(image_folder, monkeypatch):
    scan = os.scandir

    def refused(path):
        if os.path.basename(path) == denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    for denied in ("train", "dog"):
        with pytest.raises(DataNotFoundError, match=rf"{denied} cannot be read: Permission denied"):
            data.load(image_folder)


@pytest.mark.parametrize("name", ["a\0.b", "x" * 300, "./" + "x" * 300, "a/" * 3000])
def test_a_name_that_no_folder_can_have(name):
    with pytest.raises((DataNotFoundError, UnknownNameError)):
        data.load(name)


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_cifar10_as_a_folder(cifar_folder):
    cifar = data.load(cifar_folder)
    assert len(cifar.train) == 50_000 and len(cifar.test) == 10_000
    assert cifar.classes == CIFAR10_CLASSES
    assert np.bincount(cifar.train.labels).tolist() == [5000] * 10
    assert cifar.train[49_999][0].shape == (32, 32, 3)


# ---- splits


@given(
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=5),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_stratified_split(counts, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    names = [str(i) for i in range(len(counts))]
    rest, held_out = stratified_split(labels, fraction, seed, names)
    assert sorted([*rest, *held_out]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        part = int((labels[held_out] == label).sum())
        assert 1 <= part < count and abs(part - fraction * count) <= 1
    again = stratified_split(labels, fraction, seed, names)
    assert np.array_equal(rest, again[0]) and np.array_equal(held_out, again[1])


def test_a_class_that_is_called_train(tmp_path):
    for name in ("bus", "train"):
        (tmp_path / name).mkdir()
        Image.fromarray(random_images(1)[0]).save(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=r"If train/ is a class, rename it, such as to trains/"):
        data.load(tmp_path)

"""The uint8 cache of a folder: the pixels of the files, written once, whole or not at all."""

import os
import pickle

import numpy as np
import pytest
import torch
from conftest import random_images
from PIL import Image

from vision_wrapper import data
from vision_wrapper.data import cache
from vision_wrapper.errors import DataError, DataNotFoundError, FileWriteError


def decoded(monkeypatch):
    """Counts the images that are decoded."""
    calls = []
    whole = cache.image_for
    monkeypatch.setattr(cache, "image_for", lambda *arguments: calls.append(1) or whole(*arguments))
    return calls


def test_the_same_images_in_whole_batches_and_decoded_once(image_folder, tmp_path, monkeypatch):
    calls = decoded(monkeypatch)
    images = data.load(image_folder)
    kept = data.cached(images, tmp_path / "cache", size=8)
    assert len(calls) == 12 and kept.classes == images.classes
    preprocess = data.Preprocess((8, 8), 3, (0.5,) * 3, (0.2,) * 3)
    for (_, split), (_, original) in zip(kept.splits(), images.splits(), strict=True):
        assert split.labels.tolist() == original.labels.tolist()
        for i in range(len(split)):
            assert (split[i][0] == preprocess.resize(original[i][0])).all()
            assert split.origin(i) == original.origin(i) and os.path.exists(split.origin(i))
    again = data.cached(images, tmp_path / "cache", size=8)
    assert len(calls) == 12 and (again.train.images == kept.train.images).all()
    loaders = data.make_loaders(kept, "crop_flip", batch_size=3)
    assert loaders.train.path == loaders.test.path == "whole batches"
    from_files = data.make_loaders(images, batch_size=3, preprocess=loaders.preprocess, num_workers=0)
    for (kept_batch, _), (batch, _) in zip(loaders.test, from_files.test, strict=True):
        assert torch.equal(kept_batch, batch)


def test_a_folder_without_a_test_part_and_grey_images(image_folder, tmp_path):
    images = data.load(image_folder / "train", channels=1, seed=3)
    kept = data.cached(images, tmp_path / "cache")
    assert kept.train.images.shape == (6, 10, 12, 1)  # all are of one size, which is kept
    assert [kept.test.origin(i) for i in range(2)] == [images.test.origin(i) for i in range(2)]


@pytest.mark.parametrize("change", ["pixels", "time", "size", "another file"])
def test_what_changed_is_decoded_anew(image_folder, tmp_path, monkeypatch, change):
    data.cached(data.load(image_folder), tmp_path / "cache", size=8)
    file = image_folder / "train" / "cat" / "0.png"
    if change == "pixels":
        Image.fromarray(random_images(1, 14)[0]).save(file)
    elif change == "time":
        os.utime(file, ns=(0, 0))
    elif change == "another file":
        Image.fromarray(random_images(1, 14)[0]).save(file.with_name("9.png"))
    calls = decoded(monkeypatch)
    kept = data.cached(data.load(image_folder), tmp_path / "cache", size=9 if change == "size" else 8)
    assert len(calls) == {"size": 12, "another file": 9}.get(change, 8)
    assert len(kept.train) == (9 if change == "another file" else 8)


@pytest.mark.parametrize("damage", ["cut short", "a bit", "gone", "no list", "list cut short"])
def test_a_damaged_cache_is_noticed_and_written_anew(image_folder, tmp_path, damage):
    images = data.load(image_folder)
    wanted = np.array(data.cached(images, tmp_path / "cache", size=8).train.images)
    file, listing = tmp_path / "cache" / "train.cache.npy", tmp_path / "cache" / "train.cache.json"
    content = bytearray(file.read_bytes())
    if damage == "cut short":
        file.write_bytes(content[:-5])
    elif damage == "a bit":
        content[300] ^= 1
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    elif damage == "no list":
        listing.unlink()
    else:
        listing.write_text(listing.read_text()[:40])
    if "list" in damage:
        kept = data.cached(images, tmp_path / "cache", size=8)
    else:
        with pytest.warns(UserWarning, match=r"train\.cache\.npy is damaged"):
            kept = data.cached(images, tmp_path / "cache", size=8)
    assert (kept.train.images == wanted).all()


def test_an_unreadable_image_is_named_and_leaves_no_cache(image_folder, tmp_path):
    file = image_folder / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"dog.1\.png cannot be decoded"):
        data.cached(data.load(image_folder), tmp_path / "cache", size=8)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(image_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileWriteError, match="file/cache"):
        data.cached(data.load(image_folder), tmp_path / "file" / "cache", size=8)


def test_arrays_are_cached_too_and_known_by_their_pixels(tiny, tmp_path, monkeypatch):
    kept = data.cached(tiny, tmp_path / "cache", size=8)
    assert kept.train.images.shape == (24, 8, 8, 3)
    calls = decoded(monkeypatch)
    data.cached(tiny, tmp_path / "cache", size=8)
    assert not calls
    tiny.train.images[3, 0, 0, 0] ^= 1
    data.cached(tiny, tmp_path / "cache", size=8)
    assert len(calls) == 24  # of the training split alone


def test_the_images_stay_in_the_file(image_folder, tmp_path):
    kept = data.cached(data.load(image_folder), tmp_path / "cache", size=64)
    assert isinstance(kept.train.images, np.memmap) and not kept.train.images.flags.writeable
    pickled = pickle.dumps(kept.train)  # as a worker process is given it
    copy = pickle.loads(pickled)
    assert isinstance(copy.images, np.memmap) and len(pickled) < kept.train.images.nbytes
    assert (copy.images == kept.train.images).all() and copy.origin(0) == kept.train.origin(0)
    before = np.array(kept.train.images)
    list(data.make_loaders(kept, "crop_flip", batch_size=4).train)
    assert (kept.train.images == before).all()


def test_a_file_of_the_user_is_left(image_folder, tmp_path):
    (tmp_path / "cache").mkdir()
    np.save(tmp_path / "cache" / "train.npy", np.arange(3))
    data.cached(data.load(image_folder), tmp_path / "cache", size=8)
    assert np.load(tmp_path / "cache" / "train.npy").tolist() == [0, 1, 2]


def test_a_cache_of_another_cache_is_not_one_of_the_files(image_folder, tmp_path):
    images = data.load(image_folder)
    small = data.cached(images, tmp_path / "a", size=4)
    data.cached(small, tmp_path / "b", size=8)
    direct = data.cached(images, tmp_path / "b", size=8)
    assert (direct.train.images[0] == data.make_loaders(images, size=8).preprocess.resize(images.train[0][0])).all()


def test_an_image_that_is_gone_is_named(image_folder, tmp_path):
    images = data.load(image_folder)
    os.remove(images.train.origin(0))
    with pytest.raises(DataNotFoundError, match="There is no image file"):
        data.cached(images, tmp_path / "cache", size=8)

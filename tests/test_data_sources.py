"""Where images come from: arrays, folders, data sets by name."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import os
import pickle
import shutil
import struct
import tarfile
import threading
import warnings

import numpy as np
import pytest
import torch
import torchvision
from conftest import random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vision_wrapper as vw
from vision_wrapper import data
from vision_wrapper.data import DATASETS, decode
from vision_wrapper.data import loaders as loaders_module
from vision_wrapper.data.sources import image_size, stratified_split
from vision_wrapper.errors import (
    DataError,
    DataNotFoundError,
    SettingError,
    UnknownNameError,
)

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
    import vision_wrapper as vw

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
        ((IMAGES.astype(np.int64), LABELS), {}, "uint8 with 0..255, got int64"),
        ((IMAGES[0, 0], LABELS), {}, r"\(N, H, W\) or \(N, H, W, C\)"),
        ((IMAGES[:0], LABELS[:0]), {"classes": ["a", "b"]}, "not empty"),
        ((IMAGES.transpose(0, 3, 1, 2), LABELS), {"channels": 3}, r"8 channels .*transpose\(0, 2, 3, 1\)"),
        ((IMAGES, LABELS), {"channels": 1}, "3 channels .*expected 1"),
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


# ---- decoding

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]], [[0, 0, 0], [255, 255, 255]]], np.uint8)


def saved(image: Image.Image, tmp_path, name="x.png", **arguments):
    image.save(tmp_path / name, **arguments)
    return tmp_path / name


def test_palette_grey_and_one_bit(tmp_path):
    rgb = Image.fromarray(COLOURS)
    assert np.array_equal(decode(saved(rgb.quantize(16), tmp_path)), COLOURS)
    grey = np.array([[0, 7], [128, 255]], np.uint8)
    assert np.array_equal(decode(saved(Image.fromarray(grey), tmp_path)), np.repeat(grey[..., None], 3, -1))
    assert np.array_equal(decode(saved(Image.fromarray(grey), tmp_path), channels=1), grey[..., None])
    bits = Image.fromarray(grey > 100)
    assert np.array_equal(decode(saved(bits, tmp_path))[..., 0], np.where(grey > 100, 255, 0))
    assert decode(saved(rgb.convert("CMYK"), tmp_path, "x.jpg")).shape == (3, 2, 3)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.dstack([COLOURS, np.array([[255, 0], [0, 255], [0, 255]], np.uint8)])
    expected = COLOURS.copy()
    expected[0, 1] = expected[1, 0] = expected[2, 0] = 255
    assert np.array_equal(decode(saved(Image.fromarray(rgba), tmp_path)), expected)
    palette = Image.fromarray(COLOURS).quantize(8)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert decode(saved(palette, tmp_path))[0, 0].tolist() == [255, 255, 255]
    grey_alpha = Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")
    assert decode(saved(grey_alpha, tmp_path), channels=1)[0, :, 0].tolist() == [10, 255]


@pytest.mark.parametrize("brightest", [65535, 20000, 255, 1])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_alike_whatever_is_in_the_image(tmp_path, brightest, suffix):
    values = np.array([[0, brightest // 2, brightest]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path, f"x.{suffix}")
    expected = np.rint(values * (255 / 65535)).astype(np.uint8)
    assert np.array_equal(decode(path, channels=1)[..., 0], expected)


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0])
def test_float_images(tmp_path, scale):
    values = np.array([[0.0, 0.5, 1.0]], np.float32) * scale
    assert decode(saved(Image.fromarray(values), tmp_path, "x.tif"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, suffix):
    pixels = random_images(1, 16)[0, :, :10]
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a").mkdir()
    path = saved(Image.fromarray(pixels), tmp_path / "a", f"x.{suffix}", exif=exif)
    assert np.array_equal(decode(path), back[orientation](pixels))
    split = data.sources.FolderSplit([str(path)], np.array([0]), 3)
    assert image_size(split, 0) == back[orientation](pixels).shape[:2]


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "pgm", "png", "ppm", "tif", "webp"])
def test_every_suffix_is_decoded_and_every_damage_named(tmp_path, suffix):
    path = saved(
        Image.fromarray(random_images(1, 24)[0]).convert("L" if suffix == "pgm" else "RGB"), tmp_path, f"x.{suffix}"
    )
    assert decode(path).shape == (24, 24, 3)
    blob = path.read_bytes()
    random = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in range(60):
            damaged = bytearray(blob[: int(random.integers(len(blob)))] if trial % 2 else blob)
            for at in random.integers(0, max(1, min(len(damaged), 80)), 4):
                if damaged:
                    damaged[at] = int(random.integers(256))
            path.write_bytes(damaged)
            try:
                decode(path)  # some damage is not noticed
            except DataError as error:
                assert path.name in str(error)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = saved(Image.new("L", (4, 4)), tmp_path)
    blob = bytearray(path.read_bytes())
    blob[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    blob[29:33] = struct.pack(">I", zlib.crc32(bytes(blob[12:29])))
    path.write_bytes(blob)
    with warnings.catch_warnings(), pytest.raises(DataError, match="pixels"):
        warnings.simplefilter("ignore")
        decode(path)


def test_a_program_is_not_an_image(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps")
    os.rename(tmp_path / "x.eps", tmp_path / "x.png")
    with pytest.raises(DataError, match="EPS"):
        decode(tmp_path / "x.png")


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


# ---- downloads

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar_archive(images: np.ndarray, labels: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """An archive as Krizhevsky's (five training batches, a test batch, names), and the MD5 of each file."""
    files = {"batches.meta": {"label_names": CIFAR10}}
    for i, part in enumerate(np.array_split(np.arange(len(images)), 6)):
        flat = images[part].transpose(0, 3, 1, 2).reshape(len(part), -1)  # channels first, as rows
        files["test_batch" if i == 5 else f"data_batch_{i + 1}"] = {"data": flat, "labels": labels[part].tolist()}
    buffer, md5 = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            blob = pickle.dumps(content, protocol=2)
            md5[name] = hashlib.md5(blob).hexdigest()
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    return buffer.getvalue(), md5


@pytest.fixture
def served(tmp_path, monkeypatch):
    """torchvision's CIFAR10 with 60 images of its own, on this machine; counts the requests."""
    images, labels = random_images(60, 32), np.arange(60) % 10
    blob, md5 = cifar_archive(images, labels)
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(blob)))
            self.end_headers()
            self.wfile.write(blob)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(blob).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5["batches.meta"]})
    yield images, labels, requests
    server.shutdown()
    server.server_close()


def test_cifar10_is_downloaded_once_and_checked(served, tmp_path):
    images, labels, requests = served
    asked = None
    for _ in range(2):
        cifar = data.load("cifar10", root=tmp_path / "root")
        assert requests and len(requests) == (asked or len(requests))  # the second time, nothing more
        asked = len(requests)
        assert len(cifar.train) == 50 and len(cifar.test) == 10
        assert np.array_equal(cifar.train.images, images[:50]) and cifar.train.labels.tolist() == labels[:50].tolist()
        assert cifar.classes[3] == "cat" and cifar.mean == DATASETS["cifar10"].mean
    grey = data.load("cifar10", root=tmp_path / "root", channels=1)
    assert grey.train[0][0].shape == (32, 32, 1) and grey.mean is None
    assert np.array_equal(grey.train[0][0][..., 0], np.asarray(Image.fromarray(images[0]).convert("L")))
    assert len(data.make_loaders(grey).preprocess.mean) == 1  # computed, as they are not known


def test_a_wrong_checksum_is_an_error(served, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(DataNotFoundError, match="cifar10 is not in"):
        data.load("cifar10", root=tmp_path)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_offline_the_error_names_digits(name, tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(DataNotFoundError, match=rf"(?s){name} is not in .*data\.load\(\"digits\"\)"):
        data.load(name, root=tmp_path)


def test_mnist_as_torchvision_stores_it(tmp_path):
    for kind, name in (("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist")):
        folder = tmp_path / kind / "raw"
        folder.mkdir(parents=True)
        grey, labels = random_images(12, 28, channels=1)[..., 0], np.arange(12, dtype=np.uint8) % 10
        for part, count in (("train", 12), ("t10k", 5)):
            header = struct.pack(">IIII", 0x803, count, 28, 28)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(header + grey[:count].tobytes())
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 0x801, count) + labels[:count].tobytes()
            )
        loaded = data.load(name, root=tmp_path)
        assert len(loaded.train) == 12 and len(loaded.test) == 5 and len(loaded.classes) == 10
        assert np.array_equal(loaded.train[4][0], np.repeat(grey[4][..., None], 3, -1)) and loaded.train[4][1] == 4
        assert loaded.mean == DATASETS[name].mean * 3
        assert data.load(name, root=tmp_path, channels=1).train[0][0].shape == (28, 28, 1)


def test_cifar10_as_a_folder(cifar_folder):
    cifar = data.load(cifar_folder)
    assert len(cifar.train) == 50_000 and len(cifar.test) == 10_000
    assert cifar.classes == tuple(CIFAR10)
    assert np.bincount(cifar.train.labels).tolist() == [5000] * 10
    assert cifar.train[49_999][0].shape == (32, 32, 3)


# ---- no more of a photograph than is needed


def photograph(path, size, **options):
    """A JPEG of soft blots."""
    noise = np.random.default_rng(1).integers(0, 256, (size[1] // 60, size[0] // 60, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=90, **options)
    return path


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 300), (300, 400)), ((1000, 700), (175, 250)), ((2000, 1500), (188, 250)), ((640, 330), (165, 320))],
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(tmp_path, size, expected):
    path = photograph(tmp_path / "a.jpg", size)
    part = data.decode(path, enough=(160, 160))
    assert part.shape == (*expected, 3)  # the smallest of whole, half, quarter and eighth that has 160 both ways
    whole = data.decode(path)
    assert whole.shape == (size[1], size[0], 3)
    preprocess = data.Preprocess((80, 80), 3, (0.5,) * 3, (0.2,) * 3)
    difference = preprocess.resize(whole).astype(int) - preprocess.resize(part)
    assert np.abs(difference).mean() < 3


def test_a_photograph_on_its_side_is_decoded_in_part_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photograph(tmp_path / "a.jpg", (1200, 600), exif=exif)
    part = data.decode(path, enough=(100, 100))
    with Image.open(path) as image:
        upright = np.asarray(image.resize((300, 150), Image.Resampling.BOX).rotate(-90, expand=True))
    assert part.shape == (300, 150, 3) and np.abs(part.astype(int) - upright).mean() < 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_plain_jpeg_has_the_pixels_that_pillow_has(tmp_path, options):
    path = photograph(tmp_path / "a.jpg", (123, 81), **options)
    with Image.open(path) as image:
        assert (data.decode(path) == np.asarray(image)).all()
    content = path.read_bytes()
    for end in (len(content) // 2, len(content) - 30, len(content) - 2):
        path.write_bytes(content[:end])
        with pytest.raises(DataError, match=r"a\.jpg cannot be decoded"):
            data.decode(path)


def test_loaders_and_classifiers_see_the_same_of_a_photograph(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            photograph(tmp_path / split / name / "0.jpg", (900, 600))
    photographs = data.load(tmp_path)
    loaders = data.make_loaders(photographs, size=64, num_workers=0)
    shapes = []
    resize = data.Preprocess.resize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.Preprocess, "resize", lambda self, image: shapes.append(image.shape) or resize(self, image))
        images, _ = next(iter(loaders.test))
    assert set(shapes) == {(150, 225, 3)}
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 2))
    vw.save_classifier(tmp_path / "c.safetensors", model, loaders.preprocess, photographs.classes)
    classifier = vw.load_classifier(tmp_path / "c.safetensors", model=model)
    (result,) = classifier.predict([photographs.test.origin(0)])
    assert result.probabilities == pytest.approx(model(images[:1]).softmax(1)[0].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("augment", "shape"),
    [
        ("none", (150, 200, 3)),
        ((data.RandomResizedCrop(scale=(0.35, 1.0)),), (150, 200, 3)),
        ((data.RandomResizedCrop(scale=(0.1, 1.0)),), (300, 400, 3)),  # its smallest crop would be too small
        ((data.RandomResizedCrop(scale=(0.0, 1.0)),), (600, 800, 3)),
        (lambda image: image, (600, 800, 3)),  # what is somebody's own is given all of the image
    ],
)
def test_an_augmentation_has_as_much_of_a_photograph_as_it_needs(tmp_path, augment, shape):
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        photograph(tmp_path / part / "0.jpg", (800, 600))
    loader = data.make_loaders(data.load(tmp_path), augment, size=64, num_workers=0).train
    image = loaders_module.image_for(loader.split, 0, loader._samples._enough)
    assert image.shape == shape

"""Image files become pixels: every format, orientation and damage, and no more of a photograph than is needed."""

import os
import struct
import warnings

import numpy as np
import pytest
import torch
from conftest import limited_memory, random_images
from PIL import Image

import vision_wrapper as vw
from vision_wrapper import data
from vision_wrapper.data import decode
from vision_wrapper.data.splits import FolderSplit, image_for, image_size
from vision_wrapper.errors import DataError

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
@pytest.mark.parametrize("suffix", ["pgm", "png", "tif"])
def test_sixteen_bits_are_scaled_alike_whatever_is_in_the_image(tmp_path, brightest, suffix):
    values = np.array([[0, brightest // 2, brightest]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path, f"x.{suffix}")
    expected = np.rint(values * (255 / 65535)).astype(np.uint8)
    assert np.array_equal(decode(path, channels=1)[..., 0], expected)


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0])
def test_float_images(tmp_path, scale):
    values = np.array([[0.0, 0.5, 1.0]], np.float32) * scale
    assert decode(saved(Image.fromarray(values), tmp_path, "x.tif"))[0, :, 0].tolist() == [0, 128, 255]
    values[0, 0] = np.nan  # nothing was measured there
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
    split = FolderSplit([str(path)], np.array([0]), 3)
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


def test_a_damaged_length_is_not_asked_of_the_memory(tmp_path):
    """Of a PNG's data, which Pillow reads to the end that they claim to have: here 2 GB."""
    pixels = random_images(1, 12)[0]
    path = saved(Image.fromarray(pixels), tmp_path)
    blob = bytearray(path.read_bytes())
    at = blob.find(b"IDAT")
    blob[at - 4 : at] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(blob)
    with limited_memory(2**28):
        assert np.array_equal(decode(path), pixels)


def test_a_program_is_not_an_image(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps")
    os.rename(tmp_path / "x.eps", tmp_path / "x.png")
    with pytest.raises(DataError, match="EPS"):
        decode(tmp_path / "x.png")


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
    part = data.decode(path, decode_size=(160, 160))
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
    part = data.decode(path, decode_size=(100, 100))
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
        ((data.RandomResizedCrop(scale=(0.35, 1.0), ratio=(1.0, 3.0)),), (300, 400, 3)),  # wide ones are low
        ((data.RandomResizedCrop(scale=(0.0, 1.0)),), (600, 800, 3)),
        (lambda image: image, (600, 800, 3)),  # what is somebody's own is given all of the image
    ],
)
def test_an_augmentation_has_as_much_of_a_photograph_as_it_needs(tmp_path, augment, shape):
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        photograph(tmp_path / part / "0.jpg", (800, 600))
    loader = data.make_loaders(data.load(tmp_path), augment, size=64, num_workers=0).train
    image = image_for(loader.split, 0, loader._samples.decode_size)
    assert image.shape == shape


@pytest.mark.parametrize("damage", ["truncated", "closed"])
def test_a_pil_image_without_its_pixels_is_a_data_error(damage, tmp_path):
    path = saved(Image.fromarray(random_images(1, 64)[0]), tmp_path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    image = Image.open(path)
    if damage == "closed":
        image.close()
    preprocess = data.Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(DataError, match=r"x\.png cannot be decoded .*open it again"):
        preprocess(image)
    classifier = vw.classifier.Classifier(torch.nn.Identity(), preprocess, ("a", "b"))
    with pytest.raises(DataError, match="cannot be decoded"):
        classifier.predict([image])


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_exif_data_that_cannot_be_read_do_not_make_an_image_unreadable(tmp_path, suffix):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = saved(Image.fromarray(pixels), tmp_path, f"x.{suffix}", exif=b"garbage", lossless=True)
    assert np.array_equal(decode(path), pixels)

"""Damaged and hostile images, and odd trees of folders; within the limits of `fuzzing`."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import tempfile
import zlib

import numpy as np
import pytest
from conftest import random_images
from fuzzing import byte_edits, contained, edited_bytes, inputs, only_own_errors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vision_wrapper import data
from vision_wrapper.data.images import decode
from vision_wrapper.data.splits import FolderSplit, image_size


@pytest.fixture(autouse=True)
def limits():
    with contained():
        yield


# ---- folders of images

NAMES = ("train", "test", "val", "cat", "dog", "x.png", "Y.PNG", "z.jpg", ".hidden", " ", "é", "\udcff.png", "a" * 255)
NAMES += ("[a]*?", "\n", "-", "~", "%s{0}", "..png", "x.png.tmp", "con.png")
PNG = base64.b64decode(  # 1x1 pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB4iG8MwAAAABJRU5ErkJggg=="
)
paths = st.lists(st.sampled_from(NAMES[:9]) | st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
entries = st.lists(
    st.tuples(paths, st.sampled_from(["folder", "png", "png", "png", "empty", "text", "link", "pipe"]), paths),
    max_size=8,
)
whole = st.sampled_from(((), ("",), ("train/", "test/"), ("train/", "val/"), ("train/", "val/", "test/")))


def plant(root, entries):
    for name, kind, target in entries:
        path = os.path.join(root, name)
        with contextlib.suppress(OSError):  # in the way of one another
            os.makedirs(path if kind == "folder" else os.path.dirname(path), exist_ok=True)
            if kind == "link":
                os.symlink(os.path.join(root, target), path)
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind != "folder":
                with open(path, "xb") as file:
                    file.write({"png": PNG, "empty": b"", "text": b"no image"}[kind])


@given(
    parts=whole,
    entries=entries,
    channels=st.sampled_from([1, 3]),
    skip=st.booleans(),
    fraction=st.floats(0.01, 0.99),
)
@inputs(300)
def test_odd_trees_of_folders(tmp_path, parts, entries, channels, skip, fraction):
    images = [(f"{part}{name}/{i}.png", "png", "") for part in parts for name in ("cat", "dog") for i in range(2)]
    with tempfile.TemporaryDirectory(dir=tmp_path) as root:
        plant(root, [*images, *entries])
        with only_own_errors():
            loaded = data.load(root, channels=channels, skip_unreadable=skip, test_fraction=fraction)
            for _, split in loaded.splits():
                for i in range(len(split)):
                    with only_own_errors():
                        assert image_size(split, i) == split[i][0].shape[:2] and split.origin(i).startswith(root)
            data.stats(loaded)


# ---- images


def _image_files():
    pixels = random_images(1, 12)[0]
    pixels[2:6] = 7  # something to compress
    rgb = Image.fromarray(pixels)
    alpha = Image.fromarray(pixels[..., 0])
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    modes = {mode: rgb.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "I", "F")}
    modes |= {"RGBA": rgba, "LA": rgba.convert("LA"), "I;16": wide}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    kinds = [
        ("png", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], [{}, {"exif": exif}]),
        ("jpeg", ["L", "RGB", "CMYK"], [{}, {"progressive": True, "exif": exif}]),
        ("gif", ["1", "L", "P", "RGB"], [{}, {"transparency": 3}, {"save_all": True, "append_images": [modes["L"]]}]),
        ("bmp", ["1", "L", "P", "RGB", "RGBA"], [{}]),
        ("tiff", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"], [{}, {"exif": exif}]),
        ("tiff", ["L", "RGB"], [{"compression": c} for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")]),
        ("tiff", ["1"], [{"compression": "group4"}]),
        ("webp", ["L", "RGB", "RGBA"], [{}, {"lossless": True, "exif": exif}]),
        ("webp", ["RGB"], [{"save_all": True, "append_images": [modes["L"].convert("RGB")]}]),
        ("ppm", ["1", "L", "RGB", "I;16"], [{}]),
    ]
    for suffix, names, variants in kinds:
        for mode in names:
            for arguments in variants:
                buffer = io.BytesIO()
                modes[mode].save(buffer, suffix, **arguments)
                yield suffix, buffer.getvalue()


IMAGES = tuple(_image_files())


def with_checksums(blob):
    """A PNG with the checksums of its chunks made to fit, so that damage reaches the decoder."""
    blob, at = bytearray(blob), 8
    while at + 12 <= len(blob):
        end = at + 8 + int.from_bytes(blob[at : at + 4], "big")
        blob[end : end + 4] = struct.pack(">I", zlib.crc32(blob[at + 4 : end])) if end + 4 <= len(blob) else b""
        at = end + 4
    return bytes(blob)


@given(image=st.sampled_from(IMAGES), edits=byte_edits, channels=st.sampled_from([1, 3]), sealed=st.booleans())
@inputs(2300)
def test_damaged_images(tmp_path, image, edits, channels, sealed):
    suffix, blob = image
    blob = edited_bytes(blob, edits)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(with_checksums(blob) if sealed and suffix == "png" else blob)
    with only_own_errors():
        pixels = decode(path, channels)
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (channels,)
        assert image_size(FolderSplit([str(path)], np.zeros(1, int), channels), 0) == pixels.shape[:2]


@given(
    start=st.sampled_from([blob[:16] for _, blob in IMAGES] + [b"%!PS-Adobe-3.0 EPSF-3.0\n"]),
    rest=st.binary(max_size=99),
)
@inputs(600)
def test_random_bytes_as_images(tmp_path, start, rest):
    (tmp_path / "x.png").write_bytes(start + rest)
    with only_own_errors():
        decode(tmp_path / "x.png")

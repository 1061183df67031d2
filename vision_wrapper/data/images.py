"""Decoding image files to uint8 arrays."""

from __future__ import annotations

import io
import math
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vision_wrapper.errors import DataError, DataNotFoundError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

MAX_PIXELS = 89_478_485  # an image of 256 MB; more is damage or an attack (Pillow's own limit for a warning)
_END_OF_JPEG = b"\xff\xd9"  # the marker after the last pixel
_ORIENTATION = 0x0112  # the EXIF tag
_PROGRAMS = ("EPS", "WMF")  # Pillow would hand these to Ghostscript or to Windows, whatever the file is called


def decode(path: str | Path, channels: int = 3, decode_size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as uint8 (H, W, channels), RGB or grey, of any mode, turned as its EXIF orientation says.

    16-bit and float grey values are scaled to 0..255; transparency is laid over white.

    Args:
        path: of the file.
        channels: 3 for RGB, 1 for grey.
        decode_size: (height, width) in pixels of which no more is needed, to save time: a JPEG is decoded at a half, a
            quarter or an eighth of its size where both its sides are then still the larger of these. None decodes all
            of it.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: it cannot be decoded; the message names it.
    """
    try:
        try:
            return _decoded(path, path, channels, decode_size)
        except MemoryError:  # Pillow's PNG reader asks for as much as a damaged length says; bytes give what they have
            return _decoded(io.BytesIO(Path(path).read_bytes()), path, channels, decode_size)
    except FileNotFoundError as error:
        raise _not_there(path) from error
    except MemoryError:
        raise  # says nothing of the file
    except Exception as error:  # damage shows as any error of the decoders
        if os.path.isdir(path):
            raise DataError(f"{path} is a folder, not an image. Give the images in it, such as {path}/*.") from error
        raise DataError(
            f"{path} cannot be decoded as an image ({error or type(error).__name__}). Repair or remove it; of a "
            "folder, skip_unreadable=True (--skip-unreadable) leaves such files out."
        ) from error


def _decoded(
    file: str | Path | io.BytesIO, path: str | Path, channels: int, decode_size: tuple[int, int] | None
) -> np.ndarray:
    """The pixels of a file, or of its bytes; `path` is its own in either case."""
    with Image.open(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels: save it smaller")
        if image.format in _PROGRAMS:
            raise ValueError(f"{image.format} holds instructions to draw a picture, which are not followed")
        whole = image.size
        if decode_size is not None:
            scale = max(decode_size) / min(image.size)  # whichever way it is then turned
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        plain = _plain_jpeg(image, path) if channels == 3 and image.size == whole else None
        return _pixels_of(image, channels) if plain is None else plain


def _not_there(path: str | Path) -> DataNotFoundError:
    if re.match("https?:/", str(path)):  # of two slashes, a Path keeps one
        return DataNotFoundError(f"{path} is an address, which is not fetched. Download the image, and give its file.")
    return DataNotFoundError(f"There is no image file {path}. If it was there, it has been moved or removed.")


def _plain_jpeg(image: Image.Image, path: str | Path) -> np.ndarray | None:
    """The pixels of an upright RGB JPEG that is all there; None for any other file.

    They are Pillow's, bit for bit (OpenCV has the same libjpeg-turbo), but need not be packed from its four bytes a
    pixel.
    """
    if image.format != "JPEG" or image.mode != "RGB" or not _is_upright(image):
        return None
    content = Path(path).read_bytes()
    if not content.endswith(_END_OF_JPEG):  # OpenCV would take a part for the whole
        return None
    import cv2

    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _is_upright(image: Image.Image) -> bool:
    """Whether it is stored as it is to be seen; what its EXIF data say counts for nothing where they cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1) == 1
    except Exception:  # of a file whose pixels may be whole: any error of the reader
        return True


def from_pil(image: Image.Image, channels: int = 3) -> np.ndarray:
    """A PIL image of any mode as uint8 (H, W, channels); see `decode`.

    Raises `DataError` for one that cannot be decoded, as Pillow reads a file only when its pixels are asked for.
    """
    try:
        return _pixels_of(image, channels)
    except MemoryError:
        raise  # says nothing of the image
    except Exception as error:  # damage shows as any error of the decoders
        raise DataError(
            f"The PIL image {getattr(image, 'filename', '') or repr(image)} cannot be decoded ({error}). Its file is "
            "damaged, or was closed before its pixels were read: open it again, or pass its path."
        ) from error


def _pixels_of(image: Image.Image, channels: int) -> np.ndarray:
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not _is_upright(image):  # else it would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_eight_bits(np.asarray(image), sixteen_bits))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    mode = "L" if channels == 1 else "RGB"
    array = np.array(image if image.mode == mode else image.convert(mode))
    return array[:, :, None] if channels == 1 else array


def to_pil(image: np.ndarray) -> Image.Image:
    """A uint8 image (H, W, C) as PIL's, grey where C is 1."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _to_eight_bits(values: np.ndarray, sixteen_bits: bool) -> np.ndarray:
    """Grey values as uint8; where the file does not say so, 0..1, 0..255 or 0..65535 is told from the largest."""
    floating = values.dtype.kind == "f"
    values = np.where(np.isfinite(values), values, 0).astype(np.float64)  # NaN stands where nothing was measured
    largest = 65535.0 if sixteen_bits else float(values.max(initial=0))
    scale = 255.0 if floating and largest <= 1 else 1.0 if largest <= 255 else 255.0 / 65535.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)

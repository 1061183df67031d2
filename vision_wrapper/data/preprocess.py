"""The one owner of preprocessing: evaluation, CAM, classifier, checkpoint and export all use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vision_wrapper._numbers import is_whole
from vision_wrapper.data.images import from_pil, to_pil
from vision_wrapper.errors import DataError, SettingError


@dataclass(frozen=True)
class Preprocess:
    """How a raw image becomes a network's input.

    Attributes:
        size: (height, width) of the input in pixels.
        channels: 3 for RGB, 1 for grey.
        mean: of the training pixels in [0, 1], one a channel.
        std: their standard deviation, one a channel.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        size: Any = (self.size, self.size) if is_whole(self.size) else self.size
        sides = isinstance(size, (tuple, list, np.ndarray)) and len(size) == 2
        if not sides or not all(is_whole(side) and side >= 1 for side in size):
            raise SettingError(f"size must be pixels, or (height, width) in pixels, got {self.size!r}.")
        try:
            mean, std = (tuple(float(v) for v in values) for values in (self.mean, self.std))
        except (TypeError, ValueError) as error:
            raise SettingError(
                f"mean and std are sequences of numbers, one a channel, got {self.mean!r} and {self.std!r}."
            ) from error
        if len(mean) != self.channels or len(std) != self.channels:
            raise SettingError(
                f"mean and std need a value for each of {self.channels} channels, got {len(mean)} and {len(std)}."
            )
        if not all(0 <= v <= 1 for v in mean) or not all(0 < v <= 1 for v in std):
            raise SettingError(
                f"mean and std are of pixels in [0, 1], got {mean} and {std}. A standard deviation of 0 means that all "
                "pixels of a channel are equal: load the images in grey, channels=1, or give preprocess=."
            )
        for name, value in (("size", tuple(map(int, size))), ("mean", mean), ("std", std)):
            object.__setattr__(self, name, value)

    @property
    def decode_size(self) -> tuple[int, int]:
        """(height, width) that a decoded image needs at most: twice the input, so that it is averaged once more."""
        return 2 * self.size[0], 2 * self.size[1]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """A uint8 image (H, W, C) of any size to (*size, C): cut at the centre to that shape, then scaled."""
        if image.ndim != 3 or image.shape[2] != self.channels:
            raise DataError(f"Expected an image (H, W, {self.channels}), got shape {image.shape}.")
        if not image.size:
            raise DataError(f"Expected an image with pixels, got shape {image.shape}.")
        height, width = self.size
        if image.shape[:2] == (height, width):
            return image
        scale = max(height / image.shape[0], width / image.shape[1])
        cut_height, cut_width = max(1, round(height / scale)), max(1, round(width / scale))
        top, left = (image.shape[0] - cut_height) // 2, (image.shape[1] - cut_width) // 2
        cut = torch.from_numpy(image[None, top : top + cut_height, left : left + cut_width].copy())
        # It averages when it makes an image smaller, as Pillow does, in a third of the time; OpenCV's bilinear and
        # torch's own default skip pixels. Permuted last, the result has the channels last too and needs no copy.
        resized = nn.functional.interpolate(
            cut.permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True, align_corners=False
        )
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())

    def normalise(self, images: Tensor, channels_last: bool = False) -> Tensor:
        """uint8 (N, H, W, C) on any device to float32 (N, C, H, W): (pixel / 255 - mean) / std.

        The result is contiguous, or in `channels_last` memory format, which is three times as quick and has the same
        values.
        """
        scale, shift = self._constants(images.device)  # (C,) each
        if channels_last:
            n, height, width, channels = images.shape
            rows = images.reshape(n * height, width * channels).float()  # whole rows, so that it is vectorised
            torch.addcmul(shift.repeat(width), rows, scale.repeat(width), out=rows)
            return rows.view(images.shape).permute(0, 3, 1, 2)
        x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1))

    def denormalise(self, inputs: Tensor) -> np.ndarray:
        """Inputs (N, C, H, W) as pixels again, uint8 (N, H, W, C): `normalise` undone, rounded and cut to 0..255."""
        scale, shift = (constant.view(-1, 1, 1) for constant in self._constants(inputs.device))
        pixels = ((inputs - shift) / scale).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    def __call__(self, image: np.ndarray | Image.Image | Any) -> Tensor:
        """One raw image (uint8 array (H, W, C), or a PIL image) to a float32 tensor (C, *size)."""
        return self.batch([image])[0]

    def batch(self, images: Any) -> Tensor:
        """An iterable of raw images of any sizes to float32 (N, C, *size) on the CPU."""
        return self.normalise(torch.from_numpy(np.stack([self.resize(self.as_array(image)) for image in images])))

    def as_array(self, image: Any) -> np.ndarray:
        """A PIL image, or a uint8 array (H, W) or (H, W, C), as uint8 (H, W, channels).

        Grey, RGB and RGBA (of which what is transparent becomes white) are turned into each other.
        """
        if isinstance(image, Image.Image):
            return from_pil(image, self.channels)
        if isinstance(image, Tensor):
            image = image.detach().cpu().numpy()
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise DataError(
                "Expected a raw image: uint8 with 0..255, (H, W) or (H, W, C); got "
                f"{getattr(image, 'dtype', type(image).__name__)}. Normalisation is done here."
            )
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim == 3 and image.shape[2] in {1, 3, 4} - {self.channels} and self.channels in (1, 3):
            return from_pil(to_pil(image), self.channels)
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what is kept on a device, which may not go to another process.
        return Preprocess, (self.size, self.channels, self.mean, self.std)

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """1 / (255 * std) and -mean / std, each (C,), kept on the device they were last used on."""
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0].device != device:
            mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
            kept = (1 / (255 * std)).to(device, torch.float32), (-mean / std).to(device, torch.float32)
            object.__setattr__(self, "_kept", kept)
        return kept

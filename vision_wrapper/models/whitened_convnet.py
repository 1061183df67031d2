"""The network of the shortest CIFAR-10 runs: airbench94's (Jordan 2024, arXiv:2404.00498)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_wrapper.errors import SettingError
from vision_wrapper.models.layers import (
    ACTIVATIONS,
    NORMS,
    Activation,
    GlobalMaxPool,
    NormLayer,
    check_classes_and_channels,
    check_init,
    check_widths,
    records_architecture,
    start_as_identity,
)

_PIXELS_AT_A_TIME = 2**20  # of images that are cut into patches: bounds the memory
SMALLEST = 9  # pixels: three times halved after the 2x2 convolution


class WhitenedConvNet(nn.Module):
    """Images (N, in_channels, H, W) to logits (N, num_classes); H and W of at least 9, or 17 for norm="instance".

    A fixed 2x2 convolution that decorrelates the pixels of a patch, then three blocks of two 3x3 convolutions, each
    halving the map; pooling; linear. 1,971,362 learned parameters; about a third of `CustomResNet`'s work an image.
    Before training, `whiten.fit(images)` has to see some training images: `recipes.run` does it.

    Args:
        num_classes: how many logits.
        in_channels: 3 for RGB, 1 for grey.
        widths: channels of the three blocks.
        norm: "shift" is batch norm without a scale, as of `layers.BiasedBatchNorm`; the others are `CustomResNet`'s.
        activation: "gelu", "relu", "celu" (alpha 0.075) or "silu".
        init: "dirac" lets the first filters of each convolution pass its channels on; "default" is torch's.

    Raises:
        UnknownNameError: an unknown norm or activation.
        SettingError: any other invalid value.
    """

    @records_architecture("whitened_convnet")
    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: tuple[int, int, int] = (64, 256, 256),
        norm: str = "shift",
        activation: str = "gelu",
        init: Literal["default", "dirac"] = "dirac",
    ):
        super().__init__()
        num_classes, in_channels = check_classes_and_channels(num_classes, in_channels)
        check_init(init)
        w1, w2, w3 = check_widths(widths, ("block1", "block2", "block3"))
        make_norm, make_activation = NORMS[norm], ACTIVATIONS[activation]
        self.whiten = Whitening(in_channels)
        self.whiten_activation = make_activation()
        self.block1 = _block(self.whiten.filters, w1, make_norm, make_activation)
        self.block2 = _block(w1, w2, make_norm, make_activation)
        self.block3 = _block(w2, w3, make_norm, make_activation)
        self.pool = GlobalMaxPool()
        self.fc = nn.Linear(w3, num_classes)
        if init == "dirac":
            start_as_identity(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        if min(x.shape[2:]) < SMALLEST:
            raise SettingError(
                f"WhitenedConvNet needs images of at least {SMALLEST}x{SMALLEST}, got {tuple(x.shape[2:])}."
            )
        x = self.whiten_activation(self.whiten(x))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(self.pool(x).flatten(1))


class Whitening(nn.Module):
    """A fixed convolution to the principal components of patches, each of mean square 1, and their negatives.

    (N, C, H, W) to (N, 2 * C * 4, H - 1, W - 1). The bias is learned. What follows then sees inputs that are not
    correlated (Page 2019). Before `fit` the components are single pixels.
    """

    PATCH = 2  # pixels
    EPSILON = 5e-4  # added to the variances, so that noise is not blown up (Jordan 2024)

    weight: Tensor

    def __init__(self, channels: int):
        super().__init__()
        count = channels * self.PATCH**2
        self.filters = 2 * count
        pixels = torch.eye(count).view(count, channels, self.PATCH, self.PATCH)
        self.register_buffer("weight", torch.cat([pixels, -pixels]))
        self.bias = nn.Parameter(torch.zeros(self.filters))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take the components from normalised images, float (N, C, H, W); some thousand of 32x32 are enough.

        Raises `SettingError` for images of another form, or with values that are no numbers.
        """
        size, channels = self.PATCH, self.weight.shape[1]
        if images.ndim != 4 or not len(images) or images.shape[1] != channels or min(images.shape[2:]) < size:
            expected = f"(N, {channels}, H, W) of at least {size}x{size}"
            raise SettingError(f"Whitening.fit takes images {expected}, got {tuple(images.shape)}.")
        if not images.isfinite().all():
            raise SettingError("Whitening.fit got images with NaN or infinite values.")
        moments = torch.zeros(channels * size * size, channels * size * size, dtype=torch.float64, device=images.device)
        for part in images.split(max(1, _PIXELS_AT_A_TIME // images[0].numel())):
            patches = part.unfold(2, size, 1).unfold(3, size, 1)  # (n, C, H - 1, W - 1, 2, 2)
            flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, len(moments)).double()
            moments += flat.T @ flat
        count = len(images) * (images.shape[2] - 1) * (images.shape[3] - 1)
        variances, components = torch.linalg.eigh(moments / count)  # rising; components are columns
        filters = (components / torch.sqrt(variances + self.EPSILON)).T.reshape(-1, channels, size, size)
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, filters, H - 1, W - 1)."""
        return F.conv2d(x, self.weight, self.bias)


def _block(inputs: int, outputs: int, make_norm: NormLayer, make_activation: Activation) -> nn.Sequential:
    """Two 3x3 convolutions with norm and activation; the first one's map is halved."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            pool=nn.MaxPool2d(2),
            norm1=make_norm(outputs),
            activation1=make_activation(),
            conv2=nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm2=make_norm(outputs),
            activation2=make_activation(),
        )
    )

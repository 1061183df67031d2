"""The custom ResNet of the CIFAR-10 assignments: David Page's ResNet-9 (2018) without his logit scale of 0.125."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from vision_wrapper._numbers import is_number
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

SMALLEST = 8  # pixels: three times halved


class CustomResNet(nn.Module):
    """Images (N, in_channels, H, W) to logits (N, num_classes); H and W of at least 8, or 16 for norm="instance".

    At 32x32 and with the default widths: prep 64x32x32; layer 1 128x16x16 with a residual; layer 2 256x8x8; layer 3
    512x4x4 with a residual; pooling to 512x1x1; linear. 6,573,130 parameters, 6,575,370 with convolution bias.

    Args:
        num_classes: how many logits.
        in_channels: 3 for RGB, 1 for grey.
        bias: whether convolutions have a bias.
        pool: what reduces the last map to one value a channel, "max" or "avg".
        activation_after_add: apply ReLU to the sum of a residual and its input.
        dropout: probability before the linear layer.
        norm: "batch", "ghost" (over parts of about 32 images), "shift" (without a scale), "layer" (GroupNorm(1, C)),
            "group" or "instance".
        widths: channels of prep and of the three layers.
        activation: "relu", "celu" (alpha 0.075), "gelu" or "silu".
        init: "default" is torch's; "dirac" lets the first filters of each convolution pass its channels on.

    Raises:
        UnknownNameError: an unknown norm or activation.
        SettingError: any other invalid value.
    """

    @records_architecture("custom_resnet")
    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        bias: bool = False,
        pool: Literal["max", "avg"] = "max",
        activation_after_add: bool = False,
        dropout: float = 0.0,
        norm: str = "batch",
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        activation: str = "relu",
        init: Literal["default", "dirac"] = "default",
    ):
        super().__init__()
        num_classes, in_channels = check_classes_and_channels(num_classes, in_channels)
        if pool not in ("max", "avg"):
            raise SettingError(f'pool must be "max" or "avg", got {pool!r}.')
        if not is_number(dropout) or not 0 <= dropout < 1:
            raise SettingError(f"dropout is a probability in [0, 1), got {dropout!r}.")
        w0, w1, w2, w3 = check_widths(widths, ("prep", "layer1", "layer2", "layer3"))
        check_init(init)
        make_norm, make_activation = NORMS[norm], ACTIVATIONS[activation]
        kind = (make_norm, make_activation, bias)
        self.prep = conv_block(in_channels, w0, *kind)
        self.layer1 = nn.Sequential(conv_block(w0, w1, *kind, halve=True), Residual(w1, *kind, activation_after_add))
        self.layer2 = conv_block(w1, w2, *kind, halve=True)
        self.layer3 = nn.Sequential(conv_block(w2, w3, *kind, halve=True), Residual(w3, *kind, activation_after_add))
        self.pool = GlobalMaxPool() if pool == "max" else nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(float(dropout))
        self.fc = nn.Linear(w3, num_classes)
        if init == "dirac":
            start_as_identity(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        if min(x.shape[2:]) < SMALLEST:
            raise SettingError(
                f"CustomResNet needs images of at least {SMALLEST}x{SMALLEST}, got {tuple(x.shape[2:])}."
            )
        x = self.prep(x)
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.pool(x).flatten(1)  # (N, widths[3])
        return self.fc(self.dropout(x))


class Residual(nn.Module):
    """x plus two convolutions of x, each with norm and activation."""

    def __init__(
        self,
        channels: int,
        make_norm: NormLayer,
        make_activation: Activation,
        bias: bool,
        activation_after_add: bool,
    ):
        super().__init__()
        self.conv1 = conv_block(channels, channels, make_norm, make_activation, bias)
        self.conv2 = conv_block(channels, channels, make_norm, make_activation, bias)
        self.after_add = make_activation() if activation_after_add else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return self.after_add(x + self.conv2(self.conv1(x)))


def conv_block(
    inputs: int, outputs: int, make_norm: NormLayer, make_activation: Activation, bias: bool, halve: bool = False
) -> nn.Sequential:
    """A 3x3 convolution, max pooling of 2 where it is to `halve` the map, norm, activation."""
    layers: list[tuple[str, nn.Module]] = [("conv", nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias))]
    if halve:
        layers.append(("pool", nn.MaxPool2d(2)))
    return nn.Sequential(OrderedDict([*layers, ("norm", make_norm(outputs)), ("relu", make_activation())]))

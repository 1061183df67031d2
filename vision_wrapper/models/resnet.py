"""ResNet-18 and ResNet-34 (He et al. 2015, arXiv:1512.03385), for CIFAR's 32x32 and ImageNet's 224x224 images.

The names of the weights are torchvision's, so its state dicts fit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from vision_wrapper.errors import SettingError
from vision_wrapper.models.layers import NORMS, NormLayer, check_classes_and_channels, records_architecture
from vision_wrapper.models.weights import load_weights


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norm, added to the input (or to its 1x1 projection where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int, make_norm: NormLayer):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = make_norm(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = make_norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), make_norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(nn.Module):
    """Images (N, in_channels, H, W) to logits (N, num_classes). Use `resnet18` or `resnet34`.

    `stem` is "cifar" (one 3x3 convolution, no pooling) or "imagenet" (7x7 with stride 2, then max pooling).
    `strides` are those of the first block of each of the four stages.
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 3,
        norm: str = "batch",
        stem: Literal["cifar", "imagenet"] = "cifar",
        strides: Sequence[int] = (1, 2, 2, 2),
    ):
        super().__init__()
        num_classes, in_channels = check_classes_and_channels(num_classes, in_channels)
        if stem not in ("cifar", "imagenet"):
            raise SettingError(f'stem must be "cifar" or "imagenet", got {stem!r}.')
        if not hasattr(strides, "__len__") or len(strides) != 4 or any(s not in (1, 2) for s in strides):
            raise SettingError(f"strides must be four numbers of 1 or 2, one a stage, got {strides!r}.")
        make_norm = NORMS[norm]
        if stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = make_norm(64)
        self.relu = nn.ReLU()
        self.layer1 = _stage(64, 64, depths[0], strides[0], make_norm)
        self.layer2 = _stage(64, 128, depths[1], strides[1], make_norm)
        self.layer3 = _stage(128, 256, depths[2], strides[2], make_norm)
        self.layer4 = _stage(256, 512, depths[3], strides[3], make_norm)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))

    def _initialise(self) -> None:
        # He initialisation by the fan out, as in the paper and in torchvision.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(inputs: int, outputs: int, depth: int, stride: int, make_norm: NormLayer) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, make_norm)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, make_norm) for _ in range(depth - 1)))


@records_architecture("resnet18")
def resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    norm: str = "batch",
    stem: Literal["cifar", "imagenet"] = "cifar",
    strides: Sequence[int] = (1, 2, 2, 2),
    weights: str | os.PathLike[str] | None = None,
) -> ResNet:
    """ResNet-18; 11,173,962 parameters in the CIFAR form with 10 classes.

    Args:
        num_classes: how many logits.
        in_channels: 3 for RGB, 1 for grey.
        norm: as `CustomResNet`'s.
        stem: "cifar" for small images, "imagenet" for photographs.
        strides: of the four stages.
        weights: a file (.safetensors, or a .pth state dict with torchvision's or pytorch-cifar's names) or the name of
            torchvision's weights ("IMAGENET1K_V1"; needs `stem="imagenet"`). A head for another number of classes is
            left fresh; see `load_weights`.

    Raises:
        UnknownNameError: an unknown norm or name of weights.
        SettingError: any other invalid value.
        OtherModelError: weights of another network.
    """
    model = ResNet((2, 2, 2, 2), num_classes, in_channels, norm, stem, strides)
    return load_weights(model, weights, torchvision_name="resnet18")


@records_architecture("resnet34")
def resnet34(
    num_classes: int = 10,
    in_channels: int = 3,
    norm: str = "batch",
    stem: Literal["cifar", "imagenet"] = "cifar",
    strides: Sequence[int] = (1, 2, 2, 2),
    weights: str | os.PathLike[str] | None = None,
) -> ResNet:
    """ResNet-34; 21,282,122 parameters in the CIFAR form with 10 classes. Arguments and errors as in `resnet18`."""
    model = ResNet((3, 4, 6, 3), num_classes, in_channels, norm, stem, strides)
    return load_weights(model, weights, torchvision_name="resnet34")

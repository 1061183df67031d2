"""3x3 convolutions on a CPU in a quarter of the multiplications, for long measurements where there is no GPU.

torch convolves in float32 directly. Winograd's F(4x4, 3x3), which cuDNN uses on GPUs, gives the same sums in another
order: outputs and gradients differ by about 1e-5 of the largest (`python benchmarks/winograd.py` shows it, and the
ratio of the times). The kernels, `winograd.cpp`, are compiled when they are first used; that needs a C++ compiler and
ninja. Only runs with `--winograd`, of `measure_recipes.py` and `try_means.py`, have it, and their records say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import in_turn, ratios, save
from torch import Tensor, nn

from vision_wrapper import Trainer
from vision_wrapper.models import CustomResNet

# Filters from 3x3 to the 6 points of a tile's edge: Lavin and Gray 2015, arXiv:1509.09308, section 4.3.
FILTER_EDGE = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
FILTER = torch.kron(FILTER_EDGE, FILTER_EDGE)  # (36, 9)
FEWEST_CHANNELS = 24  # with fewer the transforms cost more than they save
HELP = "3x3 convolutions by Winograd's way where a run is in float32 on the CPU, as without bf16; it changes no other"


@cache
def kernels() -> Any:
    from torch.utils.cpp_extension import load

    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp-simd"]
    return load("vision_wrapper_winograd", [str(Path(__file__).with_suffix(".cpp"))], extra_cflags=flags)


class Convolution(torch.autograd.Function):
    """A 3x3 convolution with one pixel of padding, stride 1, without bias; (N, C, H, W) float32 images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        inputs = images.permute(0, 2, 3, 1).contiguous()
        filters, channels = weight.shape[:2]
        transformed = (FILTER @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, filters)
        ctx.save_for_backward(inputs, transformed)
        return kernels().forward(inputs, transformed).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        inputs, transformed = ctx.saved_tensors
        of_inputs, of_filters = kernels().backward(gradient.permute(0, 2, 3, 1).contiguous(), inputs, transformed)
        of_weight = (FILTER.t() @ of_filters.view(36, -1)).view(3, 3, *transformed.shape[1:])
        return of_inputs.permute(0, 3, 1, 2), of_weight.permute(3, 2, 0, 1)


def suits(layer: nn.Conv2d, images: Tensor) -> bool:
    """Whether the layer is one that Convolution computes."""
    return (
        (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and layer.padding in ((1, 1), "same")
        and layer.padding_mode == "zeros"
        and layer.in_channels >= FEWEST_CHANNELS
        and (images.device.type, images.dtype) == ("cpu", torch.float32)
        and not torch.is_autocast_enabled("cpu")
    )


def with_winograd(direct: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a convolution layer calls: Convolution where that suits, else what it called before."""

    def forward(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not suits(self, input):
            return direct(self, input, weight, bias)
        output = Convolution.apply(input, weight)
        return output if bias is None else output + bias[:, None, None]

    return forward


def install() -> str:
    """Let the 3x3 convolutions of this process go through Convolution.

    Returns what records say of it, to be put after the hardware.
    """
    kernels()
    nn.Conv2d._conv_forward = with_winograd(nn.Conv2d._conv_forward)  # type: ignore[method-assign]
    return ", 3x3 convolutions by benchmarks/winograd.py"


# ---- what it differs by, and what it saves

# (channels, filters, height and width) of the layers of CustomResNet and of the speedrun's network
LAYERS = ((64, 128, 32), (128, 128, 16), (128, 256, 16), (256, 512, 8), (512, 512, 4), (64, 256, 15), (256, 256, 7))
IMAGES, ROUNDS = 128, 5
LARGEST_DIFFERENCE = 1e-4


def compare(channels: int, filters: int, size: int) -> dict[str, Any]:
    """Largest differences from torch's float64 convolution, as parts of its largest value, and the ratio of times."""
    images = torch.randn(IMAGES, channels, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = (torch.randn(filters, channels, 3, 3) / (9 * channels) ** 0.5).requires_grad_()
    gradient = torch.randn(IMAGES, filters, size, size).contiguous(memory_format=torch.channels_last)
    ways = {"Winograd": Convolution.apply, "torch": lambda images, weight: F.conv2d(images, weight, padding=1)}

    def values(way: Any, dtype: torch.dtype) -> list[Tensor]:
        inputs = [array.detach().to(dtype).requires_grad_() for array in (images, weight)]
        outputs = way(*inputs)
        return [outputs.detach(), *torch.autograd.grad(outputs, inputs, gradient.to(dtype))]

    def seconds(way: Any) -> float:
        start = time.perf_counter()
        values(way, torch.float32)
        return time.perf_counter() - start

    exact = values(ways["torch"], torch.float64)
    differences = {
        name: [
            float((found - right).abs().max() / right.abs().max())
            for found, right in zip(values(way, torch.float32), exact, strict=True)
        ]
        for name, way in ways.items()
    }
    found = in_turn({name: lambda way=way: seconds(way) for name, way in ways.items()}, ROUNDS)
    return {"differences": differences, "seconds_of_torch": ratios(found, "Winograd")["torch"]}


def steps() -> dict[str, float]:
    """The ratio of the times of a training step of CustomResNet."""
    model, direct = CustomResNet(), nn.Conv2d._conv_forward
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), callbacks=[], device="cpu", precision="fp32")
    batch = torch.randn(IMAGES, 3, 32, 32), torch.randint(0, 10, (IMAGES,))

    def seconds(forward: Any) -> float:
        nn.Conv2d._conv_forward = forward  # type: ignore[method-assign]
        start = time.perf_counter()
        trainer.fit([batch, batch], epochs=1)
        nn.Conv2d._conv_forward = direct  # type: ignore[method-assign]
        return time.perf_counter() - start

    ways = {"Winograd": lambda: seconds(with_winograd(direct)), "torch": lambda: seconds(direct)}
    return ratios(in_turn(ways, ROUNDS), "Winograd")["torch"]


def main() -> None:
    kernels()
    layers = {f"{c} to {k} at {s}x{s}": compare(c, k, s) for c, k, s in LAYERS}
    save("winograd", {"layers": layers, "step_of_torch": steps()})
    if max(max(layer["differences"]["Winograd"]) for layer in layers.values()) > LARGEST_DIFFERENCE:
        raise SystemExit(f"The convolutions differ by more than {LARGEST_DIFFERENCE}: compiler or kernels are wrong.")


if __name__ == "__main__":
    main()

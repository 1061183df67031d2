"""3x3 convolutions on a CPU in a quarter of the multiplications, for long measurements where there is no GPU.

torch convolves directly. Winograd's F(4x4, 3x3), which cuDNN uses on GPUs, gives the same sums in another order. In
float32 outputs and gradients then differ by some 1e-6 of their size. In bf16 they differ by 1.5%, where torch's differ
by 0.24%: the transformed values are rounded too. `python benchmarks/winograd.py` shows it, and the ratio of the times.
The kernels, `winograd.cpp`, are compiled when they are first used; that needs a C++ compiler and ninja. Only runs with
`--winograd`, of `measure_recipes.py` and `try_means.py`, have it, and their records say so.
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

LANES = 32  # as in winograd.cpp
HELP = "3x3 convolutions by Winograd's way where a run is on the CPU: faster, with other rounding"


@cache
def kernels() -> Any:
    from torch.utils.cpp_extension import load

    flags = ["-O3", "-march=native", "-ffast-math"]
    return load("vision_wrapper_winograd", [str(Path(__file__).with_suffix(".cpp"))], extra_cflags=flags)


def channels_last(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous()


class Convolution(torch.autograd.Function):
    """A 3x3 convolution with one pixel of padding, stride 1, without bias; (N, C, H, W) images, float32 or bfloat16."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        inputs = channels_last(images)
        ctx.save_for_backward(inputs, weight)
        return kernels().outputs(inputs, channels_last(weight.float())).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        inputs, weight = ctx.saved_tensors
        gradients = channels_last(gradient)
        of_inputs = kernels().input_gradients(gradients, channels_last(weight.float().flip(2, 3)))
        of_weight = kernels().filter_gradients(inputs, gradients)
        return of_inputs.permute(0, 3, 1, 2), of_weight.permute(0, 3, 1, 2).to(weight.dtype)


def dtype_of(images: Tensor) -> torch.dtype:
    """What torch would convolve in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype


def suits(layer: nn.Conv2d, images: Tensor) -> bool:
    """Whether the layer is one that Convolution computes."""
    return (
        (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and layer.padding in ((1, 1), "same")
        and layer.padding_mode == "zeros"
        and layer.in_channels % LANES == 0
        and layer.out_channels % LANES == 0
        and images.device.type == "cpu"
        and dtype_of(images) in (torch.float32, torch.bfloat16)
    )


def with_winograd(direct: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a convolution layer calls: Convolution where that suits, else what it called before."""

    def forward(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not suits(self, input):
            return direct(self, input, weight, bias)
        output = Convolution.apply(input.to(dtype_of(input)), weight)
        return output if bias is None else output + bias.to(output.dtype)[:, None, None]

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
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
IMAGES, ROUNDS = 128, 5
LARGEST_DIFFERENCE = {"fp32": 1e-5, "bf16": 0.02}
WAYS = {
    "Winograd": Convolution.apply,
    "torch": lambda images, weight: F.conv2d(images, weight.to(images.dtype), padding=1),
}


def values(way: Callable[..., Tensor], images: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """The outputs and the gradients of images and weight."""
    inputs = [images.detach().requires_grad_(), weight.detach().requires_grad_()]
    outputs = way(*inputs)
    return [outputs.detach(), *torch.autograd.grad(outputs, inputs, gradient)]


def difference(found: Tensor, right: Tensor) -> float:
    """Root mean square of the difference, over that of the right values."""
    return float((found - right).pow(2).mean().sqrt() / right.pow(2).mean().sqrt())


def compare(channels: int, filters: int, size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Differences from torch's float64 convolution of the same numbers, and the ratio of times."""
    images, gradient = (
        torch.randn(IMAGES, count, size, size).to(dtype, memory_format=torch.channels_last)
        for count in (channels, filters)
    )
    weight = torch.randn(filters, channels, 3, 3) / (9 * channels) ** 0.5
    exact = values(WAYS["torch"], images.double(), weight.double(), gradient.double())

    def seconds(way: Callable[..., Tensor]) -> float:
        start = time.perf_counter()
        values(way, images, weight, gradient)
        return time.perf_counter() - start

    found = in_turn({name: lambda way=way: seconds(way) for name, way in WAYS.items()}, ROUNDS)
    return {
        "differences": {
            name: [*map(difference, values(way, images, weight, gradient), exact)] for name, way in WAYS.items()
        },
        "seconds_of_torch": ratios(found, "Winograd")["torch"],
    }


def steps(precision: str) -> dict[str, float]:
    """The ratio of the times of a training step of CustomResNet."""
    model, direct = CustomResNet(), nn.Conv2d._conv_forward
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer, callbacks=[], device="cpu", precision=precision)  # type: ignore[arg-type]
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
    layers = {
        precision: {f"{c} to {k} at {s}x{s}": compare(c, k, s, dtype) for c, k, s in LAYERS}
        for precision, dtype in PRECISIONS.items()
    }
    save("winograd", {"layers": layers, "step_of_torch": {precision: steps(precision) for precision in PRECISIONS}})
    for precision, found in layers.items():
        if max(max(layer["differences"]["Winograd"]) for layer in found.values()) > LARGEST_DIFFERENCE[precision]:
            raise SystemExit(
                f"In {precision} the convolutions differ by more than {LARGEST_DIFFERENCE[precision]}: compiler or "
                "kernels are wrong."
            )


if __name__ == "__main__":
    main()

"""The table of a model's layers, as the classic READMEs show it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchinfo import ModelStatistics
from torchinfo import summary as torchinfo_summary

from vision_wrapper._kinds import check_kind
from vision_wrapper._numbers import is_whole
from vision_wrapper._state import preserve_hooks, preserve_state
from vision_wrapper.errors import SettingError

COLUMNS = ("output_size", "num_params", "kernel_size", "mult_adds")


def summary(model: nn.Module, input_size: Sequence[int] = (3, 32, 32)) -> ModelStatistics:
    """torchinfo's table of layers with output shapes and parameters, totals, and sizes in MB; print it.

    One image of zeros is passed through in eval mode; the model and the random states stay as they were.

    Args:
        model: any module that takes (N, *input_size).
        input_size: of one image, (C, H, W).

    Raises:
        SettingError: the model does not take an image of that size.
    """
    check_kind(model, "model")
    pixels = isinstance(input_size, Sequence) and all(is_whole(side) and side > 0 for side in input_size)
    if not pixels or len(input_size) == 4:
        raise SettingError(f"input_size is that of one image, (C, H, W), without the batch; got {input_size!r}.")
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise SettingError(
            "The model has lazy layers, whose shapes the first batch decides: run one through it before."
        )
    parameter = next(model.parameters(), torch.zeros(0))
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    # Zeros and not torchinfo's input_size=, which would advance the random state.
    image = torch.zeros(1, *input_size, device=parameter.device, dtype=dtype)
    with preserve_state(model), preserve_hooks(model):
        try:
            return torchinfo_summary(
                model, input_data=image, mode="eval", col_names=COLUMNS, row_settings=("var_names",), depth=4, verbose=0
            )
        except RuntimeError as error:
            raise SettingError(
                f"{type(model).__name__} does not take an image of {tuple(input_size)}: {error.__cause__ or error}"
            ) from error

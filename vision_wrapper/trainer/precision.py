"""Which number format a device computes in, and what goes with it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from vision_wrapper.errors import SettingError

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def choose_device(device: str | torch.device | None = None, processes: int = 1) -> torch.device:
    """The given device, or CUDA, else Apple's MPS (not with several processes), else the CPU.

    Raises `SettingError` for one that is not there.
    """
    if device is not None:
        return _checked(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() and processes == 1 else "cpu")


def _checked(device: str | torch.device) -> torch.device:
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SettingError(f"There is no device {device!r} here: {str(error).splitlines()[0]}") from error
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision meant: "auto" is bf16 where the device itself computes it, on CUDA else fp16, else fp32."""
    if precision not in PRECISIONS:
        raise SettingError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision == "fp16" and device.type == "cpu":
        raise SettingError('precision="fp16" is for GPUs; on a CPU use "auto", "bf16" or "fp32".')
    if precision != "auto":
        return precision
    if device.type == "cuda":
        # Without this argument a T4 says yes, and emulates it slowly.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AMX or AVX512-BF16)."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(check() for check in checks if check is not None)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context a forward pass runs in."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where gradients would vanish in fp16; elsewhere it is disabled and does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")

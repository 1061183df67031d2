"""All that a helper has to leave alone, as values that can be compared."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from awkward import Setup
from torch.nn.modules import module as torch_module


class Same:
    """Equal to itself alone: the very object."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__} at {id(self.value):#x}>"


def seen(value: Any) -> Any:
    """What a value holds, as something that does not change with it; tensors bit for bit, and with their gradient."""
    if isinstance(value, torch.Tensor):
        bits = value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        gradient = seen(value.grad) if value.is_leaf else None
        return Same(value), str(value.dtype), value.stride(), value.data_ptr(), value.requires_grad, bits, gradient
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, torch.optim.Optimizer):
        return Same(value), seen(vars(value))
    if isinstance(value, dict):
        return {Same(k) if isinstance(k, torch.Tensor) else k: seen(item) for k, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value).__name__, [seen(item) for item in value]
    return value if isinstance(value, (str, bytes, int, float, type(None))) else Same(value)


def snapshot(s: Setup) -> dict[str, Any]:
    """All that a helper has to leave alone. A module's `vars` are its parameters, buffers, hooks and flags."""
    found = {f"model.{name}": seen(vars(m)) for name, m in s.model.named_modules(remove_duplicate=False)}
    found |= {f"optimizer.{name}": seen(value) for name, value in vars(s.optimizer).items()}
    found |= {f"scaler.{name}": seen(value) for name, value in vars(s.trainer._scaler).items()}
    found |= {f"trainer.{name}": seen(value) for name, value in vars(s.trainer).items()}
    found["scheduler"] = seen(s.scheduler and s.scheduler.state_dict())
    found["optimizer_identity"] = seen([s.optimizer.state, s.optimizer.param_groups]), Same(s.optimizer.state)
    for name in ("train", "test"):
        loader = getattr(s.loaders, name)
        found[f"loaders.{name}"] = loader.epoch, loader.device, len(loader._workers)
        found[f"images.{name}"] = seen(loader.split.images), seen(loader.split.labels)
    found["predictions"] = seen(vars(s.predictions)["logits"]), seen(s.predictions.targets), len(s.predictions)
    found["history"] = repr(s.history.rows), repr(s.curve), repr(s.stats)
    return found | process()


def process() -> dict[str, Any]:
    """The process around the helper."""
    global_hooks = {n: seen(v) for n, v in vars(torch_module).items() if n.startswith("_global_") and "hook" in n}
    return {
        "random": random.getstate(),
        "numpy": seen(np.random.get_state()),
        "torch": seen(torch.get_rng_state().numpy()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "dtype": (torch.get_default_dtype(), torch.get_default_device()),
        "torch_settings": (
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
            torch.is_anomaly_enabled(), torch.backends.mkldnn.enabled,
        ),
        "global_hooks": global_hooks,
        "warnings": (list(warnings.filters), Same(warnings.showwarning)),
        "matplotlib": (dict(matplotlib.rcParams), plt.get_fignums(), matplotlib.get_backend()),
        "numpy_errors": np.geterr(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "folder": os.getcwd(),
        "streams": (Same(sys.stdout), Same(sys.stderr), Same(sys.excepthook)),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "processes": multiprocessing.active_children(),
    }  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what changed."""
    missing = object()
    return [name for name in {**before, **after} if before.get(name, missing) != after.get(name, missing)]

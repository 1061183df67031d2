"""What `Trainer.fit` costs over a bare PyTorch loop, on the same batches: python benchmarks/overhead.py

The bare step is the shortest that trains; it keeps neither losses nor hits, which fit does. The two take turns step by
step: fit's batches come from an iterable that makes a bare step of a second network before it gives each. What fit
does once, before and after its batches, is taken by itself. Of a network of two layers it is microseconds a step, of
the custom ResNet a share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import save, spread
from torch import nn

from vision_wrapper import models
from vision_wrapper._allocator import keep_freed_memory
from vision_wrapper.trainer import Trainer

STEPS, LARGE_STEPS, LARGE_BATCH, FITS = 5000, 120, 16, 21
Batch = tuple[torch.Tensor, torch.Tensor]


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


class StepByStep:
    """Gives a batch `steps` times, after a bare step on it; keeps the seconds of each bare step and each of fit's."""

    def __init__(self, make_model: Callable[[], nn.Module], batch: Batch, steps: int):
        self.model, self.batch, self.steps = make_model(), batch, steps
        self.optimizer = optimizer_of(self.model)
        self.bare: list[float] = []
        self.fit: list[float] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            started = time.perf_counter()
            self.bare_step()
            given = time.perf_counter()
            yield self.batch
            self.fit.append(time.perf_counter() - given)
            self.bare.append(given - started)

    def bare_step(self) -> None:
        inputs, targets = self.batch
        nn.functional.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def compare(make_model: Callable[[], nn.Module], batch: Batch, steps: int) -> dict[str, Any]:
    """Seconds, of each step."""
    model = make_model()
    trainer = Trainer(model, optimizer_of(model), callbacks=[], device="cpu", precision="fp32", channels_last=False)
    trainer.fit([batch] * 3, epochs=1)
    steps_of_both = StepByStep(make_model, batch, steps)
    trainer.fit(steps_of_both, epochs=1)
    return {"bare": steps_of_both.bare, "fit": steps_of_both.fit, "once": [once(trainer, batch) for _ in range(FITS)]}


def once(trainer: Trainer, batch: Batch) -> float:
    """Of a fit of one batch, without the step itself."""
    started = time.perf_counter()
    trainer.fit([batch], epochs=1)
    fitted = time.perf_counter()
    trainer.train_step(*batch)
    return 2 * fitted - started - time.perf_counter()


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # for both alike
    small = compare(two_layers, (torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))), STEPS)
    images = torch.randn(LARGE_BATCH, 3, 32, 32), torch.randint(0, 10, (LARGE_BATCH,))
    large = compare(models.CustomResNet, images, LARGE_STEPS)
    result = {
        "two layers, microseconds": {
            "bare step": spread([1e6 * s for s in small["bare"]]),
            "step of fit": spread([1e6 * s for s in small["fit"]]),
            "more": spread([1e6 * (f - b) for f, b in zip(small["fit"], small["bare"], strict=True)]),
            "once a fit": spread([1e6 * s for s in small["once"]]),
        },
        "custom ResNet, percent more": spread(
            [100 * (f / b - 1) for f, b in zip(large["fit"], large["bare"], strict=True)]
        ),
    }
    save("overhead", result)


if __name__ == "__main__":
    main()

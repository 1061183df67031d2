"""What `Trainer.fit` costs over a bare PyTorch loop, on the same batches: python benchmarks/overhead.py

The bare loop is the shortest that trains; it keeps neither losses nor hits, which fit does. Of a network of two layers
it is microseconds a step, of the custom ResNet a share.
"""

import time

import torch
from measure import in_turn, save, spread
from torch import nn

from vision_wrapper import models
from vision_wrapper._allocator import keep_freed_memory
from vision_wrapper.trainer import Trainer

STEPS, ROUNDS = 1000, 41
LARGE_STEPS, LARGE_ROUNDS, LARGE_BATCH = 3, 15, 32


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list) -> float:
    """Processor seconds a step."""
    model.train()
    started = time.process_time()
    for inputs, targets in batches:
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - started) / len(batches)


def fitted(trainer: Trainer, batches: list) -> float:
    """Likewise."""
    started = time.process_time()
    trainer.fit(batches, epochs=1)
    return (time.process_time() - started) / len(batches)


def compare(make_model, batches: list, rounds: int) -> dict[str, list[float]]:
    plain, model = make_model(), make_model()
    optimizer = optimizer_of(plain)
    trainer = Trainer(model, optimizer_of(model), callbacks=[], device="cpu", precision="fp32", channels_last=False)
    return in_turn({"bare": lambda: bare(plain, optimizer, batches), "fit": lambda: fitted(trainer, batches)}, rounds)


def main() -> None:
    torch.set_num_threads(1)  # so that processor time is the time of a step
    keep_freed_memory()  # for both alike
    small = [(torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,)))] * STEPS
    found = compare(two_layers, small, ROUNDS)
    more = [1e6 * (f - b) for f, b in zip(found["fit"], found["bare"], strict=True)]
    images = [(torch.randn(LARGE_BATCH, 3, 32, 32), torch.randint(0, 10, (LARGE_BATCH,)))] * LARGE_STEPS
    large = compare(models.CustomResNet, images, LARGE_ROUNDS)
    share = [100 * (f / b - 1) for f, b in zip(large["fit"], large["bare"], strict=True)]
    result = {
        "two layers, microseconds a step": {
            "bare": spread([1e6 * v for v in found["bare"]]),
            "fit": spread([1e6 * v for v in found["fit"]]),
            "more": spread(more),
            "more, least disturbed rounds": round(1e6 * (min(found["fit"]) - min(found["bare"])), 1),
        },
        "custom ResNet, percent more": spread(share),
        "custom ResNet, percent more, least disturbed rounds": round(
            100 * (min(large["fit"]) / min(large["bare"]) - 1), 2
        ),
    }
    save("overhead", result)


if __name__ == "__main__":
    main()

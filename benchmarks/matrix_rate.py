"""The share of the machine's matrix rate that training reaches: python benchmarks/matrix_rate.py

The rate is that of the best of a few large matrix products, in the format that `precision="auto"` trains in; the
training's is its multiplications and additions (twice the multiplications of convolutions and linear layers, three
times for forward and backward) by its time. Both take turns.
"""

from __future__ import annotations

import time

import torch
from measure import in_turn, save, spread

from vision_wrapper import models
from vision_wrapper._allocator import keep_freed_memory
from vision_wrapper.trainer import Trainer
from vision_wrapper.trainer.precision import choose_device, choose_precision

SIZES = (1024, 2048, 4096)
ROUNDS, BATCH_SIZE = 7, {"cpu": 128, "cuda": 1024}


def finished(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def product(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one (size, size) product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    started = finished(device)
    for _ in range(3):
        a @ b
    return 3 * 2 * size**3 / (finished(device) - started)


def operations_of(model: torch.nn.Module) -> float:
    """Multiplications and additions of a forward pass of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 32, 32))
    return counter.get_total_flops() / 2


def main() -> None:
    device = choose_device()
    precision = choose_precision("auto", device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model = models.CustomResNet(num_classes=10)
    each = 3 * operations_of(model.eval())
    if device.type == "cpu":
        keep_freed_memory()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01, fused=True), callbacks=[], device=device)
    size = BATCH_SIZE.get(device.type, 128)
    batch = trainer._prepare(torch.randn(size, 3, 32, 32), torch.randint(0, 10, (size,)))
    model.train()

    def training() -> float:
        started = finished(device)
        for _ in range(2):
            trainer.train_step(*batch)
        return 2 * size * each / (finished(device) - started)

    found = in_turn({"product": lambda: max(product(s, device, dtype) for s in SIZES), "training": training}, ROUNDS)
    shares = [t / p for t, p in zip(found["training"], found["product"], strict=True)]
    result = {
        "precision": precision,
        "batch size": size,
        "GFLOP/s": {name: spread([v / 1e9 for v in values]) for name, values in found.items()},
        "share": spread(shares),
    }
    save("matrix_rate", result)


if __name__ == "__main__":
    main()

"""What the tools around training take: python benchmarks/tools.py

LR finder, evaluation, prediction with flips and twenty Grad-CAMs of the custom ResNet on 2,000 random images of 32x32,
and the report of a run on digits. Grad-CAM is also done by the grad-cam package alone, image by image.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import in_turn, save, spread

from vision_wrapper import data, explain, models, recipes, report
from vision_wrapper.trainer import Trainer

IMAGES, ROUNDS = 2000, 5


def seconds(function: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return run


def grad_cam_alone(model: torch.nn.Module, inputs: torch.Tensor, targets: list[int]) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCAM(model, [model.layer3]) as cam:
        for image, target in zip(inputs, targets, strict=True):
            cam(image[None], [ClassifierOutputTarget(target)])


def main() -> None:
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8), np.arange(IMAGES) % 10
    loaders = data.make_loaders(data.from_arrays((pixels, labels), (pixels, labels)), "crop_flip_cutout", 128)
    model = models.CustomResNet(num_classes=10)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01, fused=True), callbacks=[])
    inputs, targets = next(iter(loaders.test))
    inputs, targets = inputs[:20], targets[:20].tolist()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        recipes.run("quickstart", out=run, epochs=1, callbacks=[])
        found = in_turn(
            {
                "LR finder, 10 steps of 128": seconds(lambda: trainer.find_lr(loaders.train, num_iter=10)),
                "10 training steps of 128": seconds(lambda: [trainer.train_step(*b) for b in ten(trainer, loaders)]),
                "evaluate 2,000 images": seconds(lambda: trainer.evaluate(loaders.test)),
                "predict 2,000 with flips": seconds(lambda: trainer.predict(loaders.test, tta="flip")),
                "20 Grad-CAMs": seconds(lambda: explain.gradcam(model, inputs, targets)),
                "20 Grad-CAMs, grad-cam alone": seconds(lambda: grad_cam_alone(model, inputs, targets)),
                "report of a digits run": seconds(lambda: report.write(run)),
            },
            ROUNDS,
        )
    save("tools", {"seconds": {name: spread(values) for name, values in found.items()}})


def ten(trainer: Trainer, loaders: data.Loaders) -> list:
    trainer.model.train()
    return [trainer._prepare(*batch) for batch in islice(loaders.train.batches(0), 10)]


if __name__ == "__main__":
    main()

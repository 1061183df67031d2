"""Images a second in training, ours and others': python benchmarks/training.py [defaults|tuned]

The custom ResNet on random images of 32x32, in turn, each in a process of its own that waits while others run.

- defaults: each as its documentation shows it. The images are uint8 in memory; crop and flip are torchvision's in a
  Dataset for the others, `augment="crop_flip"` for ours.
- tuned: channels_last, bf16 where the processor has it, kept memory (glibc's settings), and the same batches of tensors
  for all.

Others need benchmarks/requirements.txt; those that are not installed are left out.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from measure import in_turn, ratios, save, spread

BATCH_SIZE, STEPS, ROUNDS = 128, 2, 7
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}


def images() -> tuple[Any, Any]:
    """uint8 (N, 32, 32, 3) and classes (N,)."""
    import numpy as np

    random = np.random.default_rng(0)
    count = BATCH_SIZE * STEPS
    return random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, count)


def others_loader() -> Any:
    """What a user of torch and torchvision writes."""
    import torch
    from torchvision.transforms import v2

    pixels, labels = images()
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return transform(torch.from_numpy(pixels[index]).permute(2, 0, 1)), int(labels[index])

    return torch.utils.data.DataLoader(Images(), batch_size=BATCH_SIZE, shuffle=True)


def tensor_loader() -> Any:
    """Ready batches, channels_last."""
    import torch

    pixels, labels = images()
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)  # channels_last, as the pixels lie
    batches = list(zip(inputs.split(BATCH_SIZE), torch.from_numpy(labels).split(BATCH_SIZE), strict=True))

    class Batches(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(batches)

        def __getitem__(self, index: int) -> Any:
            return batches[index]

    return torch.utils.data.DataLoader(Batches(), batch_size=None)


def network(tuned: bool) -> Any:
    import torch

    from vision_wrapper.models import CustomResNet
    from vision_wrapper.trainer.precision import cpu_has_bf16

    torch.manual_seed(0)
    model = CustomResNet(num_classes=10)
    if not tuned:
        return model
    model = model.to(memory_format=torch.channels_last)
    if not cpu_has_bf16():
        return model
    forward = model.forward

    def in_bf16(inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(inputs).float()

    model.forward = in_bf16
    return model


def optimizer_of(parameters: Any) -> Any:
    import torch

    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


# ---- the contestants: each returns a function that trains one epoch


def vision_wrapper(tuned: bool) -> Callable[[], Any]:
    from vision_wrapper import data
    from vision_wrapper.trainer import Trainer

    model = network(tuned)
    if tuned:
        trainer = Trainer(model, optimizer_of(model.parameters()), callbacks=[], precision="fp32")
        loader = tensor_loader()
    else:
        trainer = Trainer(model, optimizer_of(model.parameters()), callbacks=[])
        loader = data.make_loaders(data.from_arrays(images(), images()), "crop_flip", BATCH_SIZE).train
    return lambda: trainer.fit(loader, epochs=1)


def plain_torch(tuned: bool) -> Callable[[], Any]:
    from torch import nn

    model, loader = network(tuned), tensor_loader() if tuned else others_loader()
    optimizer = optimizer_of(model.parameters())

    def epoch() -> None:
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()

    return epoch


def lightning(tuned: bool) -> Callable[[], Any]:
    import lightning as L
    from torch import nn

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(tuned)

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return optimizer_of(self.parameters())

    module, loader = Module(), tensor_loader() if tuned else others_loader()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lambda: L.Trainer(accelerator="cpu", max_epochs=1, **quiet).fit(module, loader)


def fastai(tuned: bool) -> Callable[[], Any]:
    import torch
    from fastai.callback.core import Callback, CancelValidException
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper
    from torch import nn

    class NoValidation(Callback):
        def before_validate(self) -> None:
            raise CancelValidException

    def optimizer(parameters: Any, **settings: Any) -> Any:
        return OptimWrapper(parameters, torch.optim.SGD, momentum=0.9, **settings)

    loader = tensor_loader() if tuned else others_loader()
    learner = Learner(
        DataLoaders(loader, loader, device=torch.device("cpu")),
        network(tuned),
        loss_func=nn.CrossEntropyLoss(),
        opt_func=optimizer,
        cbs=[NoValidation()],
    )

    def epoch() -> None:
        with learner.no_logging():
            learner.fit(1, 0.01)

    return epoch


def keras(tuned: bool) -> Callable[[], Any]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    model = keras.Sequential([keras.Input((3, 32, 32)), keras.layers.TorchModuleWrapper(network(tuned))])
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    loader = tensor_loader() if tuned else others_loader()
    return lambda: model.fit(loader, epochs=1, verbose=0)


def skorch(tuned: bool) -> Callable[[], Any]:
    import torch
    from skorch import NeuralNetClassifier
    from torch import nn

    loader = tensor_loader() if tuned else others_loader()
    net = NeuralNetClassifier(
        network(tuned),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=0.01,
        batch_size=None if tuned else BATCH_SIZE,
        train_split=None,
        max_epochs=1,
        verbose=0,
    ).initialize()
    return lambda: net.partial_fit(loader.dataset)


def accelerate(tuned: bool) -> Callable[[], Any]:
    from accelerate import Accelerator
    from torch import nn

    model, accelerator = network(tuned), Accelerator(cpu=True)
    made = optimizer_of(model.parameters())
    model, optimizer, loader = accelerator.prepare(model, made, tensor_loader() if tuned else others_loader())

    def epoch() -> None:
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()

    return epoch


CONTESTANTS = {
    "vision-wrapper": vision_wrapper,
    "plain PyTorch": plain_torch,
    "PyTorch Lightning": lightning,
    "fastai": fastai,
    "Keras 3 on torch": keras,
    "skorch": skorch,
    "Accelerate": accelerate,
}


def serve(name: str, tuned: bool, pipe: Any) -> None:
    """Train an epoch whenever asked, and answer with its seconds."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        epoch = CONTESTANTS[name](tuned)
    except ImportError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    while pipe.recv():
        started = time.perf_counter()
        epoch()
        pipe.send(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=["defaults", "tuned"], nargs="?", default="defaults")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    tuned = options.how == "tuned"
    if tuned:
        os.environ |= KEPT_MEMORY
    contestants, pipes, missing = {}, [], {}
    for name in CONTESTANTS:
        ours, theirs = get_context("spawn").Pipe()
        get_context("spawn").Process(target=serve, args=(name, tuned, theirs), daemon=True).start()
        reason = ours.recv()
        if reason is not None:
            missing[name] = reason
            continue
        pipes.append(ours)

        def images_per_second(pipe: Any = ours) -> float:
            pipe.send(True)
            return BATCH_SIZE * STEPS / pipe.recv()

        contestants[name] = images_per_second
    found = in_turn(contestants, options.rounds)
    for pipe in pipes:
        pipe.send(False)
    result = {
        "images a second": {name: spread(values) for name, values in found.items()},
        "ours over theirs": ratios(found, "vision-wrapper"),
        "batch size": BATCH_SIZE,
        "steps a round": STEPS,
        "not installed": missing,
    }
    save(f"training_{options.how}", result)


if __name__ == "__main__":
    main()

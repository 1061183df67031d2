"""Models and optimizers on which a careless helper leaves something changed, and all that a helper may be given."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import random_images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper._files import write_json
from vision_wrapper.evaluation import Predictions
from vision_wrapper.recipes import RECIPES
from vision_wrapper.trainer import History, LRCurve, Trainer

CLASSES = ("ant", "bee", "cat")


class Fault(RuntimeError):
    """What fails half-way: a full disk, a user's network."""


class Fuse:
    """Counts calls, and raises at one of them."""

    def __init__(self):
        self.count, self.at, self.error = 0, None, Fault

    def burn(self, *_: Any) -> None:
        self.count += 1
        if self.count == self.at:
            raise self.error


# ---- models


class OwnNet(nn.Module):
    """One block and one in-place ReLU used twice, two convolutions that share their weight, Dropout2d."""

    def __init__(self):
        super().__init__()
        self.prep = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.last.weight = self.block[0].weight
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout2d(0.3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.block(self.relu(self.block(self.prep(x))))
        x = self.last(self.drop(self.relu(x)))
        return self.fc(x.mean((2, 3)))


class RestlessNet(nn.Module):
    """Even in eval mode a pass draws a random number, counts, replaces a buffer, and makes another at the first one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.fc = nn.Linear(4, 3)
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("mask", None, persistent=False)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        if self.mask is None:
            self.mask = torch.ones(x.shape[2:])
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.ones(4))
        self.passes += 1
        x = (x * self.mask).mean((2, 3))
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return self.fc(x * self.scale) + 0 * torch.rand(()) + 0 * random.random() + 0 * np.random.rand()


class Restless(torch.optim.SGD):
    """Wraps another optimizer, and keeps lists and dicts of tensors that it changes in place."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.01, momentum=0.9)
        self.inner = torch.optim.RMSprop(self.param_groups, lr=0.01, centered=True)
        self.param_groups = self.inner.param_groups
        self.log: list[float] = []

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            kept = self.state[p].setdefault("kept", {"sums": [torch.zeros_like(p)], "steps": 0})
            kept["sums"][0] += 1
            kept["steps"] += 1
        self.log.append(1.0)
        return self.inner.step(closure)


def frozen() -> tuple[nn.Module, torch.optim.Optimizer, Any, dict[str, Any]]:
    """Dropout, a frozen body in eval mode, channels_last, a warm Adam, StepLR."""
    model = models.CustomResNet(num_classes=3, dropout=0.5, widths=(4, 4, 8, 8))
    models.freeze(model)
    model.layer3.train().requires_grad_(True)
    optimizer = torch.optim.Adam(models.parameter_groups(model, lr=0.01, body_lr=0.001))
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), {"clip_norm": 1.0, "precision": "bf16"}


def shared() -> tuple[nn.Module, torch.optim.Optimizer, Any, dict[str, Any]]:
    """Shared weights and modules, in-place ReLU, two groups, OneCycleLR, a scaler, half a window of gradients."""
    model = OwnNet()
    model.fc.bias.requires_grad_(False)
    groups = [{"params": model.fc.parameters(), "lr": 0.1}, {"params": [model.last.weight, *model.prep.parameters()]}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.01], total_steps=50)
    return model, optimizer, scheduler, {"accumulate": 2, "l1": 1e-4}


def in_eval_mode() -> tuple[nn.Module, torch.optim.Optimizer, Any, dict[str, Any]]:
    """All in eval mode, in-place ReLU, a fresh AMSGrad whose rate is a tensor, no gradients, ReduceLROnPlateau."""
    model = models.CustomResNet(num_classes=3, norm="instance", pool="avg", widths=(4, 4, 8, 8)).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), amsgrad=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return model, optimizer, scheduler, {"channels_last": False}


def restless() -> tuple[nn.Module, torch.optim.Optimizer, Any, dict[str, Any]]:
    """A network and an optimizer that change more than they should; no scheduler."""
    model = RestlessNet()
    return model, Restless(model.parameters()), None, {"channels_last": True, "clip_norm": 0.1}


KINDS = {"frozen": frozen, "shared": shared, "in_eval_mode": in_eval_mode, "restless": restless}
WARM = {"frozen", "shared"}  # their optimizers have taken steps, and gradients lie there


# ---- all that a helper may be given


class Images:
    """A split that is no array, as files are none: each image is read by itself."""

    def __init__(self, count: int, seed: int, fuse: Fuse):
        self.images, self.labels = random_images(count, 16, seed=seed), np.arange(count) % 3
        self.channels, self.classes, self.fuse = 3, CLASSES, fuse

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.fuse.burn()
        return self.images[index], int(self.labels[index])

    def origin(self, index: int) -> str:
        return f"index {index}"


@dataclass
class Setup:
    fuses: dict[str, Fuse]
    images: data.ImageData
    loaders: data.Loaders
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    trainer: Trainer
    predictions: Predictions
    stats: data.Stats
    history: History
    curve: LRCurve
    classifier: vw.classifier.Classifier
    folder: Path  # where helpers may write; after `write_files` with a run folder and a classifier
    fresh: nn.Module  # another network like `model`

    def batches(self, **arguments: Any) -> DataLoader:
        inputs, targets = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
        return DataLoader(TensorDataset(inputs, targets), batch_size=4, **arguments)


def make(kind: str, folder: Path, files: bool = False) -> Setup:
    torch.manual_seed(0)
    fuses = {"passes": Fuse(), "reads": Fuse(), "calls": Fuse()}
    images = data.ImageData("images", Images(12, 0, fuses["reads"]), Images(9, 1, fuses["reads"]), CLASSES)
    loaders = data.make_loaders(images, augment="crop_flip", batch_size=4, num_workers=0)
    model, optimizer, scheduler, arguments = KINDS[kind]()
    arguments = {"callbacks": [], "device": "cpu", "precision": "fp32", **arguments}
    trainer = Trainer(model, optimizer, **arguments)
    if kind in WARM:
        warm_up(trainer, scheduler, scaled=kind == "shared")
    predictions = Predictions(
        torch.eye(3)[torch.arange(9) % 2], torch.arange(9) % 3,
        classes=CLASSES, source=images.test, preprocess=loaders.preprocess,
    )  # fmt: skip
    row = {"lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.4, "val_loss": 1.1, "val_accuracy": 0.3, "seconds": 1.0}
    history = History([{"epoch": 1, **row}])
    curve = LRCurve([1e-3, 1e-2, 1e-1], [2.2, 1.5, 1.2], 0.01, "steepest")
    fresh = KINDS[kind]()[0]
    classifier = vw.classifier.Classifier(model, loaders.preprocess, CLASSES)
    for network in (model, fresh):  # a hook of the user, at what runs once a pass
        network.fc.register_forward_pre_hook(lambda *_: fuses["passes"].burn())
    next(iter(loaders.train))  # its count of epochs is 1
    stats = data.stats(data.ImageData("images", Images(12, 0, Fuse()), Images(9, 1, Fuse()), CLASSES))
    setup = Setup(
        fuses, images, loaders, model, optimizer, scheduler, trainer, predictions, stats, history, curve,
        classifier, folder, fresh,
    )  # fmt: skip
    if files:
        write_files(setup)
    for fuse in fuses.values():
        fuse.count = 0
    return setup


def write_files(s: Setup) -> None:
    """What `report` and `load_classifier` read."""
    vw.save_classifier(s.folder / "own.safetensors", s.model, s.loaders.preprocess, CLASSES)
    recipe = RECIPES["quickstart"].as_dict()
    identity = {"data": "digits", "passed": False, "content": {}, "root": "data", "watched": "the test set"}
    write_json(s.folder / "run" / "recipe.json", {"recipe": recipe, **identity})
    s.history.to_csv(s.folder / "run" / "history.csv")
    s.predictions.save(s.folder / "run" / "predictions.npz")


def warm_up(trainer: Trainer, scheduler: Any, scaled: bool) -> None:
    """Two steps, a step of the scheduler, and then gradients that no step has used; perhaps a scaler, as on a GPU."""
    if scaled:
        trainer._scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        trainer._optimizer_step = functools.partial(trainer._scaler.step, trainer.optimizer)
    for update in (True, True, False):
        trainer.train_step(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), update=update)
    scheduler.step()

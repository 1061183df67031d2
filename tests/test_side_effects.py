"""Nothing changes behind the user's back: every helper, on awkward models, also when it fails half-way or on Ctrl-C.

Three tables: `KINDS` of models, `HELPERS`, and `FAULTS` that end one half-way. `snapshot` says what must not change.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch_lr_finder
import torchinfo
from conftest import random_images
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.data import DataLoader, TensorDataset

import vision_wrapper as vw
from vision_wrapper import data, explain, models, report, viz
from vision_wrapper._files import write_json
from vision_wrapper.errors import VisionWrapperError
from vision_wrapper.evaluation import Predictions
from vision_wrapper.recipes import RECIPES
from vision_wrapper.trainer import History, LRCurve, Trainer, schedules

PACKAGES = tuple(str(Path(package.__file__).parent) for package in (vw, pytorch_grad_cam, torch_lr_finder, torchinfo))
CLASSES = ("ant", "bee", "cat")


# ---- faults


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


@contextlib.contextmanager
def on_calls_of_the_library(fuse: Fuse) -> Iterator[None]:
    """A Ctrl-C comes anywhere; here, at a call in the library or in what it wraps, though not while it puts back."""

    def profile(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if (
            event == "call"
            and code.co_filename.startswith(PACKAGES)
            and not code.co_filename.endswith("_state.py")
            and not code.co_flags & inspect.CO_GENERATOR  # what follows the yield of a context manager puts back
        ):
            fuse.burn()

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(previous)


FAULTS: dict[str, tuple[str, type[BaseException]] | None] = {
    "no_fault": None,
    "pass_fails": ("passes", Fault),
    "ctrl_c_in_a_pass": ("passes", KeyboardInterrupt),
    "image_fails": ("reads", Fault),
    "ctrl_c_at_an_image": ("reads", KeyboardInterrupt),
    "ctrl_c_in_the_library": ("calls", KeyboardInterrupt),
}


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


def make(kind: str, folder: Path, name: str = "") -> Setup:
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
    if name in READ_FILES:
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


# ---- helpers

PLOTS: dict[str, tuple[str, Callable[[Setup], tuple[Any, ...]]]] = {
    "augmented": ("reads", lambda s: (s.loaders.train, 4)),
    "class_distribution": ("", lambda s: (s.stats,)),
    "confusion_matrix": ("", lambda s: (s.predictions,)),
    "gradcam": ("passes reads", lambda s: (s.model, s.predictions.mistakes()[:3], "both")),
    "history": ("", lambda s: (s.history,)),
    "image_sizes": ("", lambda s: (s.stats,)),
    "learning_rate": ("", lambda s: (s.history,)),
    "lr_curve": ("", lambda s: (s.curve,)),
    "misclassified": ("reads", lambda s: (s.predictions.mistakes(),)),
    "per_class": ("", lambda s: (s.predictions,)),
    "reliability": ("", lambda s: (s.predictions,)),
    "samples": ("reads", lambda s: (s.images,)),
    "schedule": ("", lambda s: (schedules.one_cycle(max_lr=0.1, min_lr=0.01, peak_epoch=1), 3, 4)),
}
CAMS: dict[str, Callable[[Setup], Any]] = {
    "cam": lambda s: explain.cam(s.model, torch.ones(2, 3, 16, 16), [0, 1], method="fullgrad"),
    "trust": lambda s: explain.trust(s.model, torch.ones(2, 3, 16, 16), [0, 1], steps=2),
    "default_layer": lambda s: explain.default_layer(s.model, torch.randn(3, 16, 16, generator=torch.Generator())),
    "gradcam": lambda s: explain.gradcam(
        s.model, torch.ones(3, 3, 16, 16), [0, 1, 2], explain.stages(s.model, torch.ones(3, 16, 16))
    ),
    "stages": lambda s: explain.stages(s.model, torch.ones(3, 16, 16)),
}
# Each with what it uses, passes of the model and reads of images, where it can fail.
HELPERS: dict[str, tuple[str, Callable[[Setup], Any]]] = {
    "summary": ("passes", lambda s: models.summary(s.model, (3, 16, 16))),
    "find_lr": ("passes reads", lambda s: s.trainer.find_lr(s.loaders.train, num_iter=4)),
    "find_lr_validating": ("passes reads", lambda s: s.trainer.find_lr(s.loaders.train, s.loaders.test, num_iter=2)),
    "find_lr_of_a_dataloader": ("passes", lambda s: s.trainer.find_lr(s.batches(shuffle=True), num_iter=4)),
    "find_lr_diverging": ("passes reads", lambda s: s.trainer.find_lr(s.loaders.train, num_iter=9, end_lr=1e30)),
    "evaluate": ("passes reads", lambda s: s.trainer.evaluate(s.loaders.test)),
    "evaluate_training_images": ("passes reads", lambda s: s.trainer.evaluate(s.loaders.train)),
    "evaluate_a_dataloader": ("passes", lambda s: s.trainer.evaluate(s.batches(shuffle=True))),
    "predict": ("passes reads", lambda s: s.trainer.predict(s.loaders.test)),
    "predict_flip": ("passes reads", lambda s: s.trainer.predict(s.loaders.test, tta="flip")),
    "predict_a_dataloader": ("passes", lambda s: s.trainer.predict(s.batches())),
    "stats": ("reads", lambda s: data.stats(s.images)),
    "check": ("passes reads", lambda s: data.check(s.images, s.loaders, s.model, near_duplicates=True)),
    "check_dataloaders": (
        "passes", lambda s: data.check(loaders={"train": s.batches(shuffle=True), "test": s.batches()}, model=s.model),
    ),
    "report": ("", lambda s: report.write(s.folder / "run")),
    "save_trainer": ("", lambda s: s.trainer.save(s.folder / "out.ckpt")),
    "save_classifier": (
        "passes", lambda s: vw.save_classifier(s.folder / "out.safetensors", s.model, s.loaders.preprocess, CLASSES),
    ),
    "load_classifier": ("passes", lambda s: vw.load_classifier(s.folder / "own.safetensors", model=s.fresh)),
    "load_classifier_alone": ("", lambda s: vw.load_classifier(s.folder / "own.safetensors")),
    "classify": ("passes", lambda s: s.classifier.predict(list(random_images(3)), batch_size=2)),
    "export": ("passes", lambda s: vw.export(s.classifier, s.folder / "out.pt2", format="torch")),
    **{name: ("passes", cam) for name, cam in CAMS.items()},
    # A new plot fails here until it is added to PLOTS.
    **{f"plot_{name}": (PLOTS[name][0], lambda s, n=name: viz.PLOTS[n](*PLOTS[n][1](s))) for name in viz.PLOTS},
    "png": ("", lambda s: viz.plot_history(s.history).to_png()),
}  # fmt: skip
READ_FILES = {"report", "load_classifier", "load_classifier_alone"}
# Slow, or without a model, or like another one: these are run on one kind of model.
ONE_KIND = {
    "find_lr_validating", "evaluate_training_images", "evaluate_a_dataloader", "predict_a_dataloader", "stats",
    "check_dataloaders", "export", *(f"plot_{name}" for name in PLOTS if name != "gradcam"),
}  # fmt: skip


# ---- what must not change


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


# ---- the tests


@functools.cache
def usage(kind: str, name: str, where: str) -> int:
    """How often a helper passes through the model, reads an image, or calls the library."""
    with tempfile.TemporaryDirectory() as folder:
        setup = make(kind, Path(folder), name)
        with on_calls_of_the_library(setup.fuses["calls"]) if where == "calls" else contextlib.nullcontext():
            HELPERS[name][1](setup)
    return setup.fuses[where].count


def cases() -> Iterator[Any]:
    for kind, (name, (uses, _)), (fault, where) in itertools.product(KINDS, HELPERS.items(), FAULTS.items()):
        if kind != "frozen" and (not uses or name in ONE_KIND):
            continue
        if where is not None and where[0] != "passes" and kind != "frozen":
            continue
        if name == "export" and where is not None and where[0] == "calls":  # slow: torch makes hundreds of thousands
            continue
        if where is None or where[0] in ("calls", *uses.split()):
            yield pytest.param(kind, name, fault, id=f"{name}-{kind}-{fault}")


@pytest.mark.parametrize(("kind", "name", "fault"), list(cases()))
def test_a_helper_leaves_everything_as_it_was(kind, name, fault, tmp_path):
    uses, helper = HELPERS[name]
    setup = make(kind, tmp_path, name)
    before = snapshot(setup)
    if FAULTS[fault] is None:
        helper(setup)
        assert {what for what, fuse in setup.fuses.items() if fuse.count} == set(uses.split())
    else:
        where, error = FAULTS[fault]
        fuse = setup.fuses[where]
        fuse.at, fuse.error = usage(kind, name, where) // 2 + 1, error
        calls = on_calls_of_the_library(fuse) if where == "calls" else contextlib.nullcontext()
        # A failure may become the library's error, or a finding; Ctrl-C stays what it is.
        expected = pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else suppress_failures()
        with expected, calls:
            helper(setup)
        assert fuse.count >= fuse.at
    assert differences(before, snapshot(setup)) == []
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]  # half a file


def suppress_failures() -> contextlib.AbstractContextManager[Any]:
    return contextlib.suppress(Fault, VisionWrapperError)


def test_the_first_use_of_a_package_changes_nothing_of_the_process():
    # Importing what a helper wraps draws random numbers, and sets filters of warnings.
    code = """
import random, signal, threading, warnings
import numpy as np, torch
from vision_wrapper import explain, models
from vision_wrapper.trainer import Trainer

def state():
    return (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), warnings.filters[:],
            [signal.getsignal(n) for n in signal.valid_signals()], threading.enumerate(), torch.get_num_threads())

model = models.CustomResNet(widths=(4, 4, 8, 8))
trainer = Trainer(model, torch.optim.SGD(model.parameters()), callbacks=[], device="cpu")
images, before = torch.ones(4, 3, 16, 16), state()
for helper in (lambda: models.summary(model), lambda: explain.gradcam(model, images, [0, 1, 2, 3]),
               lambda: trainer.find_lr([(images, torch.tensor([0, 1, 2, 3]))], num_iter=3)):
    helper()
    print([a == b for a, b in zip(before, state())])
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [str([True] * 7)] * 3


def test_every_entry_point_is_here():
    assert set(CAMS) == {name for name in explain.__all__ if inspect.isfunction(getattr(explain, name))}
    assert {f"plot_{name}" for name in viz.PLOTS} == {name for name in HELPERS if name.startswith("plot_")}


def change_grad(s):
    s.model.fc.weight.grad = s.model.fc.weight.grad.clone()


def swap_filters(s):
    warnings.filterwarnings("ignore", "nothing")


def change_rc(s):
    matplotlib.rcParams["font.size"] = 3


CHANGES: dict[str, tuple[str, Callable[[Setup], Any]]] = {
    "weight": ("model.fc", lambda s: s.model.fc.weight.data.neg_()),
    "sign_of_zero": ("model.fc", lambda s: s.model.fc.bias.data.mul_(-1)),
    "weight_replaced": ("model.fc", lambda s: setattr(s.model.fc, "weight", nn.Parameter(s.model.fc.weight.detach()))),
    "requires_grad": ("model.prep.conv", lambda s: s.model.prep.requires_grad_(True)),
    "gradient": ("model.fc", lambda s: s.model.fc.weight.grad.add_(1)),
    "gradient_replaced": ("model.fc", change_grad),
    "buffer": ("model.prep.norm", lambda s: s.model.prep.norm.running_mean.add_(1)),
    "train_flag": ("model.prep.norm", lambda s: s.model.prep.norm.train()),
    "memory_format": ("model.prep.conv", lambda s: s.model.to(memory_format=torch.contiguous_format)),
    "hook": ("model.pool", lambda s: s.model.pool.register_full_backward_hook(lambda *_: None)),
    "in_place": ("model.prep.relu", lambda s: setattr(s.model.prep.relu, "inplace", True)),
    "group": ("optimizer.param_groups", lambda s: s.optimizer.param_groups[0].update(lr=1.0)),
    "optimizer_state": ("optimizer.state", lambda s: s.optimizer.state[s.model.fc.weight]["exp_avg"].add_(1)),
    "optimizer_attribute": ("optimizer.step", lambda s: vars(s.optimizer).pop("step")),
    "scaler": ("scaler._init_scale", lambda s: setattr(s.trainer._scaler, "_init_scale", 3.0)),
    "scheduler": ("scheduler", lambda s: s.scheduler.step()),
    "epoch": ("loaders.train", lambda s: iter(s.loaders.train)),
    "image": ("images.train", lambda s: s.images.train.images.fill(0)),
    "python_random": ("random", lambda s: random.random()),
    "numpy_random": ("numpy", lambda s: np.random.rand()),
    "torch_random": ("torch", lambda s: torch.rand(1)),
    "warnings": ("warnings", swap_filters),
    "matplotlib": ("matplotlib", change_rc),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_snapshot_sees_a_change(change, tmp_path):
    expected, function = CHANGES[change]
    setup = make("frozen", tmp_path)
    with torch.no_grad():
        setup.model.fc.bias.zero_()
    before = snapshot(setup)
    with warnings.catch_warnings(), matplotlib.rc_context():
        assert differences(before, snapshot(setup)) == []
        function(setup)
        assert expected in differences(before, snapshot(setup))

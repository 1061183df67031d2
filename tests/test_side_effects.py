"""Nothing changes behind the user's back: every helper, on awkward models, also when it fails half-way or on Ctrl-C.

Three tables: `KINDS` of models (see `awkward`), `HELPERS`, and `FAULTS` that end one half-way. `snapshots` says what
must not change.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch_lr_finder
import torchinfo
from awkward import CLASSES, KINDS, Fault, Fuse, Setup, make
from conftest import random_images
from snapshots import differences, snapshot
from torch import nn

import vision_wrapper as vw
from vision_wrapper import data, explain, models, report, viz
from vision_wrapper.errors import VisionWrapperError
from vision_wrapper.trainer import schedules

PACKAGES = tuple(str(Path(package.__file__).parent) for package in (vw, pytorch_grad_cam, torch_lr_finder, torchinfo))

# ---- faults


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


# ---- the tests


@functools.cache
def usage(kind: str, name: str, where: str) -> int:
    """How often a helper passes through the model, reads an image, or calls the library."""
    with tempfile.TemporaryDirectory() as folder:
        setup = make(kind, Path(folder), name in READ_FILES)
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
    setup = make(kind, tmp_path, name in READ_FILES)
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

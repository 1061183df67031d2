"""Traps of the dependencies that no other file guards. Those of Grad-CAM are in `test_explain.py`."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import re
from pathlib import Path

import albumentations as A
import albumentations.pytorch
import pytest
import torch
import torchvision
from torch import nn

from vision_wrapper import data, explain, models
from vision_wrapper.trainer import SCHEDULES, Callback, Trainer
from vision_wrapper.trainer.filters import unreached_taps
from vision_wrapper.trainer.precision import choose_precision

ROOT = Path(__file__).parents[1]


@pytest.fixture
def task():
    """A small network with dropout, and 44 samples in batches of 8 and a last one of 4."""
    x = torch.randn(44, 6, generator=torch.Generator().manual_seed(0))
    samples = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    return model, torch.utils.data.DataLoader(samples, batch_size=8)


def trainer_of(model, **arguments):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return Trainer(model, optimizer, **{"callbacks": [], "device": "cpu", "precision": "fp32", **arguments})


def state_of(trainer):
    return (
        {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        [None if p.grad is None else p.grad.tolist() for p in trainer.model.parameters()],
        [module.training for module in trainer.model.modules()],
        repr(trainer.optimizer.state_dict()),
        sorted(vars(trainer.optimizer)),
        torch.get_rng_state().tolist(),
    )


# ---- albumentations


@pytest.mark.parametrize(
    ("transform", "arguments"),
    [
        (A.PadIfNeeded, {"value": 0}),
        (A.CoarseDropout, {"fill_value": 0}),
        (A.CoarseDropout, {"max_holes": 1}),
        (A.HorizontalFlip, {"always_apply": True}),
    ],
)
def test_an_outdated_argument_is_an_error_in_the_tests(transform, arguments):
    with pytest.raises(UserWarning, match="not valid"):  # albumentations only warns, and ignores it
        transform(**arguments)


def test_to_tensor_in_an_own_augmentation_changes_nothing(tiny):
    augment = A.Compose([A.pytorch.ToTensorV2()])  # neither divides by 255 nor gives a contiguous tensor
    images, _ = next(data.make_loaders(tiny, augment, seed=0).train.batches(0))
    assert torch.equal(images, next(data.make_loaders(tiny, "none", seed=0).train.batches(0))[0])
    assert images.is_contiguous()


def test_albumentations_is_imported_where_its_question_to_the_package_index_is_switched_off():
    imports = re.compile(r"^ *(?:import|from) albumentations\b", re.MULTILINE)
    files = [p for p in (ROOT / "vision_wrapper").rglob("*.py") if imports.search(p.read_text(encoding="utf-8"))]
    assert [file.name for file in files] == ["augment.py"]  # whose test is in test_augment.py


# ---- torch-lr-finder


@pytest.mark.parametrize("fails", [False, True])
def test_the_finder_with_a_validation_loader_leaves_everything_as_it_was(task, fails):
    model, loader = task
    trainer = trainer_of(model)
    trainer.fit(loader, epochs=1)  # Adam has a state
    model[1].eval().requires_grad_(False)
    model(torch.randn(8, 6)).sum().backward()
    before = state_of(trainer)

    def broken():
        yield next(iter(loader))
        raise RuntimeError("disk gone")

    for _ in range(2):  # the package's second reset puts back another state of the optimizer
        if fails:
            with pytest.raises(RuntimeError, match="disk gone"):
                trainer.find_lr(loader, broken(), num_iter=12)
        else:
            trainer.find_lr(loader, loader, num_iter=12)
        assert state_of(trainer) == before


def test_the_finder_and_fit_run_after_a_finder_that_failed(task):
    model, loader = task
    trainer = trainer_of(model)
    good, bad = (torch.zeros(8, 6), torch.zeros(8).long()), (torch.zeros(8, 5), torch.zeros(8).long())
    with pytest.raises(RuntimeError):
        trainer.find_lr([good, good, bad])  # the model takes six features
    assert len(trainer.find_lr(loader, num_iter=12).lrs) > 5  # the package would find the optimizer marked
    trainer.fit(loader, epochs=1, schedule=SCHEDULES["cosine"]())
    assert len(trainer.find_lr(loader, num_iter=12).lrs) > 5


def test_the_finders_validation_loss_is_right_with_drop_last(task):
    model, loader = task
    dropping = torch.utils.data.DataLoader(loader.dataset, batch_size=30, drop_last=True)  # 14 of 44 are left out
    model[1].eval()
    trainer = trainer_of(model)
    expected = trainer.evaluate(dropping).loss
    assert trainer.find_lr(loader, dropping, start_lr=1e-12, num_iter=2).losses[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_finder_takes_the_trainers_step_with_its_autocast(task, monkeypatch, accumulate):
    model, loader = task
    trainer = trainer_of(model, precision="bf16", accumulate=accumulate)
    dtypes, step = [], trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda *a, **k: (dtypes.append("step"), step(*a, **k))[1])
    model[0].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    trainer.find_lr(loader, num_iter=4, end_lr=1e-5)
    steps = dtypes[dtypes.index("step") :]  # before the first, the batch is tried
    assert steps == ["step", torch.bfloat16] * 4 * accumulate


# ---- grad-cam


def test_gradcam_prints_nothing(capfd):
    model = models.CustomResNet(3, widths=(4, 4, 8, 8))
    explain.gradcam(model, torch.randn(2, 3, 16, 16), [0, 1], explain.stages(model, torch.zeros(3, 16, 16)))
    assert capfd.readouterr() == ("", "")  # some of the package's methods draw a bar for each image


# ---- torch


def test_bf16_that_is_only_emulated_is_not_chosen(monkeypatch):
    def on_a_t4(including_emulation=True):
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", on_a_t4)
    assert choose_precision("auto", torch.device("cuda")) == "fp16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision("auto", torch.device("cuda")) == "bf16"


@pytest.mark.parametrize("padding", [0, (1,), (2, 1), "same", "valid"])
@pytest.mark.parametrize("stride", [1, (2,), (3, 1)])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_unreached_taps_are_those_without_a_gradient(stride, padding):
    """Those of float32, which torch computes right: of an image and a filter of ones, 0 only where none is reached."""
    if padding == "same" and stride != 1:
        pytest.skip("torch has no such convolution")
    found = 0
    for size, taps, dilation in itertools.product((1, 2, 3, 5), (1, 2, 3, 5, 7), (1, 2)):
        layer = nn.Conv2d(1, 1, (taps, 2), stride, padding, dilation, bias=False)
        nn.init.ones_(layer.weight)
        image = torch.ones(1, 1, size, size + 8)
        try:
            output = layer(image)
        except RuntimeError:  # a filter that is larger than the image with its padding
            continue
        output.sum().backward()
        unreached = unreached_taps(layer, image.shape, output.shape)
        empty = layer.weight.grad[0, 0] == 0
        assert not empty.any() if unreached is None else torch.equal(unreached, empty)
        found += unreached is not None
    assert padding in (0, "valid") or found


@pytest.mark.parametrize("call", ["module", "keyword", "unbatched", "one axis"])
def test_gradients_of_taps_that_meet_only_padding_are_zero_in_bf16(call):
    """oneDNN's bf16 kernels leave them as the memory was, which made weights NaN: here memory is full of NaN."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            convolution = nn.Conv1d if call == "one axis" else nn.Conv2d
            self.layers = nn.ModuleList(convolution(64, 64, 3, stride=2, padding=1) for _ in range(16))

        def forward(self, x):  # (N, 64, 1, 1)
            dirty = [torch.full((64 * 64 * 9,), math.nan) for _ in range(64)]
            del dirty
            for layer in self.layers:
                if call == "keyword":
                    x = x + layer(input=x)
                elif call == "unbatched":
                    x = x + torch.stack([layer(image) for image in x])
                else:
                    x = x + (layer(x[..., 0])[..., None] if call == "one axis" else layer(x))
            return x.flatten(1)

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, callbacks=[], device="cpu", precision="bf16", clip_norm=1.0)
    before = [layer.weight.detach().clone() for layer in model.layers]
    for _ in range(2):
        trainer.train_step(torch.randn(8, 64, 1, 1), torch.arange(8))
    for layer, weight in zip(model.layers, before, strict=True):
        changed = (layer.weight != weight).flatten(2).any(0).any(0)  # of the taps
        assert changed.nonzero().flatten().tolist() == [len(changed) // 2]
        assert layer.weight.isfinite().all()


class TwoSizes(nn.Module):
    """Calls its second layer in every other step."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding="valid")
        self.second = nn.Conv2d(8, 8, 3, stride=(2,), padding=1, padding_mode="reflect")
        self.head = nn.Linear(8, 2)
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        x = self.first(x)
        return self.head((self.second(x) if self.steps % 2 == 0 else x).mean((2, 3)))


def watched_sizes(model, size, batches, **arguments):
    """After each batch of a fit, of how many sizes the trainer knows that it need not watch them."""
    found = []

    class Count(Callback):
        def on_batch_end(self, fit):
            found.append(len(fit.trainer._unreached_taps))
            assert not any(module._forward_hooks for module in model.modules())

    loader = [(torch.randn(4, 3, size, size), torch.tensor([0, 1, 0, 1]))] * batches
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    Trainer(model, optimizer, callbacks=[Count()], device="cpu", precision="bf16", **arguments).fit(loader, epochs=1)
    return found


def test_layers_are_watched_until_all_are_known_to_reach_every_tap():
    assert watched_sizes(TwoSizes(), 9, 3) == [0, 1, 1]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8, 2))
    assert watched_sizes(net, 1, 2) == [0, 0]
    net[0].requires_grad_(False)  # it may learn later
    assert watched_sizes(net, 1, 2) == [0, 0]
    net[0].compile(backend="eager")
    assert watched_sizes(net, 1, 2) == [1, 1]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("error:.*lr_scheduler")  # that the optimizer's step was overridden, or not called
def test_a_scheduler_accepts_an_optimizer_that_the_library_has_used(task, name):
    model, loader = task
    trainer = trainer_of(model)
    steps = []
    trainer.optimizer.register_step_pre_hook(lambda *_: steps.append(1))
    arguments = {"one_cycle": {"max_lr": 0.01}, "multi_step": {"milestones": [1]}, "warm_up": {"warm_up_epochs": 1}}
    trainer.find_lr(loader, num_iter=3)
    for _ in range(2):
        trainer.fit(loader, loader, epochs=2, schedule=SCHEDULES[name](**arguments.get(name, {})))
    own = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)  # refuses one whose step is a plain function
    trainer.optimizer.step()
    own.step()
    assert len(steps) == 3 + 2 * 2 * 6 + 1


def test_torchvision_fits_torch():
    """Its compiled operators are missing where both come from different indices."""
    kept = torchvision.ops.nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.5, 0.9]), 0.5)
    assert kept.tolist() == [1]


# ---- what is installed, and the tools


def required_packages() -> set[str]:
    """The names of everything that the package and all its extras bring along here, lower case, with hyphens."""

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    found, waiting = set(), {"vision-wrapper"}
    while waiting:
        package = waiting.pop()
        found.add(package)
        try:
            requirements = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:  # of an extra, or of another system
            continue
        if package != "vision-wrapper":
            requirements = [line for line in requirements if "extra ==" not in line]
        names = (re.match(r"[\w.-]+", line) for line in requirements)
        waiting |= {normal(name[0]) for name in names if name} - found
    return found


def test_nothing_brings_along_a_package_that_does_harm():
    packages = required_packages()
    assert {"torch", "torchvision", "albumentations", "opencv-python-headless", "mkdocs"} <= packages
    harmful = {
        "albumentationsx",  # AGPL, and it overwrites albumentations
        "opencv-python",  # overwrites opencv-python-headless, and wants libGL
        "opencv-contrib-python",
        "mkdocs-jupyter",  # 69 packages
    }
    assert not harmful & packages
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # what is installed may be older
    assert not [name for name in harmful if re.search(rf'"{name}["\[<>=~! ]', settings, re.IGNORECASE)]


def test_torch_and_torchvision_are_installed_together():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    pages += [*(ROOT / "scripts").iterdir(), *(ROOT / ".ci").iterdir()]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert lines
    for line in lines:
        assert ("torch" in re.findall(r"[\w-]+", line)) == ("torchvision" in re.findall(r"[\w-]+", line)), line


def test_the_site_is_built_strictly_and_not_quietly():
    lines = (ROOT / "scripts/docs").read_text(encoding="utf-8").splitlines()
    builds = [line.split() for line in lines if "mkdocs build" in line]
    assert len(builds) == 1 and "--strict" in builds[0]
    assert not {"-q", "--quiet"} & set(builds[0])  # a quiet build passes with broken links


def test_the_site_links_no_web_fonts():
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["theme"]["font"] is False


def test_notebooks_are_kept_as_scripts():
    kept = [path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.ipynb")]
    assert not kept and "# %%" in (ROOT / "examples/cifar10_assignment.py").read_text(encoding="utf-8")

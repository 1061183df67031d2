"""Every recipe, in a reduced form, from data to run folder."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import command, reduced

import vision_wrapper as vw
from vision_wrapper import data, recipes, report
from vision_wrapper.errors import (
    DamagedFileError,
    FileWriteError,
    MissingPackageError,
    OtherRunError,
    SettingError,
    UnknownNameError,
    VisionWrapperError,
)
from vision_wrapper.recipes import RECIPES
from vision_wrapper.trainer import Callback, Muon

RUN_FILES = {
    "recipe.json", "history.csv", "history.json", "last.ckpt", "best.safetensors", "predictions.npz", "mistakes.csv",
    "plots", "report.html", "environment.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    pixels = rng.integers(0, 150, (90, 16, 16, 3)).astype(np.uint8)
    pixels[np.arange(90), :, :, labels] += 100
    return data.from_arrays((pixels[:60], labels[:60]), (pixels[60:], labels[60:]), ("<b>red</b>", "green", "blue"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_whole_run_folder(name, images, tmp_path):
    result = recipes.run(reduced(name), data=images, out=tmp_path / "run", callbacks=[])
    assert {path.name for path in result.run_dir.iterdir()} >= RUN_FILES
    assert len(result.history) == 2 and result.finished
    assert result.predictions.accuracy() == pytest.approx(
        result.history[-1]["val_accuracy"] if not result.recipe.val_fraction else result.predictions.accuracy()
    )
    stored = np.load(result.run_dir / "predictions.npz")
    assert stored["logits"].shape == (30, 3) and stored["indices"].tolist() == list(range(30))
    classifier = vw.load_classifier(result.run_dir / "best.safetensors")
    assert len(classifier.predict(images.test[0][0])) == 1
    assert (classifier.temperature == 1.0) == (not result.recipe.val_fraction)  # fitted to held-out images alone
    page = (result.run_dir / "report.html").read_text()
    assert "<b>red</b>" not in page and "http://" not in page and "https://" not in page
    assert "Not available" not in page and page.count("data:image/png") >= 9


CLASSIC = (
    "custom-resnet-onecycle", "custom-resnet-adam", "custom-resnet-sgd", "custom-resnet-late-peak",
    "custom-resnet-avgpool", "resnet18-layernorm",
)  # fmt: skip


@pytest.mark.parametrize("name", CLASSIC)
def test_the_classic_recipes_have_nothing_that_their_originals_had_not(name):
    recipe, plain = RECIPES[name], recipes.Recipe("plain", "")
    for field in ("groups", "lookahead", "whiten", "head_scale", "progressive_size", "label_smoothing", "ema", "size"):
        assert getattr(recipe, field) == getattr(plain, field), field
    assert "Alternating" not in str(data.AUGMENTATIONS[recipe.augment])


def test_the_new_recipes_leave_the_networks_unchanged():
    plain = RECIPES["custom-resnet-adam"].build_model(10)
    for name in ("custom-resnet-page", "custom-resnet-fast", "custom-resnet-best"):
        begins = {"init": "dirac"} if name == "custom-resnet-fast" else {}
        assert RECIPES[name].model_args == begins
        assert str(RECIPES[name].build_model(10)) == str(plain)
    assert RECIPES["resnet18-layernorm-best"].model_args["norm"] == "layer"
    assert [RECIPES[f"{n}"].epochs for n in ("custom-resnet-fast", "custom-resnet-best", "resnet18-best")] == [
        10,
        24,
        40,
    ]


PLAIN_CROP, HOLES = (data.Pad(4), data.RandomCrop()), data.Cutout(8, holes=8)
LINEAR = {"anneal_strategy": "linear"}
# What the experiments ran: network, parameters, optimizer with its arguments, batch, epochs, augmentation; and the
# arguments of torch's OneCycleLR, as fractions of 24 epochs.
PUBLISHED = {
    "custom-resnet-onecycle": (
        {}, 6_573_130, torch.optim.Adam, {"lr": 0.01, "weight_decay": 1e-4}, 512, 24,
        (*PLAIN_CROP, data.Flip(), data.Cutout(8)),
        {"max_lr": 0.05, "pct_start": 5 / 24, "div_factor": 10, "final_div_factor": 1, **LINEAR},
    ),
    "custom-resnet-adam": (
        {}, 6_573_130, torch.optim.Adam, {"lr": 1e-3, "betas": (0.95, 0.99), "weight_decay": 0}, 128, 24,
        (*PLAIN_CROP, data.Flip()),
        None,
    ),
    "custom-resnet-sgd": (
        {"bias": True}, 6_575_370, torch.optim.SGD, {"momentum": 0.9, "nesterov": False, "weight_decay": 0}, 512, 24,
        (*PLAIN_CROP, data.Flip(0.8), data.Cutout(8, holes=8, p=0.5)),
        {"max_lr": 0.05, "pct_start": 5 / 24, "div_factor": 10, "final_div_factor": 1e4, "anneal_strategy": "cos"},
    ),
    "custom-resnet-late-peak": (
        {}, 6_573_130, torch.optim.Adam, {"lr": 0.01, "weight_decay": 1e-4}, 512, 24,
        (*PLAIN_CROP, data.Flip(), data.Cutout(8, fill="mean")),
        {"max_lr": 4.64e-2, "pct_start": 3 / 24, "div_factor": 100, "final_div_factor": 100, **LINEAR},
    ),
    "custom-resnet-avgpool": (
        {"pool": "avg", "activation_after_add": True}, 6_573_130, torch.optim.Adam, {"lr": 0.01, "weight_decay": 1e-4},
        512, 20,
        (data.Pad(3), data.RandomCrop(), data.Flip(), HOLES),
        {"max_lr": 0.01, "pct_start": 5 / 24, **LINEAR, "three_phase": True},
    ),
    "resnet18-layernorm": (
        {"norm": "layer", "strides": (1, 1, 2, 2)}, 11_173_962, torch.optim.Adam, {"lr": 1e-3, "weight_decay": 1e-4},
        128, 40,
        (*PLAIN_CROP, data.Rotate(5.0), data.Cutout(16, p=0.5)),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIC)
def test_every_classic_recipe_as_it_was_published(name):
    recipe = RECIPES[name]
    network, parameters, optimizer_class, arguments, batch_size, epochs, operations, cycle = PUBLISHED[name]
    assert dict(recipe.model_args) == network
    model = recipe.build_model(10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    optimizer = recipe.build_optimizer(model)
    assert type(optimizer) is optimizer_class and arguments.items() <= optimizer.defaults.items()
    assert (recipe.batch_size, recipe.epochs) == (batch_size, epochs)
    assert data.AUGMENTATIONS[recipe.augment] == operations and not recipe.augment_args
    schedule = recipe.build_schedule(max_lr=0.05)
    if cycle is None:
        assert (schedule is None) == (name == "custom-resnet-adam")
        return
    steps = 98
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    torchs = torch.optim.lr_scheduler.OneCycleLR(plain, total_steps=24 * steps, cycle_momentum=False, **cycle)
    expected = []
    for _ in range(epochs * steps):
        expected.append(torchs.get_last_lr()[0])
        plain.step()
        torchs.step()
    assert schedule.every == "batch" and schedule.preview(epochs, steps) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_plateau_of_the_published_resnet18():
    schedule = RECIPES["resnet18-layernorm"].build_schedule()
    found = schedule.build(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), 40, 391)
    assert isinstance(found, torch.optim.lr_scheduler.ReduceLROnPlateau) and schedule.monitor == "val_accuracy"
    assert (found.factor, found.patience, found.mode) == (0.2, 3, "max")


ALTERNATING = (data.Pad(4, "reflect"), data.RandomCrop(), data.AlternatingFlip())
MUON = {"momentum": 0.6, "sgd_momentum": 0.85}
NESTEROV = {"momentum": 0.9, "nesterov": True}
# As the table "The same networks, further" has them: network; class, rate and further defaults of the optimizer; rates
# of filters, of norms and biases and of the head; their weight decays; the highest rate, as a part of the first one,
# and its epoch; batch, epochs; augmentation; label smoothing; the head's scale.
FURTHER = {
    "custom-resnet-page": (
        "custom_resnet", torch.optim.SGD, NESTEROV, (0.4, 0.4, 0.4), (5e-4, 0, 5e-4), (0.4, 5), 512, 24,
        (data.Pad(4, "reflect"), data.RandomCrop(), data.Flip(), data.Cutout(8)), 0.0, 0.125,
    ),
    "custom-resnet-fast": (
        "custom_resnet", Muon, MUON, (0.08, 0.08, 0.5), (5e-4, 0, 5e-4), (None, 0), 512, 10, ALTERNATING, 0.2, 0.125,
    ),
    "custom-resnet-best": (
        "custom_resnet", Muon, MUON, (0.08, 0.08, 0.5), (5e-4, 0, 5e-4), (None, 0), 512, 24,
        (*ALTERNATING, data.Cutout(8, fill="mean")), 0.2, 0.125,
    ),
    "resnet18-best": (
        "resnet18", torch.optim.SGD, NESTEROV, (0.2, 0.2, 0.2), (5e-4, 0, 5e-4), (0.2, 8), 256, 40,
        (*ALTERNATING, data.Cutout(12, fill="mean")), 0.1, 1.0,
    ),
    "resnet18-layernorm-best": (
        "resnet18", torch.optim.AdamW, {}, (1e-3, 1e-3, 1e-3), (0.05, 0, 0.05), (1e-3, 8), 128, 40,
        (*ALTERNATING, data.Cutout(12, fill="mean")), 0.1, 1.0,
    ),
    "speedrun": (
        "whitened_convnet", Muon, MUON, (0.24, 106.0, 1.66), (2.4e-3, 0, 2.4e-3), (None, 0), 2000, 8,
        (data.Pad(2, "reflect"), *ALTERNATING[1:]), 0.2, 1 / 9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FURTHER)
def test_every_further_recipe_as_its_page_says(name):
    recipe = RECIPES[name]
    network, kind, defaults, rates, decays, (highest, peak), batch, epochs, operations, smoothing, scale = FURTHER[name]
    assert (recipe.model, recipe.batch_size, recipe.epochs) == (network, batch, epochs)
    assert (recipe.label_smoothing, recipe.head_scale, recipe.drop_last) == (smoothing, scale, True)
    assert data.augmentation(recipe.augment, **recipe.augment_args) == operations
    plain = recipe.changed(head_scale=1.0)  # a scaled head has its rate and decay scaled too
    optimizer = plain.build_optimizer(plain.build_model(10))
    assert type(optimizer) is kind and defaults.items() <= optimizer.defaults.items()
    groups = {group["name"]: group for group in optimizer.param_groups}
    for group, rate, decay in zip(("body", "body_norms_biases", "head"), rates, decays, strict=True):
        assert (groups[group]["lr"], groups[group]["weight_decay"]) == (rate, decay), group
    found = recipe.build_schedule().preview(epochs, 100)
    top = max(0, peak * 100 - 1)
    assert found[top] == max(found) == pytest.approx(highest or found[0]) and found[-1] < 0.01 * max(found)
    slopes = np.diff(found[top:])
    assert slopes == pytest.approx(slopes.mean(), rel=1e-3) and slopes.mean() < 0  # linear


def test_folder_as_its_page_says():
    recipe = RECIPES["folder"]
    assert (recipe.model, recipe.model_args, recipe.pretrained) == (
        "resnet18",
        {"stem": "imagenet"},
        "IMAGENET1K_V1",
    )
    assert (recipe.freeze_epochs, recipe.val_fraction, recipe.normalisation) == (2, 0.15, "imagenet")
    optimizer = recipe.changed(pretrained=None).build_optimizer(recipe.changed(pretrained=None).build_model(3))
    rates = {group["name"].split("_")[0]: group["lr"] for group in optimizer.param_groups}
    assert rates["body"] == pytest.approx(rates["head"] / 10)


def test_a_peak_keeps_its_fraction():
    recipe = RECIPES["custom-resnet-onecycle"].changed(epochs=12)
    assert recipe.schedule_args["peak_epoch"] == 2.5
    assert RECIPES["custom-resnet-avgpool"].changed(epochs=10).schedule_epochs == 12


def test_what_counts_in_epochs_keeps_its_share():
    recipe = RECIPES["quickstart"].changed(progressive_size=((0, 0.5), (4, 1.0)))
    assert recipe.changed(epochs=4).progressive_size == ((0, 0.5), (2, 1.0))
    assert RECIPES["folder"].changed(epochs=5).freeze_epochs == 1
    assert RECIPES["folder"].changed(epochs=1).freeze_epochs == 0
    assert RECIPES["folder"].changed(epochs=20).freeze_epochs == 4
    patience = [RECIPES["resnet18-layernorm"].changed(epochs=n).schedule_args["patience"] for n in (80, 40, 8)]
    assert patience == [6, 3, 1]
    recipe = RECIPES["custom-resnet-adam"].changed(lr=0.01)  # 24 epochs
    warm_up = [recipe.changed(schedule="warm_up").changed(epochs=n).schedule_args["warm_up_epochs"] for n in (12, 48)]
    assert warm_up == [2.5, 10.0]  # 5 by default
    assert recipe.changed(schedule="plateau").changed(epochs=12).schedule_args["patience"] == 5


def test_other_epochs_with_other_arguments_still_scale_the_rest():
    recipe = RECIPES["folder"].changed(epochs=1, schedule_args={"max_lr": 0.001})
    assert recipe.freeze_epochs == 0 and recipe.schedule_args == {"max_lr": 0.001}
    assert RECIPES["custom-resnet-avgpool"].changed(epochs=10, schedule_args={"max_lr": 1}).schedule_epochs == 12


def test_groups_keep_the_weight_decay_of_the_optimizer():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    for optimizer, arguments, decay in (("adam", {"weight_decay": 1e-4}, 1e-4), ("adamw", {}, 0.01), ("sgd", {}, 0.0)):
        recipe = RECIPES["quickstart"].changed(optimizer=optimizer, optimizer_args=arguments, groups={"body_lr": 0.001})
        groups = {group["name"]: group for group in recipe.build_optimizer(model).param_groups}
        assert groups["body"]["weight_decay"] == groups["head"]["weight_decay"] == decay
        assert groups["body_norms_biases"]["weight_decay"] == 0
    both = recipe.changed(groups={"norms_biases_decay": 0.1}).build_optimizer(model).param_groups
    assert {group["name"]: group["weight_decay"] for group in both}["body_norms_biases"] == 0.1


def test_texts_of_a_recipe_change_no_run(images, tmp_path):
    recipe = reduced("quickstart")
    first = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    other = recipe.changed(published="elsewhere", goal=(0.5, None), description="the same")
    assert recipes.run(other, data=images, out=tmp_path / "run", callbacks=[]).finished
    identity = json.loads((first.run_dir / "recipe.json").read_text())
    del identity["recipe"]["whiten"]  # a run from before the field was there
    (first.run_dir / "recipe.json").write_text(json.dumps(identity))
    assert recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[]).finished


def test_what_a_recipe_says_of_the_training_reaches_the_trainer(images, tmp_path):
    class Look(Callback):
        def on_fit_start(self, run):
            trainer = run.trainer
            said = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([1])
            found.append((trainer.ema, trainer.accumulate, trainer.precision, float(trainer.loss_fn(*said))))

    found, recipe = [], reduced("quickstart").changed(epochs=1)
    changed = {"label_smoothing": 0.3, "ema": 0.9, "accumulate": 2, "precision": "bf16"}
    for settings in ({}, changed):
        recipes.run(recipe, data=images, out=tmp_path / str(len(found)), callbacks=[Look()], device="cpu", **settings)
    log_shares = torch.tensor([2.0, 0.0, 0.0]).log_softmax(0)
    smoothed = -(0.7 * log_shares[1] + 0.3 * log_shares.mean())
    assert found[0][:2] == (None, 1) and found[0][3] == pytest.approx(float(-log_shares[1]))
    assert found[1] == (0.9, 2, "bf16", pytest.approx(float(smoothed)))


@pytest.mark.parametrize("more", [0, 2])
def test_a_run_goes_on_with_other_callbacks(images, tmp_path, monkeypatch, more):
    """The library's own keep their places and states: what was frozen stays so, also where weights are gone since."""
    import torchvision

    weights = torchvision.models.resnet18(num_classes=1000).state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **_: weights)
    recipe = RECIPES["folder"].changed(epochs=3, batch_size=16, size=32, freeze_epochs=2)
    with pytest.raises(MemoryError):
        recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[StopAt()])

    def offline(self, **_):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    watch = Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it does not begin from random weights
        recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[watch, *[Callback()] * more])
    assert watch.frozen == [True, True, False]  # the first epoch ends again: its checkpoint was written before


def test_an_own_file_of_weights_has_to_be_there(images, tmp_path):
    recipe = RECIPES["folder"].changed(epochs=1, size=32, pretrained=str(tmp_path / "gone.pth"))
    with pytest.raises(VisionWrapperError, match=r"gone\.pth"):
        recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    assert not (tmp_path / "run").exists()


def test_the_finder_chooses_the_rate(images, tmp_path):
    recipe = RECIPES["custom-resnet-onecycle"].changed(
        epochs=2, batch_size=16, model_args={"widths": (4, 4, 8, 8)}, augment="none"
    )
    result = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    curve = json.loads((tmp_path / "run/lr_curve.json").read_text())
    assert (tmp_path / "run/plots/lr_curve.png").exists()
    assert 0 < curve["suggestion"] < 10 and result.history[-1]["lr"] == pytest.approx(curve["suggestion"] / 10, rel=0.3)


def test_a_recipe_without_a_seed_follows_seed_everything(images, tmp_path):
    assert RECIPES["quickstart"].seed is None
    vw.seed_everything(5)
    assert recipes.run(reduced("quickstart"), images, out=tmp_path / "a", callbacks=[]).recipe.seed == 5
    assert recipes.run(reduced("quickstart"), images, out=tmp_path / "b", callbacks=[], seed=0).recipe.seed == 0


def test_a_recipe_is_read_back_from_plain_values():
    recipe = RECIPES["custom-resnet-best"].changed(progressive_size=((0, 0.75), (4, 1.0)), goal=(0.9, None))
    fields = recipe.as_dict()
    assert fields == json.loads(json.dumps(fields))
    again = recipes.Recipe.from_dict({**fields, "expected": {"accuracy": 1.0}})
    assert again.as_dict() == fields and again.expected is None


def test_recipes_share_nothing_that_can_change():
    first, second = RECIPES["custom-resnet-onecycle"], RECIPES["custom-resnet-late-peak"]
    assert first.optimizer_args == second.optimizer_args and first.optimizer_args is not second.optimizer_args
    assert first.changed(lr=1.0).optimizer_args is not first.optimizer_args


def test_a_torchvision_of_another_build_is_found_before_training(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it is an ImportError
    with pytest.raises(MissingPackageError, match="pip install --force-reinstall torch torchvision"):
        recipes.run(reduced("quickstart"), images, out=tmp_path / "run", callbacks=[])
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingPackageError, match="cannot be used beside torch"):
        data.load("cifar10", tmp_path)


def test_unknown_names_are_named():
    with pytest.raises(UnknownNameError, match="custom-resnet-onecycle"):
        recipes.run("custom-resnet-oncycle")
    with pytest.raises(UnknownNameError, match="batch_size"):
        RECIPES["quickstart"].changed(batchsize=3)
    for settings in ({"epochs": 0}, {"batch_size": "many"}, {"model_args": 3}, {"lr": -1}):
        with pytest.raises(SettingError):
            RECIPES["quickstart"].changed(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"schedule_args": {}}, "lacks max_lr"),
        ({"schedule_args": {"max_lr": 0.01, "peak": 2}}, "peak_epoch"),
        ({"model_args": {"width": (4, 4, 4, 4)}}, "widths"),
        ({"model_args": {"num_classes": 3}}, "entry of model_args"),
        ({"optimizer_args": {"weigth_decay": 1e-4}}, "weight_decay"),
        ({"optimizer": "adma"}, "adam"),
        ({"schedule": "plateau", "schedule_args": {}, "find_lr": True}, "max_lr"),
        ({"precision": "bf17"}, "bf16"),
        ({"drop_last": "yes"}, "true or false"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"epochs": True}, "whole number"),
        ({"schedule_epochs": 3}, "at least `epochs`"),
        ({"head_scale": 0}, "head_scale must be"),
        ({"freeze_epochs": 8}, "freeze_epochs must be"),
        ({"groups": {"decay": 1}}, "weight_decay"),
        ({"groups": {"lr": 1}}, "entry of groups"),
        ({"lookahead": {"k": 5}}, "entry of lookahead"),
        ({"lookahead": 5}, "lookahead must be a dict"),
        ({"augment_args": {"hole_size": 3}}, "no operation that hole_size"),
        ({"tta": "flop"}, "did you mean 'flip'"),
        ({"progressive_size": [[1, 0.5]]}, "begin at epoch 0"),
        ({"normalisation": "none"}, "imagenet"),
        ({"pretrained": "IMAGENET1K_V1"}, "has no pretrained weights"),
        ({"whiten": "yes"}, "true or false"),
        ({"head_scale": 0.5}, "for sgd and muon"),
        ({"groups": {"weight_decay": None}}, "weight_decay must be"),
        ({"groups": {"body_lr": -0.4}}, "body_lr must be"),
        ({"groups": {"weight_decay": 0.1}}, "given twice"),
        ({"lookahead": {"share": "x"}}, "share must be"),
        ({"pretrained": 5}, "must be a text"),
        ({"tta": [abs]}, "tta must be a text"),
        ({"goal": 0.9}, "goal must be"),
        ({"model": []}, "model must be a text"),
        ({"augment_args": {"pad": "a"}}, "pad must be"),
        ({"augment_args": {"pad": -1}}, "pad must be"),
        ({"augment_args": {"degrees": None}}, "degrees must be"),
        ({"channels": True}, "channels must be"),
        ({"channels": "rgb"}, "channels must be"),
        ({"size": 100_000}, "size must be .* from 1 to 4096"),
    ],
)
def test_settings_that_cannot_be_are_errors_of_the_recipe(settings, said):
    with pytest.raises(VisionWrapperError, match=said):
        RECIPES["quickstart"].changed(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule_args": {"max_lr": 0.01, "peak_epoch": 40}},
        {"optimizer_args": {"betas": 3}},
        {"model_args": {"widths": (4, 4)}},
        {"schedule": "cosine", "schedule_args": {"final_lr": "low"}},
        {"batch_size": 1},
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(settings, images, tmp_path):
    with pytest.raises(VisionWrapperError):
        recipes.run(reduced("quickstart"), data=images, out=tmp_path / "run", callbacks=[], **settings)
    assert list(tmp_path.iterdir()) == []


class StopAt(Callback):
    def on_batch_end(self, run):
        if run.epoch == 1 and run.batch == 1:
            raise MemoryError("killed")


def test_a_run_goes_on_and_a_finished_one_stays(images, tmp_path):
    recipe = reduced("quickstart")
    whole = recipes.run(recipe, data=images, out=tmp_path / "whole", callbacks=[])
    with pytest.raises(MemoryError):
        recipes.run(recipe, data=images, out=tmp_path / "cut", callbacks=[StopAt()])
    assert not (tmp_path / "cut/report.html").exists()
    cut = recipes.run(recipe, data=images, out=tmp_path / "cut", callbacks=[])
    assert (cut.predictions.logits == whole.predictions.logits).all()
    assert [r["train_loss"] for r in cut.history.rows] == [r["train_loss"] for r in whole.history.rows]
    before = (tmp_path / "cut/report.html").stat().st_mtime_ns
    again = recipes.run(recipe, data=images, out=tmp_path / "cut", callbacks=[])
    assert (tmp_path / "cut/report.html").stat().st_mtime_ns == before
    assert (again.predictions.logits == whole.predictions.logits).all()
    with pytest.raises(OtherRunError, match="seed"):
        recipes.run(recipe, data=images, out=tmp_path / "cut", callbacks=[], seed=4)


def test_the_same_command_without_a_folder_goes_on(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    with pytest.raises(MemoryError):
        recipes.run(recipe, data=str(image_folder), callbacks=[StopAt()])
    (begun,) = (tmp_path / "runs").iterdir()
    other = recipes.run(recipe, data=str(image_folder), callbacks=[], seed=4)
    again = recipes.run(recipe, data=str(image_folder), callbacks=[])
    assert other.run_dir.name != begun.name and again.run_dir.name == begun.name and again.finished
    new = recipes.run(recipe, data=str(image_folder), callbacks=[])  # a finished run is left as it is
    assert new.run_dir.name not in (begun.name, other.run_dir.name)


def test_two_processes_do_not_share_a_run_folder(image_folder, tmp_path):
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    with pytest.raises(MemoryError):
        recipes.run(recipe, data=str(image_folder), out=tmp_path / "run", callbacks=[StopAt()])
    code = (
        f"from vision_wrapper._files import exclusive\nwith exclusive({str(tmp_path / 'run/.lock')!r}):"
        "\n    print('held', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OtherRunError, match="Another process"):
            recipes.run(recipe, data=str(image_folder), out=tmp_path / "run", callbacks=[])
        process.kill()
    assert recipes.run(recipe, data=str(image_folder), out=tmp_path / "run", callbacks=[]).finished


def test_a_folder_that_is_no_run_is_left_alone(images, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("mine")
    with pytest.raises(SettingError, match="no run folder"):
        recipes.run(reduced("quickstart"), data=images, out=tmp_path / "thesis", callbacks=[])
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    for read in (report.write, recipes.read_run):
        with pytest.raises(SettingError, match="no run folder"):
            read(tmp_path / "thesis")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"recipe": []}',
        '{"recipe": {"name": "mine", "description": ""}, "data": "digits", "root": 3, "content": {}}',
        '{"recipe": {"epochs": 3}, "data": "digits", "root": "data", "content": {}}',
    ],
)
def test_a_damaged_recipe_of_a_run_is_said(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"recipe\.json"):
        recipes.read_run(tmp_path)


def test_a_report_names_what_is_missing(images, tmp_path):
    run = recipes.run(reduced("quickstart"), data=images, out=tmp_path / "run", callbacks=[]).run_dir
    (run / "plots/history.png").unlink()
    (run / "predictions.npz").write_bytes(b"damaged")
    (run / "environment.json").unlink()
    report.write(run)
    assert (run / "report.html").read_text().count("Not available") == 6


def test_a_report_of_an_unfinished_run_does_not_end_it(images, tmp_path):
    recipe = reduced("quickstart")
    with pytest.raises(MemoryError):
        recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[StopAt()])
    report.write(tmp_path / "run")
    again = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    assert again.finished and len(again.history) == 2
    (tmp_path / "run/predictions.npz").unlink()  # what is missing is made again from the last checkpoint
    mended = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    assert (mended.predictions.logits == again.predictions.logits).all()


def test_an_unreadable_test_image_is_found_before_training(image_folder, tmp_path):
    (image_folder / "test/dog/0.png").write_bytes(b"")
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    with pytest.raises(VisionWrapperError, match=r"dog/0\.png"):
        recipes.run(recipe, data=str(image_folder), out=tmp_path / "run", callbacks=[])
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="Left out"):
        result = recipes.run(recipe, data=str(image_folder), out=tmp_path / "run", callbacks=[], skip_unreadable=True)
    assert len(result.predictions) == 3


def test_a_class_whose_folder_is_not_named_in_utf8_has_its_run(image_folder, tmp_path):
    for part in ("train", "test"):
        os.rename(image_folder / part / "dog", os.fsencode(image_folder / part) + b"/caf\xe9")
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    run = recipes.run(recipe, data=image_folder, out=tmp_path / "run", callbacks=[])
    assert run.finished and r"caf\udce9" in (run.run_dir / "report.html").read_text()
    assert recipes.evaluate_run(run.run_dir).accuracy() == run.predictions.accuracy()


def test_a_run_is_evaluated_from_another_folder(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    run = recipes.run(recipe, data=image_folder.name, out=tmp_path / "run", callbacks=[])
    monkeypatch.chdir("/")
    assert recipes.evaluate_run(run.run_dir).accuracy() == run.predictions.accuracy()


def test_other_images_of_the_same_name_are_another_run(images, tmp_path):
    recipe = reduced("quickstart")
    recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    other = data.leave_out(images, test=[0, 1, 2])
    with pytest.raises(OtherRunError, match="its images were others"):
        recipes.run(recipe, data=other, out=tmp_path / "run", callbacks=[])


@pytest.mark.parametrize("file", ["test/dog/19.png", "val/dog/7.png", "train/cat/23.png"])
def test_a_single_photograph_that_was_replaced_makes_it_another_run(file, tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 24), ("test", 24)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{i}.png")
    recipe = reduced("quickstart").changed(epochs=1, batch_size=8)
    run = recipes.run(recipe, data=tmp_path / "images", out=tmp_path / "run", callbacks=[])
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / "images").symlink_to(tmp_path / "moved")  # the same images, wherever they lie
    assert len(recipes.evaluate_run(run.run_dir)) == 48
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / file)
    with pytest.raises(OtherRunError, match="holds other images"):
        recipes.evaluate_run(run.run_dir)
    with pytest.raises(OtherRunError, match="its images were others"):
        recipes.run(recipe, data=tmp_path / "images", out=tmp_path / "run", callbacks=[])


def test_one_pixel_of_images_in_memory_makes_it_another_run(images, tmp_path):
    recipe = reduced("quickstart").changed(epochs=1)
    recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    pixels = images.test.images.copy()
    pixels[3, 5, 5, 0] ^= 1
    other = data.from_arrays((images.train.images, images.train.labels), (pixels, images.test.labels), images.classes)
    with pytest.raises(OtherRunError, match="its images were others"):
        recipes.run(recipe, data=other, out=tmp_path / "run", callbacks=[])


def test_a_part_of_a_named_data_set_is_not_taken_for_the_whole(tmp_path):
    part = data.leave_out(data.load("digits"), train=range(1200), test=range(300))
    run = recipes.run(reduced("quickstart").changed(epochs=1), data=part, out=tmp_path / "run", callbacks=[])
    assert len(run.predictions) == len(part.test)
    with pytest.raises(OtherRunError, match="digits now holds other images"):
        recipes.evaluate_run(run.run_dir)
    assert "passed in Python, called" in (run.run_dir / "report.html").read_text()


def test_data_that_were_passed_are_passed_again_to_evaluate(images, image_folder, tmp_path):
    recipe = reduced("quickstart").changed(epochs=1)
    run = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    with pytest.raises(SettingError, match=r"called 'arrays', were passed in Python.*evaluate_run\(folder, data="):
        recipes.evaluate_run(run.run_dir)
    assert "passed in Python" in command("evaluate", run.run_dir, cwd=tmp_path, expect=2)
    assert len(recipes.evaluate_run(run.run_dir, data=images)) == len(run.predictions)
    with pytest.raises(OtherRunError, match="holds other images"):
        recipes.evaluate_run(run.run_dir, data=image_folder)


def test_a_folder_with_the_name_of_a_data_set_is_a_folder(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder.rename(tmp_path / "digits")
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    run = recipes.run(recipe, data=Path("digits"), out="run", callbacks=[])
    assert len(recipes.evaluate_run(run.run_dir)) == len(run.predictions) == 4


def test_every_seed_is_tested_on_the_same_photographs(image_folder, tmp_path):
    """A folder without a test split is parted by a seed of its own, so that seeds can be compared."""
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2, drop_last=True)
    runs = [
        recipes.run(recipe, data=image_folder / "train", out=tmp_path / str(seed), callbacks=[], seed=seed)
        for seed in range(4)
    ]
    origins = [[run.predictions.source.origin(i) for i in range(len(run.predictions))] for run in runs]
    assert all(origin == origins[0] for origin in origins) and len(origins[0]) == 2


def test_unreadable_files_are_left_out_by_every_command(image_folder, tmp_path):
    (image_folder / "train/cat/0.png").write_bytes(b"no image")
    settings = ("--data", image_folder, "--epochs", "2", "--set", 'model_args={"widths": [4, 4, 8, 8]}')
    settings += ("--set", "batch_size=2", "--set", "val_fraction=0", "--set", "drop_last=true", "--skip-unreadable")
    assert "cat        3" in command("stats", image_folder, "--skip-unreadable", cwd=tmp_path)
    assert f"quickstart on {image_folder}: " in command("repeat", "quickstart", "--seeds", "1", *settings, cwd=tmp_path)


def test_an_empty_folder_becomes_the_run(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.run(reduced("quickstart"), data=images, out=".", callbacks=[]).finished
    assert (tmp_path / "report.html").exists()


def test_a_full_disk_is_said_and_leaves_what_was(images, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(FileWriteError, match=r"No space left.*Free some room"):
            recipes.run(reduced("quickstart"), data=images, out=disk / "run", callbacks=[])
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_custom_resnet_onecycle_trains_on_real_images(cifar_folder, tmp_path):
    """The ten lines' way: a folder of PNG files, two epochs on a part of it."""
    part = tmp_path / "cifar"
    for split, count in (("train", 24), ("test", 8)):
        for folder in sorted((cifar_folder / split).iterdir()):
            (part / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                (part / split / folder.name / file.name).symlink_to(file)
    result = recipes.run(
        "custom-resnet-onecycle", data=str(part), out=tmp_path / "run", callbacks=[], epochs=2, batch_size=40,
        find_lr=False,
        schedule_args={"max_lr": 0.01, "min_lr": 0.001, "peak_epoch": 0.5, "annihilate": False},
    )  # fmt: skip
    assert result.predictions.logits.shape == (80, 10)
    assert np.isfinite(result.history["train_loss"]).all() and (tmp_path / "run/report.html").exists()


def test_recipes_take_a_fused_optimizer_unless_their_arguments_choose():
    model = torch.nn.Linear(2, 2)
    fused = [recipe for recipe in RECIPES.values() if recipe.optimizer != "muon"]
    assert len(fused) > 10 and all(recipe.build_optimizer(model).defaults["fused"] for recipe in fused)
    chosen = RECIPES["quickstart"].changed(optimizer_args={"foreach": True}).build_optimizer(model)
    assert chosen.defaults["foreach"] and not chosen.defaults["fused"]


def test_the_report_of_mixed_targets_has_its_summary(images, tmp_path):
    small = {"model_args": {"widths": (4, 4, 4, 4)}, "batch_size": 8, "epochs": 4}
    result = recipes.run(
        "quickstart", data=images, out=tmp_path / "run", callbacks=[], augment="crop_flip_mixup", **small
    )
    page = (result.run_dir / "report.html").read_text()
    assert "Test accuracy, last epoch" in page and "not counted" in page and "Not available" not in page


def test_the_means_of_a_recipe_reach_the_trainer(images, tmp_path):
    """Groups by role, a scaled head, lookahead, sizes that grow, whitening, and averaging at test time."""
    from vision_wrapper.recipes.run import _load, _trainer

    recipe = reduced("speedrun").changed(
        lookahead={"steps": 2}, progressive_size=((0, 0.75), (1, 1.0)), augment_args={"pad": 1}
    )
    found, loaders = _load(recipe, images, "data")
    trainer = _trainer(recipe, found, loaders, callbacks=[])
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert groups["body"]["lr"] == 0.24 and groups["body_norms_biases"]["lr"] == 106.0
    assert groups["head"]["lr"] == pytest.approx(1.66 / 81) and groups["body_norms_biases"]["weight_decay"] == 0
    assert trainer.optimizer.steps == 2 and trainer.optimizer.optimizer.param_groups is trainer.optimizer.param_groups
    assert next(iter(loaders.train))[0].shape[2:] == (12, 12)
    assert trainer.model.fc.weight.abs().max() < 1 / 9 / np.sqrt(8) + 1e-6
    outputs = trainer.model.whiten(loaders.preprocess.batch([images.train[i][0] for i in range(60)]))
    variances = (outputs - trainer.model.whiten.bias[:, None, None]).square().mean((0, 2, 3))
    assert float(variances.detach().median()) == pytest.approx(1, abs=0.2)
    result = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    figures = json.loads((tmp_path / "run/results.json").read_text())
    assert figures["tta"] == "flip_shift" and figures["tta_accuracy"] == result.tta_accuracy
    assert figures["accuracy"] == result.predictions.accuracy() and figures["images_per_second"] > 0
    again = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    assert again.tta_accuracy == result.tta_accuracy
    with pytest.raises(SettingError, match="Whitening layer"):
        recipes.run(reduced("quickstart"), data=images, out=tmp_path / "other", callbacks=[], whiten=True)


class Watch(Callback):
    """Whether the body was frozen, epoch by epoch."""

    def __init__(self):
        self.frozen = []

    def on_epoch_end(self, run):
        self.frozen.append(not run.trainer.model.conv1.weight.requires_grad)


@pytest.mark.parametrize("at_hand", [True, False])
def test_folder_fine_tunes_where_the_weights_are_at_hand(images, tmp_path, monkeypatch, at_hand):
    import torchvision

    theirs = torchvision.models.resnet18(num_classes=1000)

    def weights(self, **_):
        if not at_hand:
            raise OSError("no network")
        return theirs.state_dict()

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", weights)
    recipe = RECIPES["folder"].changed(epochs=3, batch_size=16, size=32, freeze_epochs=2)
    watch = Watch()
    with contextlib.nullcontext() if at_hand else pytest.warns(UserWarning, match="begins from random weights"):
        result = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[watch])
    assert watch.frozen == ([True, True, False] if at_hand else [False] * 3)
    classifier = vw.load_classifier(result.run_dir / "best.safetensors")
    assert classifier.preprocess.mean == (0.485, 0.456, 0.406) and classifier.preprocess.size == (32, 32)


def test_folder_asks_for_a_folder(tmp_path):
    with pytest.raises(SettingError, match="for your own images"):
        recipes.run("folder", out=tmp_path / "run")
    assert "--data FOLDER" in command("train", "folder", cwd=tmp_path, expect=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "quickstart"])
def test_every_recipe_on_two_percent_of_cifar10(name, cifar_folder, tmp_path):
    """1,000 and 200 real images, 2 epochs; narrow networks, and smaller images for those that have no width."""
    part = tmp_path / "cifar"
    for split, count in (("train", 100), ("test", 20)):
        for folder in sorted((cifar_folder / split).iterdir()):
            (part / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                (part / split / folder.name / file.name).symlink_to(file)
    narrow = {"custom_resnet": {"widths": (16, 32, 64, 128)}, "whitened_convnet": {"widths": (16, 64, 64)}}
    recipe = RECIPES[name]
    recipe = recipe.changed(
        epochs=2, batch_size=50, model_args={**recipe.model_args, **narrow.get(recipe.model, {})}, pretrained=None,
        size=None if recipe.model in narrow else 16,
    )  # fmt: skip
    result = recipes.run(
        recipe, data=data.cached(data.load(str(part)), tmp_path / "cache"), out=tmp_path / "run", callbacks=[]
    )
    assert result.predictions.logits.shape == (200, 10) and torch.isfinite(result.predictions.logits).all()
    losses = result.history["train_loss"]
    assert np.isfinite(losses).all() and losses[1] < losses[0]
    assert (result.tta_accuracy is None) == (recipe.tta is None)

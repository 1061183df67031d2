"""Every recipe, in a reduced form, from data to run folder."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import coloured_images, reduced

import vision_wrapper as vw
from vision_wrapper import data, recipes
from vision_wrapper.errors import (
    MissingPackageError,
    SettingError,
    UnknownNameError,
    VisionWrapperError,
)
from vision_wrapper.recipes import RECIPES
from vision_wrapper.trainer import Callback

RUN_FILES = {
    "recipe.json", "history.csv", "history.json", "last.ckpt", "best.safetensors", "predictions.npz", "mistakes.csv",
    "plots", "report.html", "environment.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return coloured_images()


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
    assert 0 < curve["max_lr"] < 10 and result.history[-1]["lr"] == pytest.approx(curve["max_lr"] / 10, rel=0.3)


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


def test_numpys_numbers_and_paths_make_the_same_recipe():
    """From a loop over arrays, or a sweep's table."""
    arguments = {"widths": np.array([4, 4, 8, 8]), "dropout": np.float32(0.5)}
    numpys = RECIPES["quickstart"].changed(seed=np.int64(3), epochs=np.int64(4), lr=np.float64(0.1), schedule_args={
        **RECIPES["quickstart"].schedule_args, "max_lr": np.float32(0.5)}, model_args=arguments, drop_last=np.True_
    )  # fmt: skip
    own = RECIPES["quickstart"].changed(seed=3, epochs=4, lr=0.1, schedule_args={
        **RECIPES["quickstart"].schedule_args, "max_lr": 0.5}, model_args={"widths": [4, 4, 8, 8], "dropout": 0.5},
        drop_last=True,
    )  # fmt: skip
    assert numpys == own and numpys.as_dict() == own.as_dict() and type(numpys.epochs) is int
    assert RECIPES["folder"].changed(pretrained=Path("a/b.pth")).pretrained == os.path.join("a", "b.pth")
    with pytest.raises(SettingError, match="model_args must hold numbers, texts, lists and dicts"):
        RECIPES["quickstart"].changed(model_args={"widths": {4, 8}})


def test_equal_settings_leave_what_was_measured():
    measured = RECIPES["custom-resnet-fast"]
    assert measured.expected is not None
    assert measured.changed(epochs=10, seed=3, description="mine").expected == measured.expected
    assert measured.changed(batch_size=64).expected is measured.changed(expected=None).expected is None


def test_recipes_share_nothing_that_can_change():
    first, second = RECIPES["custom-resnet-onecycle"], RECIPES["custom-resnet-late-peak"]
    assert first.optimizer_args == second.optimizer_args and first.optimizer_args is not second.optimizer_args
    assert first.changed(batch_size=64).optimizer_args is not first.optimizer_args


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
        ({"model": "resnet18", "model_args": {"weights": "w.pth"}}, "set the recipe's pretrained"),
        ({"normalisation": "imagenet", "channels": 1}, 'set normalisation to "data", and pretrained to None'),
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
    ("name", "settings", "said"),
    [
        ("quickstart", {"lr": 0.1}, r"highest rate is the schedule's max_lr=0\.01, not lr"),
        ("folder", {"lr": 0.01}, r"highest rate is the schedule's max_lr=0\.001, not lr"),
        ("custom-resnet-onecycle", {"lr": 0.1}, "LR finder gives the highest rate"),
        ("custom-resnet-onecycle", {"schedule_args": {"max_lr": 0.5}}, "LR finder gives the highest rate"),
        ("quickstart", {"find_lr": True, "lr": 0.1}, "LR finder gives the highest rate"),
    ],
)
def test_a_rate_that_would_count_for_nothing_is_refused(name, settings, said):
    with pytest.raises(SettingError, match=said):
        RECIPES[name].changed(**settings)


def test_a_rate_that_counts_is_taken():
    assert RECIPES["custom-resnet-adam"].changed(lr=0.1).lr == RECIPES["custom-resnet-best"].changed(lr=0.1).lr == 0.1
    assert RECIPES["quickstart"].changed(lr=0.1, schedule_args={"max_lr": 0.1}).schedule_args == {"max_lr": 0.1}
    found = RECIPES["custom-resnet-onecycle"].changed(lr=0.1, find_lr=False, schedule_args={"max_lr": 0.1})
    assert not found.find_lr
    with pytest.raises(SettingError, match="find_lr must be true or false, got 'False'"):  # of the command line
        RECIPES["custom-resnet-onecycle"].changed(find_lr="False", schedule_args={"max_lr": 0.1})
    assert RECIPES["quickstart"].changed(find_lr=True).find_lr  # what was found takes the place of the recipe's max_lr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_args": {"widths": (4, 4)}}, "widths must be"),
        ({"model_args": {"norm": ["batch"]}}, "model_args=.*does not fit"),
        ({"model": "resnet18", "model_args": {"strides": 2}}, "strides must be"),
        ({"optimizer_args": {"betas": 3}}, "optimizer_args=.*does not fit"),
        ({"schedule_args": {"max_lr": "high"}}, "max_lr='high'"),
        ({"schedule_args": {"max_lr": 0.01, "peak_epoch": 40}}, "outside the run of 8 epochs"),
        ({"whiten": True}, "needs a network that has a Whitening layer"),
    ],
)
def test_arguments_that_are_refused_are_said_before_data_are_read(settings, said, tmp_path):
    """A download, or the runs of the first of two recipes, may take hours."""
    gone = tmp_path / "gone"
    states = torch.get_rng_state()
    for call in (recipes.run, recipes.find_lr, recipes.repeat):
        with pytest.raises(SettingError, match=said):
            call("quickstart", data=gone, **settings)
    good = RECIPES["quickstart"].changed(name="good")
    with pytest.raises(SettingError, match=said):
        recipes.compare(good, RECIPES["quickstart"].changed(**settings), data=gone)
    assert torch.equal(torch.get_rng_state(), states)


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

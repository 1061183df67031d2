"""Run folders: what makes a run the same run, goes on with it, and names what is damaged."""

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
from fits import CtrlC
from PIL import Image
from runs import coloured_images, command, reduced

import vision_wrapper as vw
from vision_wrapper import data, recipes, report
from vision_wrapper._files import read_json, write_json
from vision_wrapper.errors import (
    DamagedFileError,
    DataNotFoundError,
    FileWriteError,
    OtherRunError,
    SettingError,
    VisionWrapperError,
)
from vision_wrapper.recipes import RECIPES
from vision_wrapper.trainer import Callback, precision


@pytest.fixture(scope="module")
def images():
    return coloured_images()


class StopAt(Callback):
    def on_batch_end(self, run):
        if run.epoch == 1 and run.batch == 1:
            raise MemoryError("killed")


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


def test_images_that_were_moved_are_asked_for(image_folder, tmp_path):
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    run = recipes.run(recipe, data=image_folder, out=tmp_path / "run", callbacks=[])
    moved = image_folder.rename(tmp_path / "moved")
    with pytest.raises(DataNotFoundError, match=r"does not exist.*evaluate_run\(folder, data=…\)"):
        recipes.evaluate_run(run.run_dir)
    assert recipes.evaluate_run(run.run_dir, data=moved).accuracy() == run.predictions.accuracy()


def test_a_run_goes_on_where_its_folder_of_images_was_moved(image_folder, tmp_path):
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    with pytest.raises(MemoryError):
        recipes.run(recipe, data=image_folder, out=tmp_path / "run", callbacks=[StopAt()])
    moved = image_folder.rename(tmp_path / "moved")
    run = recipes.run(recipe, data=moved, out=tmp_path / "run", callbacks=[])
    assert recipes.evaluate_run(run.run_dir).accuracy() == run.predictions.accuracy()  # where they lie now
    again = moved.rename(tmp_path / "again")
    assert recipes.run(recipe.changed(data=str(again)), out=tmp_path / "run", callbacks=[]).finished


def test_a_run_goes_on_in_the_number_format_that_it_was_begun_in(images, tmp_path, monkeypatch):
    """On a processor where "auto" means another one."""
    recipe, formats = reduced("quickstart"), []

    class Note(Callback):
        def on_fit_start(self, fit):
            formats.append(fit.trainer.precision)

    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    with pytest.raises(MemoryError):
        recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[Note(), StopAt()], device="cpu")
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[Note()], device="cpu")
    recipes.run(recipe, data=images, out=tmp_path / "other", callbacks=[Note()], device="cpu")
    assert formats == ["bf16", "bf16", "fp32"]

    with pytest.raises(MemoryError):
        recipes.run(recipe, data=images, out=tmp_path / "gpu", callbacks=[StopAt()], device="cpu")
    identity = read_json(tmp_path / "gpu/recipe.json")
    write_json(tmp_path / "gpu/recipe.json", {**identity, "computed_in": "fp16"})
    with pytest.raises(OtherRunError, match="was begun in fp16, which needs a GPU"):
        recipes.run(recipe, data=images, out=tmp_path / "gpu", callbacks=[], device="cpu")
    (tmp_path / "gpu/last.ckpt").unlink()  # nothing had been trained
    assert recipes.run(recipe, data=images, out=tmp_path / "gpu", callbacks=[], device="cpu").finished
    finished = recipes.run(recipe, data=images, out=tmp_path / "gpu", callbacks=[], device="cuda:9")
    assert finished.finished  # a device that is not there is not needed


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
    with pytest.raises(OtherRunError, match=r"digits was passed in Python; the data set .* holds other images"):
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
    from vision_wrapper.recipes.run import loaders_of, model_of, trainer_of

    recipe = reduced("speedrun").changed(
        lookahead={"steps": 2}, progressive_size=((0, 0.75), (1, 1.0)), augment_args={"pad": 1}
    )
    loaders = loaders_of(recipe, images)
    trainer = trainer_of(recipe, *model_of(recipe, len(images.classes)), loaders, callbacks=[])
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


class SpoiledAtTheEnd(Callback):
    """Every image of the last epoch's evaluation is taken for the first class."""

    def on_batch_end(self, run):
        if run.epoch == run.epochs - 1:
            with torch.no_grad():
                run.trainer.model.fc.bias[0] = 1e6


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_the_figures_are_of_the_last_epoch_and_not_of_the_best(images, tmp_path, val_fraction):
    recipe = reduced("custom-resnet-adam").changed(epochs=4, val_fraction=val_fraction)
    result = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[SpoiledAtTheEnd()])
    assert max(result.history["val_accuracy"]) > 0.5 and result.history[-1]["val_accuracy"] < 0.4
    figures = json.loads((tmp_path / "run/results.json").read_text())
    stored = np.load(tmp_path / "run/predictions.npz")
    hits = float((stored["logits"].argmax(1) == stored["targets"]).mean())
    assert figures["accuracy"] == result.predictions.accuracy() == pytest.approx(hits) == pytest.approx(1 / 3)


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
    for text in ((result.run_dir / "recipe.json").read_text(), (result.run_dir / "report.html").read_text()):
        assert ("random at the beginning" in text) != at_hand
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


def test_a_run_of_passed_images_goes_on_without_its_folder(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = reduced("quickstart").changed(epochs=2, seed=1)
    first = recipes.run(recipe, data=images, callbacks=[CtrlC(3)])
    assert not first.finished
    again = recipes.run(recipe, data=images, callbacks=[])
    assert again.finished and again.run_dir == first.run_dir and len(list((tmp_path / "runs").iterdir())) == 1

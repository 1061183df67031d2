"""Killed, interrupted, out of luck: the run that goes on is the run, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fits import equal, make, weights
from PIL import Image

from vision_wrapper import data, recipes
from vision_wrapper.errors import DataNotFoundError, DeviceMemoryError, OtherRunError, SettingError, WorkerError
from vision_wrapper.recipes import RECIPES
from vision_wrapper.trainer import Callback, EarlyStopping, Trainer, schedules
from vision_wrapper.trainer.checks import out_of_memory

KILLS = int(os.environ.get("VISION_WRAPPER_KILLS", "10"))  # scripts/kill_test takes two hundred
TINY = {"widths": (4, 4, 8, 8), "dropout": 0.2}


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    """The images as files, which two workers read."""
    base = tmp_path_factory.mktemp("images")
    for part, split in (("train", images.train), ("test", images.test)):
        for i in range(len(split)):
            image, label = split[i]
            (base / part / images.classes[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(base / part / images.classes[label] / f"{i}.png")
    return base


# ---- killed


@pytest.mark.slow
def test_a_killed_run_in_memory_is_the_run():
    """No workers; dropout, augmentation, accumulation, averages and one cycle."""
    recipe = RECIPES["quickstart"].changed(epochs=3, model_args=TINY, ema=0.9, accumulate=2)
    proof = recipes.verify_resume(recipe, kills=KILLS // 2)
    assert proof.same and len(proof.kills) == KILLS // 2, proof


@pytest.mark.slow
def test_a_killed_run_of_files_is_the_run(folder):
    """Two workers; dropout, augmentation with holes, a plateau of the validation loss."""
    recipe = RECIPES["resnet18-layernorm"].changed(
        model="custom_resnet", model_args=TINY, epochs=4, batch_size=8, augment="crop_flip_cutout"
    )
    proof = recipes.verify_resume(recipe, data=str(folder), kills=KILLS - KILLS // 2, moments_seed=1)
    assert proof.same and len(proof.kills) == KILLS - KILLS // 2, proof


def test_the_proof_sees_a_difference(tmp_path, images):
    """Two runs of other seeds differ in weights, history and predictions, and in nothing less."""
    from vision_wrapper.recipes import verify

    recipe = RECIPES["quickstart"].changed(epochs=1, batch_size=8, model_args=TINY)
    for seed in (0, 1):
        recipes.run(recipe, data=images, out=tmp_path / str(seed), callbacks=[], seed=seed)
    found = verify._differences(tmp_path / "0", tmp_path / "1")
    assert {line.split(":")[0] for line in found} == {"checkpoint", "history", "predictions"}
    assert any("model.prep.conv.weight" in line for line in found) and any("logits" in line for line in found)
    assert verify._differences(tmp_path / "0", tmp_path / "0") == []


def test_the_proof_begins_another_run_where_one_ends_before_it_is_killed(monkeypatch):
    """In the same folder it would find a finished run, again and again."""
    from vision_wrapper.recipes import verify

    runs = []

    def killed(plan, data, root, out, *_):
        runs.append(out.name)
        assert runs.count(out.name) == 1
        return len(runs) == 3

    monkeypatch.setattr(verify, "_killed", killed)
    monkeypatch.setattr(verify, "_start", lambda *_: None)
    monkeypatch.setattr(verify, "_finish", lambda _: None)
    monkeypatch.setattr(verify, "_differences", lambda *_: [])
    assert recipes.verify_resume("quickstart", kills=1).kills == (verify.MOMENTS[0],)


def test_the_proof_says_where_a_recipe_cannot_be_trained(tmp_path):
    with pytest.raises(SettingError, match=r"could not be trained.*does not exist"):
        recipes.verify_resume("quickstart", data=str(tmp_path / "nowhere"), kills=1)
    for kills in (0, -1, "3"):
        with pytest.raises(SettingError, match="kills must be a whole number of at least 1"):
            recipes.verify_resume("quickstart", kills=kills)


def test_ctrl_c_on_the_command_line_and_the_same_command_again(folder, tmp_path):
    command = [
        sys.executable, "-m", "vision_wrapper", "train", "custom-resnet-adam", "--data", str(folder), "--epochs", "40",
        "--set", "batch_size=8", "--set", 'model_args={"widths": [4, 4, 8, 8]}', "--out", "run",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run/last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "To go on: vision-wrapper train custom-resnet-adam" in said, errors
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "test accuracy" in again.stdout, again.stderr
    assert len((tmp_path / "run/history.csv").read_text().splitlines()) == 41


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "plateau"])
def test_the_same_notebook_cell_again_goes_on(images, tmp_path, name):
    """The cell that fits is run again after Ctrl-C, with the trainer and the loaders that are there."""
    schedule = {
        "one_cycle": lambda: schedules.one_cycle(0.02),
        "cosine": schedules.cosine,
        "plateau": schedules.plateau,
    }

    class Press(Callback):
        pressed = False

        def on_batch_end(self, run):
            if run.epoch == 1 and run.batch == 2 and not self.pressed:
                self.pressed = True
                signal.raise_signal(signal.SIGINT)

    def cell(trainer, loaders, path):
        return trainer.fit(loaders.train, loaders.test, epochs=3, schedule=schedule[name](), checkpoint=path)

    trainer, loaders = make(images, callbacks=[Press()], ema=0.9, dropout=0.2)
    assert len(cell(trainer, loaders, tmp_path / "c")) == 1 and trainer.interrupted
    assert len(cell(trainer, loaders, tmp_path / "c")) == 3 and not trainer.interrupted
    whole, loaders = make(images, callbacks=[Callback()], ema=0.9, dropout=0.2)
    cell(whole, loaders, None)
    assert equal(weights(whole), weights(trainer))
    final = weights(trainer)
    assert len(cell(trainer, loaders, tmp_path / "c")) == 3 and equal(final, weights(trainer))  # it is finished


# ---- more epochs are a stated choice


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "multi_step", "plateau", "none"])
def test_more_epochs_have_to_be_said(images, tmp_path, name):
    schedule = {
        "one_cycle": lambda: schedules.one_cycle(0.02, peak_epoch=1),
        "cosine": lambda: schedules.cosine(),
        "multi_step": lambda: schedules.multi_step([1, 3]),
        "plateau": lambda: schedules.plateau(patience=0, factor=0.5),
        "none": lambda: None,
    }[name]

    def fit(epochs, **arguments):
        trainer, loaders = make(images)
        history = trainer.fit(
            loaders.train, loaders.test, epochs=epochs, schedule=schedule(), batch_history=True, **arguments
        )
        return trainer, history

    _, short = fit(2, checkpoint=tmp_path / "c")
    with pytest.raises(OtherRunError, match="extend=True"):
        fit(4, checkpoint=tmp_path / "c")
    _, longer = fit(4, checkpoint=tmp_path / "c", extend=True)
    assert longer.rows[:2] == short.rows and len(longer) == 4
    planned = fit(4)[1]  # from the first step on made for four epochs
    rates = [[row["lr"] for row in history.batches[12:]] for history in (longer, planned)]
    if name != "plateau":  # where what was learned decides
        assert rates[0] == pytest.approx(rates[1], rel=1e-9)
    with pytest.raises(OtherRunError, match="epochs"):  # fewer is no extension
        fit(3, checkpoint=tmp_path / "c", extend=True)


def test_a_run_that_was_stopped_early_is_finished_and_can_be_extended(images, tmp_path):
    recipe = RECIPES["quickstart"].changed(epochs=6, batch_size=8, model_args=TINY)
    stop = EarlyStopping(patience=1, min_delta=9)
    result = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[stop])
    assert result.finished and len(result.history) == 2
    trainer, loaders = make(images, callbacks=[stop])
    trainer.fit(loaders.train, loaders.test, epochs=5, checkpoint=tmp_path / "c")
    trainer, loaders = make(images, callbacks=[EarlyStopping(patience=3, min_delta=9)])
    assert len(trainer.fit(loaders.train, loaders.test, epochs=6, checkpoint=tmp_path / "c", extend=True)) > 2


# ---- while training


class Once(Callback):
    """Calls a function after a batch, once."""

    def __init__(self, function, batch=3):
        self.function, self.batch = function, batch

    def on_batch_end(self, run):
        if self.function is not None and run.epoch == 1 and run.batch == self.batch:
            function, self.function = self.function, None
            function()


def resumes_exactly(images_of, fail, error, checkpoint):
    """Train, fail in the second epoch, go on; and train without failing: the same weights."""

    def fit(callbacks, path):
        trainer, _ = make(images_of(), callbacks=callbacks)
        loaders = data.make_loaders(images_of(), "crop_flip", batch_size=8, seed=3, num_workers=2)
        trainer.fit(loaders.train, epochs=3, checkpoint=path, checkpoint_seconds=0)
        return weights(trainer)

    whole = fit([Once(None)], None)
    with pytest.raises(error[0], match=error[1]):
        fit([Once(fail)], checkpoint)
    return equal(whole, fit([Once(None)], checkpoint))


def test_a_worker_that_dies_is_named_and_nothing_is_lost(folder, tmp_path):
    def kill_workers():
        import multiprocessing

        for process in multiprocessing.active_children():
            process.kill()
            process.join()

    error = (WorkerError, "process that loads images has ended.*num_workers")
    assert resumes_exactly(lambda: data.load(folder), kill_workers, error, tmp_path / "c")


def test_a_file_that_disappears_is_named_and_nothing_is_lost(folder, tmp_path):
    files = sorted((folder / "train").rglob("*.png"))
    kept = {file: file.read_bytes() for file in files}

    def remove():
        for file in files:
            file.unlink()

    loaded = data.load(folder)
    data.stats(loaded)
    images = [loaded]

    def again():
        for file, content in kept.items():
            file.write_bytes(content)
        return images[0]

    error = (DataNotFoundError, r"There is no image file .*\.png")
    assert resumes_exactly(again, remove, error, tmp_path / "c")
    again()


def test_a_clock_that_jumps_changes_nothing(images, tmp_path, monkeypatch):
    trainer, loaders = make(images)
    trainer.fit(loaders.train, epochs=2, checkpoint=tmp_path / "a", checkpoint_seconds=0)
    expected = weights(trainer)
    now = iter(np.random.default_rng(0).uniform(-1e9, 1e9, 100_000))
    monkeypatch.setattr(time, "time", lambda: next(now))
    trainer, loaders = make(images)
    history = trainer.fit(loaders.train, epochs=2, checkpoint=tmp_path / "b", checkpoint_seconds=0)
    assert equal(expected, weights(trainer)) and all(0 <= s < 60 for s in history["seconds"])


def test_a_device_without_room_names_the_next_batch_size(images):
    class Full(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3 * 16 * 16, 3)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            if self.training and self.calls > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return self.fc(x.flatten(1))

        @staticmethod
        def without_room(x):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model = Full()
    loaders = data.make_loaders(images, batch_size=8)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[])
    with pytest.raises(DeviceMemoryError, match="batch_size=4, with accumulate=2"):
        trainer.fit(loaders.train, epochs=1)
    model.calls, trainer.accumulate = 0, 4
    with pytest.raises(DeviceMemoryError, match="batch_size=4, with accumulate=8"):
        trainer.find_lr(loaders.train)
    model.forward = Full.without_room
    with pytest.raises(DeviceMemoryError, match="batch_size"):  # at the first look, which says nothing of the model
        trainer.fit(loaders.train, epochs=1)
    one = data.make_loaders(images, batch_size=1).test
    one.batch_size = 1  # for evaluation it is larger
    assert "batch_size to 1 (it is 1)" in str(out_of_memory(one))

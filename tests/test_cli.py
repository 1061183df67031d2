"""The command line, from training to export."""

import csv
import os
import shlex
import subprocess
import sys

import pytest
from PIL import Image
from runs import command

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.errors import FileWriteError
from vision_wrapper.recipes import RECIPES
from vision_wrapper.recipes.folders import open_folder


def test_the_command_line_from_training_to_export(tmp_path):
    digits = data.load("digits", channels=1)
    for part, split in (("train", digits.train), ("test", digits.test)):
        for i in range(60):
            image, label = split[i]
            path = tmp_path / "digits" / part / str(label % 3) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:, :, 0]).save(path)
    arguments = (
        "train", "--data", "./digits", "--epochs", 1, "--set", 'model_args={"widths": [4, 4, 8, 8]}', "--set",
        "batch_size=4", "--out", "run",
    )  # fmt: skip
    said = command(*arguments, cwd=tmp_path)
    assert "report: run/report.html" in said
    assert f"test accuracy of the last epoch, {tmp_path / 'digits'}, seed 0: " in said
    assert "report: run/report.html" in command(*arguments, cwd=tmp_path)
    assert "test accuracy of best.safetensors, " in command("evaluate", "run", cwd=tmp_path)
    assert "report" in command("report", "run", cwd=tmp_path)
    file = next((tmp_path / "digits/test").rglob("*.png"))
    name, predicted, probability = command("predict", "run/best.safetensors", file, cwd=tmp_path).strip().split("\t")
    assert name == str(file) and predicted in "012" and 0 < float(probability) <= 1
    several = command("predict", "run/best.safetensors", file, "gone.png", file, cwd=tmp_path, expect=1)
    assert several.count(f"{file}\t") == 2 and "There is no image file gone.png" in several
    command("export", "run/best.safetensors", "--format", "torch", "--out", "m.pt2", cwd=tmp_path)
    assert (tmp_path / "m.pt2").exists()
    assert "train 60 images of 32x32" in command("stats", "./digits", cwd=tmp_path)
    with (tmp_path / "run/mistakes.csv").open() as file:
        assert next(csv.reader(file))


def test_the_command_line_says_what_is_wrong(tmp_path):
    assert "did you mean 'quickstart'" in command("train", "quickstrat", cwd=tmp_path, expect=2)
    assert "did you mean 'epochs'" in command("train", "--set", "epoch=3", cwd=tmp_path, expect=2)
    assert "no run folder" in command("report", tmp_path, cwd=tmp_path, expect=2)
    assert "does not exist" in command("train", "--data", "./nowhere", cwd=tmp_path, expect=2)
    assert "Unknown setting" in command("train", "--set", "device=cuda", cwd=tmp_path, expect=2)
    assert "given twice" in command("train", "--epochs", 2, "--set", "epochs=3", cwd=tmp_path, expect=2)
    assert "given twice" in command("train", "--set", "epochs=2", "--set", "epochs=3", cwd=tmp_path, expect=2)
    assert "--data digits" in command("train", "digits", cwd=tmp_path, expect=2)
    assert "is a folder" in command("predict", tmp_path, "x.png", cwd=tmp_path, expect=2)
    assert not (tmp_path / "runs").exists()


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    blocked = tmp_path / "file" / "m.png"
    said = command("find-lr", "--data", "./nowhere", "--out", blocked, cwd=tmp_path, expect=2)
    assert "is a file, not a folder" in said
    said = command("export", "nowhere.safetensors", "--out", tmp_path, cwd=tmp_path, expect=2)
    assert "it is a folder" in said
    with pytest.raises(FileWriteError, match=r"Cannot write .*run: .*is a file, not a folder"):
        open_folder(tmp_path / "file" / "run", {})


def test_recipes_lists_every_recipe(tmp_path):
    text = command("recipes", cwd=tmp_path)
    assert all(name in text for name in RECIPES)


def test_predict_says_what_a_folder_and_an_address_are(tmp_path):
    preprocess = data.Preprocess(8, 3, (0.5,) * 3, (0.2,) * 3)
    vw.save_classifier(tmp_path / "c", models.CustomResNet(2, widths=(2, 2, 2, 2)), preprocess, ("a", "b"))
    assert f"Give the images in it, such as {tmp_path}/*" in command("predict", "c", tmp_path, cwd=tmp_path, expect=1)
    for address in ("https://example.org/cat.png", "http://example.org/cat.png"):
        said = command("predict", "c", address, cwd=tmp_path, expect=1)
        assert f"{address} is an address, which is not fetched" in said


def test_outputs_that_are_closed_or_lack_letters_end_nothing(tmp_path):
    """Of an output that cannot show a text the encoding is to blame: it is shown in escapes."""
    main = [sys.executable, "-m", "vision_wrapper"]
    narrow = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    shown = subprocess.run([*main, "recipes"], env=narrow, capture_output=True, cwd=tmp_path)
    assert shown.returncode == 0 and rb"\u2013" in shown.stdout
    train = shlex.join([*main, "train", "--data", "./nowhere"])
    assert subprocess.run(f"{train} 2>&-", shell=True, cwd=tmp_path).returncode == 2  # the library's own error


def test_help_loads_no_torch(tmp_path):
    code = "\n".join(
        [
            "import sys; sys.argv = ['vision-wrapper', '--help']",
            "from vision_wrapper import cli",
            "try: cli.main()",
            "except SystemExit: pass",
            "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)

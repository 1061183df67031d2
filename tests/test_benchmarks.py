"""The benchmarks' arithmetic, and that the page of the docs is what their records say. Nothing is timed here."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_contestants_take_turns_and_the_warm_up_does_not_count():
    measure, turns = loaded("measure"), []

    def run(name):
        turns.append(name)
        return float(len(turns))

    found = measure.in_turn({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=2)
    assert turns == ["a", "b"] * 3 and found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_spread_and_ratios():
    measure = loaded("measure")
    assert measure.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "lower": 2.0, "upper": 4.0, "rounds": 5}
    assert measure.spread([7.0]) == {"median": 7.0, "lower": 7.0, "upper": 7.0, "rounds": 1}
    found = measure.ratios({"ours": [2.0, 3.0, 8.0], "theirs": [1.0, 1.0, 2.0]}, "ours")
    assert found == {"theirs": {"median": 3.0, "lower": 2.5, "upper": 3.5, "rounds": 3}}


def test_the_page_is_what_the_records_say():
    make_page = loaded("make_page")
    assert make_page.PAGE.read_text() == make_page.page(), "run: python benchmarks/make_page.py"


def test_a_missing_record_is_said_to_be_missing(monkeypatch, tmp_path):
    make_page = loaded("make_page")
    monkeypatch.setattr(make_page, "RESULTS", tmp_path)
    page = make_page.page()
    assert page.count("Not measured yet") == len(make_page.SECTIONS)


def test_a_target_that_is_missed_is_said_to_be(monkeypatch, tmp_path):
    make_page = loaded("make_page")
    record = json.loads((make_page.RESULTS / "start.json").read_text())
    record["milliseconds"]["vision-wrapper --help"]["median"] = 301.0
    (tmp_path / "start.json").write_text(json.dumps(record))
    monkeypatch.setattr(make_page, "RESULTS", tmp_path)
    assert "under 300 ms: **301**, not met." in make_page.page()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_benchmark_says_how_it_is_run(script):
    text = script.read_text()
    compile(text, str(script), "exec")
    if script.stem != "measure":
        assert f"python benchmarks/{script.name}" in text.split('"""')[1]


def test_every_record_is_of_a_benchmark_and_on_the_page():
    make_page = loaded("make_page")
    for record in make_page.RESULTS.glob("*.json"):
        assert record.stem in make_page.SECTIONS
        assert {"date", "processor", "torch", "commit"} <= set(json.loads(record.read_text())["machine"])


def test_a_small_classifier_trains_by_the_speedrun(tmp_path, monkeypatch):
    """On few images, so that the script is known to run."""
    import numpy as np
    from PIL import Image

    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    monkeypatch.syspath_prepend(str(FOLDER))
    arguments = [str(tmp_path / "images"), "--limit", "20", "--epochs", "5", "--batch-size", "10", "--runs", "0"]
    monkeypatch.setattr(sys, "argv", ["speedrun.py", *arguments])
    loaded("speedrun").main()


class TorchsKernels:
    """What winograd.cpp computes, by torch: (N, H, W, C) images, (filters, 3, 3, C) weights."""

    @staticmethod
    def outputs(images, weight):
        images, weight = images.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2).to(images.dtype)
        return torch.nn.functional.conv2d(images, weight, padding=1).permute(0, 2, 3, 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_by_other_kernels_is_the_layer(monkeypatch, bias, dtype):
    monkeypatch.syspath_prepend(str(FOLDER))
    winograd = loaded("winograd")
    monkeypatch.setattr(winograd, "kernels", TorchsKernels)
    layer = torch.nn.Conv2d(32, 64, 3, padding=1, bias=bias)
    images = torch.randn(2, 32, 8, 8)
    forward = winograd.with_winograd(lambda *arguments: pytest.fail("torch's convolution was called"))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        right, found = layer(images), forward(layer, images, layer.weight, layer.bias)
    assert found.dtype == right.dtype == dtype
    torch.testing.assert_close(found, right, rtol=0.02, atol=0.02 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": 2},
        {"padding": 0},
        {"padding": 1, "groups": 2},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 1},
        {"in_channels": 16, "padding": 1},
        {"out_channels": 48, "padding": 1},
    ],
)
def test_a_convolution_of_another_kind_stays_torchs(monkeypatch, arguments):
    monkeypatch.syspath_prepend(str(FOLDER))
    layer = torch.nn.Conv2d(**{"in_channels": 32, "out_channels": 64, "kernel_size": 3, **arguments})
    direct = loaded("winograd").with_winograd(lambda *arguments: "torch's")
    assert direct(layer, torch.randn(1, layer.in_channels, 8, 8), layer.weight, layer.bias) == "torch's"


def test_trials_never_see_a_test_image(monkeypatch, tmp_path):
    """Each part of a study's images is of the training images, and no image is in both."""
    import numpy as np
    from PIL import Image

    for split, shade in (("train", 0), ("test", 200)):
        for label in range(2):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(10):
                pixels = np.full((32, 32, 3), shade + 10 * label + number, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.syspath_prepend(str(FOLDER))
    try_means = loaded("try_means")
    study = replace(next(iter(try_means.STUDIES.values())), trained=12, judged=6)
    images = try_means.training_images_alone(study, str(tmp_path / "images"), str(tmp_path / "cache"))
    trained, judged = ({int(split[i][0].max()) for i in range(len(split))} for split in (images.train, images.test))
    assert len(trained) == 12 and len(judged) == 6 and not trained & judged and max(trained | judged) < 200

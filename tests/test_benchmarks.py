"""The benchmarks' arithmetic, and that the page of the docs is what their records say. Nothing is timed here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
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

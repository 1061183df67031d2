"""Repeats, comparisons, and that every figure of a recipe comes from records of runs."""

import importlib.util
import json
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from runs import command, reduced

from vision_wrapper import data, recipes
from vision_wrapper._files import read_json, write_json
from vision_wrapper.errors import (
    DamagedFileError,
    DataError,
    NoLearningRateError,
    NonFiniteLossError,
    OtherRunError,
    SettingError,
    VisionWrapperError,
)
from vision_wrapper.recipes import RECIPES, Comparison, Expected, Repeats, evidence
from vision_wrapper.recipes.evidence import mean_interval
from vision_wrapper.recipes.identity import content_of, read_run
from vision_wrapper.recipes.run import RANDOM_WEIGHTS
from vision_wrapper.trainer import OPTIMIZERS, VIEWS, Callback, Muon
from vision_wrapper.trainer.lr_finder import suggest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def measure_recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmarks_measure_recipes", FOLDER / "measure_recipes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def repeats(*accuracies, name="some", tta=None, test="t", epochs=24):
    count = len(accuracies)
    recipe = RECIPES["custom-resnet-adam"].changed(name=name)
    return Repeats(
        recipe,
        tuple(range(count)),
        accuracies,
        tta,
        (50.0,) * count,
        "cifar10",
        10_000,
        (Path("run"),) * count,
        {"train": "any", "test": test},
        (epochs,) * count,
    )


# ---- the arithmetic


def test_the_interval_is_students():
    values = [0.91, 0.915, 0.905, 0.912]
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values, 1e-4) == pytest.approx((expected.low, expected.high))
    assert mean_interval([0.9], 1e-4) is None
    low, high = mean_interval([0.5, 0.5], 0.01)  # equal by chance: no surer than rounding
    assert low < 0.48 and high > 0.52


def test_a_difference_is_paired():
    a, b = repeats(0.91, 0.93, 0.95, name="a"), repeats(0.90, 0.921, 0.939, name="b")
    found = Comparison(a, b)
    expected = scipy.stats.ttest_rel(a.accuracies, b.accuracies)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.difference == pytest.approx(0.01) and found.shown == (expected.pvalue < 0.05) and found.shown
    assert str(found).startswith("a is better than b: +1.00 points") and "3 seeds" in str(found)
    assert str(Comparison(b, a)).startswith("a is better than b: -1.00 points")
    copy = Comparison(repeats(0.91, 0.93, 0.95), repeats(0.90, 0.921, 0.939))
    assert str(copy).startswith("some is better than some-b: +1.00 points") and "(some less some-b)." in str(copy)


def test_what_is_not_shown_is_said_not_to_be():
    noisy = Comparison(repeats(0.90, 0.95, name="a"), repeats(0.91, 0.92, name="b"))
    assert not noisy.shown and "is not shown: +1.00 points" in str(noisy)
    single = Comparison(repeats(0.9, name="a"), repeats(0.8, name="b"))
    assert not single.shown and "not shown" in str(single) and single.interval is None
    same = Comparison(repeats(0.9, 0.91, 0.92), repeats(0.9, 0.91, 0.92))
    assert not same.shown


def test_repeats_say_mean_spread_and_averaging():
    found = repeats(0.90, 0.92, tta=(0.91, 0.93))
    assert found.mean == pytest.approx(0.91) and found.spread == pytest.approx(np.std([0.90, 0.92], ddof=1))
    assert "91.00% ± 1.41 (2 seeds" in str(found) and "92.00% with flip" in str(found)
    assert "no spread" in str(repeats(0.9)) and repeats(0.9).spread is None
    short = repeats(0.9, 0.8, name="short", epochs=3)
    assert str(short).endswith("; short was trained for 3, 3 of 24 epochs")
    assert "; short was trained for 3, 3 of 24 epochs." in str(Comparison(repeats(0.9, 0.95), short))
    namesakes = Comparison(repeats(0.9, 0.95), repeats(0.9, 0.8, epochs=3))
    assert str(namesakes).endswith("; some-b was trained for 3, 3 of 24 epochs.")
    pretrained = RECIPES["folder"]
    a = replace(repeats(0.9, 0.95), recipe=pretrained)
    random = replace(a, random_weights=True)
    assert str(random).endswith("; folder began from random weights, not from pretrained ones")
    with pytest.raises(SettingError, match="The runs of folder-b began from random weights"):
        Comparison(a, random)
    assert Comparison(random, random).shown is False


# ---- running


def test_repeat_goes_on_and_leaves_what_is_finished(images, tmp_path):
    recipe = reduced("quickstart").changed(tta="flip")
    first = recipes.repeat(recipe, [3, 1], images, out=tmp_path / "runs", callbacks=[])
    assert first.seeds == (3, 1) and [path.name for path in first.run_dirs] == ["seed-3", "seed-1"]
    before = {path: (path / "report.html").stat().st_mtime_ns for path in first.run_dirs}
    again = recipes.repeat(recipe, [3, 1, 0], images, out=tmp_path / "runs", callbacks=[])
    assert again.accuracies[:2] == first.accuracies and len(again.tta_accuracies) == 3
    assert all((path / "report.html").stat().st_mtime_ns == time for path, time in before.items())
    alone = recipes.run(recipe, images, out=tmp_path / "alone", callbacks=[], seed=1)
    assert alone.predictions.accuracy() == first.accuracies[1] and alone.tta_accuracy == first.tta_accuracies[1]
    with pytest.raises(OtherRunError, match="batch_size"):
        recipes.repeat(recipe, [3], images, out=tmp_path / "runs", callbacks=[], batch_size=5)
    numpys = recipes.repeat(recipe, np.array([3, 1]), images, out=tmp_path / "runs", callbacks=[])
    assert numpys == first
    for wrong in (0, [], [1, 1], "ab", b"ab", True, [-1], [0, None], [[1]], [{}]):
        with pytest.raises(SettingError, match="seed"):
            recipes.repeat(recipe, wrong, images, out=tmp_path / "none")
    with pytest.raises(SettingError, match=r"seeds=\[7\]"):
        recipes.repeat(recipe, 1, images, out=tmp_path / "none", seed=7)
    (first.run_dirs[0] / "results.json").write_text("[]")
    with pytest.raises(DamagedFileError, match="does not hold the figures"):
        recipes.repeat(recipe, [3], images, out=tmp_path / "runs", callbacks=[])
    assert not (tmp_path / "none").exists()


class StopAfterOne(Callback):
    def on_epoch_end(self, run):
        run.stop = "enough"


def test_runs_that_a_callback_ended_are_not_taken_for_whole_ones(images, tmp_path):
    recipe = reduced("quickstart")
    recipes.repeat(recipe, 2, images, out=tmp_path, callbacks=[StopAfterOne()])
    whole = recipes.repeat(recipe, 2, images, out=tmp_path, callbacks=[])
    assert whole.epochs == (1, 1) and str(whole).endswith("quickstart was trained for 1, 1 of 2 epochs")


def test_runs_from_random_weights_have_no_common_mean_with_pretrained_ones(images, tmp_path):
    recipe = reduced("quickstart").changed(epochs=1)
    folders = recipes.repeat(recipe, 2, images, out=tmp_path, callbacks=[]).run_dirs
    identity = read_json(folders[1] / "recipe.json")
    write_json(folders[1] / "recipe.json", {**identity, "weights": RANDOM_WEIGHTS})
    with pytest.raises(SettingError, match=r"Some of the runs began from random weights.*seed-1\. Remove them"):
        recipes.repeat(recipe, 2, images, out=tmp_path, callbacks=[])
    assert recipes.repeat(recipe, [1], images, out=tmp_path, callbacks=[]).seeds == (1,)


def test_compare_runs_the_same_seeds(images, tmp_path):
    a = reduced("quickstart")
    found = recipes.compare(a, a.changed(augment="none"), 2, images, out=tmp_path, callbacks=[])
    assert found.a.seeds == found.b.seeds == (0, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"quickstart-seeds", "quickstart-b-seeds"}
    with pytest.raises(SettingError, match="Both recipes are called"):
        recipes.compare(a, a, 1, images)


def with_finder(**schedule_args):
    return RECIPES["custom-resnet-onecycle"].changed(data="digits", schedule_args=schedule_args)


def test_compare_says_what_cannot_be_before_anything_is_trained(images, tmp_path, monkeypatch):
    a = reduced("quickstart")
    for other, settings, said in (
        (RECIPES["folder"], {}, "your own images"),
        (RECIPES["custom-resnet-adam"], {}, "digits and cifar10"),
        (reduced("speedrun").changed(data="digits"), {"optimizer_args": {"betas": [0.9, 0.9]}}, "betas"),
        (with_finder(anneal="cosine"), {}, "anneal must be"),
        (with_finder(peak_epoch=30), {}, "lies outside the run"),
    ):
        with pytest.raises(VisionWrapperError, match=said):
            recipes.compare(a, other, 1, out=tmp_path / "none", callbacks=[], **settings)
    in_colour = replace(
        data.DATASETS["digits"],
        load=lambda _, channels: data.from_arrays(
            *((s.images[..., :channels], s.labels) for s in (images.train, images.test))
        ),
    )
    monkeypatch.setitem(data.DATASETS, "digits", in_colour)
    with pytest.raises(SettingError, match="channels=3 and channels=1 the test images are different ones"):
        recipes.compare(a, a.changed(name="grey", channels=1), 1, out=tmp_path / "none", callbacks=[])
    assert not (tmp_path / "none").exists()
    with pytest.raises(SettingError, match="same seeds and test images"):
        Comparison(repeats(0.9, 0.8), repeats(0.9))
    with pytest.raises(SettingError, match=r"same seeds and test images.*fingerprint a\), .*\(b\)"):
        Comparison(repeats(0.9, test="a"), repeats(0.9, test="b"))


def test_the_command_line_repeats_and_compares(image_folder, tmp_path):
    small = ("--data", image_folder, "--seeds", 2, "--epochs", 1, "--set", "batch_size=4", "--set", "augment=none")
    narrow = ("--set", 'model_args={"widths": [4, 4, 8, 8]}', "--set", "val_fraction=0.0")
    said = command("repeat", "custom-resnet-adam", *small, *narrow, cwd=tmp_path)
    assert f"custom-resnet-adam on {image_folder}: " in said and "2 seeds" in said and "with flip" in said
    said = command("compare", "custom-resnet-adam", "custom-resnet-late-peak", *small, *narrow, "--set",
                   "schedule=null", "--set", "schedule_args={}", "--set", "optimizer_args={}", cwd=tmp_path,
                   expect=2)  # fmt: skip
    assert "holds another run" in said  # the first one's folder has other optimizer_args
    alike = ("--set", "schedule=null", "--set", "schedule_args={}", "--out", "both")
    said = command("compare", "custom-resnet-adam", "custom-resnet-late-peak", *small, *narrow, *alike, cwd=tmp_path)
    assert "A difference of" in said or "is better than" in said
    assert (tmp_path / "both/custom-resnet-late-peak-seeds/seed-1/report.html").exists()


@pytest.mark.parametrize("names", [["repeat", "quickstart"], ["compare", "quickstart", "speedrun"]])
def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, names):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, names[0], interrupted)
    assert "The same command goes on" in command(*names, "--data", "digits", cwd=tmp_path, expect=130)


# ---- records, summary, page


def record(seed, accuracy=0.9, **changes):
    return {
        "seed": seed, "accuracy": accuracy, "tta_accuracy": accuracy + 0.01, "images_per_second": 50.0 + seed,
        "epochs": 24, "data": "cifar10", "hardware": "some GPU", "version": "1", "test_images": 10_000, **changes,
    }  # fmt: skip


def test_a_summary_is_mean_spread_and_provenance():
    found = evidence.summarise([record(0, 0.90), record(1, 0.92), record(2, 0.94, hardware="another")])
    assert found.accuracy == pytest.approx(0.92) and found.tta_accuracy == pytest.approx(0.93)
    assert found.spread == found.tta_spread == pytest.approx(0.02)
    assert found.seeds == 3 and found.images_per_second == 51
    assert found.hardware == "some GPU; another"
    single = evidence.summarise([record(0, tta_accuracy=None)])
    assert single.spread is None and single.tta_accuracy is None and single.tta_spread is None


def test_what_is_expected_is_of_just_these_settings(monkeypatch):
    recipe = RECIPES["custom-resnet-fast"].changed(expected=None)
    found = asdict(evidence.summarise([record(0)]))
    kept = {**evidence.meaning(recipe), "expected": found}
    monkeypatch.setattr(evidence, "_measured", lambda: {recipe.name: kept})
    assert evidence.with_expected(recipe).expected == Expected(**found)
    assert evidence.with_expected(replace(recipe, lr=0.3)).expected is None
    assert evidence.with_expected(replace(recipe, published="elsewhere", goal=None)).expected is not None
    del kept["settings"]["lookahead"], kept["resolved"]["model"]["pool"]  # from before field and argument were there
    assert evidence.with_expected(recipe).expected is not None
    del kept["resolved"]  # of what the names stood for then, nothing is known
    assert evidence.with_expected(recipe).expected is None


def test_a_name_that_stands_for_something_else_makes_another_recipe(monkeypatch):
    class OtherMuon(Muon):
        def __init__(self, params, lr=0.02, momentum=0.7):
            super().__init__(params, lr, momentum)

    OtherMuon.__module__ = Muon.__module__
    recipe = RECIPES["custom-resnet-fast"].changed(expected=None)
    kept = {**evidence.meaning(recipe), "expected": asdict(evidence.summarise([record(0)]))}
    monkeypatch.setattr(evidence, "_measured", lambda: {recipe.name: kept})
    once = VIEWS["flip_shift"][1:]
    more_padding = (data.Pad(5, "reflect"), *data.AUGMENTATIONS[recipe.augment][1:])
    for table, name, other in (
        (data.AUGMENTATIONS, recipe.augment, more_padding),
        (VIEWS, recipe.tta, once),
        (OPTIMIZERS, recipe.optimizer, OtherMuon),
    ):
        with monkeypatch.context() as changed:
            changed.setitem(table, name, other)
            assert evidence.with_expected(recipe).expected is None, name
        assert evidence.with_expected(recipe).expected is not None
    assert evidence.resolved(RECIPES["quickstart"])["optimizer"] == {"weight_decay": 1e-4}  # the rest is torch's
    asks = RECIPES["custom-resnet-sgd"].changed(expected=None)
    found = {**kept, **evidence.meaning(asks)}
    monkeypatch.setattr(evidence, "_measured", lambda: {asks.name: found})
    assert evidence.with_expected(asks).expected is not None
    monkeypatch.setattr(evidence, "PEAK_SHARE", 0.5)  # the finder's rule
    assert evidence.with_expected(asks).expected is None


def test_runs_on_different_images_have_no_common_mean(measure_recipes, monkeypatch, images):
    first, other = ({"train": "a", "test": text} for text in "bc")
    found = evidence.summarise([record(0), record(1, content=first), record(2, content=dict(reversed(first.items())))])
    assert found.seeds == 3  # the first is from before the fingerprints were kept
    with pytest.raises(DataError, match="different images"):
        evidence.summarise([record(0, content=first), record(1, content=other)])
    monkeypatch.setattr(measure_recipes, "records_of", lambda recipe: [record(0), record(1, content=first)])
    with pytest.raises(DataError, match="These images are not those of the records"):
        measure_recipes.check_images(RECIPES["quickstart"], images)
    # Records of other recipes of the same data are in the same table.
    monkeypatch.setattr(
        measure_recipes, "records_of", lambda r: [record(0, content=first)] if r.name == "custom-resnet-page" else []
    )
    measure_recipes.check_images(RECIPES["quickstart"], images)
    with pytest.raises(DataError, match="These images are not those of the records"):
        measure_recipes.check_images(RECIPES["speedrun"], images)
    mine = content_of(images)
    monkeypatch.setattr(measure_recipes, "records_of", lambda recipe: [record(0), record(1, content=mine)])
    measure_recipes.check_images(RECIPES["quickstart"], images)


def test_a_row_says_what_is_met_and_what_is_short():
    recipe = RECIPES["custom-resnet-fast"].changed(expected=Expected(**asdict(evidence.summarise([record(0, 0.935)]))))
    (row,) = evidence.rows({"fast": recipe})
    assert row["measured"] == "93.50 (0.50 short)" and row["with averaging"] == "94.50 (flip_shift; met by one seed)"
    two = evidence.summarise([record(0, 0.93, tta_accuracy=0.94), record(1, 0.95, tta_accuracy=0.97)])
    (row,) = evidence.rows({"fast": recipe.changed(expected=two)})
    unsure = "met, not shown to be above"
    assert row["measured"] == f"94.00 ± 1.41 ({unsure})"
    assert row["with averaging"] == f"95.50 ± 2.12 (flip_shift; {unsure})"
    alike = evidence.summarise([record(seed, 0.941 + 0.0001 * seed) for seed in range(3)])  # half an interval is 0.02
    (row,) = evidence.rows({"fast": recipe.changed(expected=alike)})
    assert row["measured"] == "94.11 ± 0.01 (met)"
    equal = evidence.summarise([record(seed, 0.9401) for seed in range(2)])  # by chance: no surer than rounding
    (row,) = evidence.rows({"fast": recipe.changed(expected=equal)})
    assert row["measured"] == f"94.01 ± 0.00 ({unsure})"
    two_of_three = evidence.summarise([record(seed, 0.95) for seed in range(2)], failed=1)
    (row,) = evidence.rows({"fast": recipe.changed(expected=two_of_three)})
    assert row["measured"] == "95.00 ± 0.00 (met by the seeds that did not fail, 1 did)" and row["seeds"] == "2 of 3"
    unequal = evidence.summarise([record(0, 0.93), record(1, 0.96)], failed=1)
    (row,) = evidence.rows({"fast": recipe.changed(expected=unequal)})
    assert row["measured"].endswith("(met by the seeds that did not fail, 1 did, not shown to be above)")
    (row,) = evidence.rows({"fast": recipe.changed(expected=None)})
    assert row["measured"] == "not measured" and row["with averaging"] == row["seeds"] == "–"


def test_every_expected_result_comes_from_records(measure_recipes):
    summary = measure_recipes.summarise_all()
    assert json.loads(evidence.MEASURED.read_text()) == summary, "run: python benchmarks/measure_recipes.py --page"
    for name, recipe in RECIPES.items():
        assert (recipe.expected is None) == (name not in summary)
        if recipe.expected is not None:
            runs = json.loads((measure_recipes.RECORDS / f"{name}.json").read_text())["runs"]
            assert len({run["seed"] for run in runs}) == len(runs) == recipe.expected.seeds
            assert all({"date", "commit", "torch", "hardware", "seconds"} <= run.keys() for run in runs)
            assert all(run["epochs"] == recipe.epochs for run in runs)
    for path in measure_recipes.RECORDS.glob("*.json"):
        assert path.stem in {*RECIPES, "trials", "lr_finder"}


def test_the_page_is_what_the_records_say(measure_recipes):
    page = measure_recipes.PAGE.read_text()
    assert page == measure_recipes.page(measure_recipes.summarise_all()), (
        "run: python benchmarks/measure_recipes.py --page"
    )
    said = command("recipes", cwd=FOLDER)
    for name, recipe in RECIPES.items():
        assert f"| `{name}` |" in page and name in said
        if recipe.expected is not None:
            assert f"| {100 * recipe.expected.accuracy:.2f}" in page
            assert f"measured: {100 * recipe.expected.accuracy:.2f}" in said
            assert f"measured on: {recipe.expected.data}; {recipe.expected.hardware}; version" in said


def test_measuring_keeps_a_record_a_seed_and_goes_on(measure_recipes, monkeypatch, tmp_path):
    """The whole script, on a small recipe of its own."""
    recipe = reduced("quickstart").changed(epochs=1, batch_size=64)
    monkeypatch.setitem(RECIPES, "quickstart", recipe)
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "recipes.md"
    page.write_text("before\n<!-- measured: begin -->\n<!-- measured: end -->\nafter\n")
    for name, value in (("RECORDS", tmp_path / "evidence"), ("PAGE", page)):
        monkeypatch.setattr(measure_recipes, name, value)
    monkeypatch.setattr(evidence, "MEASURED", tmp_path / "measured.json")
    for seeds in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["measure_recipes.py", "quickstart", "folder", "--seeds", seeds])
        measure_recipes.main()
        runs = json.loads((tmp_path / "evidence/quickstart.json").read_text())["runs"]
        assert [run["seed"] for run in runs] == list(range(int(seeds)))
    (folder,) = (tmp_path / "runs/measured/quickstart").glob("*/seed-1")
    assert runs[1]["content"] == runs[0]["content"] == read_run(folder)[1]["content"]
    measured = json.loads((tmp_path / "measured.json").read_text())
    mean = sum(run["accuracy"] for run in runs) / 2
    assert measured["quickstart"]["expected"]["accuracy"] == pytest.approx(mean)
    assert f"{100 * mean:.2f} ±" in page.read_text() and page.read_text().endswith("after\n")
    monkeypatch.setitem(RECIPES, "quickstart", recipe.changed(batch_size=32))  # the records are of other settings
    assert measure_recipes.records_of(RECIPES["quickstart"]) == []
    assert list(measure_recipes.missing(["quickstart"], 1)) == [(RECIPES["quickstart"], 0)]


@pytest.fixture
def own_records(measure_recipes, monkeypatch, tmp_path):
    """A folder for the records, and a page of its own."""
    page = tmp_path / "recipes.md"
    page.write_text("<!-- measured: begin -->\n<!-- measured: end -->\n")
    for name, value in (("RECORDS", tmp_path / "evidence"), ("PAGE", page)):
        monkeypatch.setattr(measure_recipes, name, value)
    monkeypatch.setattr(evidence, "MEASURED", tmp_path / "measured.json")
    return tmp_path


@pytest.fixture
def measuring(measure_recipes, own_records, monkeypatch):
    """The command over `names`, with runs that raise `error` but for the seeds that `works` has."""
    case = SimpleNamespace(tried=[], works={0}, names=["quickstart", "speedrun", "folder"], error=NonFiniteLossError)

    def measure(recipe, seed, *_):
        case.tried.append((recipe.name, seed))
        if recipe.name == "quickstart" and seed not in case.works:
            raise case.error("The loss is\nno number.")
        measure_recipes.keep(recipe, record(seed))

    def command(*more):
        case.tried.clear()
        monkeypatch.setattr(sys, "argv", ["measure_recipes.py", *case.names, "--seeds", "2", "--out", "runs", *more])
        measure_recipes.main()

    monkeypatch.setattr(measure_recipes, "measure", measure)
    monkeypatch.setattr(measure_recipes, "check_images", lambda *_: None)
    monkeypatch.setattr(measure_recipes, "sources", lambda *_: {"digits": "digits", "cifar10": None})
    case.command = command
    return case


@pytest.mark.parametrize("error", [NonFiniteLossError, NoLearningRateError])
def test_a_recipe_that_fails_is_kept_as_failed_and_the_others_are_measured(measure_recipes, measuring, capsys, error):
    measuring.error = error
    with pytest.raises(SystemExit, match=r"^Not measured: quickstart\.$"):
        measuring.command()
    assert measuring.tried.count(("speedrun", 1)) == 1 and len(measuring.tried) == 4
    said = capsys.readouterr().out
    assert "quickstart, seed 1: The loss is" in said and "folder: needs --photos" in said
    (failed,) = measure_recipes.kept_of(RECIPES["quickstart"])["failed"]
    assert (failed["seed"], failed["error"]) == (1, f"{error.__name__}: The loss is\nno number.") and failed["date"]
    page = measure_recipes.PAGE.read_text()
    failed = f"1 failed (seed 1, {error.__name__}: The loss is no number.)"
    assert f"`quickstart`: seeds 0: 1 of 2 seeds, {failed}" in page
    measuring.command()
    assert measuring.tried == []  # what failed is not run again
    measuring.works.add(1)
    measuring.command("--retry")
    assert measuring.tried == [("quickstart", 1)]
    assert "- `quickstart`: seeds 0, 1; cifar10" in measure_recipes.PAGE.read_text()
    assert measure_recipes.kept_of(RECIPES["quickstart"])["failed"] == []


@pytest.mark.parametrize("error", [OSError, OtherRunError, KeyError, SystemExit])
def test_what_is_not_of_the_recipe_is_not_kept_as_its_failure(measure_recipes, measuring, error):
    """Images that are not there, a run of another machine in the folder, Ctrl-C: the same command goes on."""
    measuring.error = error
    with pytest.raises(SystemExit):
        measuring.command()
    assert [run["seed"] for run in measure_recipes.records_of(RECIPES["quickstart"])] == [0]
    assert measure_recipes.kept_of(RECIPES["quickstart"])["failed"] == []
    measuring.works.add(1)
    measuring.command()
    assert ("quickstart", 1) in measuring.tried and measuring.tried.count(("speedrun", 0)) == 0


def test_the_page_has_the_paired_difference_over_the_seeds_in_common(measure_recipes, own_records):
    a, b = RECIPES["custom-resnet-best"], RECIPES["custom-resnet-page"]
    for recipe, accuracies in ((a, (0.95, 0.951, 0.955, 0.96)), (b, (0.94, 0.939, 0.946))):
        for seed, accuracy in enumerate(accuracies, start=1 if recipe is b else 0):
            measure_recipes.keep(recipe, record(seed, accuracy))
    values = np.array([0.951 - 0.94, 0.955 - 0.939, 0.96 - 0.946])
    expected = scipy.stats.ttest_1samp(100 * values, 0).confidence_interval(0.95)
    said = f"+1.37 points (95% interval {expected.low:+.2f} to {expected.high:+.2f}, 3 seeds)"
    assert measure_recipes.difference(a, b) == said
    page = "\n".join(measure_recipes.generated(measure_recipes.with_summary(measure_recipes.summarise_all())))
    assert f"- `{a.name}` less `{b.name}`: {said}\n" in page
    measure_recipes.keep(b, record(3, 0.97))  # one seed the other way
    said = measure_recipes.difference(a, b)
    assert said.startswith("+0.57 points (95% interval -") and said.endswith("3 seeds): not shown")
    measure_recipes.keep(a, {"seed": 4, "error": "no number"}, "failed")
    said = measure_recipes.difference(a, b)
    assert said.endswith("3 seeds): not shown; 1 of custom-resnet-best's seeds failed and do not count")
    measure_recipes.keep(RECIPES["custom-resnet-fast"], record(1, 0.94))
    said = measure_recipes.difference(RECIPES["custom-resnet-fast"], b)
    assert said == "+0.00 points with one seed, which has no interval: not shown; 10 epochs against 24"


def test_random_weights_are_not_measured_as_pretrained_ones(measure_recipes, monkeypatch, tmp_path):
    def run(*_, **__):
        warnings.warn("Training begins from random weights, which takes many more images", stacklevel=1)

    monkeypatch.setattr(recipes, "run", run)
    with pytest.raises(UserWarning, match="random weights"):
        measure_recipes.measure(RECIPES["folder"], 0, "photos", SimpleNamespace(out=tmp_path), "")


def test_a_record_names_all_that_its_run_was_started_on(measure_recipes, monkeypatch, tmp_path):
    machine = {"processor": "CPU", "cores": 2, "threads": 1, "vision_wrapper": "1", "torch": "2", "commit": "abc"}
    for gpu, precision in ((None, "fp32"), (None, "fp32"), (None, "bf16"), ("some GPU", "bf16")):
        device = torch.device("cuda" if gpu else "cpu")
        monkeypatch.setattr(measure_recipes, "machine", lambda gpu=gpu: {**machine, "gpu": gpu})
        monkeypatch.setattr(measure_recipes, "choose_device", lambda device=device: device)
        # What is by hand is done on the processor alone.
        measure_recipes.note_start(tmp_path / "seed-0", precision, ", by hand")
    assert measure_recipes._made_on(tmp_path / "seed-0") == {
        "hardware": "CPU, 1 of 2 cores, by hand; CPU, 1 of 2 cores, bf16, by hand; some GPU, bf16",
        "version": "1", "torch": "2", "commit": "abc",
    }  # fmt: skip


def test_the_digest_is_of_what_decides_a_run(measure_recipes, monkeypatch):
    recipe = RECIPES["custom-resnet-fast"]
    found = measure_recipes.digest(recipe)
    assert found == measure_recipes.digest(recipe.changed(expected=None, goal=None, seed=3, name="other"))
    assert found != measure_recipes.digest(recipe.changed(lr=0.3))
    settings_of = evidence.settings_of
    monkeypatch.setattr(evidence, "settings_of", lambda recipe: {**settings_of(recipe), "later": None})
    assert found == measure_recipes.digest(recipe)


def test_a_part_of_cifar10_is_not_measured_on(measure_recipes, image_folder, tmp_path):
    with pytest.raises(SystemExit, match="not the whole of CIFAR-10"):
        measure_recipes.cifar10(str(image_folder), str(tmp_path / "cache"))


@pytest.fixture
def try_means(measure_recipes, monkeypatch):
    monkeypatch.setitem(sys.modules, "measure_recipes", measure_recipes)
    monkeypatch.delitem(sys.modules, "try_means", raising=False)
    return importlib.import_module("try_means")


def test_the_tables_of_trials_are_what_the_records_say(try_means):
    page = try_means.PAGE.read_text()
    for study in try_means.STUDIES:
        filled = try_means.filled(page, f"tried, {study}", try_means.generated(study))
        assert page == filled, "run: python benchmarks/try_means.py --page"
    runs = try_means.kept_runs()
    assert len(runs) == len(json.loads(try_means.TRIALS.read_text())["runs"]) > 5  # none is of other settings
    assert try_means.difference([0.01, 0.02, 0.03], 5_000).startswith("+2.00 (")
    assert try_means.difference([0.01, -0.01], 5_000).endswith("not shown")
    for study in try_means.STUDIES.values():
        plans = [study.digest(trial) for trial in study.trials]
        assert len(set(plans)) == len(plans)  # each differs


def test_the_table_of_the_finder_is_what_the_curves_say(try_means):
    lr_curves = importlib.import_module("lr_curves")
    page = lr_curves.PAGE.read_text()
    assert page == lr_curves.filled(page, "lr finder", lr_curves.generated()), "run: benchmarks/lr_curves.py --page"
    for curve in json.loads(lr_curves.CURVES.read_text())["curves"]:
        found = suggest(curve["lrs"], curve["losses"])  # what the finder would give today
        assert found.max_lr == pytest.approx(
            curve["max_lr"], rel=1e-3
        )  # of the steepest point, four digits are too few


def test_a_row_of_trials_is_over_the_seeds_that_the_base_has_too(try_means, monkeypatch, tmp_path):
    monkeypatch.setattr(try_means, "TRIALS", tmp_path / "trials.json")
    monkeypatch.setattr(try_means, "write_page", lambda: None)
    more = {"study": "whitened", "hardware": "CPU", "torch": "2"}
    for trial, accuracies in (
        ("as it is", {0: 0.90, 1: 0.92}),
        ("random flip", {0: 0.91, 1: 0.94, 2: 0.10}),
        ("black padding", {5: 0.80}),
    ):
        for seed, accuracy in accuracies.items():
            try_means.keep({**more, "trial": trial, "seed": seed, "accuracy": accuracy})
    rows = list(try_means.generated("whitened"))
    low, high = (100 * bound for bound in mean_interval([0.01, 0.02], 1 / 5000))
    assert "| as it is | 91.00 |  | 2 |" in rows and "| without whitening | not tried | | |" in rows
    assert f"| random flip | 92.50 | +1.50 ({low:+.2f} to {high:+.2f}), not shown | 2 |" in rows
    assert "| black padding | 80.00 | no seed in common | 1 |" in rows
    found = try_means.missing(SimpleNamespace(study="whitened", trials=["random flip"], seeds=4))
    assert list(found) == [("as it is", 2), ("as it is", 3), ("random flip", 3)]  # the base goes along
    for change in ({"split": 7}, {"trained": 20_000}, {"judged": 4_000}):  # others images: nothing was tried on them
        other = replace(try_means.STUDIES["whitened"], **change)
        with monkeypatch.context() as changed:
            changed.setitem(try_means.STUDIES, "whitened", other)
            assert try_means.kept_runs() == []


def test_an_argument_that_comes_later_leaves_the_trials_as_they_are(try_means, monkeypatch):
    runs, resolved = try_means.kept_runs(), evidence.resolved

    def with_later(recipe):
        found = resolved(recipe)
        return {**found, "model": {**found["model"], "later": "default"}}

    monkeypatch.setattr(evidence, "resolved", with_later)
    assert try_means.kept_runs() == runs
    other = replace(try_means.STUDIES["wide"], base=try_means.WIDE.changed(label_smoothing=0.1))
    monkeypatch.setitem(try_means.STUDIES, "wide", other)
    assert [run for run in runs if run["study"] != "wide"] == try_means.kept_runs() != runs


def test_a_closed_study_is_not_gone_on_with(try_means, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["try_means.py", "short", str(tmp_path)])
    with pytest.raises(SystemExit, match="'short' is closed: the average of weights began at the random weights"):
        try_means.main()
    short = try_means.STUDIES["short"]
    monkeypatch.setitem(try_means.STUDIES, "short", replace(short, closed=""))  # opened, it has no records
    assert not [run for run in try_means.kept_runs() if run["study"] == "short"]


def test_a_mistyped_name_is_said_before_the_images_are_read(measure_recipes, try_means, monkeypatch, capsys):
    for script, arguments, near in (
        (measure_recipes, ["speedrn", "--cifar10", "nowhere"], "speedrun"),
        (try_means, ["whitened", "nowhere", "random flp"], "random flip"),
    ):
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        with pytest.raises(SystemExit):
            script.main()
        assert f"did you mean '{near}'" in capsys.readouterr().err

"""The reports: the page, its parts, the README, two runs side by side; the browser is in test_report_browser.py."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from runs import command, reduced
from scipy.stats import binomtest
from torch import nn

import vision_wrapper as vw
from vision_wrapper import data, recipes, report
from vision_wrapper.errors import SettingError
from vision_wrapper.models import MODELS
from vision_wrapper.report.checklist import checklist
from vision_wrapper.report.comparison import mcnemar
from vision_wrapper.report.content import FIGURES
from vision_wrapper.report.markdown import fenced, plain

NAMES = ("<script>alert(1)</script>", 'a "quoted" & b', "\u05e9\u05dc\u05d5\u05dd", "`*_[x](y)|z")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images that cannot be learned, of classes whose names are full of markup; one is also in training."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (72, 16, 16, 3), dtype=np.uint8), np.arange(72) % 4
    pixels[40] = pixels[0]
    images = data.from_arrays((pixels[:40], labels[:40]), (pixels[40:], labels[40:]), NAMES)
    folder = tmp_path_factory.mktemp("report") / "run"
    return recipes.run(reduced("quickstart"), data=images, out=folder, callbacks=[]).run_dir


def gallery_of(folder):
    page = (folder / "report.html").read_text()
    return json.loads(re.search(r'id="gallery-data">(.*?)</script>', page, re.DOTALL).group(1))


def test_the_page_asks_nothing_of_the_network_and_runs_its_own_script_alone(run):
    page = (run / "report.html").read_text()
    assert "http:" not in page and "https:" not in page and "url(" not in page.replace("url(data:", "")
    script = page.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert page.count("<script") == 2 and "alert(1)" not in script
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert len(page) < 5_000_000


def test_the_gallery_has_every_mistake_with_what_marks_it(run):
    found, predictions = gallery_of(run), vw.Predictions.load(run / "predictions.npz", classes=NAMES)
    mistakes = predictions.mistakes()
    assert found["total"] == len(found["mistakes"]) == len(mistakes) > 5
    for entry, mistake in zip(found["mistakes"], mistakes, strict=True):
        assert (entry["index"], entry["target"], entry["predicted"]) == (
            mistake.index,
            mistake.target,
            mistake.predicted,
        )
        assert entry["loss"] == pytest.approx(mistake.loss) and entry["cam"] == entry["place"]
    assert found["in_training"] == 1
    marked = {entry["index"]: entry["duplicate"] for entry in found["mistakes"] if entry["duplicate"] is not None}
    assert marked == ({0: "index 0"} if 0 in {m.index for m in mistakes} else {})
    suspected = {m.index for m in predictions.suspected_label_errors()}
    assert {entry["index"] for entry in found["mistakes"] if entry["label"]} == suspected
    assert "Rank correlation" in found["trust"] and list(found["classes"]) == list(NAMES)


def test_the_sheets_hold_the_pictures_where_the_page_looks_for_them(run):
    found = gallery_of(run)
    stored = np.load(run / "predictions.npz")
    assert set(found["sheets"]) == {"thumbnails", "predicted", "true"}
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (72, 16, 16, 3), dtype=np.uint8)
    pixels[40] = pixels[0]
    sheet, layout = Image.open(run / "gallery/thumbnails.jpg"), found["sheets"]["thumbnails"]
    assert sheet.size == (16 * layout["columns"], 16 * layout["rows"]) and layout["aspect"] == 1
    for entry in found["mistakes"]:
        row, column = divmod(entry["place"], layout["columns"])
        shown = np.asarray(sheet.crop((16 * column, 16 * row, 16 * column + 16, 16 * row + 16))).astype(int)
        original = pixels[40 + entry["index"]].astype(int)
        assert np.abs(shown - original).mean() < 25  # JPEG of noise
    assert Image.open(run / "gallery/true.jpg").size[0] == 64 * found["sheets"]["true"]["columns"]
    assert len(stored["indices"]) == 32


def test_a_sheet_has_no_more_pictures_than_fit(run, monkeypatch, tmp_path):
    from vision_wrapper.report import gallery

    copy = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(gallery, "PICTURED", 5)
    monkeypatch.setattr(gallery, "EXPLAINED", 2)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (72, 16, 16, 3), dtype=np.uint8)
    images = data.from_arrays((pixels[:40], np.arange(40) % 4), (pixels[40:], np.arange(32) % 4), NAMES)
    classifier = vw.load_classifier(run / "best.safetensors")
    predictions = vw.Predictions.load(
        run / "predictions.npz", classes=NAMES, source=images.test, preprocess=classifier.preprocess
    )
    report.write_gallery(copy, classifier.model, predictions, images.train)
    found = json.loads((copy / "gallery/gallery.json").read_text())
    assert len(found["mistakes"]) == 5 and found["total"] == len(predictions.mistakes())
    assert [entry["cam"] for entry in found["mistakes"]] == [0, 1, None, None, None]


def test_sheets_of_many_photographs_stay_small(tmp_path):
    """As many as are shown, of 224x224, with detail as photographs have: about a megabyte a sheet."""
    from vision_wrapper.report import gallery

    rng = np.random.default_rng(0)
    detail = rng.normal(0, 20, (224, 224, 3)) + 60 * np.kron(rng.normal(0, 1, (14, 14, 3)), np.ones((16, 16, 1)))
    photograph = np.clip(128 + detail, 0, 255).astype(np.uint8)
    for count, side in ((1500, 32), (200, 77), (20, 96)):
        layout = gallery._sheet(tmp_path, "thumbnails", [photograph] * count)
        sheet = Image.open(tmp_path / "gallery/thumbnails.jpg")
        assert sheet.size == (side * layout["columns"], side * layout["rows"])
        assert (tmp_path / "gallery/thumbnails.jpg").stat().st_size < 1_800_000


def test_no_mistakes_make_a_page_too(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    classifier = vw.load_classifier(run / "best.safetensors")
    pixels = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    images = data.from_arrays((pixels, [0, 1, 2]), (pixels, [0, 1, 2]), NAMES[:3] + NAMES[3:])
    right = vw.Predictions(
        np.eye(4)[:3] * 9, [0, 1, 2], classes=NAMES, source=images.test, preprocess=classifier.preprocess
    )
    report.write_gallery(copy, classifier.model, right, images.train)
    page = report.write(copy).read_text()
    assert '"mistakes": []' in page and "Not available" not in page


@pytest.mark.parametrize("name", ["gallery/gallery.json", "gallery/thumbnails.jpg", "results.json", "history.csv"])
def test_a_missing_or_damaged_part_is_said(run, tmp_path, name):
    copy = shutil.copytree(run, tmp_path / "run")
    for damage in (lambda path: path.write_bytes(b"\x00{"), lambda path: path.unlink()):
        damage(copy / name)
        page = report.write(copy).read_text()
        assert page.rstrip().endswith("</html>")
        assert "Not available" in page and ("gallery" in name) == ("<td><button" not in page)
        report.write_markdown(copy)


def test_what_a_half_made_run_lacks_is_said_in_words(tmp_path):
    (tmp_path / "recipe.json").write_text('{"recipe": {}}')
    page = report.write(tmp_path).read_text()
    for name in ("history.csv", "model.txt", "plots/history.png"):
        assert f"There is no file {tmp_path / name}" in page
    for content, said in (
        ("epoch,lr\n", "holds no epochs"),
        ("epoch,lr\n1,fast\n", "does not hold the epochs of a run"),
        ("epoch\n1,2\n", "does not hold the epochs of a run"),
    ):
        (tmp_path / "history.csv").write_text(content)
        assert f"history.csv {said}" in report.write(tmp_path).read_text()


def test_page_and_readme_show_the_same_of_a_damaged_run(run, tmp_path):
    """Without results.json one row is missing; without predictions the checklist says of what it knows nothing."""
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "results.json").write_bytes(b"{")
    pages = [report.write(copy).read_text(), report.write_markdown(copy).read_text()]
    assert all("Test accuracy, last epoch" in page and "results.json" in page for page in pages)
    (copy / "predictions.npz").unlink()
    pages = [report.write(copy).read_text(), report.write_markdown(copy).read_text()]
    assert all("Test accuracy, last epoch" not in page for page in pages)
    assert all("the predictions are not there" in page for page in pages)


def test_every_plot_of_a_run_has_a_place_in_its_reports(run):
    plots = {path.stem for path in (run / "plots").iterdir()}
    assert plots | {"lr_curve"} == {name for names in FIGURES.values() for name in names}


# ---- the checklist


def plan(**changes):
    fields = {"epochs": 3, "augment": "none", "schedule": None, "find_lr": False, "expected": None}
    return {**fields, **changes}


def rows(*rates):
    return [{"epoch": i + 1, "lr": rate} for i, rate in enumerate(rates)]


def states(*arguments):
    return {line.promise.split(",")[0].split(":")[0]: line.state for line in checklist(*arguments)}


def test_the_assignments_promises_are_checked():
    cycle = {"peak_epoch": 2, "annihilate": False}
    recipe = plan(epochs=4, schedule="one_cycle", schedule_args=cycle, find_lr=True, augment="crop_flip_cutout")
    curve = {"max_lr": 0.1}
    predictions = vw.Predictions(np.eye(3), [0, 1, 2])
    good = states(recipe, rows(0.055, 0.1, 0.055, 0.0101), predictions, curve)
    assert set(good.values()) == {"kept"} and len(good) == 5
    bad = states(recipe, rows(0.1, 0.05, 0.2), vw.Predictions(np.eye(3), [0, 1, 2], [2, 0, 1]), curve)
    assert [state for state in bad.values()].count("broken") == 5
    unknown = states(recipe, rows(0.055, 0.1, 0.055, 0.0101), None, None)
    assert list(unknown.values()).count("unknown") == 3
    given = plan(epochs=4, schedule="one_cycle", schedule_args={**cycle, "max_lr": 0.1}, augment="crop_flip_cutout")
    for last, state in ((0.004, "kept"), (0.01, "broken")):  # it begins at a 25th
        found = states(given, rows(0.05, 0.1, 0.05, last), predictions, None)
        assert found["no annihilation"] == state


def test_a_result_far_below_the_expected_one_is_said():
    predictions = vw.Predictions(np.eye(2)[[0] * 100], [0] * 80 + [1] * 20)
    for accuracy, spread, seeds, state in (
        (0.81, 0.01, 5, "kept"),
        (0.88, 0.01, 5, "broken"),
        (0.88, 0.01, 3, "kept"),  # a spread of three seeds may be far too small by chance
        (0.82, 0.0, 2, "kept"),
        (0.92, 0.01, 3, "broken"),
        (0.88, None, 1, "kept"),
        (0.92, None, 1, "broken"),
    ):
        recipe = plan(expected={"accuracy": accuracy, "spread": spread, "seeds": seeds, "data": "cifar10"})
        assert checklist(recipe, rows(0.1, 0.1, 0.1), predictions, None, "cifar10")[-1].state == state
        assert "as measured before" not in str(checklist(recipe, rows(0.1, 0.1, 0.1), predictions, None, "photos"))


# ---- how to repeat it


def test_the_command_repeats_the_run(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = reduced("quickstart").changed(val_fraction=0.0, batch_size=2)
    first = recipes.run(recipe, data=str(image_folder), out="first", callbacks=[])
    page = (first.run_dir / "report.html").read_text()
    said = re.search(r"<h2>Repeat this run</h2><pre>(.*?)</pre>", page, re.DOTALL).group(1)
    import html
    import shlex

    words = shlex.split(html.unescape(said))
    assert words[:3] == ["vision-wrapper", "train", "quickstart"]
    command(*words[1:], "--out", "again", cwd=tmp_path)
    kept, again = (np.load(tmp_path / name / "predictions.npz")["logits"] for name in ("first", "again"))
    assert np.array_equal(kept, again)


def test_what_a_command_cannot_repeat_is_said(run):
    said = (run / "report.html").read_text().split("<h2>Repeat this run</h2>")[1]
    assert "passed in Python" in said and "--data arrays" not in said


def test_the_command_has_the_root_and_what_was_left_out(run, tmp_path):
    from vision_wrapper.report.run_folder import open_run

    copy = shutil.copytree(run, tmp_path / "run")
    identity = json.loads((copy / "recipe.json").read_text())
    identity.update(data="digits", passed=False, root="/somewhere else", skip_unreadable=True)
    (copy / "recipe.json").write_text(json.dumps(identity))
    said = open_run(copy).command()
    assert "--root '/somewhere else'" in said and "--skip-unreadable" in said


def test_an_own_recipe_is_repeated_by_python(image_folder, tmp_path, monkeypatch):
    recipe = reduced("quickstart").changed(name="mine", val_fraction=0.0, batch_size=2)
    first = recipes.run(recipe, data=str(image_folder), out=tmp_path / "first", callbacks=[])
    said = (report.write_markdown(first.run_dir)).read_text().split("## How to repeat it")[1]
    code = re.search(r"```\n(.*?)\n```", said, re.DOTALL).group(1)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    (again,) = (tmp_path / "runs").iterdir()
    logits = [np.load(folder / "predictions.npz")["logits"] for folder in (first.run_dir, again)]
    assert np.array_equal(*logits)


# ---- Markdown


def test_the_readme_shows_pictures_that_are_there(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    text = report.write_markdown(copy).read_text()
    pictures = re.findall(r"!\[[^\]]*\]\((plots/[^)]+)\)", text)
    assert len(pictures) >= 9 and all((copy / name).exists() for name in pictures)
    assert "Test accuracy, last epoch" in text and "- [x] " in text and "Not available" not in text
    (copy / "plots/history.png").unlink()
    assert "*Not available: plots/history.png*" in report.write_markdown(copy).read_text()
    assert "README.md" in command("report", copy, "--format", "markdown", cwd=tmp_path)


def test_names_stay_text_in_markdown():
    assert plain("a|b`c*d_e[f](g)<h>\n#&~") == r"a\|b\`c\*d\_e\[f\](g)\<h\> \#\&\~"
    assert fenced("x ``` y") == "````\nx ``` y\n````"
    assert plain("\udc80") == r"\\udc80"


# ---- two runs


def test_two_runs_side_by_side(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    stored = dict(np.load(other / "predictions.npz"))
    right = stored["logits"].argmax(1) == stored["targets"]
    changed = np.flatnonzero(~right)[:3]
    stored["logits"][changed] = np.eye(4)[stored["targets"][changed]] * 9
    np.savez(other / "predictions.npz", **stored)
    page = report.compare(run, other, tmp_path / "both.html").read_text()
    assert "Only B right</th><td>3<" in page and "Only A right</th><td>0<" in page
    assert f"p = {binomtest(0, 3).pvalue:.3g}" in page and "the recipes are the same" in page
    assert "Not available" not in page and page.count("data:image/png") == 8
    assert "comparison.html" in command("report", other, "--compare", run, cwd=tmp_path)
    with pytest.raises(SettingError, match="Both runs are"):
        report.compare(run, run)
    assert "leave --format out" in command(
        "report", other, "--compare", run, "--format", "markdown", cwd=tmp_path, expect=2
    )


def test_runs_on_other_images_are_not_paired(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    stored = dict(np.load(other / "predictions.npz"))
    np.savez(other / "predictions.npz", **{name: values[:10] for name, values in stored.items()})
    assert "tested on different images" in report.compare(run, other).read_text()


def test_runs_on_other_images_of_the_same_labels_are_not_paired(run, tmp_path):
    """Positions and labels of two halves of one folder are the same; the images are not."""
    other = shutil.copytree(run, tmp_path / "other")
    assert "Both right" in report.compare(run, other).read_text()
    identity = json.loads((other / "recipe.json").read_text())
    identity["content"]["test"] = "0" * 16
    (other / "recipe.json").write_text(json.dumps(identity))
    assert "tested on different images" in report.compare(run, other).read_text()


class NoMaps(nn.Module):
    """A network of vectors: there is nothing to map."""

    def __init__(self, num_classes, in_channels=3):
        super().__init__()
        self.fc = nn.Linear(in_channels * 16 * 16, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_a_network_without_maps_has_a_whole_run(images, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "no_maps", NoMaps)
    recipe = recipes.Recipe("mine", "Without convolutions.", data="", model="no_maps", epochs=1, batch_size=8)
    wrong = np.roll(images.test.labels, 1)
    images = data.from_arrays((images.train.images, images.train.labels), (images.test.images, wrong), images.classes)
    result = recipes.run(recipe, data=images, out=tmp_path / "run", callbacks=[])
    page = (result.run_dir / "report.html").read_text()
    assert result.finished and "No class activation maps: No layer of this model" in page
    assert all(entry["cam"] is None for entry in gallery_of(result.run_dir)["mistakes"])


def test_what_was_watched_is_said(images, tmp_path):
    recipe = reduced("quickstart").changed(val_fraction=0.0, drop_last=True)
    half = data.from_arrays(
        (images.train.images[:30], images.train.labels[:30]),
        (images.test.images, images.test.labels),
        images.classes,
        val=(images.train.images[30:], images.train.labels[30:]),
    )
    for given, said in ((images, "the test set"), (half, "the validation images")):
        run = recipes.run(recipe, data=given, out=tmp_path / said, callbacks=[]).run_dir
        for page in (run / "report.html", report.write_markdown(run)):
            assert re.search(rf"[Ww]atched after each epoch(</th><td>|\W+){said}", page.read_text())


def test_a_class_without_test_images_has_no_accuracy(images, tmp_path):
    first = np.flatnonzero(images.test.labels == 0)
    one = data.from_arrays(
        (images.train.images, images.train.labels),
        (images.test.images[first], images.test.labels[first]),
        images.classes,
    )
    recipe = reduced("quickstart").changed(val_fraction=0.0, drop_last=True)
    run = recipes.run(recipe, data=one, out=tmp_path / "run", callbacks=[]).run_dir
    page = (run / "report.html").read_text()
    assert re.search(r"square</bdi></td><td>–</td><td>0 of 0<", page)
    other = recipes.run(recipe, data=one, out=tmp_path / "other", callbacks=[], seed=1)
    assert "square</bdi></td><td>–</td><td>–</td><td>–<" in report.compare(run, other.run_dir).read_text()


def test_mcnemar_is_exact():
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)


def test_predictions_as_csv_and_json(run, tmp_path):
    import csv
    import io

    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "a b,c.png")
    model = run / "best.safetensors"
    table = list(csv.DictReader(io.StringIO(command("predict", model, "a b,c.png", "--format", "csv", cwd=tmp_path))))
    (row,) = [json.loads(command("predict", model, "a b,c.png", "--format", "json", cwd=tmp_path))]
    assert table[0]["file"] == row["file"] == "a b,c.png" and table[0]["class"] == row["class"]
    assert set(NAMES) <= table[0].keys() and sum(row["probabilities"].values()) == pytest.approx(1)
    assert float(table[0][row["class"]]) == pytest.approx(row["probability"], abs=1e-6)
    assert "Unknown format" in command("predict", model, "a b,c.png", "--format", "xml", cwd=tmp_path, expect=2)

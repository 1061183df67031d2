"""The report in headless Chromium, driven by Playwright: clicks, keys, small screens, and names full of markup."""

import shutil

import numpy as np
import pytest
from PIL import Image
from runs import reduced

from vision_wrapper import recipes

# As the folders of classes are named; a file's name is full of markup too.
NAMES = ("<img src=x onerror=alert(1)>", "a \"b\" & 'c'", "\u05e9\u05dc\u05d5\u05dd \u202etxt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The report of a run on files of noise."""
    base, rng = tmp_path_factory.mktemp("browser"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 12)):
        for name in NAMES:
            (base / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                picture.save(base / "images" / part / name / f"<b>{i}&quot;.png")
    recipe = reduced("quickstart").changed(val_fraction=0.0)
    return recipes.run(recipe, data=str(base / "images"), out=base / "run", callbacks=[]).run_dir


@pytest.fixture
def page(browser, folder):
    """The report, opened; what it asked of the network and what it complained of must be nothing."""
    made = browser.new_page(viewport={"width": 1000, "height": 800})
    requests, complaints = [], []
    made.on("request", lambda request: requests.append(request.url))
    made.on("console", lambda message: complaints.append(message.text))
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on("dialog", lambda dialog: complaints.append(f"alert: {dialog.message}"))
    address = (folder / "report.html").as_uri()
    made.goto(address)
    yield made
    assert requests == [address] and complaints == []
    made.close()


def mistakes_of(folder):
    from vision_wrapper import Predictions

    return Predictions.load(folder / "predictions.npz", classes=sorted(NAMES)).mistakes()


def labels(page):
    return [tile.get_attribute("aria-label") for tile in page.locator(".tile").all()]


def test_every_mistake_is_a_tile_in_the_order_that_is_chosen(page, folder):
    mistakes = mistakes_of(folder)
    assert len(mistakes) > 5
    assert page.locator("#count").inner_text() == f"{len(mistakes)} of {len(mistakes)} mistakes"
    assert [int(text.split()[1].strip(",")) for text in labels(page)] == [m.index for m in mistakes]
    page.select_option("#by-order", "index")
    found = [int(text.split()[1].strip(",")) for text in labels(page)]
    assert found == sorted(found)


def test_a_cell_of_the_confusion_matrix_shows_its_images(page, folder):
    mistakes = mistakes_of(folder)
    for cell in page.locator(".confusion button").all():
        true, predicted = int(cell.get_attribute("data-true")), int(cell.get_attribute("data-predicted"))
        wanted = [m.index for m in mistakes if (m.target, m.predicted) == (true, predicted)]
        assert int(cell.inner_text()) == len(wanted)
        cell.click()
        assert [int(text.split()[1].strip(",")) for text in labels(page)] == wanted
        assert page.evaluate("document.activeElement.className") == "tile"
    page.click("#all")
    assert page.locator(".tile").count() == len(mistakes)


def test_the_keyboard_is_enough(page, folder):
    from playwright.sync_api import expect

    mistakes = mistakes_of(folder)
    page.locator("#by-order").focus()
    page.keyboard.press("Tab")  # the button that shows all
    page.keyboard.press("Tab")  # one stop for all tiles

    def focused():
        return page.evaluate("[...document.querySelectorAll('.tile')].indexOf(document.activeElement)")

    assert focused() == 0
    page.keyboard.press("ArrowRight")
    assert focused() == 1
    page.keyboard.press("End")
    assert focused() == len(mistakes) - 1
    page.keyboard.press("ArrowRight")  # stays at the last
    assert focused() == len(mistakes) - 1
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert focused() > 1
    page.keyboard.press("ArrowUp")
    assert focused() == 0
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 1
    facts = page.locator("#enlarged-facts").inner_text()
    assert str(mistakes[0].index) in facts and "<b>" in facts and "&quot;.png" in facts
    page.keyboard.press("ArrowRight")
    assert f"{100 * mistakes[1].confidence:.1f}%" in page.locator("#enlarged-facts").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    expect(page.locator(".tile").nth(1)).to_be_focused()  # the dialog's event of closing comes later


def test_names_full_of_markup_stay_text(page):
    text = page.locator("main").inner_text()
    assert NAMES[0] in text and NAMES[1] in text and NAMES[2].split()[0] in text
    assert page.locator("img[src=x]").count() == 0
    page.locator(".tile").first.click()
    assert page.locator("dialog img, dialog b").count() == 0
    assert page.locator("dialog .picture").count() == 3  # the image and its two maps


def test_pictures_are_there(page):
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    assert broken == 0 and page.locator("img").count() >= 9
    style = page.evaluate("getComputedStyle(document.querySelector('.tile .picture')).backgroundImage")
    assert style.startswith('url("data:image/jpeg;base64,')


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_downwards_alone(page, scheme):
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".tile").first.click()
    box = page.locator("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert contrast(*colours) > 7


def contrast(*colours):
    """WCAG's ratio of two colours rgb(…)."""

    def luminance(colour):
        values = [int(v) / 255 for v in colour[4:-1].split(",")[:3]]
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted(map(luminance, colours), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_it_has_names_for_readers_of_the_screen(page):
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, select, img')].filter(e => "
        "!(e.ariaLabel || e.innerText || e.alt || e.labels?.length)).length"
    )
    assert unnamed == 0
    assert page.locator("html").get_attribute("lang") == "en" and page.locator("h1").count() == 1
    assert page.locator("#count").get_attribute("aria-live") == "polite"


def test_it_prints(page, tmp_path):
    page.emulate_media(media="print")
    assert not page.locator(".controls").first.is_visible()
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000


def test_without_a_script_it_says_so(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto((folder / "report.html").as_uri())
    assert "needs JavaScript" in plain.locator("main").inner_text() and plain.locator("img").count() >= 9
    context.close()


def test_an_infinite_loss_is_named_and_comes_first(browser, folder, tmp_path):
    """A network may give a class no chance at all."""
    from vision_wrapper import Predictions, data, load_classifier, report

    copy, images = shutil.copytree(folder, tmp_path / "run"), data.load(str(folder.parent / "images"))
    classifier = load_classifier(copy / "best.safetensors")
    logits = np.full((len(images.test), len(NAMES)), 1.0, dtype=np.float32)
    targets = np.array(images.test.labels)
    logits[np.arange(len(targets)), (targets + 1) % len(NAMES)] = 2.0
    logits[5, targets[5]] = -np.inf
    found = Predictions(logits, targets, classes=images.classes, source=images.test, preprocess=classifier.preprocess)
    report.write_gallery(copy, classifier.model, found, images.train)
    page = browser.new_page()
    page.goto(report.write(copy).as_uri())
    page.select_option("#by-order", "loss")
    assert page.locator(".tile").count() == len(targets) and labels(page)[0].startswith("index 5,")
    page.locator(".tile").first.click()
    assert "infinite" in page.locator("#enlarged-facts").inner_text()
    page.close()

"""Every figure of the table, full and empty; what the figures say; and that they leave everything alone."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import pytest
import torch

from vision_wrapper import data, explain, models, viz
from vision_wrapper.errors import SettingError, UnknownNameError
from vision_wrapper.evaluation import Predictions
from vision_wrapper.trainer import History, LRCurve, Trainer, schedules
from vision_wrapper.viz._figure import short
from vision_wrapper.viz.cam import overlay

NAMES = ("$x_1$ and \\alpha", "a_class_with_a_name_that_is_much_too_long_for_any_axis", "kočka", "5%", "{d}")


@dataclass
class Given:
    """What the figures are made of: 15 test images of 16x16, a third of them recognised."""

    source: data.ImageData
    stats: data.Stats
    loaders: data.Loaders
    model: torch.nn.Module
    predictions: Predictions
    history: History
    curve: LRCurve


def make_given(channels: int = 3, names: tuple[str, ...] = NAMES) -> Given:
    random = np.random.default_rng(0)
    pixels = {
        part: random.integers(0, 256, (count, 16, 16, channels), dtype=np.uint8)
        for part, count in (("train", 20), ("test", 15))
    }
    source = data.from_arrays(
        train=(pixels["train"], np.arange(20) % 5),
        test=(pixels["test"], np.arange(15) % 5),
        classes=names,
        channels=channels,
    )
    loaders = data.make_loaders(source, augment="flip", batch_size=8, seed=0)
    torch.manual_seed(0)
    model = models.CustomResNet(num_classes=5, in_channels=channels, widths=(4, 8, 8, 8))
    targets = torch.from_numpy(source.test.labels)
    logits = torch.eye(5)[(targets + torch.tensor([0, 1, 2]).repeat_interleave(5)) % 5] * 3
    predictions = Predictions(logits, targets, classes=names, source=source.test, preprocess=loaders.preprocess)
    return Given(source, data.stats(source), loaders, model, predictions, make_history(), make_curve())


def make_history(validated: bool = True, batches: int = 0) -> History:
    value = 0.5 if validated else None
    row = {
        "lr": 0.1,
        "train_loss": 1.0,
        "train_accuracy": 0.4,
        "val_loss": value,
        "val_accuracy": value,
        "seconds": 1.0,
    }
    rows = [{"epoch": epoch, **row} for epoch in (1, 2, 3)]
    return History(rows, [{"step": i, "epoch": 1, "lr": 0.1, "loss": 1.0} for i in range(batches)])


def make_curve(suggestion: float | None = 0.01, reason: str = "steepest") -> LRCurve:
    return LRCurve([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [2.3, 2.2, 1.5, 1.2, float("nan")], suggestion, reason)


FULL: dict[str, Any] = {
    "augmented": lambda g: (g.loaders.train,),
    "class_distribution": lambda g: (g.stats,),
    "confusion_matrix": lambda g: (g.predictions,),
    "gradcam": lambda g: (g.model, g.predictions.mistakes()),
    "history": lambda g: (g.history,),
    "image_sizes": lambda g: (g.stats,),
    "learning_rate": lambda g: (g.history,),
    "lr_curve": lambda g: (g.curve,),
    "misclassified": lambda g: (g.predictions.mistakes(),),
    "per_class": lambda g: (g.predictions,),
    "reliability": lambda g: (g.predictions,),
    "samples": lambda g: (g.source,),
    "schedule": lambda g: (schedules.one_cycle(max_lr=0.1, min_lr=0.01, peak_epoch=1), 3, 4),
}
NO_PREDICTIONS = Predictions(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), classes=NAMES)
NO_STATS = data.Stats((0.5,), (0.2,), NAMES, {"train": (0,) * 5, "test": (0,) * 5}, {"train": {}, "test": {}})
EMPTY: dict[str, Any] = {
    "augmented": lambda g: (g.loaders.train, 0),
    "class_distribution": lambda g: (NO_STATS,),
    "confusion_matrix": lambda g: (NO_PREDICTIONS,),
    "gradcam": lambda g: (g.model, g.predictions.mistakes()[:0]),
    "history": lambda g: (History(),),
    "image_sizes": lambda g: (NO_STATS,),
    "learning_rate": lambda g: (History(),),
    "lr_curve": lambda g: (LRCurve([], [], None, "No batches."),),
    "misclassified": lambda g: (NO_PREDICTIONS.mistakes(),),
    "per_class": lambda g: (NO_PREDICTIONS,),
    "reliability": lambda g: (NO_PREDICTIONS,),
    "samples": lambda g: (g.source, 0),
    "schedule": lambda g: (schedules.constant(), 0, 4),
}


@pytest.fixture(scope="module")
def given() -> Given:
    return make_given()


def texts(figure: matplotlib.figure.Figure) -> str:
    found = figure.findobj(matplotlib.text.Text)
    return "\n".join(text.get_text() for text in found)  # type: ignore[attr-defined]


def pictures(figure: matplotlib.figure.Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_the_table_is_the_public_functions():
    assert {f.__name__ for f in viz.PLOTS.values()} == {name for name in viz.__all__ if name.startswith("plot_")}
    assert all(f.__name__ == f"plot_{name}" for name, f in viz.PLOTS.items())
    assert set(FULL) == set(EMPTY) == set(viz.PLOTS)
    with pytest.raises(UnknownNameError, match="did you mean 'gradcam'"):
        viz.PLOTS["grad_cam"]


@pytest.mark.parametrize("name", viz.PLOTS)
def test_every_figure(name, given):
    figure = viz.PLOTS[name](*FULL[name](given))
    assert isinstance(figure, matplotlib.figure.Figure) and figure.axes
    png = figure._repr_png_()
    assert png.startswith(b"\x89PNG") and len(png) > 1000


@pytest.mark.parametrize("name", viz.PLOTS)
def test_nothing_to_show_says_so(name, given):
    figure = viz.PLOTS[name](*EMPTY[name](given))
    assert isinstance(figure, matplotlib.figure.Figure) and not figure.axes
    assert "No " in texts(figure) and figure._repr_png_()


@pytest.mark.parametrize("name", viz.PLOTS)
def test_nothing_changes_and_settings_of_the_user_do_no_harm(name):
    given = make_given()
    given.model.train()
    weights = {k: v.clone() for k, v in given.model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with matplotlib.rc_context({"text.usetex": True, "text.color": "red"}):  # LaTeX is not there, nor asked for
        settings = dict(matplotlib.rcParams)
        assert viz.PLOTS[name](*FULL[name](given))._repr_png_()
        assert dict(matplotlib.rcParams) == settings
    assert all(torch.equal(weights[k], v) for k, v in given.model.state_dict().items())
    assert all(module.training for module in given.model.modules())
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1])
    assert given.loaders.train.epoch == 0


def test_pyplot_is_never_imported():
    # pyplot would keep every figure, and show it a second time in a notebook. (grad-cam itself imports it.)
    code = """
import sys, torch
from vision_wrapper import explain, viz
from vision_wrapper.data import from_arrays
from vision_wrapper.evaluation import Predictions
images, labels = torch.zeros(4, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
source = from_arrays((images, labels), (images, labels))
predictions = Predictions(torch.eye(2)[1 - labels], labels, source=source.test)
for plot, argument in ((viz.plot_samples, source), (viz.plot_per_class, predictions),
                       (viz.plot_confusion_matrix, predictions), (viz.plot_misclassified, predictions.mistakes())):
    plot(argument)._repr_png_()
print("matplotlib.pyplot" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_no_figure_is_left_with_pyplot(given):
    import matplotlib.pyplot as plt

    for name, plot in viz.PLOTS.items():
        plot(*FULL[name](given))
    assert plt.get_fignums() == []


# ---- curves


def lines(figure) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for axes in figure.axes for line in axes.lines]


def test_history():
    panels = viz.plot_history(make_history())
    assert [axes.get_title() for axes in panels.axes] == [
        "Training loss",
        "Validation loss",
        "Training accuracy",
        "Validation accuracy",
    ]
    assert lines(panels)[0] == ([1, 2, 3], [1.0, 1.0, 1.0])
    combined = viz.plot_history(make_history(), combined=True, val_name="test")
    assert len(combined.axes) == 2 and all(len(axes.lines) == 2 for axes in combined.axes)
    assert "test" in texts(combined)
    assert len(viz.plot_history(make_history(validated=False)).axes) == 2
    assert viz.plot_history(make_history(), val_name="MNIST test").axes[1].get_title() == "MNIST test loss"


@pytest.mark.parametrize("combined", [False, True])
def test_an_accuracy_that_was_not_counted_is_said(combined):
    history = make_history()
    for row in history.rows:
        row["train_accuracy"] = None  # as with MixUp
    figure = viz.plot_history(history, combined=combined)
    assert "training accuracy not counted" in texts(figure)
    assert sum(len(axes.lines) for axes in figure.axes) == 3
    for row in history.rows:
        row["val_accuracy"] = None  # targets that are no classes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = viz.plot_history(history, combined=combined)
        figure.to_png()
    notes = [text for axes in figure.axes for text in axes.texts]
    boxes = [note.get_window_extent() for note in notes]
    assert len(notes) == 2 and not boxes[0].overlaps(boxes[1])


def test_learning_rate_by_batch_where_there_are_batches():
    assert lines(viz.plot_learning_rate(make_history()))[0][0] == [1, 2, 3]
    assert lines(viz.plot_learning_rate(make_history(batches=7)))[0][0] == list(range(7))


def test_lr_curve_marks_the_suggestion_or_gives_the_reason():
    good = viz.plot_lr_curve(make_curve())
    assert good.axes[0].get_xscale() == "log" and "suggestion 0.01" in texts(good)
    cycle = viz.plot_lr_curve(replace(make_curve(), max_lr=0.02))
    assert "suggestion 0.01" in texts(cycle) and "peak of a cycle 0.02" in texts(cycle)
    bad = viz.plot_lr_curve(make_curve(None, "the loss never fell"))
    assert "No suggestion: the loss never fell" in texts(bad)
    never = viz.plot_lr_curve(LRCurve([0.1], [float("nan")], None, "NaN at once"))
    assert "NaN at once" in texts(never)


@pytest.mark.parametrize(("low", "high"), [(0.12, 0.45), (0.12, 1.5), (1e-6, 1.0)])
def test_a_rates_axis_has_numbers_wherever_it_lies(low, high):
    rates = np.geomspace(low, high, 20).tolist()
    figure = viz.plot_lr_curve(LRCurve(rates, np.linspace(2, 1, 20).tolist(), rates[3], "", max_lr=low / 5))
    figure.to_png()
    (axes,) = figure.axes
    ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
    left, right = axes.get_xlim()
    assert 2 <= len({t.label1.get_text() for t in ticks if left <= t.get_loc() <= right} - {""}) <= 10
    peak = next(line for line in axes.lines if "peak" in str(line.get_label()))
    assert np.isnan(peak.get_ydata()).all()  # it lies beside the curve


def test_the_users_settings_of_saving_do_not_reach_a_report():
    figure = viz.plot_history(make_history())
    plain = figure.to_png()
    own = {"savefig.dpi": 300, "savefig.facecolor": "black", "savefig.transparent": True, "savefig.bbox": "tight"}
    with matplotlib.rc_context(own):
        assert figure.to_png() == plain


def test_schedule():
    schedule = schedules.one_cycle(max_lr=0.1, min_lr=0.01, peak_epoch=1)
    x, y = lines(viz.plot_schedule(schedule, 3, 4))[0]
    assert x == [i / 4 for i in range(12)] and y == schedule.preview(3, 4)
    with pytest.raises(SettingError, match="one_cycle"):
        viz.plot_schedule(lambda optimizer: None, 3, 4)  # type: ignore[arg-type]


# ---- images


def test_samples_are_the_raw_images(given):
    figure = viz.plot_samples(given.source, count=7, seed=3)
    assert len(pictures(figure)) == 7
    raw = [given.source.train[i][0] for i in range(20)]
    assert all(any(np.array_equal(shown, image) for image in raw) for shown in pictures(figure))
    again = viz.plot_samples(given.source, count=7, seed=3)
    assert all(map(np.array_equal, pictures(figure), pictures(again)))
    assert not all(map(np.array_equal, pictures(figure), pictures(viz.plot_samples(given.source, count=7, seed=4))))


def test_samples_of_each_class(given):
    figure = viz.plot_samples(given.source.train, classes=NAMES, per_class=3)
    shown = pictures(figure)
    labels = [next(y for x, y in map(given.source.train.__getitem__, range(20)) if np.array_equal(x, s)) for s in shown]
    assert labels == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert "kočka" in texts(figure)
    with pytest.raises(SettingError):
        viz.plot_samples(given.source, columns=0)


@pytest.mark.parametrize("name", ["augmented", "gradcam", "misclassified"])
def test_grey_images_everywhere(name):
    assert viz.PLOTS[name](*FULL[name](make_given(channels=1)))._repr_png_()


def test_grey_images_are_grey():
    figure = viz.plot_samples(make_given(channels=1).source, count=1)
    picture = figure.axes[0].images[0]
    assert picture.get_cmap().name == "gray" and picture.get_clim() == (0, 255) and picture.get_array().ndim == 2


def test_augmented_shows_what_training_sees(given):
    loader = given.loaders.train
    shown = pictures(viz.plot_augmented(loader, count=3, looks=2, epoch=1))
    first = loader.order(1)[0]
    assert len(shown) == 9 and np.array_equal(shown[0], loader.split[int(first)][0])
    batch = next(loader.batches(1))[0]
    seen = loader.preprocess.normalise(torch.from_numpy(shown[1][None].copy()))
    assert torch.equal(seen[0], batch[0])
    with pytest.raises(SettingError, match="make_loaders"):
        viz.plot_augmented([1, 2, 3])  # type: ignore[arg-type]


def test_augmented_shows_mixing_and_the_size_of_the_epoch():
    source = make_given().source.train
    images = data.from_arrays((source.images, source.labels), (source.images, source.labels), NAMES)
    loader = data.make_loaders(images, "crop_flip_mixup", seed=1, progressive_size=((0, 0.5), (2, 1.0))).train
    shown = pictures(viz.plot_augmented(loader, count=3, looks=1, epoch=0))
    batch = next(loader.batches(0))[0]
    assert shown[1].shape[:2] == tuple(side // 2 for side in shown[0].shape[:2])
    assert np.array_equal(shown[1], loader.preprocess.denormalise(batch[:1])[0])


@pytest.mark.parametrize("count", [1, 4, 10])
def test_misclassified_are_the_raw_images_by_index(given, count):
    mistakes = given.predictions.mistakes(order="index")[:count]
    figure = viz.plot_misclassified(mistakes, columns=4)
    assert len(pictures(figure)) == count
    for mistake, shown in zip(mistakes, pictures(figure), strict=True):
        assert np.array_equal(shown, given.source.test[mistake.index][0])
    assert f"index {mistakes[0].index}" in texts(figure) and "true: $x_1$" in texts(figure)
    with pytest.raises(SettingError, match="columns"):
        viz.plot_misclassified(mistakes, columns=0)


def test_misclassified_need_their_images():
    alone = Predictions(torch.eye(3), torch.tensor([1, 2, 0])).mistakes()
    with pytest.raises(SettingError, match="source="):
        viz.plot_misclassified(alone)
    with pytest.raises(SettingError, match="preprocess="):
        viz.plot_gradcam(models.CustomResNet(num_classes=3), alone)


# ---- Grad-CAM


@pytest.mark.parametrize(("target", "field"), [("predicted", "predicted"), ("true", "target")])
def test_gradcam_shows_the_class_that_was_asked_for(given, target, field):
    mistakes = given.predictions.mistakes()[:3]
    shown = pictures(viz.plot_gradcam(given.model, mistakes, target=target, layers="layer1"))
    inputs = given.loaders.preprocess.batch(mistakes.images())
    cams = explain.gradcam(given.model, inputs, [getattr(m, field) for m in mistakes], "layer1")
    for i, image in enumerate(mistakes.images()):
        assert np.array_equal(shown[2 * i], image)
        assert np.array_equal(shown[2 * i + 1], overlay(image, cams.maps[0, i]))


def test_gradcam_of_both_classes_one_class_and_several_layers(given):
    mistakes = given.predictions.mistakes()[:2]
    assert len(pictures(viz.plot_gradcam(given.model, mistakes, target="both"))) == 6
    stages = viz.plot_gradcam(given.model, mistakes, layers=["prep", "layer1", "layer2", "layer3"])
    assert len(pictures(stages)) == 10 and "layer3" in texts(stages)
    by_name, by_index = (pictures(viz.plot_gradcam(given.model, mistakes, target=t)) for t in ("kočka", 2))
    assert all(map(np.array_equal, by_name, by_index))
    with pytest.raises(UnknownNameError, match="predicted"):
        viz.plot_gradcam(given.model, mistakes, target="predict")
    with pytest.raises(SettingError, match="target must"):
        viz.plot_gradcam(given.model, mistakes, target=5)


def test_gradcam_of_a_network_that_made_other_mistakes_is_warned_of(given):
    """As of a fresh one in place of the trained one."""
    trainer = Trainer(given.model, torch.optim.SGD(given.model.parameters(), lr=0.1), callbacks=[])
    mistakes = trainer.predict(given.loaders.test).mistakes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        viz.plot_gradcam(given.model, mistakes)
    fresh = models.CustomResNet(num_classes=5, widths=(4, 8, 8, 8))
    torch.nn.init.zeros_(fresh.fc.weight)
    fresh.fc.bias.data = -torch.eye(5)[mistakes[0].predicted]
    with pytest.warns(UserWarning, match="Take mistakes and model from the same trainer") as said:
        viz.plot_gradcam(fresh, mistakes[:1], layers="layer1")
    assert said[0].filename == __file__


def test_gradcam_labels_empty_maps(given):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3)

        def forward(self, x):
            return -self.conv(x).relu().mean((2, 3))

    mistakes = given.predictions.mistakes()[:2]
    flat = Flat()
    torch.nn.init.constant_(flat.conv.weight, 0)
    torch.nn.init.constant_(flat.conv.bias, 1)
    figure = viz.plot_gradcam(flat, mistakes)
    assert texts(figure).count("no evidence") == 2
    assert np.array_equal(pictures(figure)[1], mistakes.image(0))


def test_a_dark_image_stays_dark():
    dark = np.full((4, 4, 3), 10, dtype=np.uint8)
    cam = np.zeros((4, 4), dtype=np.float32)
    assert np.array_equal(overlay(dark, cam), dark)
    cam[0, 0] = 1
    assert np.array_equal(overlay(dark, cam)[1:], dark[1:])
    red, _, blue = overlay(dark, cam)[0, 0].astype(int)
    assert red > blue + 50  # RGB, not BGR: the strongest evidence is red
    assert overlay(dark[:, :, :1], cam).shape == (4, 4, 3)


# ---- results


def test_confusion_matrix_shows_the_counts(given):
    figure = viz.plot_confusion_matrix(given.predictions)
    numbers = [t.get_text() for t in figure.axes[0].texts]
    assert sum(map(int, numbers)) == 15
    shares = viz.plot_confusion_matrix(given.predictions, normalise=True)
    assert shares.axes[0].texts[0].get_text() == "33.3"
    assert figure.axes[0].get_xlabel() == "predicted class" and figure.axes[0].get_ylabel() == "true class"


def test_names_are_shown_as_they_are(given):
    for plot in (viz.plot_confusion_matrix, viz.plot_per_class):
        labels = plot(given.predictions).axes[0].get_yticklabels()
        assert labels[0].get_text() == NAMES[0] and not any(label.get_parse_math() for label in labels)


def test_names_that_are_not_utf8_are_spelled_out():
    """A folder's name may be of any bytes; a font has no letters for them."""
    given = make_given(names=("caf\udce9", *NAMES[1:]))
    for name in viz.PLOTS:
        viz.PLOTS[name](*FULL[name](given)).to_png()
    viz.plot_samples(given.source, per_class=2).to_png()
    assert r"caf\udce9" in texts(viz.plot_per_class(given.predictions))


def test_per_class_and_reliability_say_their_numbers(given):
    assert "33.3%  (1 of 3)" in texts(viz.plot_per_class(given.predictions))
    ece = given.predictions.calibration(bins=5).ece
    assert f"{ece:.2%}" in texts(viz.plot_reliability(given.predictions, bins=5))
    with pytest.raises(SettingError):
        viz.plot_reliability(given.predictions, bins=0)


def test_a_class_without_images():
    predictions = Predictions(torch.eye(3)[:2], torch.tensor([0, 1]), classes=("a", "b", "c"))
    assert "no images" in texts(viz.plot_per_class(predictions))
    for plot in (viz.plot_confusion_matrix, viz.plot_reliability):
        assert plot(predictions)._repr_png_()


def test_hundreds_of_classes():
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 300, (2000,), generator=random)
    predictions = Predictions(torch.randn(2000, 300, generator=random), targets)
    for plot in (viz.plot_confusion_matrix, viz.plot_per_class):
        figure = plot(predictions)
        assert figure._repr_png_() and max(figure.get_size_inches()) < 40
        assert "by number" in figure.axes[0].get_ylabel() and "300" in figure.axes[0].get_ylabel()
    counts = tuple(torch.bincount(targets, minlength=300).tolist())
    stats = data.Stats((0.5,), (0.2,), tuple(map(str, range(300))), {"train": counts}, {"train": {(32, 32): 2000}})
    assert viz.plot_class_distribution(stats)._repr_png_()


def test_images_of_many_sizes():
    stats = data.Stats((0.5,), (0.2,), NAMES, {"train": (5,) * 5}, {"train": {(30, 40): 20, (100, 20): 5}})
    assert "25 images, 2 sizes" in texts(viz.plot_image_sizes(stats))


def test_other_scripts_take_the_users_fonts(monkeypatch):
    import matplotlib

    from vision_wrapper.viz import _figure

    with matplotlib.rc_context({"font.family": ["DejaVu Serif", "sans-serif"]}):
        assert _figure.style()["font.family"][:3] == ["DejaVu Sans", "DejaVu Serif", "sans-serif"]
    assert set(_figure._other_fonts()) <= set(_figure.OTHER_SCRIPTS)


def test_names_are_cut_by_their_width(images):
    """Capitals are wider than small letters, and Chinese characters twice as wide."""
    assert short("a" * 12, 12) == "a" * 12 and short("a" * 13, 12) == "aaaaaaa…aaaa"
    assert short("A" * 12, 12) == "AAAAA…AAA" and short("猫" * 12, 12) == "猫猫猫…猫猫"
    fig = viz.plot_samples(images, classes=np.array(["ЖЕЛЕЗНОДОРОЖНЫЙ МОСТ"] * 3), count=3)
    renderer = fig.canvas.get_renderer()
    texts = [text for text in fig.texts if "Ж" in text.get_text()]
    assert len(texts) == 3 and max(text.get_window_extent(renderer).width for text in texts) < 1.2 * fig.dpi  # inches

import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn import metrics

from vision_wrapper import data
from vision_wrapper.errors import (
    DamagedFileError,
    DataError,
    DataNotFoundError,
    FileWriteError,
    SettingError,
    UnknownNameError,
)
from vision_wrapper.evaluation import Mistakes, Predictions

CLASSES = ("ape", "bee", "cat", "dog", "eel")


def random_predictions(n=400, num_classes=5, seed=0, **options):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, num_classes)).astype(np.float32)
    return Predictions(logits, rng.integers(0, num_classes, n), **options)


def three_mistakes():
    """Sample 7 is right; of 9, 8 and 3 the most confident, the costliest and the clearest differ."""
    logits = np.log([[0.9, 0.05, 0.05], [0.60, 0.395, 0.005], [0.63, 0.34, 0.03], [0.58, 0.41, 0.01]])
    return Predictions(logits, [0, 1, 1, 2], indices=[7, 9, 3, 8])


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_scikit_learns(seed):
    p = random_predictions(seed=seed, classes=CLASSES)
    truth, predicted = p.targets.numpy(), p.predicted.numpy()
    assert p.accuracy() == metrics.accuracy_score(truth, predicted)
    assert np.array_equal(p.correct, truth == predicted)
    assert np.array_equal(p.confusion_matrix(), metrics.confusion_matrix(truth, predicted))
    assert p.confusion_matrix().dtype == np.int64
    expected = metrics.precision_recall_fscore_support(truth, predicted)
    rows = p.per_class()
    assert [r.name for r in rows] == list(CLASSES)
    for column, values in zip(("precision", "recall", "f1", "count"), expected, strict=True):
        assert [getattr(r, column) for r in rows] == pytest.approx(values.tolist(), abs=1e-12)
    assert all(r.accuracy == r.recall == r.correct / r.count for r in rows)
    for k in range(1, 5):
        assert p.top_k_accuracy(k) == metrics.top_k_accuracy_score(truth, p.logits.numpy(), k=k)
    np.testing.assert_allclose(p.probabilities, softmax(p.logits.numpy().astype(float), axis=1), atol=1e-6)


@given(st.integers(2, 4), st.lists(st.integers(0, 3), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_absent_and_never_predicted_classes_give_zeros(num_classes, raw, random):
    targets = [t % num_classes for t in raw]
    logits = [[random.choice([0.0, 1.0, 2.0]) for _ in range(num_classes)] for _ in targets]  # many ties
    p = Predictions(np.array(logits), targets)
    truth, predicted, labels = p.targets.numpy(), p.predicted.numpy(), list(range(num_classes))
    expected = metrics.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0.0)
    found = [[getattr(r, c) for r in p.per_class()] for c in ("precision", "recall", "f1", "count")]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert p.top_k_accuracy(1) == p.accuracy()
    assert p.top_k_accuracy(num_classes) == 1
    assert len(p.mistakes()) == len(p) - p.confusion_matrix().trace()


def test_wilson_interval():
    for right, n in ((0, 10), (10, 10), (7, 10), (95, 100)):
        logits = np.eye(2)[[0] * right + [1] * (n - right)]
        p = Predictions(logits, [0] * n)
        for confidence in (0.9, 0.95):
            expected = binomtest(right, n).proportion_ci(confidence, method="wilson")
            assert p.accuracy_interval(confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)
    for wrong in (0, 1, 95):
        with pytest.raises(SettingError, match=r"0\.95"):
            p.accuracy_interval(wrong)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_is_scikit_learns_curve(bins):
    from sklearn.calibration import calibration_curve

    p = random_predictions(seed=4)
    confidence = p.probabilities.double().amax(1).numpy()
    right = (p.predicted == p.targets).numpy()
    fraction, mean = calibration_curve(right, confidence, n_bins=bins, strategy="uniform")
    result = p.calibration(bins)
    filled = [b for b in result.bins if b.count]
    assert [b.accuracy for b in filled] == pytest.approx(fraction.tolist())
    assert [b.confidence for b in filled] == pytest.approx(mean.tolist(), abs=1e-6)
    assert sum(b.count for b in result.bins) == len(p)
    weights = [b.count / len(p) for b in filled]
    assert result.ece == pytest.approx(float(np.sum(weights * np.abs(fraction - mean))), abs=1e-6)
    assert [b.low for b in result.bins] == pytest.approx([i / bins for i in range(bins)])
    assert all(b.confidence == b.accuracy == 0.0 for b in result.bins if not b.count)


def test_calibration_extremes():
    sure = np.array([[50.0, -50], [50, -50], [-50, 50], [-50, 50]])
    assert Predictions(sure, [0, 0, 1, 1]).calibration().ece == pytest.approx(0, abs=1e-9)
    assert Predictions(sure, [1, 1, 0, 0]).calibration().ece == pytest.approx(1, abs=1e-9)
    assert Predictions(sure, [0, 1, 0, 1]).calibration().bins[-1].count == 4
    for bins in (0, 2.5, True):
        with pytest.raises(SettingError, match="bins"):
            Predictions(sure, [0, 0, 1, 1]).calibration(bins)


def test_orders_of_mistakes():
    p = three_mistakes()
    assert [m.index for m in p.mistakes()] == [3, 9, 8]  # 0.63, 0.60, 0.58
    assert [m.index for m in p.mistakes("loss")] == [8, 3, 9]  # true class at 0.01, 0.34, 0.395
    assert [m.index for m in p.mistakes("margin")] == [8, 3, 9]  # 0.57, 0.29, 0.205
    assert [m.index for m in p.mistakes("index")] == [3, 8, 9]
    with pytest.raises(UnknownNameError, match="'confidence'"):
        p.mistakes("confidnce")


@pytest.mark.parametrize("order", ["confidence", "loss", "margin"])
def test_orders_differ_and_are_descending(order):
    p = random_predictions(seed=2)
    probabilities = p.probabilities.double()
    values = [getattr(m, order) for m in p.mistakes(order)]
    assert values == sorted(values, reverse=True)
    others = {"confidence", "loss", "margin"} - {order}
    assert all([m.index for m in p.mistakes(order)] != [m.index for m in p.mistakes(o)] for o in others)
    for m in p.mistakes(order)[:20]:
        row = probabilities[m.index]
        assert m.target == p.targets[m.index] != m.predicted == row.argmax()
        assert m.confidence == pytest.approx(float(row.max()), abs=1e-6)
        assert m.loss == pytest.approx(-float(row[m.target].log()), abs=1e-4)
        assert m.margin == pytest.approx(float(row.max() - row[m.target]), abs=1e-6)


def test_confidences_that_float32_cannot_tell_apart_are_ranked():
    logits = torch.tensor([[20.0, 0], [25.0, 0], [22.0, 0]])
    assert [m.index for m in Predictions(logits, [1, 1, 1]).mistakes()] == [1, 2, 0]


def test_mistakes_are_a_sequence_that_knows_its_images():
    images = np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    labels = np.arange(30) % 5
    split = data.from_arrays(train=(images, labels), test=(images, labels), classes=CLASSES).test
    p = random_predictions(20, source=split, indices=np.arange(29, 9, -1), classes=CLASSES)
    mistakes = p.mistakes()
    part = mistakes[3:1:-1]
    assert isinstance(part, Mistakes) and len(part) == 2 and part.source is split and part.classes == CLASSES
    assert part[0] == mistakes[3] and mistakes[-1] == list(mistakes)[-1]
    for i, m in enumerate(mistakes):
        assert np.array_equal(mistakes.image(i), images[m.index])
        assert m.origin == f"index {m.index}" and m.true_name == CLASSES[m.target]
        assert p.targets[29 - m.index] == m.target  # indices belong to the rows they came with
    assert len(part.images()) == 2
    first = mistakes[0]
    same = mistakes.where(true=first.true_name, predicted=first.predicted)
    assert first in same and {(m.target, m.predicted) for m in same} == {(first.target, first.predicted)}
    assert len(mistakes.where()) == len(mistakes)
    assert sum(len(mistakes.where(predicted=c)) for c in CLASSES) == len(mistakes)
    with pytest.raises(UnknownNameError, match="'cat'"):
        mistakes.where(true="cta")
    with pytest.raises(SettingError, match="5 classes"):
        mistakes.where(predicted=5)


def test_without_source_images_are_an_error_that_says_what_to_do():
    mistakes = random_predictions().mistakes()
    assert mistakes[0].origin == f"index {mistakes[0].index}"
    with pytest.raises(SettingError, match="source="):
        mistakes.image(0)
    with pytest.raises(SettingError, match="preprocess="):
        mistakes.resized()


def test_mistakes_are_resized_as_the_network_saw_them(tiny):
    preprocess = data.Preprocess((5, 7), 3, (0.5,) * 3, (0.2,) * 3)
    p = random_predictions(len(tiny.test), 3, source=tiny.test, preprocess=preprocess)
    mistakes = p.mistakes()[:4]
    resized = mistakes.resized()
    assert [image.shape for image in resized] == [(5, 7, 3)] * len(mistakes)
    assert all(np.array_equal(r, preprocess.resize(i)) for r, i in zip(resized, mistakes.images(), strict=True))


def test_csv(tmp_path):
    class Files:
        def __len__(self):
            return 20

        def origin(self, index):
            return f'a,"{index}"\udcff.png'  # a comma, quotes, and a name that is not UTF-8

    mistakes = random_predictions(20, source=Files()).mistakes()
    mistakes.to_csv(tmp_path / "m.csv")
    with open(tmp_path / "m.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(mistakes) > 0
    assert rows[0]["true_name"] == mistakes[0].true_name and float(rows[0]["loss"]) == mistakes[0].loss
    assert rows[0]["origin"] == f'a,"{mistakes[0].index}"\\udcff.png'
    with pytest.raises(FileWriteError):
        mistakes.to_csv(tmp_path / "m.csv" / "below.csv")


def test_csv_of_names_with_line_breaks(tmp_path):
    names = ("a\rb", "c\nd", "e\r\nf")
    mistakes = Predictions(torch.eye(3), [1, 2, 0], classes=names).mistakes("index")
    mistakes.to_csv(tmp_path / "m.csv")
    with open(tmp_path / "m.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted_name"] for row in rows] == list(names)
    assert [row["true_name"] for row in rows] == [*names[1:], names[0]]


def test_saved_and_loaded(tmp_path):
    p = random_predictions(indices=np.arange(400)[::-1].copy(), classes=CLASSES)
    p.save(tmp_path / "p.npz")
    again = Predictions.load(tmp_path / "p.npz", classes=CLASSES)
    for name in ("logits", "targets", "indices"):
        assert torch.equal(getattr(p, name), getattr(again, name))
        assert getattr(again, name).dtype == getattr(p, name).dtype
    assert again.classes == CLASSES
    assert set(np.load(tmp_path / "p.npz")) == {"logits", "targets", "indices"}


def test_unusable_files(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(DataNotFoundError):
        Predictions.load(path)
    random_predictions().save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"no zip at all"):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"p\.npz"):
            Predictions.load(path)
    altered = bytearray(whole)
    altered[len(whole) // 3] ^= 255
    path.write_bytes(altered)
    with pytest.raises(DamagedFileError):
        Predictions.load(path)
    np.savez(path, logits=np.array([object()]), targets=[0], indices=[0])  # pickled
    with pytest.raises(DamagedFileError):
        Predictions.load(path)
    np.savez(path, logits=np.zeros((1, 2)))
    with pytest.raises(DamagedFileError, match="targets"):
        Predictions.load(path)
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DamagedFileError):
        Predictions.load(tmp_path / "a.npy")


def test_what_goes_in():
    logits = torch.randn(3, 2, dtype=torch.bfloat16, requires_grad=True)
    p = Predictions(logits, np.array([0, 1, 1], np.uint8))
    assert p.logits.dtype == torch.float32 and not p.logits.requires_grad
    assert p.targets.dtype == p.indices.dtype == torch.int64
    assert p.classes == ("0", "1") and p.indices.tolist() == [0, 1, 2] and len(p) == 3
    backwards = Predictions(np.eye(3, dtype=np.float32)[::-1], np.arange(3)[::-1])  # of which torch makes no tensor
    assert backwards.accuracy() == 1
    empty = Predictions(torch.zeros(0, 3), torch.zeros(0))
    assert empty.accuracy() == empty.calibration().ece == empty.top_k_accuracy(2) == 0
    assert empty.accuracy_interval() == (0, 1)
    assert empty.confusion_matrix().shape == (3, 3) and len(empty.mistakes()) == 0
    assert [r.f1 for r in empty.per_class()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"logits": np.zeros(3)}, DataError, r"\(3,\)"),
        ({"logits": np.zeros((3, 0))}, DataError, r"\(3, 0\)"),
        ({"targets": [0, 1]}, DataError, r"\(2,\)"),
        ({"targets": [0, 1, 2]}, DataError, r"0\.\.1.*0\.\.2"),
        ({"targets": [0, -1, 1]}, DataError, "-1"),
        ({"targets": [0.0, 1.0, 1.0]}, DataError, "float"),
        ({"targets": [True, False, True]}, DataError, "bool"),
        ({"indices": [1, 2]}, DataError, "indices"),
        ({"indices": [0, 1, 9], "source": "abcd"}, DataError, "4 samples"),
        ({"classes": ["a"]}, SettingError, "2 classes, but 1"),
        ({"classes": "ab"}, SettingError, "'ab'"),
        ({"logits": np.full((3, 2), np.nan)}, DataError, "NaN"),
        ({"logits": np.full((3, 2), np.inf)}, DataError, "infinity"),
    ],
)
def test_what_does_not_fit_is_said(arguments, error, says):
    with pytest.raises(error, match=says):
        Predictions(**{"logits": np.zeros((3, 2)), "targets": [0, 1, 1], **arguments})


def test_k_outside_the_classes():
    for k in (0, 6):
        with pytest.raises(SettingError, match=r"1\.\.5"):
            random_predictions().top_k_accuracy(k)


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_and_curves_are_scikit_learns(seed):
    p = random_predictions(seed=seed, classes=CLASSES)
    truth, probabilities = p.targets.numpy(), softmax(p.logits.numpy().astype(float), axis=1)
    assert p.negative_log_likelihood() == pytest.approx(metrics.log_loss(truth, probabilities, labels=range(5)))
    for index, name in enumerate(CLASSES):
        roc, pr = p.roc(name), p.precision_recall(index)
        false, true, thresholds = metrics.roc_curve(truth == index, probabilities[:, index])
        np.testing.assert_allclose([roc.x, roc.y, roc.thresholds], [false, true, thresholds])
        precision, recall, _ = metrics.precision_recall_curve(truth == index, probabilities[:, index])
        np.testing.assert_allclose([pr.x, pr.y], [recall, precision])
        assert len(pr.thresholds) == len(pr.x)
        assert roc.area == pytest.approx(metrics.roc_auc_score(truth == index, probabilities[:, index]))
        assert pr.area == pytest.approx(metrics.average_precision_score(truth == index, probabilities[:, index]))


def test_a_curve_needs_samples_of_the_class_and_others():
    p = Predictions(np.eye(3)[[0, 0, 1]], [0, 0, 1], classes=("a", "b", "c"))
    assert p.roc("a").area == 1.0
    with pytest.raises(SettingError, match="No sample is of class 'c'"):
        p.roc("c")
    with pytest.raises(SettingError, match="Every sample is of class 'a'"):
        Predictions(np.eye(2), [0, 0], classes=("a", "b")).precision_recall("a")
    with pytest.raises(UnknownNameError, match="did you mean 'a'"):
        p.roc("aa")


def test_a_temperature_takes_over_confidence_away_and_changes_no_decision():
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (4000, 4))
    targets = [rng.choice(4, p=row) for row in softmax(honest, axis=1)]
    boastful = Predictions(honest * 3, targets)
    assert boastful.fit_temperature() == pytest.approx(3, rel=0.1)
    calm = boastful.at_temperature(boastful.fit_temperature())
    assert calm.calibration().ece < 0.03 < boastful.calibration().ece
    assert calm.negative_log_likelihood() < boastful.negative_log_likelihood()
    assert torch.equal(calm.predicted, boastful.predicted) and calm.accuracy() == boastful.accuracy()
    right = Predictions(np.eye(3)[np.arange(30) % 3], np.arange(30) % 3)  # all of them: not surer than 31 of 32
    assert float(right.at_temperature(right.fit_temperature()).probabilities.amax()) == pytest.approx(31 / 32, abs=1e-3)
    masked = Predictions(np.pad(honest * 3, ((0, 0), (0, 1)), constant_values=-np.inf), targets)  # a class that is out
    assert masked.fit_temperature() == pytest.approx(boastful.fit_temperature(), rel=1e-3)
    few = rng.normal(0, 6, (200, 10))
    draws = [[rng.choice(10, p=row) for row in softmax(few, axis=1)] for _ in range(20)]
    assert np.mean([Predictions(few, draw).fit_temperature() for draw in draws]) == pytest.approx(1, abs=0.05)
    for wrong in (0, -1, float("inf"), float("nan"), "hot", True):
        with pytest.raises(SettingError, match="temperature must be"):
            boastful.at_temperature(wrong)
    with pytest.raises(DataError, match="without samples"):
        Predictions(np.zeros((0, 2)), []).fit_temperature()


@pytest.mark.parametrize("seed", range(4))
def test_a_temperature_from_nearly_perfect_images_does_not_harm(seed):
    """Held-out images that are all right, and test images of the same kind of which some are not."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 10, 1140)
    logits = rng.normal(0, 1, (1140, 10)) + 8 * np.eye(10)[targets]
    logits[140:150] = rng.normal(0, 2, (10, 10))
    held_out, test = Predictions(logits[:140], targets[:140]), Predictions(logits[140:], targets[140:])
    assert held_out.accuracy() == 1
    better = test.at_temperature(held_out.fit_temperature()).negative_log_likelihood()
    assert better < test.negative_log_likelihood() + 0.02


def test_changed_labels_are_suspected():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 600)
    logits = rng.normal(0, 0.6, (600, 4)) + 4 * np.eye(4)[targets]
    changed = rng.choice(600, 30, replace=False)
    labels = targets.copy()
    labels[changed] = (targets[changed] + 1) % 4
    suspected = Predictions(logits, labels).suspected_label_errors()
    found = {mistake.index for mistake in suspected}
    assert len(found & set(changed)) >= 15 and len(found - set(changed)) <= 2
    margins = [mistake.margin for mistake in suspected]
    assert margins == sorted(margins, reverse=True)
    assert len(Predictions(np.zeros((0, 2)), []).suspected_label_errors()) == 0


def test_mistakes_print_as_a_table():
    table = str(three_mistakes().mistakes()).splitlines()
    assert table[0].split() == ["index", "true", "predicted", "confidence", "from"]
    assert table[1].split() == ["3", "1", "0", "63.0%", "index", "3"] and len(table) == 4
    assert str(random_predictions().mistakes()).splitlines()[-1].startswith("… and ")
    named = Predictions(np.eye(2), [1, 1], classes=("two\nlines", "a\ttab")).mistakes()
    assert "a tab  two lines" in str(named) and len(str(named).splitlines()) == 2


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda p: p.roc(0.9), SettingError, r"names or indices from 0; got 0\.9"),
        (lambda p: p.precision_recall(None), SettingError, "got None"),
        (lambda p: p.top_k_accuracy(1.5), SettingError, r"whole number in 1\.\.5.* got 1\.5"),
        (lambda p: p.top_k_accuracy(True), SettingError, "whole number"),
        (lambda p: Predictions(p.logits[:1], ["cat"], classes=CLASSES), DataError, r"targets must .*classes\.index"),
        (lambda p: Predictions(p.logits, None), DataError, "targets must be .* got NoneType"),
        (lambda p: Predictions(None, p.targets), DataError, "logits must be .* got NoneType"),
        (lambda p: Predictions(p.logits, p.targets, classes=(*"abca", "d")), SettingError, "'a' more than once"),
    ],
)
def test_arguments_that_cannot_be(act, error, words):
    with pytest.raises(error, match=words):
        act(random_predictions(60, classes=CLASSES))


def test_numpy_numbers_are_numbers():
    predictions = random_predictions(60, classes=CLASSES)
    assert predictions.top_k_accuracy(np.int64(5)) == 1.0 and predictions.roc(np.int64(0)).area
    assert len(predictions.calibration(np.int64(5)).bins) == 5

"""What is measured: of a class, of a bin of confidence, of a threshold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassResult(NamedTuple):
    """How one class fared. Fractions are in [0, 1], and 0 where there is nothing to divide by.

    Attributes:
        name: of the class.
        count: how many samples are of this class.
        correct: how many of these were predicted as this class.
        accuracy: correct / count, which is the recall.
        precision: the share of the samples predicted as this class that are of it.
        recall: the same as `accuracy`.
        f1: the harmonic mean of precision and recall.
    """

    name: str
    count: int
    correct: int
    accuracy: float
    precision: float
    recall: float
    f1: float


class CalibrationBin(NamedTuple):
    """The samples whose highest probability lies in (low, high].

    Attributes:
        low: the lower edge, excluded.
        high: the upper edge, included.
        count: how many samples lie in the bin.
        confidence: the mean of their highest probabilities; 0 in an empty bin.
        accuracy: the share of them that is right; 0 in an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Calibration(NamedTuple):
    """How well the highest probability says how often the model is right (Guo et al. 2017, arXiv:1706.04599).

    Attributes:
        ece: the expected calibration error: the bins' |accuracy - confidence|, weighted by their counts.
        bins: of equal width, from 0 to 1.
    """

    ece: float
    bins: list[CalibrationBin]


class Curve(NamedTuple):
    """A curve of one class against all others, from `Predictions.roc` or `Predictions.precision_recall`.

    Attributes:
        x: the false positive rate, or the recall; float64 (points,) in [0, 1].
        y: the true positive rate, or the precision; likewise.
        thresholds: on the probability of the class, one a point: they fall along an ROC curve and rise along the other.
            Infinity where nothing is predicted as this class.
        area: under the ROC curve, or the average precision.
    """

    x: np.ndarray
    y: np.ndarray
    thresholds: np.ndarray
    area: float


def class_result(name: str, count: int, correct: int, claims: int) -> ClassResult:
    """Of a class with `count` samples, of which `correct` were found, among the `claims` that were called so."""
    recall, precision = correct / max(count, 1), correct / max(claims, 1)
    f1 = 2 * correct / max(count + claims, 1)
    return ClassResult(name, count, correct, recall, precision, recall, f1)

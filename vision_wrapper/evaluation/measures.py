"""What is measured: of a class, of a bin of confidence, of a threshold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassResult(NamedTuple):
    """How one class fared. Fractions are in [0, 1], and 0 where there is nothing to divide by."""

    name: str
    count: int  # samples of the class
    correct: int
    accuracy: float  # correct / count, which is the recall
    precision: float
    recall: float
    f1: float


class CalibrationBin(NamedTuple):
    """The samples whose highest probability lies in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float  # mean of the highest probabilities; 0 in an empty bin
    accuracy: float  # 0 in an empty bin


class Calibration(NamedTuple):
    """How well the highest probability says how often the model is right (Guo et al. 2017, arXiv:1706.04599)."""

    ece: float  # expected calibration error: the bins' |accuracy - confidence|, weighted by their counts
    bins: list[CalibrationBin]


class Curve(NamedTuple):
    """A curve of one class against all others; with `roc` thresholds on its probability fall, else they rise.

    Of `Predictions.roc`, x is the false positive rate and y the true positive rate; of `precision_recall`, x is the
    recall and y the precision. All are float64 (points,), in [0, 1].
    """

    x: np.ndarray
    y: np.ndarray
    thresholds: np.ndarray  # one a point; where the packages give none, infinity
    area: float  # under the ROC curve, or the average precision


def class_result(name: str, count: int, correct: int, claims: int) -> ClassResult:
    """Of a class with `count` samples, of which `correct` were found, among the `claims` that were called so."""
    recall, precision = correct / max(count, 1), correct / max(claims, 1)
    f1 = 2 * correct / max(count + claims, 1)
    return ClassResult(name, count, correct, recall, precision, recall, f1)

"""A model's predictions, and what they are worth."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from vision_wrapper._files import PathLike, write_bytes
from vision_wrapper._lookup import Table, check_different
from vision_wrapper._numbers import is_number, is_whole, positive_number, whole_number
from vision_wrapper.errors import DamagedFileError, DataError, DataNotFoundError, SettingError
from vision_wrapper.evaluation.measures import Calibration, CalibrationBin, ClassResult, Curve, class_result
from vision_wrapper.evaluation.mistakes import Mistake, Mistakes, class_index

if TYPE_CHECKING:
    from vision_wrapper.data import Preprocess, Split

Order = Literal["confidence", "loss", "margin", "index"]

TEMPERATURES = (0.05, 20.0)  # between which one is looked for

_ORDERS: Table[Callable[[Mistake], float]] = Table(
    "order of mistakes",
    {  # ascending
        "confidence": lambda mistake: -mistake.confidence,
        "loss": lambda mistake: -mistake.loss,
        "margin": lambda mistake: -mistake.margin,
        "index": lambda mistake: mistake.index,
    },
)


class Predictions:
    """A model's logits for N samples of C classes, with the truth, on the CPU.

    Args:
        logits: (N, C), tensor or array; kept as float32.
        targets: the true classes, whole numbers in 0..C-1, (N,); kept as int64.
        indices: of the samples in their data set, (N,); None means 0, 1, ….
        classes: C names; None means "0", "1", ….
        source: the split the samples come from, `source[index] -> (uint8 image, label)`; None means that images cannot
            be shown.
        preprocess: what made the network's input of the raw images.

    Raises:
        DataError: shapes or targets that do not fit together, or logits with NaN.
        SettingError: the wrong number of classes, or two of one name.
    """

    def __init__(
        self,
        logits: Tensor | np.ndarray,
        targets: Tensor | np.ndarray | Sequence[int],
        indices: Tensor | np.ndarray | Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        *,
        source: Split | None = None,
        preprocess: Preprocess | None = None,
    ):
        self.logits = _tensor("logits", logits).detach().to("cpu", torch.float32)
        if self.logits.ndim != 2 or self.logits.shape[1] < 1:
            raise DataError(f"logits must be (samples, classes), got shape {tuple(self.logits.shape)}.")
        count, num_classes = self.logits.shape
        self.targets = _whole_numbers("targets", targets, count)
        self.indices = torch.arange(count) if indices is None else _whole_numbers("indices", indices, count)
        self.classes = tuple(str(i) for i in range(num_classes)) if classes is None else _names(classes)
        self.source, self.preprocess = source, preprocess
        if len(self.classes) != num_classes:
            raise SettingError(f"The logits are of {num_classes} classes, but {len(self.classes)} names were given.")
        _check_range("targets", self.targets, num_classes, f"the logits have {num_classes} classes")
        if source is not None:
            _check_range("indices", self.indices, len(source), f"source has {len(source)} samples")
        if self._log_probabilities.isnan().any():
            raise DataError(
                "logits hold NaN or infinity, so there is nothing to evaluate. The model has diverged: lower the "
                'learning rate, or use precision="fp32".'
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"<Predictions: {len(self)} samples of {len(self.classes)} classes, accuracy {self.accuracy():.2%}>"

    @cached_property
    def _log_probabilities(self) -> Tensor:
        # float64, because in float32 the confidences of many mistakes are the same 1.0
        return self.logits.double().log_softmax(1)

    @cached_property
    def probabilities(self) -> Tensor:
        """float32 (N, C); each row sums to 1."""
        return self._log_probabilities.exp().float()

    @cached_property
    def predicted(self) -> Tensor:
        """int64 (N,): the class with the highest logit, the first of equals."""
        return self.logits.argmax(1)

    @cached_property
    def correct(self) -> Tensor:
        """bool (N,): whether the predicted class is the true one; `int(correct.sum())` samples are right."""
        return self.predicted == self.targets

    def accuracy(self) -> float:
        """The fraction that is right, in [0, 1]; 0 without samples."""
        return int(self.correct.sum()) / max(len(self), 1)

    def accuracy_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the accuracy (Wilson 1927): what chance in drawing these samples leaves open.

        It says nothing about chance in training; for that, train with several seeds.

        Raises:
            SettingError: `confidence` is not between 0 and 1.
        """
        if not is_number(confidence) or not 0 < confidence < 1:
            raise SettingError(f"confidence must be between 0 and 1, as 0.95, got {confidence!r}.")
        n = len(self)
        if n == 0:
            return 0.0, 1.0
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        p = self.accuracy()
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def top_k_accuracy(self, k: int) -> float:
        """The fraction whose true class is among the k highest logits, in [0, 1].

        Of equal logits the first class counts as the higher, as in `predicted`. Raises `SettingError` unless k is in
        1..C.
        """
        if not is_whole(k) or not 1 <= k <= len(self.classes):
            raise SettingError(f"k must be a whole number in 1..{len(self.classes)}, the number of classes, got {k!r}.")
        own = self.logits.gather(1, self.targets[:, None])  # (N, 1)
        earlier = torch.arange(len(self.classes)) < self.targets[:, None]  # (N, C)
        higher = (self.logits > own) | ((self.logits == own) & earlier)
        return int((higher.sum(1) < k).sum()) / max(len(self), 1)

    def confusion_matrix(self) -> np.ndarray:
        """int64 (C, C): entry [t, p] counts the samples of class t that were taken for p."""
        size = len(self.classes)
        return torch.bincount(self.targets * size + self.predicted, minlength=size * size).reshape(size, size).numpy()

    def per_class(self) -> list[ClassResult]:
        """A `ClassResult` a class, in the order of `classes`."""
        matrix = self.confusion_matrix()
        correct, counts, claimed = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        return [
            class_result(name, int(count), int(right), int(claims))
            for name, count, right, claims in zip(self.classes, counts, correct, claimed, strict=True)
        ]

    def calibration(self, bins: int = 15) -> Calibration:
        """The expected calibration error and its bins: equal widths of the highest probability.

        Raises `SettingError` unless `bins` is a whole number of at least 1.
        """
        bins = whole_number("bins", bins, 1)
        confidence = self._log_probabilities.amax(1).exp().numpy()
        right = self.correct.numpy().astype(np.float64)
        edges = np.linspace(0, 1, bins + 1)
        place = np.searchsorted(edges[1:-1], confidence)  # bins are open below and closed above
        counts = np.bincount(place, minlength=bins)
        divisor = np.maximum(counts, 1)
        mean_confidence = np.bincount(place, confidence, bins) / divisor
        mean_right = np.bincount(place, right, bins) / divisor
        ece = float((np.abs(mean_right - mean_confidence) * counts).sum() / max(len(self), 1))
        rows = zip(edges[:-1], edges[1:], counts, mean_confidence, mean_right, strict=True)
        return Calibration(
            ece, [CalibrationBin(float(lo), float(hi), int(n), float(c), float(a)) for lo, hi, n, c, a in rows]
        )

    def negative_log_likelihood(self) -> float:
        """The mean of -log(probability of the true class), in nats: the cross-entropy. 0 without samples."""
        own = self._log_probabilities.gather(1, self.targets[:, None])
        return float(-own.sum()) / max(len(self), 1)

    def fit_temperature(self) -> float:
        """The number that the logits have to be divided by for the least negative log-likelihood.

        It makes the probabilities fit how often the model is right, and changes no decision (Guo et al. 2017,
        arXiv:1706.04599). Fit it on validation predictions, never on those it is judged by. Between 0.05 and 20.

        The targets are (N + 1) / (N + 2) for the true class and 1 / (N + 2) for the most probable other one, not 1 and
        0 (after Platt 1999): N correct samples do not prove that the next one will be.

        Raises:
            DataError: there are no samples.
        """
        if not len(self):
            raise DataError("A temperature cannot be fitted without samples.")
        from scipy.optimize import minimize_scalar

        logits, true = self.logits.double(), self.targets[:, None]
        nearest, other = logits.scatter(1, true, -torch.inf).max(1, keepdim=True)
        possible = nearest.isfinite()  # not where every other class is masked, or there is none

        def loss(log_temperature: float) -> float:
            surprise = -(logits / math.exp(log_temperature)).log_softmax(1)
            own = surprise.gather(1, true)
            others = torch.where(possible, surprise.gather(1, other), own)
            return float(own.mean() + (others - own).mean() / (len(self) + 2))

        found = minimize_scalar(loss, bounds=tuple(map(math.log, TEMPERATURES)), method="bounded")
        return math.exp(float(found.x))

    def at_temperature(self, temperature: float) -> Predictions:
        """The same predictions with their logits divided by `temperature`; see `fit_temperature`.

        Raises `SettingError` unless it is a positive number.
        """
        logits = self.logits / checked_temperature(temperature)
        return Predictions(
            logits, self.targets, self.indices, self.classes, source=self.source, preprocess=self.preprocess
        )

    def roc(self, name: str | int) -> Curve:
        """The receiver operating characteristic of one class, by name or index, against all others.

        Raises:
            UnknownNameError: a name that no class has.
            SettingError: an index outside the classes, or a class that no sample or every sample is of.
        """
        from sklearn.metrics import roc_auc_score, roc_curve

        is_class, probability = self._against_others(name)
        false, true, thresholds = roc_curve(is_class, probability)
        return Curve(false, true, thresholds, float(roc_auc_score(is_class, probability)))

    def precision_recall(self, name: str | int) -> Curve:
        """Precision over recall of one class against all others; arguments and errors as in `roc`."""
        from sklearn.metrics import average_precision_score, precision_recall_curve

        is_class, probability = self._against_others(name)
        precision, recall, thresholds = precision_recall_curve(is_class, probability)
        thresholds = np.append(thresholds, np.inf)  # of the last point, at which nothing is claimed
        return Curve(recall, precision, thresholds, float(average_precision_score(is_class, probability)))

    def _against_others(self, name: str | int) -> tuple[np.ndarray, np.ndarray]:
        """Whether each sample is of the class, bool (N,), and the probability of it, float64 (N,)."""
        index = class_index(self.classes, name)
        is_class = (self.targets == index).numpy()
        if is_class.all() or not is_class.any():
            which = "Every sample is" if len(is_class) and is_class.all() else "No sample is"
            raise SettingError(f"{which} of class {self.classes[index]!r}, so there is no curve of it.")
        return is_class, self._log_probabilities[:, index].exp().numpy()

    def suspected_label_errors(self) -> Mistakes:
        """Mistakes whose label may be the mistake: confident learning (Northcutt et al. 2021, arXiv:1911.00068).

        A mistake is suspected where its predicted class is at least as probable as that class is, on average, over the
        samples labelled with it; highest margin first. (The paper also suspects samples for a class that is not the
        most probable one.) Look at them: the model may be the one that is wrong. Of predictions on images that were
        trained on, it finds little, since labels are learned by heart.
        """
        probabilities = self._log_probabilities.exp()
        counts = torch.bincount(self.targets, minlength=len(self.classes))
        own = probabilities.gather(1, self.targets[:, None])[:, 0]
        sums = torch.zeros(len(self.classes), dtype=torch.float64).index_add_(0, self.targets, own)
        usual = torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf)  # of each class on its own samples
        found = [m for m in self.mistakes("margin") if m.confidence >= float(usual[m.predicted])]
        return Mistakes(found, self.classes, self.source, self.preprocess)

    def mistakes(self, order: Order = "confidence") -> Mistakes:
        """The wrongly classified samples.

        Args:
            order: "confidence", the most confident first; "loss", the highest first; "margin", the one whose predicted
                class is furthest above the true one first; "index", as in the data set. Equals are in the order of
                the predictions.

        Raises:
            UnknownNameError: another order.
        """
        rank = _ORDERS[order]
        wrong = (~self.correct).nonzero()[:, 0]
        target, predicted, index = self.targets[wrong], self.predicted[wrong], self.indices[wrong]
        own = self._log_probabilities[wrong, target]
        confidence = self._log_probabilities[wrong, predicted].exp()
        loss, margin = -own, confidence - own.exp()
        rows = zip(*(c.tolist() for c in (target, predicted, confidence, loss, margin, index)), strict=True)
        mistakes = sorted((self._mistake(*row) for row in rows), key=rank)
        return Mistakes(mistakes, self.classes, self.source, self.preprocess)

    def _mistake(
        self, target: int, predicted: int, confidence: float, loss: float, margin: float, index: int
    ) -> Mistake:
        origin = f"index {index}" if self.source is None else self.source.origin(index)
        names = self.classes[target], self.classes[predicted]
        return Mistake(index, target, predicted, *names, confidence, loss, margin, origin)

    def save(self, path: PathLike) -> None:
        """Write `logits`, `targets` and `indices` as a compressed .npz file, atomically. Raises `FileWriteError`."""
        content = io.BytesIO()
        np.savez_compressed(
            content, logits=self.logits.numpy(), targets=self.targets.numpy(), indices=self.indices.numpy()
        )
        write_bytes(path, content.getvalue())

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        classes: Sequence[str] | None = None,
        source: Split | None = None,
        preprocess: Preprocess | None = None,
    ) -> Predictions:
        """What `save` wrote. The file holds no names and no images: give them again where they are needed.

        Raises:
            DataNotFoundError: there is no such file.
            DamagedFileError: it is truncated, altered, or another kind of file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = [file[name] for name in ("logits", "targets", "indices")]
        except FileNotFoundError as error:
            raise DataNotFoundError(f"There is no file {path}.") from error
        except (
            OSError,
            MemoryError,
            ValueError,
            KeyError,
            EOFError,
            TypeError,
            AttributeError,
            zipfile.error,
            zlib.error,
        ) as error:
            raise DamagedFileError(
                f"{path} does not hold predictions (logits, targets, indices): {error}. Write it again with "
                "Predictions.save."
            ) from error
        return cls(*arrays, classes=classes, source=source, preprocess=preprocess)


def checked_temperature(temperature: Any) -> float:
    """The temperature as a float. Raises `SettingError` unless it is a positive number."""
    return float(positive_number("temperature", temperature))


def _tensor(what: str, values: Any) -> Tensor:
    """Of an array that is read backwards torch makes none. Raises `DataError` for what holds no numbers."""
    try:
        return torch.as_tensor(values.copy() if isinstance(values, np.ndarray) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{what} must be an array or a tensor of numbers, got {type(values).__name__}: {error}. Classes are given "
            "by their numbers, classes.index(name)."
        ) from error


def _whole_numbers(what: str, values: Any, count: int) -> Tensor:
    tensor = _tensor(what, values).detach().cpu()
    if tensor.shape != (count,):
        raise DataError(f"{what} must be one a row of the logits, ({count},), got shape {tuple(tensor.shape)}.")
    if count and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise DataError(f"{what} must be whole numbers, got {tensor.dtype}.")
    return tensor.long()


def _check_range(what: str, values: Tensor, limit: int, reason: str) -> None:
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= limit):
        raise DataError(
            f"{what} must be in 0..{limit - 1}, because {reason}; got {int(values.min())}..{int(values.max())}."
        )


def _names(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise SettingError(f"classes must be a sequence of names, got {classes!r}.")
    names = tuple(str(name) for name in classes)
    check_different(names)
    return names

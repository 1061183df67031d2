"""What a model's predictions are worth: accuracy, confusion, per class, calibration, mistakes."""

from vision_wrapper.evaluation.measures import Calibration, CalibrationBin, ClassResult, Curve
from vision_wrapper.evaluation.mistakes import Mistake, Mistakes
from vision_wrapper.evaluation.predictions import Predictions

__all__ = ["Calibration", "CalibrationBin", "ClassResult", "Curve", "Mistake", "Mistakes", "Predictions"]

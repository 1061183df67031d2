"""The loop and what belongs to it: schedules, callbacks, history, the LR finder, checkpoints."""

from vision_wrapper.trainer import schedules
from vision_wrapper.trainer.callbacks import (
    Callback,
    CSVLog,
    EarlyStopping,
    EpochLog,
    ProgressBar,
    Run,
    TensorBoard,
)
from vision_wrapper.trainer.history import History
from vision_wrapper.trainer.lr_finder import LRCurve
from vision_wrapper.trainer.schedules import SCHEDULES, Schedule
from vision_wrapper.trainer.trainer import Evaluation, Trainer

__all__ = [
    "SCHEDULES",
    "CSVLog",
    "Callback",
    "EarlyStopping",
    "EpochLog",
    "Evaluation",
    "History",
    "LRCurve",
    "ProgressBar",
    "Run",
    "Schedule",
    "TensorBoard",
    "Trainer",
    "schedules",
]

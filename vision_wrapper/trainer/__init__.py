"""The loop and what belongs to it: schedules, callbacks, history, the LR finder, checkpoints."""

from vision_wrapper.trainer import schedules
from vision_wrapper.trainer.callbacks import (
    Callback,
    CSVLog,
    EarlyStopping,
    EpochLog,
    FreezeBody,
    ProgressBar,
    Run,
    TensorBoard,
)
from vision_wrapper.trainer.history import History
from vision_wrapper.trainer.lr_finder import LRCurve
from vision_wrapper.trainer.optimizers import OPTIMIZERS, Lookahead, Muon
from vision_wrapper.trainer.passes import Evaluation
from vision_wrapper.trainer.schedules import SCHEDULES, Schedule
from vision_wrapper.trainer.trainer import Trainer
from vision_wrapper.trainer.views import VIEWS, View

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "VIEWS",
    "CSVLog",
    "Callback",
    "EarlyStopping",
    "EpochLog",
    "Evaluation",
    "FreezeBody",
    "History",
    "LRCurve",
    "Lookahead",
    "Muon",
    "ProgressBar",
    "Run",
    "Schedule",
    "TensorBoard",
    "Trainer",
    "View",
    "schedules",
]

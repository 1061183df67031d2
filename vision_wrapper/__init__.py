"""From a folder of images to a trained, explained and reproducible classifier.

The names below are loaded when they are first used: importing the package loads neither torch nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_wrapper import (
        classifier,
        data,
        errors,
        evaluation,
        explain,
        models,
        recipes,
        report,
        trainer,
        viz,
    )
    from vision_wrapper._seeding import seed_everything
    from vision_wrapper._state import preserve_state
    from vision_wrapper.classifier import export, load_classifier, save_classifier
    from vision_wrapper.evaluation import Predictions
    from vision_wrapper.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Predictions",
    "Trainer",
    "__version__",
    "classifier",
    "data",
    "errors",
    "evaluation",
    "explain",
    "export",
    "load_classifier",
    "models",
    "preserve_state",
    "recipes",
    "report",
    "save_classifier",
    "seed_everything",
    "trainer",
    "viz",
]

# Where a name lives that is not a submodule of its own.
_HOMES = {
    "Predictions": "evaluation",
    "Trainer": "trainer",
    "export": "classifier",
    "load_classifier": "classifier",
    "preserve_state": "_state",
    "save_classifier": "classifier",
    "seed_everything": "_seeding",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        import difflib

        near = difflib.get_close_matches(name, __all__, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint} Public names: {', '.join(__all__)}.")
    value = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    if name in _HOMES:
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

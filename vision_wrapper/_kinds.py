"""Arguments of another kind than a function takes, refused before they fail somewhere inside."""

from __future__ import annotations

from typing import Any

from vision_wrapper.errors import SettingError

# By what each is recognised, whatever class it has, and in what words it is asked for.
_KINDS = {
    "classifier": ("preprocess", "a classifier, as load_classifier returns it"),
    "curve": ("suggestion", "a curve, as Trainer.find_lr returns it"),
    "data": ("splits", "what data.load or data.from_arrays returns"),
    "history": ("to_dataframe", "a history, as Trainer.fit returns it"),
    "mistakes": ("resized", "mistakes, as predictions.mistakes() returns them"),
    "model": ("named_modules", "a model, a torch.nn.Module"),
    "predictions": ("confusion_matrix", "predictions, as Trainer.predict returns them"),
    "split": ("labels", "a split, such as images.train; of a loader that is loader.split"),
    "stats": ("counts", "what data.stats returns"),
}


def check_kind(value: Any, kind: str) -> None:
    """Raise `SettingError` for a value that is not of that kind, such as the neighbour of what was meant."""
    attribute, words = _KINDS[kind]
    if isinstance(value, type) or not hasattr(value, attribute):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise SettingError(f"Expected {words}; got {got}.")

"""What a run leaves in its folder: its best classifier, predictions, plots and figures."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import vision_wrapper
from vision_wrapper import data as image_data
from vision_wrapper import models, viz
from vision_wrapper._files import read_json, write_bytes, write_text
from vision_wrapper._torchvision import torchvision
from vision_wrapper.classifier import load_classifier, save_classifier
from vision_wrapper.data import ImageData, Loader, Loaders
from vision_wrapper.errors import DamagedFileError, SettingError
from vision_wrapper.evaluation import Mistakes, Predictions
from vision_wrapper.recipes.recipe import Recipe
from vision_wrapper.recipes.table import RECIPES
from vision_wrapper.trainer import Callback, History, LRCurve, Run, Trainer
from vision_wrapper.viz._figure import nothing

SHOWN_MISTAKES = 20


def results_of(
    plan: Recipe, loaders: Loaders, history: History, predictions: Predictions, tta_accuracy: float | None
) -> dict[str, Any]:
    """The figures of a run, of its last epoch."""
    seconds = sum(row["seconds"] for row in history.rows)
    trained = len(history) * min(len(loaders.train.split), len(loaders.train) * loaders.train.batch_size)
    return {
        "accuracy": predictions.accuracy(),
        "tta": plan.tta,
        "tta_accuracy": tta_accuracy,
        "train_loss": history[-1]["train_loss"],
        "seconds": seconds,
        "images_per_second": trained / seconds,
        "training_images": len(loaders.train.split),
        "test_images": len(predictions),
        "classes": list(predictions.classes),
        "changes": _changes(plan),
    }


def read_results(folder: Path) -> dict[str, Any]:
    """The figures of a finished run. Raises `DamagedFileError` for anything else."""
    results, needed = read_json(folder / "results.json"), {"accuracy", "images_per_second", "test_images"}
    numbers = isinstance(results, dict) and all(isinstance(results.get(name), (int, float)) for name in needed)
    if not numbers or not isinstance(results.get("tta_accuracy", ""), (int, float, type(None))):
        raise DamagedFileError(f"{folder / 'results.json'} does not hold the figures of a run.")
    return results


def _changes(plan: Recipe) -> dict[str, Any] | None:
    """The fields in which the plan differs from the recipe of its name, seed apart; None where there is none."""
    if plan.name not in RECIPES:
        return None
    recipe, told = RECIPES[plan.name], {"seed", "expected", "data"}
    scaled = recipe.changed(epochs=plan.epochs).as_dict()  # what the number of epochs changes need not be said
    changes = {name: value for name, value in plan.as_dict().items() if name not in told and value != scaled[name]}
    return changes if plan.epochs == recipe.epochs else {"epochs": plan.epochs, **changes}


def store_temperature(path: Path, held_out: Loader, trainer: Trainer) -> None:
    """Fit the best classifier's temperature to the held-out images, and keep it in its file."""
    best = load_classifier(path)
    fitted = predictor(best.model, trainer.precision, trainer.device).predict(held_out).fit_temperature()
    save_classifier(path, best.model, best.preprocess, best.classes, best.metrics, temperature=fitted)


def predictor(model: nn.Module, precision: Any, device: Any = None) -> Trainer:
    """A trainer that is not to train."""
    return Trainer(model, torch.optim.SGD(model.parameters()), callbacks=[], precision=precision, device=device)


class BestClassifier(Callback):
    """Keeps the weights of the best epoch on the held-out images."""

    def __init__(self, path: Path, loaders: Loaders):
        self.path, self.loaders, self.best = path, loaders, -1.0

    def on_epoch_end(self, run: Run) -> None:
        """Save where this epoch is better than all before."""
        row = run.history[-1]
        if row["val_accuracy"] > self.best:
            self.best = row["val_accuracy"]
            self.save(run.trainer, {"epoch": row["epoch"], "val_accuracy": row["val_accuracy"]})

    def save(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Write the classifier file."""
        if not trainer.processes.is_main:
            return
        with trainer.averaged():
            save_classifier(
                self.path, trainer.model, self.loaders.preprocess, self.loaders.train.classes, metrics=metrics
            )

    def state_dict(self) -> dict[str, Any]:
        """The best accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self.best = state["best"]


def write_outputs(
    folder: Path,
    images: ImageData,
    model: nn.Module,
    history: History,
    val_name: str,
    predictions: Predictions,
    curve: LRCurve | None,
) -> None:
    """Write predictions and mistakes, the network's summary, and the plots."""
    predictions.save(folder / "predictions.npz")
    predictions.mistakes(order="confidence").to_csv(folder / "mistakes.csv")
    assert predictions.preprocess is not None
    write_text(folder / "model.txt", str(models.summary(model, (images.channels, *predictions.preprocess.size))))
    for name, figure in _figures(images, model, history, val_name, predictions, curve).items():
        write_bytes(folder / "plots" / f"{name}.png", figure.to_png())


def _figures(
    images: ImageData,
    model: nn.Module,
    history: History,
    val_name: str,
    predictions: Predictions,
    curve: LRCurve | None,
) -> dict[str, viz.Figure]:
    """The plots by the names of their files, which the reports show."""
    shown = predictions.mistakes(order="confidence")[:SHOWN_MISTAKES]
    figures = {
        "history": viz.plot_history(history, val_name=val_name),
        "learning_rate": viz.plot_learning_rate(history),
        "samples": viz.plot_samples(images.train, classes=images.classes),
        "class_distribution": viz.plot_class_distribution(image_data.stats(images)),
        "confusion_matrix": viz.plot_confusion_matrix(predictions),
        "per_class": viz.plot_per_class(predictions),
        "reliability": viz.plot_reliability(predictions),
        "misclassified": viz.plot_misclassified(shown),
        "gradcam_predicted": _gradcam(model, shown, "predicted"),
        "gradcam_true": _gradcam(model, shown, "true"),
    }
    return figures if curve is None else {**figures, "lr_curve": viz.plot_lr_curve(curve)}


def _gradcam(model: nn.Module, mistakes: Mistakes, target: Literal["predicted", "true"]) -> viz.Figure:
    """Class activation maps; of a network that has none, a figure that says so."""
    try:
        return viz.plot_gradcam(model, mistakes, target=target)
    except SettingError as error:
        return nothing(str(error))


def environment(trainer: Trainer) -> dict[str, Any]:
    """What the run was made on, without anything personal."""
    from importlib.metadata import version

    device = trainer.device
    return {
        "vision_wrapper": vision_wrapper.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision().__version__,
        "albumentations": version("albumentations"),  # importing it would ask the package index
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
        "processes": trainer.processes.count,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }

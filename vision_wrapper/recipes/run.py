"""Running a recipe: from data to a run folder with everything in it."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import platform
import secrets
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import vision_wrapper
from vision_wrapper import data as image_data
from vision_wrapper import models, report, viz
from vision_wrapper._distributed import join
from vision_wrapper._files import PathLike, exclusive, read_json, remove_leftovers, write_bytes, write_json, write_text
from vision_wrapper._seeding import seed_generators
from vision_wrapper._state import preserve_random_states
from vision_wrapper.classifier import load_classifier, save_classifier
from vision_wrapper.data import ImageData, Loader, Loaders
from vision_wrapper.data.loaders import common_size, fingerprint
from vision_wrapper.errors import (
    DamagedFileError,
    DataNotFoundError,
    FileWriteError,
    OtherRunError,
    SettingError,
    VisionWrapperError,
)
from vision_wrapper.evaluation import Mistakes, Predictions
from vision_wrapper.recipes.recipe import TEXTS, Recipe
from vision_wrapper.recipes.table import RECIPES
from vision_wrapper.trainer import Callback, CSVLog, FreezeBody, History, LRCurve, Run, Trainer
from vision_wrapper.viz._figure import nothing

SHOWN_MISTAKES = 20
_NEXT_PROCESS = 1_000_003  # from a process's seed to the next one's
WHITENED_IMAGES = 5000  # that the first layer is fitted to (Jordan 2024)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's weights, RGB in [0, 1]


@dataclass(frozen=True)
class Result:
    """A run: `predictions` are of the test set after the last epoch, None where the run was interrupted.

    `tta_accuracy` is the one with the recipe's test-time averaging, None where it has none.
    """

    recipe: Recipe
    history: History
    predictions: Predictions | None
    run_dir: Path
    tta_accuracy: float | None = None

    @property
    def finished(self) -> bool:
        """Whether every part of the run folder is there."""
        return self.predictions is not None


def run(
    recipe: str | Recipe,
    data: str | os.PathLike[str] | ImageData | None = None,
    root: str | os.PathLike[str] = "data",
    out: PathLike | None = None,
    *,
    callbacks: Sequence[Callback] | None = None,
    device: str | None = None,
    skip_unreadable: bool = False,
    checkpoint_seconds: float = 60.0,
    **settings: Any,
) -> Result:
    """Train a recipe, and write a run folder.

    The same call again goes on with an unfinished run and leaves a finished one as it is. Of several processes (see
    `Trainer`) the main one writes; the others have to see its folder.

    Args:
        recipe: a name of `RECIPES`, or a Recipe.
        data: a name of `DATASETS`, a folder of images, or an ImageData; None is the recipe's own. A folder without a
            test split is parted as by `data.load(folder, seed=0)`, whatever the run's seed: all seeds are tested on the
            same images.
        root: where named data sets are kept.
        out: the run folder; None is `runs/RECIPE-DATE-TIME`, or the newest one there of the same run that did not end.
        callbacks: as of `Trainer`.
        device: as of `Trainer`.
        skip_unreadable: leave out image files that cannot be decoded, with a warning.
        checkpoint_seconds: as of `Trainer.fit`.
        settings: fields of the recipe to change, such as `epochs=5` or `seed=1`.

    Raises:
        UnknownNameError: an unknown recipe or setting.
        SettingError: `out` is there and is no run folder.
        OtherRunError: `out` holds a run of another recipe, of other settings or of other data, or another process is
            at work in it.
    """
    plan = (RECIPES[recipe] if isinstance(recipe, str) else recipe).changed(**settings)
    source = source_of(plan, data)
    processes = join()
    images, loaders = processes.main_first(lambda: _load(plan, source, root, skip_unreadable))
    image_data.stats(images)  # reads every image once: one that cannot be read is found now, and not after training
    identity = _identity(plan, source, images, root, skip_unreadable)
    identities = processes.gathered(identity)
    for rank, other in enumerate(identities):
        differences = _differences(identities[0], other)
        if differences:
            raise SettingError(f"Process {rank} is to train another run than process 0 ({'; '.join(differences)}).")

    def opened() -> tuple[Path, bool, bool]:
        unfinished = None if isinstance(source, ImageData) else _unfinished_run(identity)  # arrays have no identity
        folder = Path(out) if out is not None else unfinished or _new_folder(plan.name)
        return folder, _open_run_folder(folder, identity), _is_finished(folder)

    folder, made, finished = processes.on_main(opened)
    if finished:
        return _finished_run(plan, folder, loaders)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserve_random_states())

            def taken() -> bool:
                stack.enter_context(exclusive(folder / ".lock"))
                remove_leftovers(folder)
                return (folder / "last.ckpt").exists()

            begun = processes.on_main(taken)
            seed_generators((plan.seed + _NEXT_PROCESS * processes.rank) % 2**32)  # each its own masks of dropout
            trainer = _trainer(plan, images, loaders, callbacks, device, begun)
            return _train(plan, images, loaders, folder, trainer, checkpoint_seconds)
    except Exception:
        if made and processes.is_main and not (folder / "last.ckpt").exists():
            _empty(folder)  # nothing was trained: nothing half-made stays
        raise


def _trainer(
    plan: Recipe,
    images: ImageData,
    loaders: Loaders,
    callbacks: Sequence[Callback] | None = None,
    device: str | None = None,
    begun: bool = False,
) -> Trainer:
    """The recipe's trainer; of a run that has `begun`, the checkpoint has the weights."""
    model, pretrained = _model(replace(plan, pretrained=None) if begun else plan, len(images.classes))
    if plan.whiten:
        _whiten(model, loaders)
    trainer = Trainer(
        model,
        plan.build_optimizer(model),
        nn.CrossEntropyLoss(label_smoothing=plan.label_smoothing),
        callbacks=callbacks,
        device=device,
        precision=plan.precision,
        ema=plan.ema,
        accumulate=plan.accumulate,
    )
    if plan.freeze_epochs:  # before the user's: a checkpoint knows callbacks by their place
        trainer.callbacks.insert(0, FreezeBody(plan.freeze_epochs if pretrained else 0))
    return trainer


def _model(plan: Recipe, classes: int) -> tuple[nn.Module, bool]:
    """The recipe's network, and whether it has its pretrained weights; without them, where they cannot be had."""
    try:
        return plan.build_model(classes), bool(plan.pretrained or plan.model_args.get("weights"))
    except DataNotFoundError as error:
        if plan.pretrained is None or Path(plan.pretrained).suffix:  # somebody's own file, which should be there
            raise
        warnings.warn(f"Training begins from random weights, which takes many more images: {error}", stacklevel=4)
        return replace(plan, pretrained=None).build_model(classes), False


def _whiten(model: nn.Module, loaders: Loaders) -> None:
    """Fit the first layer to training images as they are, without augmentation."""
    layer = next((module for module in model.modules() if isinstance(module, models.Whitening)), None)
    if layer is None:
        raise SettingError(f"whiten=true needs a network that has a Whitening layer, not {type(model).__name__}.")
    split = loaders.train.split
    chosen = np.linspace(0, len(split) - 1, min(WHITENED_IMAGES, len(split))).astype(int)
    layer.fit(loaders.preprocess.batch([split[int(index)][0] for index in chosen]))


def _train(
    plan: Recipe, images: ImageData, loaders: Loaders, folder: Path, trainer: Trainer, checkpoint_seconds: float
) -> Result:
    best = _BestClassifier(folder / "best.safetensors", loaders)
    trainer.callbacks[:0] = [CSVLog(folder / "history.csv"), *([best] if loaders.val is not None else [])]
    curve = _lr_curve(plan, trainer, loaders, folder)
    schedule = plan.build_schedule(None if curve is None else curve.suggestion)
    history = trainer.fit(
        loaders.train,
        loaders.val or loaders.test,
        epochs=plan.epochs,
        schedule=schedule,
        checkpoint=folder / "last.ckpt",
        checkpoint_seconds=checkpoint_seconds,
    )
    on_main = trainer.processes.on_main
    on_main(lambda: (history.to_csv(folder / "history.csv"), history.to_json(folder / "history.json")))
    if trainer.interrupted:
        return Result(plan, history, None, folder)
    predictions = trainer.predict(loaders.test)
    averaged = None if plan.tta is None else trainer.predict(loaders.test, tta=plan.tta).accuracy()

    def write() -> None:
        if loaders.val is None:
            best.save(trainer, {"epoch": len(history), "test_accuracy": predictions.accuracy()})
        else:
            _store_temperature(folder / "best.safetensors", loaders.val, trainer)
        val_name = "test" if loaders.val is None else "validation"
        _write_results(folder, images, trainer.model, history, val_name, predictions, curve)
        write_json(folder / "environment.json", environment(trainer.processes.count))
        report.write_gallery(folder, trainer.model, predictions, loaders.train.split)
        write_json(folder / "results.json", _results(plan, loaders, history, predictions, averaged))
        report.write(folder)
        (folder / ".lock").unlink(missing_ok=True)

    on_main(write)
    return Result(plan, history, predictions, folder, averaged)


def _results(
    plan: Recipe, loaders: Loaders, history: History, predictions: Predictions, averaged: float | None
) -> dict[str, Any]:
    """The figures of a run, of its last epoch."""
    seconds = sum(row["seconds"] for row in history.rows)
    trained = len(history) * min(len(loaders.train.split), len(loaders.train) * loaders.train.batch_size)
    return {
        "accuracy": predictions.accuracy(),
        "tta": plan.tta,
        "tta_accuracy": averaged,
        "train_loss": history[-1]["train_loss"],
        "seconds": seconds,
        "images_per_second": trained / seconds,
        "training_images": len(loaders.train.split),
        "test_images": len(predictions),
        "classes": list(predictions.classes),
        "changes": _changes(plan),
    }


def _changes(plan: Recipe) -> dict[str, Any] | None:
    """The fields in which the plan differs from the recipe of its name, seed apart; None where there is none."""
    if plan.name not in RECIPES:
        return None
    base, fields = RECIPES[plan.name].as_dict(), plan.as_dict()
    told = {"seed", "expected", "data"}
    # Given with other epochs, these would be scaled.
    scaled = {"schedule_args", "schedule_epochs", "progressive_size", "freeze_epochs"}
    always = scaled if base["epochs"] != fields["epochs"] else set()
    return {
        name: value
        for name, value in fields.items()
        if name not in told and (value != base[name] or (name in always and value is not None))
    }


def _store_temperature(path: Path, held_out: Loader, trainer: Trainer) -> None:
    """Fit the best classifier's temperature to the held-out images, and keep it in its file."""
    best = load_classifier(path)
    fitted = _predictor(best.model, trainer.precision, trainer.device).predict(held_out).fit_temperature()
    save_classifier(path, best.model, best.preprocess, best.classes, best.metrics, temperature=fitted)


def _predictor(model: nn.Module, precision: Any, device: Any = None) -> Trainer:
    """A trainer that is not to train."""
    return Trainer(model, torch.optim.SGD(model.parameters()), callbacks=[], precision=precision, device=device)


class _BestClassifier(Callback):
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


def _lr_curve(plan: Recipe, trainer: Trainer, loaders: Loaders, folder: Path) -> LRCurve | None:
    """The LR finder's curve where the recipe asks for it; a run that goes on reads the one it began with."""
    if not plan.find_lr:
        return None
    path, on_main = folder / "lr_curve.json", join().on_main
    if on_main(path.exists):
        try:
            return LRCurve(**on_main(lambda: read_json(path)))
        except TypeError as error:
            raise DamagedFileError(f"{path} does not hold a curve of the LR finder: {error}.") from error
    curve = trainer.find_lr(loaders.train)
    if curve.suggestion is None:
        raise SettingError(
            f"The LR finder has no suggestion: {curve.reason} Set find_lr=false and schedule_args' max_lr."
        )
    on_main(lambda: write_json(path, asdict(curve)))
    return curve


def _write_results(
    folder: Path,
    images: ImageData,
    model: nn.Module,
    history: History,
    val_name: str,
    predictions: Predictions,
    curve: LRCurve | None,
) -> None:
    predictions.save(folder / "predictions.npz")
    mistakes = predictions.mistakes(order="confidence")
    mistakes.to_csv(folder / "mistakes.csv")
    assert predictions.preprocess is not None
    write_text(folder / "model.txt", str(models.summary(model, (images.channels, *predictions.preprocess.size))))
    shown = mistakes[:SHOWN_MISTAKES]
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
    if curve is not None:
        figures["lr_curve"] = viz.plot_lr_curve(curve)
    for name, figure in figures.items():
        write_bytes(folder / "plots" / f"{name}.png", figure.to_png())


def _gradcam(model: nn.Module, mistakes: Mistakes, target: Literal["predicted", "true"]) -> viz.Figure:
    """Class activation maps; of a network that has none, a figure that says so."""
    try:
        return viz.plot_gradcam(model, mistakes, target=target)
    except SettingError as error:
        return nothing(str(error))


def environment(processes: int = 1) -> dict[str, Any]:
    """What the run was made on, without anything personal."""
    from importlib.metadata import version

    import torchvision

    return {
        "vision_wrapper": vision_wrapper.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "albumentations": version("albumentations"),  # importing it would ask the package index
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def find_lr(
    recipe: str | Recipe,
    data: str | os.PathLike[str] | ImageData | None = None,
    root: str | os.PathLike[str] = "data",
    *,
    skip_unreadable: bool = False,
    **settings: Any,
) -> LRCurve:
    """The LR finder's curve for a recipe; arguments and errors as in `run`."""
    plan = (RECIPES[recipe] if isinstance(recipe, str) else recipe).changed(**settings)
    images, loaders = join().main_first(lambda: _load(plan, source_of(plan, data), root, skip_unreadable))
    with preserve_random_states():
        seed_generators(plan.seed)
        return _trainer(plan, images, loaders, callbacks=[]).find_lr(loaders.train)


def source_of(plan: Recipe, data: Any) -> Any:
    """The data to train on: those given, or the recipe's own. Raises `SettingError` where it has none."""
    if data is None and not plan.data:
        raise SettingError(f"The recipe {plan.name!r} is for your own images: pass data=FOLDER, or --data FOLDER.")
    return plan.data if data is None else data


def _load(plan: Recipe, source: Any, root: Any, skip_unreadable: bool = False) -> tuple[ImageData, Loaders]:
    images = source
    if not isinstance(source, ImageData):
        # A folder's test images are the same ones whatever the run's seed: runs of several seeds can be compared.
        images = image_data.load(source, root, channels=plan.channels, seed=0, skip_unreadable=skip_unreadable)
    changes = plan.augment_args
    preprocess, size = None, plan.size
    if plan.normalisation == "imagenet":
        pixels = common_size(images.train) if size is None else (size, size)
        preprocess, size = image_data.Preprocess(pixels, plan.channels, IMAGENET_MEAN, IMAGENET_STD), None
    loaders = image_data.make_loaders(
        images,
        image_data.augmentation(plan.augment, **changes) if changes else plan.augment,
        plan.batch_size,
        val_fraction=0.0 if images.val is not None else plan.val_fraction,
        drop_last=plan.drop_last,
        seed=plan.seed,
        size=size,
        preprocess=preprocess,
        progressive_size=plan.progressive_size,
    )
    return images, loaders


# ---- run folders


def _identity(plan: Recipe, source: Any, images: ImageData, root: Any, skip_unreadable: bool) -> dict[str, Any]:
    """What makes a run the same run, and what was watched in it.

    Folders stand by their whole path, so that the run is found from elsewhere too; images that were passed by the name
    that they have, which may be that of a data set of which they are a part.
    """
    named = isinstance(source, str) and source in image_data.DATASETS
    identity = {
        "recipe": plan.as_dict(),
        "data": images.name if isinstance(source, ImageData) else source if named else os.path.abspath(source),
        "passed": isinstance(source, ImageData),
        "content": _content(images),
        "root": os.path.abspath(root),
        "watched": plan.watches if images.val is None else "the validation images",
    }
    if skip_unreadable:
        identity["skip_unreadable"] = True
    return json.loads(json.dumps(identity))  # as it is read back


def _content(images: ImageData) -> dict[str, str]:
    """Fingerprints that tell these images from others of the same name."""
    return {name: fingerprint(split) for name, split in (("train", images.train), ("test", images.test))}


def _new_folder(recipe_name: str) -> Path:
    name = f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (Path("runs") / f"{name}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    return next(folder for folder in candidates if not folder.exists())


def _unfinished_run(identity: dict[str, Any]) -> Path | None:
    """The newest run under runs/ that was the same and did not end, so that the same command again goes on."""
    folders = Path("runs").glob(f"{glob.escape(identity['recipe']['name'])}-*/")
    for folder in sorted(folders, reverse=True):
        if (folder / "recipe.json").exists() and not _is_finished(folder):
            with contextlib.suppress(VisionWrapperError):  # a damaged one is not it
                if not _differences(read_json(folder / "recipe.json"), identity):
                    return folder
    return None


def _open_run_folder(folder: Path, identity: dict[str, Any]) -> bool:
    """Make the run folder, whole, and say so; or check that the one that is there is of the same run."""
    if (folder / "recipe.json").exists():
        differences = _differences(read_json(folder / "recipe.json"), identity)
        if differences:
            raise OtherRunError(
                f"{folder} holds another run ({'; '.join(differences[:4])}). Choose another folder with out=."
            )
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder} is there, but is no run folder (no recipe.json). Choose another with out=.")
    if folder.exists():  # and empty; it may be a disk of its own, or where somebody stands
        write_json(folder / "recipe.json", identity)
        return True
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        write_json(temporary / "recipe.json", identity)
        os.replace(temporary, folder)
    except OSError as error:
        raise FileWriteError(error.errno, f"The run folder {folder} could not be made: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _differences(there: Any, here: dict[str, Any]) -> list[str]:
    """What differs between the identities of two runs, in words."""
    if not isinstance(there, dict) or not isinstance(there.get("recipe"), dict):
        return ["recipe.json holds no recipe"]
    kept, wanted = ({**identity["recipe"], "data": identity.get("data")} for identity in (there, here))
    defaults = json.loads(json.dumps(Recipe("default", "").as_dict()))  # of fields that came after a run
    differences = [
        f"{name}: {kept.get(name, defaults.get(name))!r} there, {value!r} here"
        for name, value in wanted.items()
        if kept.get(name, defaults.get(name)) != value and name not in TEXTS
    ]
    if there.get("content", here["content"]) != here["content"]:
        differences.append("its images were others")
    return differences


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if not entry.is_dir():
            entry.unlink()
    with contextlib.suppress(OSError):  # a mount point stays
        folder.rmdir()


def _is_finished(folder: Path) -> bool:
    """Whether all that a run ends with is there; what is missing is made again from its last checkpoint."""
    return all((folder / name).exists() for name in ("history.json", "predictions.npz", "results.json", "report.html"))


def _finished_run(plan: Recipe, folder: Path, loaders: Loaders) -> Result:
    predictions = Predictions.load(
        folder / "predictions.npz",
        classes=loaders.test.classes,
        source=loaders.test.split,
        preprocess=loaders.preprocess,
    )
    averaged = read_results(folder)["tta_accuracy"]
    return Result(plan, History.from_json(folder / "history.json"), predictions, folder, averaged)


def read_results(folder: Path) -> dict[str, Any]:
    """The figures of a finished run. Raises `DamagedFileError` for anything else."""
    results, needed = read_json(folder / "results.json"), {"accuracy", "images_per_second", "test_images"}
    numbers = isinstance(results, dict) and all(isinstance(results.get(name), (int, float)) for name in needed)
    if not numbers or not isinstance(results.get("tta_accuracy", ""), (int, float, type(None))):
        raise DamagedFileError(f"{folder / 'results.json'} does not hold the figures of a run.")
    return results


def read_run(folder: PathLike) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a run folder, and its identity (`data`, `root`). Raises `SettingError` where it is none."""
    folder = Path(folder)
    if not (folder / "recipe.json").exists():
        raise SettingError(f"{folder} is no run folder (no recipe.json). Give the folder that `train` named.")
    identity = read_json(folder / "recipe.json")
    try:
        where = {name: os.fspath(identity[name]) for name in ("data", "root")}
        return Recipe(**{**identity["recipe"], "expected": None}), {**identity, **where}
    except (KeyError, TypeError) as error:
        raise SettingError(f"{folder / 'recipe.json'} does not hold a recipe: {error}.") from error


def evaluate_run(folder: PathLike) -> Predictions:
    """The predictions of a run's best.safetensors on its test set, computed anew, at the classifier's temperature.

    Raises `OtherRunError` where the data are not those of the run any more, and what `data.load` raises.
    """
    plan, identity = read_run(folder)
    classifier = load_classifier(Path(folder) / "best.safetensors")
    images, _ = _load(plan, identity["data"], identity["root"], identity.get("skip_unreadable", False))
    content = _content(images)
    if identity.get("content", content) != content:
        raise OtherRunError(
            f"{identity['data']} now holds other images than those of the run in {folder}. Test its best.safetensors "
            "on the images it had: load_classifier, make_loaders(images, preprocess=…) and Trainer.predict."
        )
    loaders = image_data.make_loaders(images, batch_size=plan.batch_size, preprocess=classifier.preprocess)
    predictions = _predictor(classifier.model, plan.precision).predict(loaders.test)
    return predictions.at_temperature(classifier.temperature)

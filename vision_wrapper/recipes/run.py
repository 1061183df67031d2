"""Running a recipe: from data to a run folder with everything in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vision_wrapper import data as image_data
from vision_wrapper import report
from vision_wrapper._distributed import Processes, join
from vision_wrapper._files import PathLike, exclusive, read_json, remove_leftovers, write_json
from vision_wrapper._seeding import checked_seed, seed_generators
from vision_wrapper._state import preserve_random_states
from vision_wrapper._torchvision import torchvision
from vision_wrapper.classifier import load_classifier
from vision_wrapper.data import ImageData, Loaders
from vision_wrapper.data.loaders import common_size
from vision_wrapper.errors import (
    DamagedFileError,
    DataNotFoundError,
    NoLearningRateError,
    OtherRunError,
    SettingError,
)
from vision_wrapper.evaluation import Predictions
from vision_wrapper.recipes.checks import whitening_of
from vision_wrapper.recipes.folders import is_finished, new_folder, open_folder, remove_folder, unfinished_run
from vision_wrapper.recipes.identity import content_of, differences_between, identity_of, read_run
from vision_wrapper.recipes.recipe import Recipe
from vision_wrapper.recipes.results import (
    BestClassifier,
    environment,
    predictor,
    read_results,
    results_of,
    store_temperature,
    write_outputs,
)
from vision_wrapper.recipes.table import plan_of
from vision_wrapper.trainer import Callback, CSVLog, FreezeBody, History, LRCurve, Trainer
from vision_wrapper.trainer.precision import choose_device, choose_precision

# What recipe.json says where a recipe's pretrained weights could not be had.
RANDOM_WEIGHTS = "random at the beginning: the pretrained ones were neither on this machine nor to be downloaded"
_NEXT_PROCESS = 1_000_003  # from a process's seed to the next one's
WHITENED_IMAGES = 5000  # that the first layer is fitted to (Jordan 2024)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's weights, RGB in [0, 1]


@dataclass(frozen=True)
class Result:
    """What `run` returns.

    Attributes:
        recipe: what was run.
        history: a row an epoch.
        predictions: of the test set after the last epoch; None where the run was interrupted.
        run_dir: the run folder.
        tta_accuracy: with the recipe's test-time averaging, in [0, 1]; None where it has none.
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
    data: PathLike | ImageData | None = None,
    root: PathLike = "data",
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
        OtherRunError: `out` holds a run of another recipe, of other settings or of other data, one that was begun in
            fp16 where there is no GPU, or another process is at work in it.
    """
    plan = plan_of(recipe, settings)
    source = source_of(plan, data)
    torchvision()  # the report needs it: a wrong one is found now, and not after training
    processes = join()
    images = processes.main_first(lambda: load_images(plan, source, root, skip_unreadable))
    loaders = loaders_of(plan, images)
    image_data.stats(images)  # reads every image once: one that cannot be read is found now, and not after training
    identity = identity_of(plan, source, images, root, skip_unreadable)
    _check_same_run(processes.gathered(identity))
    folder, made, finished = processes.on_main(lambda: _opened(out, identity))
    if finished:
        return _finished_run(plan, folder, loaders)
    try:
        with preserve_random_states(), _locked(folder, processes) as begun:
            own_seed = (checked_seed(plan.seed) + _NEXT_PROCESS * processes.rank) % 2**32  # for masks of dropout
            seed_generators(own_seed)
            # Of a run that has begun, the checkpoint has the weights.
            model, pretrained = model_of(replace(plan, pretrained=None) if begun else plan, len(images.classes))
            notes = None
            if not begun:
                notes = {"computed_in": choose_precision(plan.precision, choose_device(device, processes.count))}
                if plan.pretrained and not pretrained:
                    notes["weights"] = RANDOM_WEIGHTS
            said = processes.on_main(lambda: _noted(folder, identity, notes))
            # "auto" may mean another number format where a run goes on: it stays the one that it was begun in.
            precision = said.get("computed_in", plan.precision)
            _check_computes(precision, folder, device)
            trainer = trainer_of(replace(plan, precision=precision), model, pretrained, loaders, callbacks, device)
            return _train(plan, images, loaders, folder, trainer, checkpoint_seconds)
    except Exception:
        if made and processes.is_main and not (folder / "last.ckpt").exists():
            remove_folder(folder)  # nothing was trained: nothing half-made stays
        raise


def _check_same_run(identities: Sequence[dict[str, Any]]) -> None:
    """Raise `SettingError` where processes, of which these are the identities, are to train different runs."""
    for rank, other in enumerate(identities):
        differences = differences_between(identities[0], other)
        if differences:
            raise SettingError(f"Process {rank} is to train another run than process 0 ({'; '.join(differences)}).")


def _opened(out: PathLike | None, identity: dict[str, Any]) -> tuple[Path, bool, bool]:
    """The run folder; whether it was made, and whether its run has ended."""
    folder = Path(out) if out is not None else unfinished_run(identity) or new_folder(identity["recipe"]["name"])
    return folder, open_folder(folder, identity), is_finished(folder)


@contextlib.contextmanager
def _locked(folder: Path, processes: Processes) -> Iterator[bool]:
    """Keep other runs out of the folder, in the main process, and say whether a run has begun in it."""
    with contextlib.ExitStack() as stack:

        def locked() -> bool:
            stack.enter_context(exclusive(folder / ".lock"))
            remove_leftovers(folder)
            return (folder / "last.ckpt").exists()

        yield processes.on_main(locked)


def _noted(folder: Path, identity: dict[str, Any], notes: dict[str, str] | None) -> dict[str, Any]:
    """What recipe.json says of the run from now on: with the notes of a beginning, or with where its images lie now."""
    path = folder / "recipe.json"
    kept = read_json(path)
    place = {name: identity[name] for name in ("data", "passed", "root")}
    said = {**kept, **place} if notes is None else {**identity, **notes}
    if said != kept:
        write_json(path, said)
    return said


def _check_computes(precision: str, folder: Path, device: str | None) -> None:
    """Raise `OtherRunError` where this device cannot compute in the number format that a run was begun in."""
    if precision == "fp16" and choose_device(device).type == "cpu":
        raise OtherRunError(
            f"The run in {folder} was begun in fp16, which needs a GPU: go on with one, or begin another with out= "
            "(--out)."
        )


def trainer_of(
    plan: Recipe,
    model: nn.Module,
    pretrained: bool,
    loaders: Loaders,
    callbacks: Sequence[Callback] | None = None,
    device: str | None = None,
) -> Trainer:
    """The recipe's trainer, of what `model_of` returned."""
    if plan.whiten:
        _whiten(model, loaders)
    trainer = Trainer(
        model,
        plan.build_optimizer(model),
        nn.CrossEntropyLoss(label_smoothing=plan.label_smoothing),
        callbacks=callbacks,
        device=device,
        precision=plan.precision,
        deterministic=plan.deterministic,
        ema=plan.ema,
        accumulate=plan.accumulate,
    )
    if plan.freeze_epochs:  # before the user's, of which one may freeze too
        trainer.callbacks.insert(0, FreezeBody(plan.freeze_epochs if pretrained else 0))
    return trainer


def model_of(plan: Recipe, classes: int) -> tuple[nn.Module, bool]:
    """The recipe's network, and whether it has its pretrained weights; without them, where they cannot be had."""
    try:
        return plan.build_model(classes), plan.pretrained is not None
    except DataNotFoundError as error:
        if plan.pretrained is None or Path(plan.pretrained).suffix:  # somebody's own file, which should be there
            raise
        warnings.warn(f"Training begins from random weights, which takes many more images: {error}", stacklevel=4)
        return replace(plan, pretrained=None).build_model(classes), False


def _whiten(model: nn.Module, loaders: Loaders) -> None:
    """Fit the first layer to training images as they are, without augmentation."""
    split = loaders.train.split
    chosen = np.linspace(0, len(split) - 1, min(WHITENED_IMAGES, len(split))).astype(int)
    whitening_of(model).fit(loaders.preprocess.batch([split[int(index)][0] for index in chosen]))


def _train(
    plan: Recipe, images: ImageData, loaders: Loaders, folder: Path, trainer: Trainer, checkpoint_seconds: float
) -> Result:
    best = BestClassifier(folder / "best.safetensors", loaders)
    trainer.callbacks[:0] = [CSVLog(folder / "history.csv"), *([best] if loaders.val is not None else [])]
    curve = _lr_curve(plan, trainer, loaders, folder)
    schedule = plan.build_schedule(None if curve is None else curve.max_lr)
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
    tta_accuracy = None if plan.tta is None else trainer.predict(loaders.test, tta=plan.tta).accuracy()

    def write() -> None:
        if loaders.val is None:
            best.save(trainer, {"epoch": len(history), "test_accuracy": predictions.accuracy()})
        else:
            store_temperature(folder / "best.safetensors", loaders.val, trainer)
        val_name = "test" if loaders.val is None else "validation"
        write_outputs(folder, images, trainer.model, history, val_name, predictions, curve)
        write_json(folder / "environment.json", environment(trainer))
        report.write_gallery(folder, trainer.model, predictions, loaders.train.split)
        write_json(folder / "results.json", results_of(plan, loaders, history, predictions, tta_accuracy))
        report.write(folder)
        (folder / ".lock").unlink(missing_ok=True)

    on_main(write)
    return Result(plan, history, predictions, folder, tta_accuracy)


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
    if curve.max_lr is None:
        raise NoLearningRateError(
            f"The LR finder has no suggestion: {curve.reason} Set find_lr=false and schedule_args' max_lr."
        )
    on_main(lambda: write_json(path, asdict(curve)))
    return curve


def find_lr(
    recipe: str | Recipe,
    data: PathLike | ImageData | None = None,
    root: PathLike = "data",
    *,
    skip_unreadable: bool = False,
    **settings: Any,
) -> LRCurve:
    """The LR finder's curve for a recipe; arguments and errors as in `run`."""
    plan = plan_of(recipe, settings)
    images = join().main_first(lambda: load_images(plan, source_of(plan, data), root, skip_unreadable))
    loaders = loaders_of(plan, images)
    with preserve_random_states():
        seed_generators(checked_seed(plan.seed))
        return trainer_of(plan, *model_of(plan, len(images.classes)), loaders, callbacks=[]).find_lr(loaders.train)


def source_of(plan: Recipe, data: Any) -> Any:
    """The data to train on: those given, or the recipe's own. Raises `SettingError` where it has none."""
    if data is None and not plan.data:
        raise SettingError(f"The recipe {plan.name!r} is for your own images: pass data=FOLDER, or --data FOLDER.")
    return plan.data if data is None else data


def load_images(plan: Recipe, source: Any, root: Any, skip_unreadable: bool = False) -> ImageData:
    """The images of a source: a name, a folder, or what they are already."""
    if isinstance(source, ImageData):
        return source
    # A folder's test images are the same ones whatever the run's seed: runs of several seeds can be compared.
    return image_data.load(source, root, channels=plan.channels, seed=0, skip_unreadable=skip_unreadable)


def loaders_of(plan: Recipe, images: ImageData) -> Loaders:
    """The recipe's loaders of these images."""
    preprocess, size = None, plan.size
    if plan.normalisation == "imagenet":
        pixels = common_size(images.train) if size is None else (size, size)
        preprocess, size = image_data.Preprocess(pixels, plan.channels, IMAGENET_MEAN, IMAGENET_STD), None
    return image_data.make_loaders(
        images,
        image_data.augmentation(plan.augment, **plan.augment_args) if plan.augment_args else plan.augment,
        plan.batch_size,
        val_fraction=0.0 if images.val is not None else plan.val_fraction,
        drop_last=plan.drop_last,
        seed=plan.seed,
        size=size,
        preprocess=preprocess,
        progressive_size=plan.progressive_size,
    )


def _finished_run(plan: Recipe, folder: Path, loaders: Loaders) -> Result:
    predictions = Predictions.load(
        folder / "predictions.npz",
        classes=loaders.test.classes,
        source=loaders.test.split,
        preprocess=loaders.preprocess,
    )
    tta_accuracy = read_results(folder)["tta_accuracy"]
    return Result(plan, History.from_json(folder / "history.json"), predictions, folder, tta_accuracy)


def evaluate_run(folder: PathLike, data: PathLike | ImageData | None = None) -> Predictions:
    """The predictions of a run's best.safetensors on its test set, computed anew, at the classifier's temperature.

    Args:
        folder: of the run.
        data: the images of the run, as for `run`, where they were passed in Python or have been moved since; None takes
            them from where they were.

    Raises:
        SettingError: the run's data were passed in Python, and are not passed here.
        DataNotFoundError: they are no more where they were, or the run has no best.safetensors.
        OtherRunError: the data are not those of the run.
    """
    plan, identity = read_run(folder)
    classifier = load_classifier(Path(folder) / "best.safetensors")
    source = identity["data"] if data is None else data
    if data is None and identity.get("passed") and source not in image_data.DATASETS:
        raise SettingError(
            f"The data of the run in {folder}, called {source!r}, were passed in Python, where they have to be passed "
            "again: recipes.evaluate_run(folder, data=images)."
        )
    try:
        images = load_images(plan, source, identity["root"], identity.get("skip_unreadable", False))
    except DataNotFoundError as error:
        raise DataNotFoundError(
            f"The images of the run in {folder} are not there: {error} Where they have been moved, pass them: "
            "recipes.evaluate_run(folder, data=…)."
        ) from error
    if identity["content"] != content_of(images):
        name = images.name if isinstance(source, ImageData) else source
        passed = data is None and identity.get("passed")
        holds = "was passed in Python; the data set of that name holds" if passed else "now holds"
        raise OtherRunError(
            f"{name} {holds} other images than those of the run in {folder}. Pass those with data=, or test its "
            "best.safetensors on these: load_classifier, make_loaders(images, preprocess=…) and Trainer.predict."
        )
    loaders = image_data.make_loaders(images, batch_size=plan.batch_size, preprocess=classifier.preprocess)
    predictions = predictor(classifier.model, plan.precision).predict(loaders.test)
    return predictions.at_temperature(classifier.temperature)

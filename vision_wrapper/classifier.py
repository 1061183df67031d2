"""A trained network in one file that describes itself: weights, architecture, classes, preprocessing."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vision_wrapper import __version__
from vision_wrapper._files import PathLike, check_writable, read_tensors, write_bytes, write_tensors
from vision_wrapper._kinds import check_kind
from vision_wrapper._lookup import Table, check_different
from vision_wrapper._numbers import whole_number
from vision_wrapper._state import preserve_mode, preserve_random_states, preserve_state
from vision_wrapper.data.images import decode
from vision_wrapper.data.preprocess import Preprocess
from vision_wrapper.errors import (
    DamagedFileError,
    DataError,
    MissingPackageError,
    OtherModelError,
    SettingError,
)
from vision_wrapper.evaluation.predictions import checked_temperature
from vision_wrapper.models import build_model
from vision_wrapper.models.weights import check_fits, tensors_of

__all__ = ["Classifier", "Prediction", "export", "load_classifier", "save_classifier"]

SUFFIXES = {"classifier": ".safetensors", "onnx": ".onnx", "torch": ".pt2"}  # by custom
MAX_INPUT = 2**24  # pixels (4096 x 4096) of what a network takes; more is a mistake, or a file that wants all memory


class Prediction(NamedTuple):
    """What a classifier says of one image.

    Attributes:
        label: index of the most probable class in the classifier's `classes`.
        name: the name of that class.
        probability: of that class, in [0, 1].
        probabilities: of every class, in the order of `classes`; they sum to 1.
    """

    label: int
    name: str
    probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Classifier:
    """A network with everything that raw images need on their way to names.

    Attributes:
        model: takes (N, C, H, W), normalised, and returns logits (N, classes). Move it to where it shall run.
        preprocess: what makes a network's input of a raw image.
        classes: names, in the order of the logits.
        metrics: what was measured when it was saved, or None.
        temperature: that logits are divided by before they become probabilities, as of
            `Predictions.fit_temperature`; it changes no decision.
        versions: of the library and of torch that wrote the file.
    """

    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    metrics: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    temperature: float = 1.0

    def predict(self, images: Any, batch_size: int = 64) -> list[Prediction]:
        """Classify raw images of any size, in eval mode and without gradients; the model stays as it was.

        Args:
            images: a path, a PIL image, or a uint8 array or tensor (H, W), (H, W, 1) or (H, W, 3); any iterable of
                these, mixed; or an array or tensor (N, H, W, C).
            batch_size: how many pass through the model at a time.

        Returns:
            A `Prediction` an image, in their order; a list of one for a single image.

        Raises:
            DataNotFoundError: a file is not there.
            DataError: a file is no image, or something is no raw image.
        """
        batch_size = whole_number("batch_size", batch_size, 1)
        with preserve_mode(self.model), torch.no_grad():
            self.model.eval()
            return [
                prediction
                for batch in _batches(_as_images(images, self.preprocess.channels), batch_size)
                for prediction in self._predict_batch(batch)
            ]

    def _predict_batch(self, images: list[Any]) -> list[Prediction]:
        channels = self.preprocess.channels
        raw = (  # one whole photograph at a time
            decode(os.fspath(i), channels, self.preprocess.decode_size) if isinstance(i, (str, os.PathLike)) else i
            for i in images
        )
        logits = _run(self.model, self.preprocess.batch(raw))
        probabilities = (logits.float() / self.temperature).softmax(1).cpu()  # (N, classes)
        best, labels = probabilities.max(1)
        return [
            Prediction(label, self.classes[label], probability, tuple(row))
            for label, probability, row in zip(labels.tolist(), best.tolist(), probabilities.tolist(), strict=True)
        ]


def save_classifier(
    path: PathLike,
    model: nn.Module,
    preprocess: Preprocess,
    classes: Sequence[str],
    metrics: dict[str, Any] | None = None,
    temperature: float = 1.0,
) -> None:
    """Write a classifier as one safetensors file, atomically. The model stays as it was.

    Networks from `vision_wrapper.models` are rebuilt from the file alone. Of others, and of those whose layers were
    exchanged, it holds the weights, and `load_classifier` needs the network.

    Args:
        path: of the file, by custom .safetensors.
        model: takes (N, C, H, W), normalised, and returns logits (N, classes).
        preprocess: what made the network's inputs (`loaders.preprocess`).
        classes: names, in the order of the logits.
        metrics: anything JSON can hold, to be kept with the weights.
        temperature: that logits are divided by before they become probabilities; fit it on validation predictions with
            `Predictions.fit_temperature`.

    Raises:
        OtherModelError: the model does not take such images, or has another number of outputs than there are classes.
        SettingError: metrics, classes or a temperature of another kind, or a class that is named twice.
        FileWriteError: the disk refuses.
    """
    check_kind(model, "model")
    named = isinstance(classes, Iterable) and not isinstance(classes, str)
    if not named or not isinstance(preprocess, Preprocess):
        raise SettingError(
            "Expected save_classifier(path, model, preprocess, classes) with loaders.preprocess and a sequence of "
            f"names, got {type(preprocess).__name__} and {type(classes).__name__}."
        )
    model, classes = _unwrapped(model), [str(name) for name in classes]
    check_different(classes)
    _probe(model, preprocess, len(classes))
    description = {
        "architecture": _architecture_of(model),
        "classes": classes,
        "preprocess": asdict(preprocess),
        "metrics": metrics,
        "temperature": checked_temperature(temperature),
        "versions": {"vision_wrapper": __version__, "torch": str(torch.__version__)},
    }
    description = {name: _plain(name, value) for name, value in description.items()}
    texts = {name: json.dumps(value) for name, value in description.items()}
    write_tensors(path, "classifier", {"": dict(model.state_dict()), **description}, **texts)


def load_classifier(path: PathLike, model: nn.Module | None = None) -> Classifier:
    """What `save_classifier` wrote, on the CPU and in eval mode. Nothing in the file is executed.

    Args:
        path: of the file.
        model: a network of your own, built as it was when it was saved; the weights are loaded into it. A network of
            this library is rebuilt without it.

    Raises:
        DataNotFoundError: there is no such file.
        DamagedFileError: it is truncated, altered, or no classifier.
        NewerFormatError: it was written by a newer version of this library.
        OtherModelError: the weights are of another network than `model`, or the file needs `model` and has none.
        SettingError: `model` is no network.
    """
    if model is not None:
        check_kind(model, "model")
    content, _ = read_tensors(path, "classifier")
    try:
        state, architecture, metrics = content[""], content["architecture"], content["metrics"]
        classes, versions = tuple(content["classes"]), dict(content["versions"])
        preprocess = Preprocess(**content["preprocess"])
        temperature = checked_temperature(content["temperature"])
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in (*state, *classes)):
            raise TypeError("names must be texts")
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise DamagedFileError(f"{path} is damaged: {type(error).__name__} {error}.") from error
    rebuilt = model is None
    if model is None:
        model = _without_weights(architecture, path)
    else:
        model = _unwrapped(model)
        _check_same(model, architecture, path)
    _check_entries(model.state_dict(), state, path)
    _probe(model, preprocess, len(classes))  # of a rebuilt one without memory, whatever size the file claims
    # The last step, so that nothing has changed when one of these raises. Assigned, the numbers keep their type.
    model.load_state_dict(state, assign=rebuilt)
    if rebuilt and _has_meta(model):
        model = _built(architecture or {}, str(path))
        model.load_state_dict(state, assign=True)
    return Classifier(model.eval(), preprocess, classes, metrics, versions, temperature)


def _without_weights(architecture: dict[str, Any] | None, path: PathLike) -> nn.Module:
    """The network that a file names, on the meta device."""
    if architecture is None:
        raise OtherModelError(
            f"{path} holds the weights of a network that is not in vision_wrapper.models. Build it and pass it: "
            "load_classifier(path, model=network)."
        )
    return _on_meta(architecture, str(path))


def _check_entries(own: dict[str, Any], state: dict[str, Any], path: PathLike) -> None:
    """Raise `OtherModelError` for what `load_state_dict` would refuse half-way."""
    check_fits(tensors_of(own), tensors_of(state), str(path))
    kinds, own_kinds = (
        {name: isinstance(value, Tensor) and value.is_floating_point() for name, value in entries.items()}
        for entries in (state, own)
    )
    if kinds != own_kinds:
        names = ", ".join(name for name in {**own, **state} if kinds.get(name) != own_kinds.get(name))
        raise OtherModelError(f"{path} is of another network: {names} is missing, or is of another kind.")


def _check_same(model: nn.Module, architecture: dict[str, Any] | None, path: PathLike) -> None:
    """Raise `OtherModelError` for a network of this library with other arguments, which the weights may not show."""
    own = _architecture_of(model)
    if architecture is not None and own is not None and own != architecture:
        raise OtherModelError(
            f"{path} is of another network than the model given. The file: {_spell(architecture)}. The model: "
            f"{_spell(own)}. Leave model= out: the file is enough."
        )


def _on_meta(architecture: dict[str, Any], path: str) -> nn.Module:
    """The network without memory for its weights, and without a draw from the random generators."""
    with torch.device("meta"):
        return _built(architecture, path)


def _built(architecture: dict[str, Any], path: str) -> nn.Module:
    """The network that a file names, with weights as it is made."""
    try:
        name, arguments = architecture["name"], architecture["arguments"]
        if "weights" in arguments:
            raise SettingError("a classifier carries its own weights")  # and must not name other files or downloads
        with preserve_random_states():
            return build_model(name, **arguments)
    except Exception as error:  # a constructor that was added to the table may raise anything
        raise OtherModelError(
            f"{path} names a network that this version cannot build ({error}). Build it and pass it: "
            "load_classifier(path, model=network)."
        ) from error


def _has_meta(model: nn.Module) -> bool:
    """Whether a tensor that no file keeps, as a buffer that is not persistent, has no values yet."""
    held = (each for part in model.modules() for kept in (vars(part), part._buffers) for each in kept.values())
    return any(isinstance(each, Tensor) and each.is_meta for each in held)


def _architecture_of(model: nn.Module) -> dict[str, Any] | None:
    """Name and arguments that rebuild this network, or None where they would give another one."""
    record = getattr(model, "architecture", None)
    if not isinstance(record, dict) or set(record) != {"name", "arguments"}:
        return None
    try:
        record = _plain("architecture", record)
        twin = _on_meta(record, "the model")
    except (SettingError, OtherModelError):
        return None
    # The user may have subclassed it or exchanged layers: then the record no longer tells the truth.
    same_layers = type(twin) is type(model) and repr(twin) == repr(model)
    shapes, own_shapes = ({k: v.shape for k, v in tensors_of(m.state_dict()).items()} for m in (twin, model))
    return record if same_layers and shapes == own_shapes else None


def _spell(architecture: dict[str, Any]) -> str:
    return f"{architecture['name']}({', '.join(f'{k}={v!r}' for k, v in architecture['arguments'].items())})"


def _plain(what: str, value: Any) -> Any:
    """The value as JSON gives it back: lists for tuples, numbers for numpy's and torch's scalars."""
    try:
        return json.loads(json.dumps(value, default=lambda scalar: scalar.item()))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SettingError(f"{what} must be values that JSON can hold, got {value!r}: {error}.") from error


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without torch.compile's and DistributedDataParallel's shells."""
    shells = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner: Any = model.module if isinstance(model, shells) else getattr(model, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's logits for float32 inputs (N, C, H, W), which go where its weights are, in their type."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), inputs)
    return model(inputs.to(weight.device, weight.dtype))


def _probe(model: nn.Module, preprocess: Preprocess, num_classes: int) -> None:
    """Raise `OtherModelError` unless the model gives `num_classes` logits for the images of `preprocess`."""
    if preprocess.size[0] * preprocess.size[1] > MAX_INPUT:
        raise OtherModelError(f"A network cannot take images of {preprocess.size}: {MAX_INPUT:,} pixels are the most.")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    # On the meta device there are no values to keep, and the network is a new one.
    with nullcontext() if device.type == "meta" else preserve_state(model), torch.no_grad():
        model.eval()
        try:
            logits = _run(model, torch.zeros(2, preprocess.channels, *preprocess.size, device=device))
        except Exception as error:  # a user's network may raise anything
            raise OtherModelError(
                f"{type(model).__name__} does not take images (N, {preprocess.channels}, {preprocess.size[0]}, "
                f"{preprocess.size[1]}), which its preprocessing makes: {type(error).__name__}: {error}"
            ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        raise OtherModelError(
            f"{type(model).__name__} should give logits (2, {num_classes}) for two images, because there are "
            f"{num_classes} classes; it gave {shape}."
        )


def _as_images(images: Any, channels: int) -> Iterable[Any]:
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if not isinstance(images, (np.ndarray, Tensor)):
        if isinstance(images, (bytes, dict)) or not hasattr(images, "__iter__"):
            raise DataError(f"Expected a path, an image, or a sequence of these; got {type(images).__name__}.")
        return images
    if images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3, 4, channels)):
        return [images]
    if images.ndim in (1, 4):  # of one dimension: an array of paths
        return images
    raise DataError(
        f"Expected one image (H, W) or (H, W, C), or a batch (N, H, W, C); got {tuple(images.shape)}. A tensor "
        "(C, H, W) becomes that by permute(1, 2, 0)."
    )


def _batches(images: Iterable[Any], size: int) -> Iterator[list[Any]]:
    images = iter(images)
    while batch := list(islice(images, size)):
        yield batch


class _FromPixels(nn.Module):
    """Raw images uint8 (N, H, W, C) to probabilities float32 (N, classes)."""

    def __init__(self, model: nn.Module, preprocess: Preprocess, temperature: float):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float()
        self.preprocess, self.temperature = preprocess, temperature

    def forward(self, images: Tensor) -> Tensor:
        return (self.model(self.preprocess.normalise(images)) / self.temperature).softmax(1)


def export(classifier: Classifier | PathLike, out: PathLike, format: Literal["onnx", "torch"] = "onnx") -> Path:
    """Write a classifier for use without this library, atomically; normalisation, temperature and softmax are inside.

    It takes `images`, uint8 (N, H, W, C) of `preprocess.size`, for any N, and gives `probabilities`, float32
    (N, classes). The names of the classes lie in the file as JSON: in ONNX as the metadata property "classes", in
    torch's as the extra file "classes.json". Weights become float32; the classifier stays as it was.

    Args:
        classifier: one, or the path of its file (of a network of this library).
        out: the path to write, by custom .onnx or .pt2.
        format: "onnx" (needs the extra `export`), or "torch" for `torch.export.load`.

    Returns:
        The path written.

    Raises:
        UnknownNameError: another format.
        MissingPackageError: onnx or onnxscript is not installed.
        SettingError: the network does things that cannot be exported, or `out` ends as files of another format do.
        FileWriteError: `out` cannot be written, which is said before the export where it can be known.
    """
    exported = _EXPORTERS[format]
    suffix = Path(out).suffix.lower()
    if suffix in SUFFIXES.values() and suffix != SUFFIXES[format]:
        raise SettingError(
            f"{out} ends in {suffix}, as files of another format do; those of {format} end in {SUFFIXES[format]}. "
            "Choose such a path, or another format."
        )
    check_writable(out)
    if format == "onnx":
        _require("onnx", "onnxscript")
    if isinstance(classifier, (str, os.PathLike)):
        classifier = load_classifier(classifier)
    check_kind(classifier, "classifier")
    # Two images, because torch.export takes an axis of one for a constant.
    images = torch.zeros(2, *classifier.preprocess.size, classifier.preprocess.channels, dtype=torch.uint8)
    with preserve_random_states(), torch.no_grad():
        try:
            module = _FromPixels(_unwrapped(classifier.model), classifier.preprocess, classifier.temperature).eval()
            module(images)  # fills the constants of preprocess with true tensors, before tracing
            content = exported(module, images, json.dumps(classifier.classes))
        except Exception as error:  # a user's network may hold anything
            raise SettingError(
                f"{type(classifier.model).__name__} cannot be exported as {format}: {type(error).__name__}: {error}"
            ) from error
    write_bytes(out, content)
    return Path(out)


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f'Exporting to ONNX needs {" and ".join(missing)}: pip install "vision-wrapper[export]"'
        )


def _dynamic_batch() -> dict[str, Any]:
    return {"images": {0: torch.export.Dim("batch")}}


def _onnx_bytes(module: nn.Module, images: Tensor, classes: str) -> bytes:
    program = torch.onnx.export(
        module,
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=_dynamic_batch(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    proto.metadata_props.add(key="classes", value=classes)
    return proto.SerializeToString()


def _torch_bytes(module: nn.Module, images: Tensor, classes: str) -> bytes:
    program = torch.export.export(module, (images,), dynamic_shapes=_dynamic_batch())
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"classes.json": classes})
    return file.getvalue()


_EXPORTERS: Table[Callable[[nn.Module, Tensor, str], bytes]] = Table(
    "export format", {"onnx": _onnx_bytes, "torch": _torch_bytes}
)

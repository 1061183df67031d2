import copy
import importlib.util
import json
import stat
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vision_wrapper import _files, models
from vision_wrapper._files import read_tensors, write_tensors
from vision_wrapper.classifier import Classifier, Prediction, export, load_classifier, save_classifier
from vision_wrapper.data import Preprocess
from vision_wrapper.errors import (
    DamagedFileError,
    DataError,
    DataNotFoundError,
    FileWriteError,
    MissingPackageError,
    NewerFormatError,
    OtherModelError,
    SettingError,
    UnknownNameError,
)

CLASSES = ("ape", "bee", "çat")
PREPROCESS = Preprocess((16, 12), 3, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
SMALL = {"num_classes": 3, "widths": (4, 8, 8, 8)}

NETWORKS = {
    "custom_resnet": [
        lambda: models.CustomResNet(**SMALL, norm="group", pool="avg", activation_after_add=True, bias=True),
        lambda: models.build_model("custom_resnet", **SMALL, dropout=0.5),
    ],
    "resnet18": [lambda: models.resnet18(num_classes=3, norm="layer", strides=(1, 2, 2, 1))],
    "resnet34": [lambda: models.resnet34(num_classes=3, stem="imagenet")],
}


class Own(nn.Module):
    """A network of the user's, with two layers that share their weights and an output of `classes`."""

    def __init__(self, classes=3, width=6):
        super().__init__()
        self.one = nn.Conv2d(3, width, 3)
        self.two = nn.Conv2d(3, width, 3)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm2d(width)
        self.end = nn.Linear(width, classes)

    def forward(self, x):
        return self.end(self.norm(self.one(x) + self.two(x)).mean((2, 3)))


def small(seed=0):
    torch.manual_seed(seed)
    model = models.CustomResNet(**SMALL)
    for buffer in model.buffers():  # statistics that are not the initial ones
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model


def images(n=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 12, 3), dtype=np.uint8)


def expected(model, raw):
    """The probabilities, written out by hand."""
    mean, std = torch.tensor(PREPROCESS.mean), torch.tensor(PREPROCESS.std)
    x = ((torch.from_numpy(raw) / 255 - mean) / std).permute(0, 3, 1, 2)
    model = copy.deepcopy(model).float().eval()
    with torch.no_grad():
        return model(x).softmax(1).numpy()


def probabilities(predictions):
    return np.array([p.probabilities for p in predictions])


def saved(path, model=None, **metrics):
    save_classifier(path, small() if model is None else model, PREPROCESS, CLASSES, metrics or None)
    return path


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_is_rebuilt_from_the_file_alone(name, tmp_path):
    for make in NETWORKS.get(name, [lambda: models.build_model(name, num_classes=3)]):
        model = make()
        before = torch.get_rng_state()
        classifier = load_classifier(saved(tmp_path / "c.safetensors", model))
        assert torch.equal(before, torch.get_rng_state())  # no weights were drawn
        assert repr(classifier.model) == repr(model.eval()) and not classifier.model.training
        assert all(torch.equal(v, classifier.model.state_dict()[k]) for k, v in model.state_dict().items())
        assert all(p.requires_grad for p in classifier.model.parameters())
        raw = images(3)
        np.testing.assert_allclose(probabilities(classifier.predict(raw)), expected(model, raw), atol=1e-5)


def test_the_file_describes_itself(tmp_path):
    path = saved(tmp_path / "c.safetensors", accuracy=np.float32(0.5), counts={"test": torch.tensor(3)})
    classifier = load_classifier(path)
    assert (classifier.classes, classifier.preprocess) == (CLASSES, PREPROCESS)
    assert classifier.metrics == {"accuracy": 0.5, "counts": {"test": 3}}
    assert classifier.versions["torch"] == torch.__version__ and "vision_wrapper" in classifier.versions
    assert load_classifier(saved(tmp_path / "d.safetensors")).metrics is None

    from safetensors import safe_open  # what a stranger sees

    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(small().state_dict())
        header = file.metadata()
    assert json.loads(header["classes"]) == list(CLASSES)
    assert json.loads(header["preprocess"])["size"] == [16, 12]
    architecture = json.loads(header["architecture"])
    assert architecture["name"] == "custom_resnet" and architecture["arguments"]["widths"] == [4, 8, 8, 8]


def test_permissions_follow_the_umask(tmp_path):
    (tmp_path / "plain").touch()
    mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE(saved(tmp_path / "c.safetensors").stat().st_mode) == mode


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model = small().to(memory_format=torch.channels_last).train()
    model.layer1.eval()
    model(torch.randn(4, 3, 16, 12)).sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    saved(tmp_path / "c.safetensors", model)
    with pytest.raises(OtherModelError):
        save_classifier(tmp_path / "d.safetensors", model, PREPROCESS, ("a", "b"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert flags == [m.training for m in model.modules()] and torch.equal(state, torch.get_rng_state())
    assert model.layer2[0].weight.is_contiguous(memory_format=torch.channels_last)
    again = load_classifier(tmp_path / "c.safetensors")
    np.testing.assert_allclose(probabilities(again.predict(images())), expected(model, images()), atol=1e-5)


def test_bf16_weights_stay_bf16_and_predict(tmp_path):
    model = small().to(torch.bfloat16)
    classifier = load_classifier(saved(tmp_path / "c.safetensors", model))
    assert {p.dtype for p in classifier.model.parameters()} == {torch.bfloat16}
    np.testing.assert_allclose(probabilities(classifier.predict(images())), expected(model, images()), atol=0.05)


def test_compiled_and_parallel_shells_are_taken_off(tmp_path):
    model = small()
    for shell in (torch.compile(model), nn.DataParallel(model)):
        again = load_classifier(saved(tmp_path / "c.safetensors", shell)).model
        assert list(again.state_dict()) == list(model.state_dict())


def test_own_network_is_given_again(tmp_path):
    model = Own()
    path = saved(tmp_path / "own.safetensors", model)
    with pytest.raises(OtherModelError, match="model=network"):
        load_classifier(path)
    classifier = load_classifier(path, model=Own())
    np.testing.assert_allclose(probabilities(classifier.predict(images())), expected(model, images()), atol=1e-6)
    assert classifier.model.one.weight is classifier.model.two.weight
    other = Own(width=7)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(OtherModelError, match=r"one\.weight"):
        load_classifier(path, model=other)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_a_network_with_extra_outputs_in_training(tmp_path):
    class Auxiliary(Own):  # as GoogLeNet and Inception do
        def forward(self, x):
            logits = super().forward(x)
            return (logits, logits) if self.training else logits

    classifier = load_classifier(saved(tmp_path / "c.safetensors", Auxiliary().train()), Auxiliary().train())
    assert len(classifier.predict(images())) == 7


def test_a_network_with_an_exchanged_layer_is_the_users_own(tmp_path):
    model = small()
    model.prep.relu = nn.Tanh()  # no weights tell of it
    model.fc = nn.Linear(8, 3)
    path = saved(tmp_path / "c.safetensors", model)
    with pytest.raises(OtherModelError, match="model=network"):
        load_classifier(path)
    twin = copy.deepcopy(model)
    np.testing.assert_allclose(
        probabilities(load_classifier(path, twin).predict(images())), expected(model, images()), atol=1e-6
    )


def test_the_same_weights_in_another_network_are_refused(tmp_path):
    path = saved(tmp_path / "c.safetensors")
    other = models.CustomResNet(**SMALL, pool="avg")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(OtherModelError, match="pool='avg'"):
        load_classifier(path, model=other)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    assert load_classifier(path, model=models.CustomResNet(**SMALL)).classes == CLASSES


def test_networks_added_to_the_table_are_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "own", Own)
    path = saved(tmp_path / "c.safetensors", models.build_model("own", classes=3, width=5))
    assert load_classifier(path).model.end.in_features == 5
    monkeypatch.delitem(models.MODELS, "own")
    with pytest.raises(OtherModelError, match="cannot build"):
        load_classifier(path)


class Scaled(Own):
    """What its constructor makes and no file keeps: a buffer that is not persistent, and a plain tensor."""

    def __init__(self, classes=3, width=5):
        super().__init__(classes, width)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.shift = torch.tensor(1.0)

    def forward(self, x):
        return super().forward(x * self.scale.to(x.device)) + self.shift.to(x.device)


def test_a_rebuilt_network_has_what_no_file_keeps(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "scaled", Scaled)
    model, random = models.build_model("scaled", classes=3).eval(), torch.get_rng_state()
    path = saved(tmp_path / "c.safetensors", model)
    found = load_classifier(path)
    np.testing.assert_allclose(probabilities(found.predict(images())), expected(model, images()), atol=1e-6)
    assert torch.equal(random, torch.get_rng_state())


def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(OtherModelError, match=r"\(2, 2\).*gave \(2, 3\)"):
        save_classifier(path, small(), PREPROCESS, ("a", "b"))
    grey = Preprocess(16, 1, (0.5,), (0.5,))
    with pytest.raises(OtherModelError, match="does not take images"):
        save_classifier(path, small(), grey, CLASSES)
    with pytest.raises(SettingError, match="metrics"):
        save_classifier(path, small(), PREPROCESS, CLASSES, {"what": object()})
    with pytest.raises(SettingError, match="names"):
        save_classifier(path, small(), PREPROCESS, "abc")
    with pytest.raises(SettingError, match="preprocess"):
        save_classifier(path, small(), CLASSES, PREPROCESS)  # in the wrong order
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileWriteError):
        save_classifier(saved(path) / "below", small(), PREPROCESS, CLASSES)


def test_unusable_files(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    with pytest.raises(DataNotFoundError):
        load_classifier(path)
    whole = saved(path).read_bytes()
    for damaged in (b"", b"PK", whole[:50], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            load_classifier(path)
    altered = bytearray(whole)
    altered[-5] ^= 1  # a weight
    path.write_bytes(altered)
    with pytest.raises(DamagedFileError):
        load_classifier(path)
    write_tensors(path, "checkpoint", {})
    with pytest.raises(DamagedFileError, match="no classifier"):
        load_classifier(path)
    write_tensors(path, "classifier", {"": {}})
    with pytest.raises(DamagedFileError, match="architecture"):
        load_classifier(path)
    monkeypatch.setattr(_files, "FORMAT_VERSION", _files.FORMAT_VERSION + 1)
    saved(path)
    monkeypatch.undo()
    with pytest.raises(NewerFormatError):
        load_classifier(path)


def test_a_strangers_file_can_name_no_other_weights(tmp_path):
    path = saved(tmp_path / "c.safetensors")
    content, _ = read_tensors(path, "classifier")
    content["architecture"] = {"name": "resnet18", "arguments": {"weights": str(tmp_path / "trap.pth")}}
    write_tensors(path, "classifier", content)
    with pytest.raises(OtherModelError, match="its own weights"):
        load_classifier(path)


@pytest.fixture
def classifier(tmp_path):
    return load_classifier(saved(tmp_path / "c.safetensors"))


def test_all_kinds_of_images_give_the_same(classifier, tmp_path):
    raw = images(1)[0]
    Image.fromarray(raw).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    kinds = [str(path), path, Image.open(path), raw, torch.from_numpy(raw)]
    reference = expected(classifier.model, raw[None])[0]
    for kind in kinds:
        (prediction,) = classifier.predict(kind)
        assert isinstance(prediction, Prediction)
        np.testing.assert_allclose(prediction.probabilities, reference, atol=1e-5)
        assert prediction.label == reference.argmax() and prediction.name == CLASSES[prediction.label]
        assert prediction.probability == max(prediction.probabilities)
    mixed = classifier.predict(iter(kinds), batch_size=2)
    assert len(mixed) == 5 and probabilities(mixed) == pytest.approx(np.stack([reference] * 5), abs=1e-5)
    assert classifier.predict(np.array([str(path)] * 2)) == classifier.predict([path, path])
    assert classifier.predict([]) == []


def test_transparent_pixels_are_white(classifier):
    rgba = np.dstack([images(1)[0], np.arange(16 * 12, dtype=np.uint8).reshape(16, 12)])
    reference = probabilities(classifier.predict(Image.fromarray(rgba)))
    for given in (rgba, [rgba], rgba[None]):
        assert probabilities(classifier.predict(given)) == pytest.approx(reference, abs=1e-6)
    with pytest.raises(DataError, match=r"got \(3, 16, 12\)\. A tensor \(C, H, W\) becomes that by permute"):
        classifier.predict(torch.from_numpy(images(1)[0]).permute(2, 0, 1))


def test_grey_and_large_images(classifier):
    grey = images(1)[0][:, :, 0]
    colour = np.repeat(grey[:, :, None], 3, 2)
    reference = probabilities(classifier.predict(colour))
    for given in (grey, grey[:, :, None], [grey], Image.fromarray(grey)):
        assert probabilities(classifier.predict(given)) == pytest.approx(reference, abs=1e-6)
    large = np.kron(colour, np.ones((3, 3, 1), np.uint8))
    resized = PREPROCESS.resize(large).copy()
    assert resized.shape == (16, 12, 3)
    assert probabilities(classifier.predict([large])) == pytest.approx(
        expected(classifier.model, resized[None]), abs=1e-5
    )


def test_batches_do_not_matter_and_the_model_stays(classifier):
    raw = images(7)
    classifier.model.train()
    before = {k: v.clone() for k, v in classifier.model.state_dict().items()}
    reference = expected(classifier.model, raw)
    for size in (1, 3, 64):
        for given in (raw, torch.from_numpy(raw), list(raw)):
            found = classifier.predict(given, batch_size=size)
            np.testing.assert_allclose(probabilities(found), reference, atol=1e-5)
    assert all(m.training for m in classifier.model.modules())
    assert all(torch.equal(v, before[k]) for k, v in classifier.model.state_dict().items())
    assert all(p.grad is None for p in classifier.model.parameters())


def test_what_is_no_image(classifier, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png"):
        classifier.predict([tmp_path / "a.png"])
    with pytest.raises(DataNotFoundError, match=r"b\.png"):
        classifier.predict("b.png")
    for wrong in (5, {"a": 1}, b"abc", np.zeros(3, np.uint8), np.zeros((3, 16, 12), np.uint8), [None]):
        with pytest.raises(DataError, match="Expected"):
            classifier.predict(wrong)
    with pytest.raises(DataError, match="float32"):
        classifier.predict(images()[0].astype(np.float32))
    for size in (0, 1.5):
        with pytest.raises(SettingError, match="batch_size"):
            classifier.predict(images(), batch_size=size)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_export_gives_the_same(classifier, tmp_path):
    classifier.model.train()
    before = copy.deepcopy(classifier.model.state_dict())
    out = export(classifier, tmp_path / "c.pt2", "torch")
    extra = {"classes.json": ""}
    program = torch.export.load(out, extra_files=extra).module()
    assert json.loads(extra["classes.json"]) == list(CLASSES)
    for n in (1, 2, 7):  # any number of images
        found = program(torch.from_numpy(images(n))).detach().numpy()
        np.testing.assert_allclose(found, expected(classifier.model, images(n)), atol=1e-5)
    assert classifier.model.training
    assert all(torch.equal(v, before[k]) for k, v in classifier.model.state_dict().items())
    assert len(classifier.predict(images())) == 7  # tracing left nothing in preprocess


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["fp32", "bf16", "own"])
def test_onnx_runtime_gives_the_same(kind, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = Own() if kind == "own" else small().to(torch.bfloat16 if kind == "bf16" else torch.float32)
    given = Classifier(model, PREPROCESS, CLASSES) if kind == "own" else saved(tmp_path / "c.safetensors", model)
    out = export(given, tmp_path / "c.onnx")
    assert {p.name for p in tmp_path.iterdir()} <= {"c.onnx", "c.safetensors"}  # no weights beside it
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)
    for n in (1, 2, 7):
        (found,) = session.run(["probabilities"], {"images": images(n)})
        np.testing.assert_allclose(found, expected(model, images(n)), atol=1e-4)


def test_export_without_its_packages_or_with_another_format(classifier, tmp_path, monkeypatch):
    out = tmp_path / "x.onnx"
    with pytest.raises(UnknownNameError, match="'onnx'"):
        export(classifier, out, "onx")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: None if n == "onnxscript" else find(n, *a))
    with pytest.raises(MissingPackageError, match=r'onnxscript: pip install "vision-wrapper\[export\]"'):
        export(classifier, out)
    assert not out.exists()


@pytest.mark.parametrize(("name", "format"), [("x.pt2", "onnx"), ("x.onnx", "torch"), ("x.SAFETENSORS", "onnx")])
def test_a_path_that_ends_as_another_format_does_is_refused(classifier, name, format, tmp_path):
    with pytest.raises(SettingError, match=f"those of {format} end in"):
        export(classifier, tmp_path / name, format)
    assert not (tmp_path / name).exists()


def test_classes_of_one_name_are_not_saved(tmp_path):
    with pytest.raises(SettingError, match="got 'ape' more than once"):
        save_classifier(tmp_path / "c", models.CustomResNet(**SMALL), PREPROCESS, ("ape", "bee", "ape"))
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_exported_writes_nothing(tmp_path):
    class Branching(Own):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)  # which way depends on the numbers

    with pytest.raises(SettingError, match="Branching cannot be exported as torch"):
        export(Classifier(Branching(), PREPROCESS, CLASSES), tmp_path / "x.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_nothing_optional_is_imported():
    code = "import sys, vision_wrapper.classifier; print([m for m in ('onnx', 'matplotlib') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_temperature_stays_with_the_classifier(tmp_path):
    """In the file, in its predictions and in what is exported; decisions stay."""
    model = models.CustomResNet(num_classes=3, widths=(4, 4, 8, 8)).eval()
    preprocess = Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for temperature in (1.0, 4.0):
        save_classifier(tmp_path / f"{temperature}", model, preprocess, list("abc"), temperature=temperature)
    sharp, calm = (load_classifier(tmp_path / f"{t}") for t in (1.0, 4.0))
    assert (sharp.temperature, calm.temperature) == (1.0, 4.0)
    one, other = sharp.predict(image)[0], calm.predict(image)[0]
    assert one.label == other.label and other.probability < one.probability
    with torch.no_grad():
        expected = (model(preprocess.batch([image])) / 4).softmax(1)[0]
    assert other.probabilities == pytest.approx(expected.tolist(), abs=1e-6)
    export(calm, tmp_path / "calm.pt2", format="torch")
    exported = torch.export.load(tmp_path / "calm.pt2").module()(torch.from_numpy(image)[None])
    assert exported[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(SettingError, match="temperature must be"):
        save_classifier(tmp_path / "x", model, preprocess, list("abc"), temperature=0)


def of_channels(channels):
    preprocess = Preprocess((8, 8), channels, (0.5,) * channels, (0.2,) * channels)
    return Classifier(models.CustomResNet(**SMALL, in_channels=channels).eval(), preprocess, CLASSES)


def test_an_image_without_pixels_is_named():
    classifier = of_channels(3)
    with pytest.raises(DataError, match="an image with pixels"):
        classifier.predict([np.zeros((0, 4, 3), np.uint8)])


def test_one_photograph_at_a_time_is_held(monkeypatch):
    decoded, held = [], []

    def decode(*_):
        image = np.zeros((9, 9, 3), np.uint8)
        decoded.append(weakref.ref(image))
        held.append(sum(made() is not None for made in decoded))
        return image

    monkeypatch.setattr("vision_wrapper.classifier.decode", decode)
    assert len(of_channels(3).predict(["photograph.jpg"] * 6)) == 6
    assert max(held) <= 2  # the one that is resized, and the next


def test_one_image_of_as_many_channels_as_the_classifier_has():
    classifier = of_channels(4)
    image = np.zeros((8, 8, 4), np.uint8)
    assert len(classifier.predict(image)) == len(classifier.predict(image[None])) == 1

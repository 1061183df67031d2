"""Damaged and hostile files: 10,000 of them, the same every time. `scripts/fuzz 100` tries a million, new each time.

Each ends in success or in an error of the library, within SECONDS, within MEMORY, and with every file closed.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json

import pytest
import torch
from fuzzing import byte_edits, contained, edited_bytes, inputs, only_own_errors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from vision_wrapper import data, models, recipes, report
from vision_wrapper._files import read_tensors, write_json
from vision_wrapper._seeding import seed_generators
from vision_wrapper.classifier import load_classifier, save_classifier
from vision_wrapper.errors import DamagedFileError, VisionWrapperError
from vision_wrapper.evaluation import Predictions
from vision_wrapper.recipes import RECIPES, read_run
from vision_wrapper.recipes.run import _lr_curve
from vision_wrapper.trainer import History, Trainer


@pytest.fixture(autouse=True)
def limits():
    with contained():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ---- damage to JSON

DEEP = "@deep@"  # stands for an array nested so deeply that json itself could not write it

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([2**31, 2**53, 2**62, 2**63, 2**64, -(2**63), 10**400, 1e308, DEEP, "\ud800", "²", "\0", "../x"])
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def json_edits(*words):
    """One to three edits: which place, what becomes of it, and the new value; `words` are values that come near."""
    values = st.sampled_from(words) | json_values if words else json_values
    kinds = st.sampled_from(["replace", "replace", "replace", "delete", "rename", "wrap"])
    return st.lists(st.tuples(kinds, st.integers(0, 2**64), values), min_size=1, max_size=3)


def edited_json(tree, edits):
    """A copy with the values at some places replaced, deleted, under another key, or in a list of their own."""
    tree = [copy.deepcopy(tree)]
    for kind, at, value in edits:
        holder, key = place(tree, at)
        value = copy.deepcopy(value)  # the same one twice could come to hold itself
        if kind == "replace" or holder is tree:
            holder[key] = value
        elif kind == "delete":
            del holder[key]
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif isinstance(holder, dict):
            holder[str(value)] = holder.pop(key)
        else:
            holder.append(value)
    return tree[0]


def place(tree, at):
    """A dict or list within the tree, and a key of it; the digits of `at` lead there."""
    holder, key = tree, 0
    while isinstance(holder[key], (dict, list)) and holder[key] and at % 6:
        at //= 6
        holder = holder[key]
        at, index = divmod(at, len(holder))
        key = index if isinstance(holder, list) else list(holder)[index]
    return holder, key


def dumped(value):
    return json.dumps(value, separators=(",", ":")).replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000)


# ---- checkpoints and classifiers

FILES = ("trainer", "small", "own")
PREPROCESS = data.Preprocess((8, 8), 3, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
ARGUMENTS = {"num_classes": 2, "widths": (2, 2, 2, 2)}


def small():
    return models.CustomResNet(**ARGUMENTS)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


@functools.cache
def new_trainer():
    model = Own()
    trainer = Trainer(model, torch.optim.Adam(model.parameters()), device="cpu", precision="fp32", callbacks=[])
    trainer.fit([(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))], epochs=1)
    return trainer


@pytest.fixture(scope="module")
def files(folder):
    """Whole files: of a trainer, of a network of this library, and of another network."""
    seed_generators(0)
    trainer = new_trainer()
    save_classifier(folder / "small", small(), PREPROCESS, ("a", "b"), {"accuracy": 0.5})
    save_classifier(folder / "own", Own(), PREPROCESS, ("a", "b"))
    trainer.save(folder / "trainer")
    for name in FILES:  # their headers are in another order every time
        (folder / name).write_bytes(forged(*opened(folder / name)))
    return folder


def read(name, path):
    if name == "trainer":
        new_trainer().load(path)
    else:
        load_classifier(path, Own() if name == "own" else None)


def opened(path):
    """(header, data) of a tensor file, sorted, with the tree in the header as JSON."""
    blob = path.read_bytes()
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    metadata = header.pop("__metadata__")
    metadata["content"] = json.loads(metadata["content"])
    return {"__metadata__": dict(sorted(metadata.items())), **header}, blob[8 + size :]


def forged(header, content):
    """A tensor file of any header, with a checksum that fits, where it has a place for one."""
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict) and "content" in metadata:
        metadata["content"] = dumped(metadata["content"])
    text = dumped(header).encode()
    blob = bytearray(len(text).to_bytes(8, "little") + text + content)
    at = blob.find(b'"sha256":"') + len(b'"sha256":"')
    if at >= 10 and blob[at + 64 : at + 65] == b'"':
        blob[at : at + 64] = b"0" * 64
        blob[at : at + 64] = hashlib.sha256(blob).hexdigest().encode()
    return bytes(blob)


def test_what_is_not_edited_is_read(files, folder):
    for name in FILES:
        read(name, files / name)
        assert forged(*opened(files / name)) == (files / name).read_bytes()


@given(name=st.sampled_from(FILES), edits=byte_edits)
@inputs(1800)
def test_no_damage_to_a_tensor_file_goes_unseen(files, folder, name, edits):
    blob = (files / name).read_bytes()
    damaged = edited_bytes(blob, edits)
    (folder / "x").write_bytes(damaged)
    if damaged != blob:
        with pytest.raises(VisionWrapperError):
            read(name, folder / "x")


@given(start=st.sampled_from([b"", b"\x80\x04", b"PK\3\4", b"\x02" + b"\0" * 7 + b"{}"]), rest=st.binary(max_size=300))
@inputs(400)
def test_random_bytes_are_no_tensor_file(folder, start, rest):
    sized = len(rest).to_bytes(8, "little") + rest
    for blob in (start + rest, sized):
        (folder / "x").write_bytes(blob)
        with pytest.raises(DamagedFileError):
            read_tensors(folder / "x", "checkpoint")


DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "I64", "U64", "U16", "C64", "BOOL", "f32")


@given(
    name=st.sampled_from(FILES),
    edits=json_edits(*DTYPES, [], [0], [2**62, 4, 0], [2**32, 2**32], [0, 0], [0, 2**62], [1, 2, 3]),
)
@inputs(800)
def test_forged_tensors(files, folder, name, edits):
    header, content = opened(files / name)
    metadata = header.pop("__metadata__")
    header = edited_json(header, edits)
    if isinstance(header, dict):
        header = {"__metadata__": metadata, **header}
    (folder / "x").write_bytes(forged(header, content))
    with only_own_errors():
        read(name, folder / "x")


MARKS = (
    {"tensor": "fc.weight"}, {"array": "fc.weight"}, {"tensor": []}, {"tuple": 3}, {"dict": [[[], 1]]}, {"dict": [[1]]},
    {"dict": {"ab": 1}}, {"x": 1}, {}, "custom_resnet", "resnet18", "weights", [10**9, 2, 2, 2], [10**6, 10**6],
    [30_000, 30_000], "1", "2", "0", "9" * 5000, "1e3",
)  # fmt: skip


@given(name=st.sampled_from(FILES), edits=json_edits(*MARKS))
@inputs(1400)
def test_forged_content(files, folder, name, edits):
    header, content = opened(files / name)
    tree = header["__metadata__"]["content"]
    header["__metadata__"]["content"] = edited_json(tree, edits)
    (folder / "x").write_bytes(forged(header, content))
    with only_own_errors():
        read(name, folder / "x")


@given(name=st.sampled_from(FILES), edits=json_edits("1", "2", "²", "0" * 64, "é" * 64))
@inputs(300)
def test_forged_metadata(files, folder, name, edits):
    header, content = opened(files / name)
    tree = header["__metadata__"].pop("content")
    metadata = edited_json(header["__metadata__"], edits)
    header["__metadata__"] = {**metadata, "content": tree} if isinstance(metadata, dict) else metadata
    (folder / "x").write_bytes(forged(header, content))
    with only_own_errors():
        read(name, folder / "x")


# ---- run folders


@pytest.fixture(scope="module")
def run_folder(folder):
    """A run folder as a run leaves it, but small."""
    run = folder / "run"
    identity = {
        "recipe": RECIPES["custom-resnet-onecycle"].as_dict(),
        "data": "digits",
        "passed": False,
        "content": {"train": "0" * 16, "test": "1" * 16},
        "root": "data",
        "watched": "the test set",
    }
    write_json(run / "recipe.json", identity)
    row = {"lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": None, "val_accuracy": None, "seconds": 1.5}
    history = History([{"epoch": 1, **row}, {"epoch": 2, **row}], [{"step": 1, "epoch": 1, "lr": 0.1, "loss": 2.0}])
    history.to_csv(run / "history.csv")
    history.to_json(run / "history.json")
    write_json(run / "lr_curve.json", {"lrs": [0.1, 0.2], "losses": [2.0, 1.0], "suggestion": 0.1, "reason": "steep"})
    write_json(run / "environment.json", {"python": "3.11", "cpu_threads": 1})
    (run / "model.txt").write_text("a model")
    Predictions(torch.rand(6, 3), torch.arange(6) % 3).save(run / "predictions.npz")
    (run / "plots").mkdir()
    Image.new("RGB", (2, 2)).save(run / "plots" / "history.png")
    return run


def read_recipe(run):
    recipe, identity = read_run(run)
    assert isinstance(recipe, recipes.Recipe) and identity["recipe"]["name"] == recipe.name


RECIPE_WORDS = ("adam", "sgd", "plateau", "one_cycle", "resnet18", "bf16", "classic", {"max_lr": 1}, {"lr": 1}, {}, [])


@given(value=json_values)
@inputs(500)
def test_any_json_as_a_recipe(folder, value):
    (folder / "recipe.json").write_text(dumped(value))
    with only_own_errors():
        read_recipe(folder)


@given(edits=json_edits(*RECIPE_WORDS))
@inputs(800)
def test_forged_recipes(run_folder, folder, edits):
    value = edited_json(json.loads((run_folder / "recipe.json").read_text()), edits)
    (folder / "recipe.json").write_text(dumped(value))
    with only_own_errors():
        read_recipe(folder)


@given(
    name=st.sampled_from(["history.json", "lr_curve.json"]), value=json_values, edits=json_edits(), free=st.booleans()
)
@inputs(500)
def test_forged_histories_and_curves(run_folder, folder, name, value, edits, free):
    value = value if free else edited_json(json.loads((run_folder / name).read_text()), edits)
    (folder / name).write_text(dumped(value))
    with only_own_errors():
        if name == "history.json":
            History.from_json(folder / name)
        else:
            _lr_curve(RECIPES["custom-resnet-onecycle"], None, None, folder)  # type: ignore[arg-type]


RUN_FILES = ("recipe.json", "history.csv", "history.json", "environment.json", "model.txt", "predictions.npz")
RUN_FILES += ("plots/history.png",)


@given(
    damage=st.dictionaries(
        st.sampled_from(RUN_FILES),
        st.sampled_from(["removed", "a folder", "empty"])
        | st.binary(max_size=40)
        | byte_edits
        | json_values.map(lambda v: ("json", v))
        | json_edits().map(lambda e: ("edits", e)),
        min_size=1,
        max_size=3,
    )
)
@inputs(300)
def test_a_report_of_a_damaged_run(run_folder, damage):
    whole = {part: (run_folder / part).read_bytes() for part in damage}
    for part, what in damage.items():
        spoil(run_folder / part, what)
    try:
        with only_own_errors():
            assert report.write(run_folder).read_text(encoding="utf-8").rstrip().endswith("</html>")
        with only_own_errors():
            read_run(run_folder)
        with only_own_errors():
            History.from_json(run_folder / "history.json")
    finally:
        for part, content in whole.items():
            if (run_folder / part).is_dir():
                (run_folder / part).rmdir()
            (run_folder / part).write_bytes(content)


def spoil(path, what):
    content = path.read_bytes()
    if what in ("removed", "a folder"):
        path.unlink()
        if what == "a folder":
            path.mkdir()
    elif isinstance(what, bytes):
        path.write_bytes(what)
    elif isinstance(what, list):
        path.write_bytes(edited_bytes(content, what))
    elif what == "empty":
        path.write_bytes(b"")
    elif what[0] == "json":
        path.write_text(dumped(what[1]))
    elif path.suffix == ".json":
        path.write_text(dumped(edited_json(json.loads(content), what[1])))

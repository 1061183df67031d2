"""Damaged and hostile files: 10,000 of them, the same every time. `scripts/fuzz 100` tries a million, new each time.

Each ends in success or in an error of the library, within SECONDS, within MEMORY, and with every file closed.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import gc
import hashlib
import io
import json
import os
import signal
import struct
import tempfile
import warnings
import zlib

import numpy as np
import pytest
import torch
from conftest import limited_memory, random_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from vision_wrapper import data, models, recipes, report
from vision_wrapper._files import read_tensors, write_json
from vision_wrapper._seeding import seed_generators
from vision_wrapper.classifier import load_classifier, save_classifier
from vision_wrapper.data.images import decode
from vision_wrapper.data.splits import FolderSplit, image_size
from vision_wrapper.errors import DamagedFileError, VisionWrapperError
from vision_wrapper.evaluation import Predictions
from vision_wrapper.recipes import RECIPES, read_run
from vision_wrapper.recipes.run import _lr_curve
from vision_wrapper.trainer import History, Trainer

TIMES = int(os.environ.get("VISION_WRAPPER_FUZZ_EXAMPLES", "1"))
SECONDS = 10  # for an input; most take a millisecond or two
MEMORY = 2**30  # bytes of address space beyond what the test process has; the inputs are below 100 kB


def inputs(count):
    """Settings for so many inputs."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    """An input took too long. Not an Exception, so that nothing catches it."""


@contextlib.contextmanager
def only_own_errors():
    """Let the library's errors pass, and no others; none at all is fine too."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow and of skip_unreadable
            yield
    except VisionWrapperError as error:
        assert str(error)
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.fixture(autouse=True)
def contained():
    """A test whose inputs leave a file open, take too long or want too much memory fails."""

    def hang(*_):
        raise Hang

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, hang)
    before = open_files()
    with limited_memory(MEMORY):
        yield
    assert open_files() <= before


# ---- damage to bytes

byte_edits = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "overwrite", "flip", "insert", "delete", "repeat", "cut"]),
        st.integers(0, 300) | st.integers(0, 2**17),  # the beginning is where headers are
        st.binary(min_size=1, max_size=6) | st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]),
    ),
    min_size=1,
    max_size=4,
)


def edited_bytes(blob, edits):
    blob = bytearray(blob)
    for kind, at, content in edits:
        at %= len(blob) + 1
        if kind == "overwrite":
            blob[at : at + len(content)] = content
        elif kind == "flip":
            blob[at : at + 1] = bytes(value ^ (1 << content[0] % 8) for value in blob[at : at + 1])
        elif kind == "insert":
            blob[at:at] = content
        elif kind == "delete":
            del blob[at : at + len(content)]
        elif kind == "repeat":
            blob[at:at] = blob[at : at + 16 * content[0]]
        else:
            del blob[at:]
    return bytes(blob)


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
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


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


# ---- folders of images

NAMES = ("train", "test", "val", "cat", "dog", "x.png", "Y.PNG", "z.jpg", ".hidden", " ", "é", "\udcff.png", "a" * 255)
NAMES += ("[a]*?", "\n", "-", "~", "%s{0}", "..png", "x.png.tmp", "con.png")
PNG = base64.b64decode(  # 1x1 pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB4iG8MwAAAABJRU5ErkJggg=="
)
paths = st.lists(st.sampled_from(NAMES[:9]) | st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
entries = st.lists(
    st.tuples(paths, st.sampled_from(["folder", "png", "png", "png", "empty", "text", "link", "pipe"]), paths),
    max_size=8,
)
whole = st.sampled_from(((), ("",), ("train/", "test/"), ("train/", "val/"), ("train/", "val/", "test/")))


def plant(root, entries):
    for name, kind, target in entries:
        path = os.path.join(root, name)
        with contextlib.suppress(OSError):  # in the way of one another
            os.makedirs(path if kind == "folder" else os.path.dirname(path), exist_ok=True)
            if kind == "link":
                os.symlink(os.path.join(root, target), path)
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind != "folder":
                with open(path, "xb") as file:
                    file.write({"png": PNG, "empty": b"", "text": b"no image"}[kind])


@given(
    parts=whole,
    entries=entries,
    channels=st.sampled_from([1, 3]),
    skip=st.booleans(),
    fraction=st.floats(0.01, 0.99),
)
@inputs(300)
def test_odd_trees_of_folders(folder, parts, entries, channels, skip, fraction):
    images = [(f"{part}{name}/{i}.png", "png", "") for part in parts for name in ("cat", "dog") for i in range(2)]
    with tempfile.TemporaryDirectory(dir=folder) as root:
        plant(root, [*images, *entries])
        with only_own_errors():
            loaded = data.load(root, channels=channels, skip_unreadable=skip, test_fraction=fraction)
            for _, split in loaded.splits():
                for i in range(len(split)):
                    with only_own_errors():
                        assert image_size(split, i) == split[i][0].shape[:2] and split.origin(i).startswith(root)
            data.stats(loaded)


# ---- images


def _image_files():
    pixels = random_images(1, 12)[0]
    pixels[2:6] = 7  # something to compress
    rgb = Image.fromarray(pixels)
    alpha = Image.fromarray(pixels[..., 0])
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    modes = {mode: rgb.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "I", "F")}
    modes |= {"RGBA": rgba, "LA": rgba.convert("LA"), "I;16": wide}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    kinds = [
        ("png", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], [{}, {"exif": exif}]),
        ("jpeg", ["L", "RGB", "CMYK"], [{}, {"progressive": True, "exif": exif}]),
        ("gif", ["1", "L", "P", "RGB"], [{}, {"transparency": 3}, {"save_all": True, "append_images": [modes["L"]]}]),
        ("bmp", ["1", "L", "P", "RGB", "RGBA"], [{}]),
        ("tiff", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"], [{}, {"exif": exif}]),
        ("tiff", ["L", "RGB"], [{"compression": c} for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")]),
        ("tiff", ["1"], [{"compression": "group4"}]),
        ("webp", ["L", "RGB", "RGBA"], [{}, {"lossless": True, "exif": exif}]),
        ("webp", ["RGB"], [{"save_all": True, "append_images": [modes["L"].convert("RGB")]}]),
        ("ppm", ["1", "L", "RGB", "I;16"], [{}]),
    ]
    for suffix, names, variants in kinds:
        for mode in names:
            for arguments in variants:
                buffer = io.BytesIO()
                modes[mode].save(buffer, suffix, **arguments)
                yield suffix, buffer.getvalue()


IMAGES = tuple(_image_files())


def with_checksums(blob):
    """A PNG with the checksums of its chunks made to fit, so that damage reaches the decoder."""
    blob, at = bytearray(blob), 8
    while at + 12 <= len(blob):
        end = at + 8 + int.from_bytes(blob[at : at + 4], "big")
        blob[end : end + 4] = struct.pack(">I", zlib.crc32(blob[at + 4 : end])) if end + 4 <= len(blob) else b""
        at = end + 4
    return bytes(blob)


@given(image=st.sampled_from(IMAGES), edits=byte_edits, channels=st.sampled_from([1, 3]), sealed=st.booleans())
@inputs(2300)
def test_damaged_images(folder, image, edits, channels, sealed):
    suffix, blob = image
    blob = edited_bytes(blob, edits)
    path = folder / f"x.{suffix}"
    path.write_bytes(with_checksums(blob) if sealed and suffix == "png" else blob)
    with only_own_errors():
        pixels = decode(path, channels)
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (channels,)
        assert image_size(FolderSplit([str(path)], np.zeros(1, int), channels), 0) == pixels.shape[:2]


@given(
    start=st.sampled_from([blob[:16] for _, blob in IMAGES] + [b"%!PS-Adobe-3.0 EPSF-3.0\n"]),
    rest=st.binary(max_size=99),
)
@inputs(600)
def test_random_bytes_as_images(folder, start, rest):
    (folder / "x.png").write_bytes(start + rest)
    with only_own_errors():
        decode(folder / "x.png")

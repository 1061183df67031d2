"""Atomic, checked files."""

import errno
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_wrapper import _files
from vision_wrapper._files import read_json, read_tensors, write_bytes, write_json, write_tensors, write_text
from vision_wrapper._state import random_states, set_random_states
from vision_wrapper.errors import (
    CheckpointError,
    DamagedFileError,
    DataNotFoundError,
    FileWriteError,
    NewerFormatError,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


TREE = {
    "empty": [{}, [], (), "", None],
    "numbers": (1, -2.5, True, 10**30, float("inf")),
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(6.0).reshape(2, 3)}, 1: {}},
    "a.b": torch.ones(2),
    "a": {"b": torch.zeros(2)},  # spells the same path
    "": torch.tensor(1),
    "scalar": np.array(5.0),
    "arrays": [np.arange(4, dtype=np.uint32), np.zeros((0, 3), np.float32), np.ones((2, 3)).T],
    "text": "0" * 64 + 'ünïcode "quotes" \\ ',
    "dtypes": [torch.ones(2, 2).to(dtype) for dtype in DTYPES],
    "channels_last": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
}


def test_a_tree_comes_back_as_it_was(tmp_path):
    for name in ("first", "second"):  # the header's order differs from write to write
        write_tensors(tmp_path / name, "checkpoint", TREE, note="0" * 64)
        tree, header = read_tensors(tmp_path / name, "checkpoint")
        assert same(TREE, tree)
        assert header["note"] == "0" * 64


def test_a_bare_tensor_and_shared_memory(tmp_path):
    shared = torch.arange(4.0)
    for tree in (torch.eye(2), [shared, shared, shared[1:]]):
        write_tensors(tmp_path / "t", "checkpoint", tree)
        assert same(tree, read_tensors(tmp_path / "t", "checkpoint")[0])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(tree=json_values)
@settings(max_examples=40, deadline=None)
def test_any_nested_value_comes_back(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "x"
    write_tensors(path, "checkpoint", tree)
    assert same(tree, read_tensors(path, "checkpoint")[0])


def test_random_states_survive_a_file(tmp_path):
    write_tensors(tmp_path / "rng", "checkpoint", random_states())
    expected = torch.rand(3), np.random.rand(3)
    set_random_states(read_tensors(tmp_path / "rng", "checkpoint")[0])
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])


def test_what_would_need_pickling_is_refused_by_its_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.0\.hook is a function"):
        write_tensors(tmp_path / "x", "checkpoint", {"model": [{"hook": same}]})
    assert list(tmp_path.iterdir()) == []


def test_every_truncation_and_every_flipped_byte_is_detected(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, "checkpoint", {"w": torch.arange(5.0), "n": 3})
    blob = path.read_bytes()
    for length in range(len(blob)):
        path.write_bytes(blob[:length])
        with pytest.raises(DamagedFileError, match=str(path)):
            read_tensors(path, "checkpoint")
    for at in range(len(blob)):
        damaged = bytearray(blob)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=str(path)):
            read_tensors(path, "checkpoint")
    path.write_bytes(blob + b"x")
    with pytest.raises(DamagedFileError):
        read_tensors(path, "checkpoint")


def test_other_files(tmp_path):
    with pytest.raises(DataNotFoundError, match="missing"):
        read_tensors(tmp_path / "missing", "checkpoint")
    torch.save({"w": torch.ones(1)}, tmp_path / "pickle")
    with pytest.raises(DamagedFileError):
        read_tensors(tmp_path / "pickle", "checkpoint")
    write_tensors(tmp_path / "c", "classifier", {})
    with pytest.raises(DamagedFileError, match="no checkpoint"):
        read_tensors(tmp_path / "c", "checkpoint")


def test_a_newer_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "FORMAT_VERSION", 2)
    write_tensors(tmp_path / "x", "checkpoint", {})
    monkeypatch.undo()
    with pytest.raises(NewerFormatError, match="pip install -U"):
        read_tensors(tmp_path / "x", "checkpoint")


def test_no_room_on_the_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    write_text(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileWriteError, match=r"history\.json .*No space left") as caught:
        write_bytes(path, b"new" * 1000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["history.json"]


def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_text(path, "old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_a_folder_in_the_way_is_a_write_error(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(FileWriteError):
        write_text(tmp_path / "x", "text")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(os.name == "nt", reason="no umask")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "deep" / "x", "checkpoint", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "x").stat().st_mode) == 0o640


def test_json(tmp_path):
    write_json(tmp_path / "x.json", {"é": [1, None]})
    assert read_json(tmp_path / "x.json") == {"é": [1, None]}
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    with pytest.raises(DataNotFoundError):
        read_json(tmp_path / "y.json")
    write_json(tmp_path / "x.json", "no UTF-8: \udcff")  # as the name of a file can be
    assert read_json(tmp_path / "x.json") == "no UTF-8: \udcff"
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"bad\.json"):
            read_json(tmp_path / "bad.json")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = _files._host()
    leftover = tmp_path / f".last.ckpt.{host}.{int(dead.stdout)}-0123abcd.part"
    names = (f".last.ckpt.{host}.{os.getpid()}-0123abcd.part", f".last.ckpt.0a1b2c3d.{int(dead.stdout)}-0123abcd.part")
    kept = [tmp_path / name for name in (*names, ".mine.part", "last.ckpt")]  # the second one is of another machine
    for file in (leftover, *kept):
        file.write_bytes(b"")
    _files.remove_leftovers(tmp_path)
    assert not leftover.exists() and all(file.exists() for file in kept)
    os.utime(kept[1], (0, 0))
    _files.remove_leftovers(tmp_path)
    assert [file.exists() for file in kept] == [True, False, True, True]

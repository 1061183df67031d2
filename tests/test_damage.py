"""Writing that is cut short, files that are damaged or hostile: the one before survives, and nothing is run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess

import pytest
import torch
from conftest import limited_memory
from torch import nn

from vision_wrapper import _files, data, models
from vision_wrapper._files import read_tensors, write_bytes, write_tensors
from vision_wrapper.classifier import load_classifier, save_classifier
from vision_wrapper.errors import (
    DamagedFileError,
    DataNotFoundError,
    FileWriteError,
    NewerFormatError,
    OtherModelError,
    OtherRunError,
)
from vision_wrapper.trainer import Trainer

needs_limits = pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limits on the size of files")
PREPROCESS = data.Preprocess((8, 8), 3, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
KILOBYTE = 1024
MEGABYTE = 2**20


class Net(nn.Module):
    def __init__(self, width=60, classes=3):
        super().__init__()
        self.body, self.fc = nn.Linear(48, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.body(x.mean(1)[:, ::2, ::2].repeat(1, 3, 1).flatten(1)))  # (N, 3, 8, 8) to (N, 48)


def batches():
    return [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))] * 2


def make(model=None):
    model = Net() if model is None else model
    return Trainer(model, torch.optim.Adam(model.parameters()), device="cpu", precision="fp32", callbacks=[])


@pytest.fixture
def checkpoint(tmp_path):
    """The checkpoint of a run of one epoch, some 50 kB."""
    make().fit(batches(), epochs=1, checkpoint=tmp_path / "run" / "last.ckpt")
    return tmp_path / "run" / "last.ckpt"


@contextlib.contextmanager
def files_of_at_most(size):
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


# ---- writing that is cut short


@pytest.fixture
def after(tmp_path):
    """The bytes of another checkpoint."""
    trainer = make()
    trainer.fit(batches(), epochs=1)
    trainer.save(tmp_path / "new")
    return (tmp_path / "new").read_bytes()


@needs_limits
def test_a_write_that_fails_at_any_kilobyte_leaves_the_checkpoint_before(checkpoint, after):
    before = checkpoint.read_bytes()
    assert len(after) > 40 * KILOBYTE
    for cut in range(0, len(after), KILOBYTE):
        with files_of_at_most(cut), pytest.raises(FileWriteError, match="unharmed") as caught:
            write_bytes(checkpoint, after)
        assert caught.value.errno == errno.EFBIG
        assert os.listdir(checkpoint.parent) == ["last.ckpt"] and checkpoint.read_bytes() == before
    make().load(checkpoint)
    with files_of_at_most(len(after)):
        write_bytes(checkpoint, after)
    make().load(checkpoint)


@needs_limits
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_killed_at_any_kilobyte_of_a_write_leaves_the_checkpoint_before(checkpoint, after):
    before = checkpoint.read_bytes()
    for cut in range(0, len(after), KILOBYTE):
        process = os.fork()
        if process == 0:  # the kernel kills it at this very byte
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            with files_of_at_most(cut):
                write_bytes(checkpoint, after)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert os.WTERMSIG(status) == signal.SIGXFSZ
        assert checkpoint.read_bytes() == before
    make().load(checkpoint)


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_any_step_of_a_write_may_fail(checkpoint, monkeypatch, step):
    before = checkpoint.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "open":
        monkeypatch.setattr(_files, "open", full, raising=False)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(FileWriteError, match="Free some room"):
        make().save(checkpoint)
    assert os.listdir(checkpoint.parent) == ["last.ckpt"] and checkpoint.read_bytes() == before


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting a small disk needs root and Linux")
    try:
        trainer = make()
        trainer.fit(batches(), epochs=1)
        trainer.save(disk / "c")
        before = (disk / "c").read_bytes()
        for _ in range(3):
            with pytest.raises(FileWriteError, match="No space left") as caught:
                trainer.save(disk / "c")
            assert caught.value.errno == errno.ENOSPC
            assert os.listdir(disk) == ["c"] and (disk / "c").read_bytes() == before
        with pytest.raises(FileWriteError, match="No space left"):
            save_classifier(disk / "best", models.CustomResNet(3, widths=(8, 16, 16, 16)), PREPROCESS, ("a", "b", "c"))
        assert os.listdir(disk) == ["c"]
        make().load(disk / "c")
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- damaged files, and others


def test_every_flipped_byte_of_a_checkpoint_is_detected(tmp_path):
    make(Net(width=2)).save(tmp_path / "c")
    blob = bytearray((tmp_path / "c").read_bytes())
    with open(tmp_path / "c", "r+b", buffering=0) as file:
        for at, value in enumerate(blob):
            file.seek(at)
            file.write(bytes([value ^ (1 << at % 8)]))
            with pytest.raises(DamagedFileError):
                read_tensors(tmp_path / "c", "checkpoint")
            file.seek(at)
            file.write(bytes([value]))
    read_tensors(tmp_path / "c", "checkpoint")


def test_a_classifier_is_whole_or_refused_at_every_length(tmp_path):
    save_classifier(tmp_path / "c", Net(width=2), PREPROCESS, ("a", "b", "c"))
    blob = (tmp_path / "c").read_bytes()
    for length in range(len(blob)):
        (tmp_path / "cut").write_bytes(blob[:length])
        with pytest.raises(DamagedFileError):
            load_classifier(tmp_path / "cut", Net(width=2))
    assert load_classifier(tmp_path / "c", Net(width=2)).classes == ("a", "b", "c")


def newer(path, write, monkeypatch):
    monkeypatch.setattr(_files, "FORMAT_VERSION", _files.FORMAT_VERSION + 1)
    write(Net(), path)
    monkeypatch.undo()


PROBLEMS = {
    "missing": (DataNotFoundError, lambda path, write, patch: None),
    "empty": (DamagedFileError, lambda path, write, patch: path.write_bytes(b"")),
    "another kind": (DamagedFileError, lambda path, write, patch: write_tensors(path, "note", {})),
    "newer": (NewerFormatError, newer),
    "another network": (OtherModelError, lambda path, write, patch: write(Net(width=7), path)),
    "another number of classes": (OtherModelError, lambda path, write, patch: write(Net(classes=4), path)),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_problem_has_its_own_error(tmp_path, monkeypatch, problem):
    error, spoil = PROBLEMS[problem]
    trainer, model, path = make(), Net(), tmp_path / "c"
    before = [value.clone() for value in (*trainer.model.parameters(), *model.parameters())]

    spoil(path, lambda other, path: make(other).save(path), monkeypatch)
    with pytest.raises(error, match=str(path)):
        trainer.load(path)

    def save(other, path):
        save_classifier(path, other, PREPROCESS, [str(i) for i in range(other.fc.out_features)])

    spoil(path, save, monkeypatch)
    with pytest.raises(error, match=str(path)):
        load_classifier(path, model)
    after = (*trainer.model.parameters(), *model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_run_of_other_settings(checkpoint):
    with pytest.raises(OtherRunError, match="clip_norm"):
        model = Net()
        optimizer = torch.optim.Adam(model.parameters())
        Trainer(model, optimizer, device="cpu", precision="fp32", callbacks=[], clip_norm=1.0).fit(
            batches(), epochs=1, checkpoint=checkpoint
        )


# ---- hostile files


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def refused_by_all(path):
    """Every reader refuses the file, and takes little memory for it."""
    with limited_memory(64 * MEGABYTE):
        for read in (
            lambda: make().load(path),
            lambda: make().fit(batches(), epochs=1, checkpoint=path),
            lambda: load_classifier(path),
            lambda: load_classifier(path, Net()),
            lambda: models.resnet18(weights=path),
        ):
            with pytest.raises((DamagedFileError, OtherModelError), match=path.name):
                read()


@pytest.mark.parametrize("plain", [True, False])
def test_a_hostile_pickle_in_place_of_a_checkpoint_runs_nothing(tmp_path, plain):
    content = {"model": Hostile(tmp_path / "was-here"), "optimizer": {}, "run": None}
    if plain:
        (tmp_path / "c.safetensors").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "c.safetensors")
    refused_by_all(tmp_path / "c.safetensors")
    assert os.listdir(tmp_path) == ["c.safetensors"]
    pickle.loads(pickle.dumps(content))  # it would have
    assert (tmp_path / "was-here").exists()


def tensor_file(header, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text


def entry(shape, end, dtype="F32"):
    return {"__metadata__": {}, "w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "content",
    [
        tensor_file(b"{}", 2**60),
        tensor_file(b"{}", 2**64 - 1),
        tensor_file(b"{}", _files.MAX_HEADER_BYTES),
        tensor_file(entry([2**58], 2**60)),
        tensor_file(entry([2**62, 2**62], 0)),
        tensor_file(entry([10**9], 4 * 10**9)),
        tensor_file(entry([0, 2**62], 0)),
        tensor_file(entry([-1], 2**63)),
        tensor_file(b'{"__metadata__":' + b"[" * 10**6),
        tensor_file(b'{"__metadata__":' + b'{"a":' * 10**6),
        tensor_file(b'{"w":' * 10**6 + b"1" + b"}" * 10**6),
        tensor_file(b'{"__metadata__":{"n":"' + b"1" * 10**6 + b'"},"x":' + b"9" * 10**6 + b"}"),
        tensor_file(b"{" + b",".join(b'"%d":0' % i for i in range(10**5)) + b"}"),
    ],
)
def test_a_hostile_header_is_refused_in_little_memory(tmp_path, content):
    (tmp_path / "c.safetensors").write_bytes(content)
    refused_by_all(tmp_path / "c.safetensors")


def forge(path, **changes):
    """A classifier with other content, whose checksum fits."""
    model = models.CustomResNet(3, widths=(4, 4, 4, 4))
    save_classifier(path, model, PREPROCESS, ("a", "b", "c"))
    content, _ = read_tensors(path, "classifier")
    write_tensors(path, "classifier", {**content, **changes})


@pytest.mark.parametrize("size", [(2**31, 2**31), (30_000, 30_000), (4096, 4096), (10**9, 1)])
def test_a_classifier_of_huge_images_takes_no_memory(tmp_path, size):
    preprocess = {"size": list(size), "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    forge(tmp_path / "c", preprocess=preprocess)
    with limited_memory(64 * MEGABYTE):
        if size == (4096, 4096):
            assert load_classifier(tmp_path / "c").preprocess.size == size
        else:
            with pytest.raises(OtherModelError, match=r"16,777,216 pixels|does not take"):
                load_classifier(tmp_path / "c")


@pytest.mark.parametrize("widths", [[10**9] * 4, [2**62] * 4, [10**30] * 4, ["4"] * 4, "4444", {}, [[]] * 4])
def test_a_classifier_of_a_huge_network_takes_no_memory(tmp_path, widths):
    forge(tmp_path / "c", architecture={"name": "custom_resnet", "arguments": {"num_classes": 3, "widths": widths}})
    with limited_memory(64 * MEGABYTE), pytest.raises(OtherModelError):
        load_classifier(tmp_path / "c")


def test_what_a_forged_classifier_holds_besides_weights_changes_nothing(tmp_path):
    state = Net().state_dict()
    save_classifier(tmp_path / "c", Net(), PREPROCESS, ("a", "b", "c"))
    content, _ = read_tensors(tmp_path / "c", "classifier")
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for extra in ({"more": 1}, {"more": torch.ones(1)}, {"fc.bias": torch.ones(3, dtype=torch.int64)}, {"fc.bias": 1}):
        write_tensors(tmp_path / "c", "classifier", {**content, "": {**state, **extra}})
        with pytest.raises(OtherModelError, match=r"more|fc\.bias"):
            load_classifier(tmp_path / "c", model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

"""Loaders with worker processes: the same batches, whatever makes them."""

from __future__ import annotations

import gc
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from conftest import states
from loading import GlobalNoise, by_index, collect, same
from torchvision.transforms import v2

from vision_wrapper import data
from vision_wrapper.data import make_loaders
from vision_wrapper.errors import DataError, DataNotFoundError, SettingError, WorkerError

AUGMENTS = {
    "table": "crop_flip_cutout",
    "compose": A.Compose([A.RandomCrop(14, 14), A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)])]),
    "torchvision": v2.Compose([v2.RandomCrop(14), v2.ColorJitter(0.4)]),
    "callable": GlobalNoise(),
}


def check_workers(tiny, counts):
    """Equal images for any number of workers; different ones from epoch to epoch and sample to sample."""
    alike = data.from_arrays(  # equal images, so that a repeated draw shows
        train=(np.repeat(tiny.train.images[:1], 24, axis=0), tiny.train.labels),
        test=(tiny.test.images, tiny.test.labels),
    )
    for augment in AUGMENTS.values():
        plain = make_loaders(alike, augment, batch_size=3, seed=2, num_workers=0).train
        wanted = [by_index(plain, epoch) for epoch in range(2)]
        looks = {image.numpy().tobytes() for images in wanted for image in images.values()}
        assert len(looks) > 20  # workers that draw alike would give half as many
        for count in counts:
            loader = make_loaders(alike, augment, batch_size=3, seed=2, num_workers=count).train
            before = states()
            found = [by_index(loader, epoch) for epoch in range(2)]
            assert states() == before
            assert all(same(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.fixture
def start_method(request):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_workers_under_fork(tiny, start_method):
    check_workers(tiny, (2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_workers_under_spawn(tiny, start_method, monkeypatch):
    monkeypatch.setitem(
        globals(), "AUGMENTS", {k: AUGMENTS[k] for k in ("table", "callable")}
    )  # each start takes seconds
    check_workers(tiny, (2,))


def test_two_passes_at_once_do_not_mix(tiny):
    plain = make_loaders(tiny, "flip", batch_size=4).train
    loader = make_loaders(tiny, "flip", batch_size=4, num_workers=2).train
    outer = loader.batches(0)
    first = [next(outer)]
    inner = collect(loader.batches(1))  # as a callback that evaluates in the middle of an epoch
    assert torch.equal(inner[0], collect(plain.batches(1))[0])
    assert torch.equal(collect(first + list(outer))[0], collect(plain.batches(0))[0])
    for (a, _), (b, _) in zip(loader.batches(2), loader.batches(3), strict=True):
        assert a.shape == b.shape and not torch.equal(a, b)


def test_workers_end_with_their_loader(tiny):
    gc.disable()  # without the garbage collector's help
    try:
        loader = make_loaders(tiny, "flip", batch_size=4, num_workers=2).train
        list(loader)
        workers = [worker for kept in loader._workers for worker in kept._loader._iterator._workers]
        assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
        del loader
        # They ended by themselves: one that does not hear is terminated after five seconds, with another code.
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        gc.enable()


def test_a_pass_left_early_leaves_the_next_one_whole(tiny):
    plain = make_loaders(tiny, "flip", batch_size=4).train
    loader = make_loaders(tiny, "flip", batch_size=4, num_workers=2).train
    for epoch in range(3):
        for _ in loader.batches(epoch):
            break
    assert torch.equal(collect(loader.batches(3))[0], collect(plain.batches(3))[0])
    assert len(loader._workers) == 1  # the same processes served all of them


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_named_from_a_worker_too(image_folder, num_workers):
    loaders = make_loaders(data.load(image_folder), num_workers=num_workers, batch_size=2)
    path = image_folder / "train" / "dog" / "3.png"
    content = path.read_bytes()
    path.write_bytes(content[:70])
    with pytest.raises(DataError, match=r"dog/3\.png cannot be decoded"):
        list(loaders.train)
    path.unlink()
    with pytest.raises(DataNotFoundError, match=r"dog/3\.png"):
        list(loaders.train)
    path.write_bytes(content)
    assert len(collect(loaders.train)[1]) == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_one_sentence_also_from_a_worker(image_folder, num_workers):
    loaders = data.make_loaders(data.load(image_folder), batch_size=2, num_workers=num_workers, size=8)
    (image_folder / "test/dog/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dog/1\.png cannot be decoded") as caught:
        list(loaders.test)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_an_augmentation_that_cannot_be_sent_to_spawned_processes_is_named(tiny, start_method):
    """As a lambda where processes are not forked: on macOS, on Windows, and from Python 3.14 on."""
    loader = data.make_loaders(tiny, augment=lambda image: image, num_workers=1).train
    with pytest.raises(SettingError, match="num_workers=0"):
        next(loader.batches(0))


def slow(image):
    time.sleep(0.05)
    return image


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_loader_workers import slow
import numpy as np, torch
from vision_wrapper import data, models
from vision_wrapper.trainer import Callback, Trainer

class InATerminal(Callback):
    def on_batch_end(self, run):
        if run.batch == 3:
            os.killpg(os.getpgrp(), signal.SIGINT)

if __name__ == "__main__":
    torch.multiprocessing.set_start_method({method!r})
    x, y = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 2
    loader = data.make_loaders(data.from_arrays((x, y), (x, y)), slow, batch_size=4, num_workers=1).train
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, callbacks=[InATerminal()], accumulate=5)
    trainer.fit(loader, epochs=1, checkpoint={path!r})
    print("interrupted", trainer.interrupted, os.path.exists({path!r}))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ctrl_c_of_the_whole_group_leaves_the_workers_alive(tmp_path, method):
    """A terminal sends it to every process; the step under way needs its batches still."""
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    code = INTERRUPTED.format(tests=str(Path(__file__).parent), path=str(tmp_path / "c"), method=method)
    (tmp_path / "train.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "train.py"], capture_output=True, text=True, start_new_session=True, timeout=120
    )
    assert done.stdout == "interrupted True True\n", done.stderr


@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_spawned_processes_that_do_not_begin_are_told_why(tiny, start_method, monkeypatch):
    """As where a script trains outside of `if __name__ == "__main__":`; torch says no more than that they are gone."""
    loader = make_loaders(tiny, batch_size=4, num_workers=1).train

    def dies(self):
        raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")

    monkeypatch.setattr("vision_wrapper.data.workers.Workers._started", dies)
    with pytest.raises(WorkerError, match=r'under `if __name__ == "__main__":`.*num_workers=0'):
        next(iter(loader))

"""What makes training slow, counted rather than timed: operators, allocations, Python calls, waits for the device."""

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vision_wrapper
from vision_wrapper import data, models
from vision_wrapper.trainer import Callback, Trainer

LIBRARY = str(Path(vision_wrapper.__file__).parent)
WAITS = ("aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.equal.default", "aten.nonzero.default")
COPIES = ("aten._to_copy.default", "aten.copy_.default", "aten.clone.default")


class Operators(TorchDispatchMode):
    """Counts torch's operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def batches(count):
    return [(torch.randn(8, 3, 4, 4), torch.randint(0, 10, (8,)))] * count


def bare_loop(count):
    """The shortest loop that trains."""
    model, optimizer = network()

    def run():
        for inputs, targets in batches(count):
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def fit(count, **arguments):
    model, optimizer = network()
    trainer = Trainer(model, optimizer, callbacks=[], device="cpu", precision="fp32", **arguments)
    return lambda: trainer.fit(batches(count), epochs=1)


def per_step(make, measure):
    """What a step more costs: of twenty less of ten, so that what happens once an epoch does not count."""
    few, many = measure(make(10)), measure(make(20))
    return {name: (many[name] - few[name]) / 10 for name in many if many[name] != few[name]}


def operators(run):
    with Operators() as found:
        run()
    return found.counts


def allocations(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    return Counter(blocks=sum(event.self_cpu_memory_usage > 0 for event in profile.events()))


def calls(run):
    """Python functions of this library that are entered."""
    counts = Counter()

    def count(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(LIBRARY):
            counts[frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return counts


def test_a_step_has_four_operators_more_than_a_bare_loop():
    """The loss and the logits let go of their graphs, and the hits: argmax and a comparison."""
    ours, bare = per_step(fit, operators), per_step(bare_loop, operators)
    more = {name: ours.get(name, 0) - bare.get(name, 0) for name in ours.keys() | bare.keys()}
    more = {name: count for name, count in more.items() if count}
    assert more == {"aten.detach.default": 2, "aten.argmax.default": 1, "aten.eq.Tensor": 1}


@pytest.mark.parametrize("arguments", [{}, {"ema": 0.9}, {"clip_norm": 1.0}, {"accumulate": 2}, {"l1": 1e-5}])
def test_a_step_neither_waits_nor_copies(arguments):
    """On a GPU each of these would be a moment at which the CPU waits, or a copy of the batch."""
    found = per_step(lambda count: fit(count, **arguments), operators)
    assert not set(found) & {*WAITS, *COPIES}


def test_a_step_allocates_two_blocks_more_than_a_bare_loop():
    """Those of the hits."""
    (ours,), (bare,) = per_step(fit, allocations).values(), per_step(bare_loop, allocations).values()
    assert ours - bare <= 2


def test_a_step_calls_five_functions_of_the_library():
    found = per_step(fit, calls)
    assert sum(found.values()) <= 5, found


def test_a_batch_calls_no_function_for_each_image():
    """Whole batches: as many Python calls for 64 images as for 16."""
    images, labels = random_images(256, 16), np.arange(256) % 4
    arrays = data.from_arrays((images, labels), (images, labels))
    found = []
    for size in (16, 64):
        loader = data.make_loaders(arrays, "crop_flip_cutout", size).train
        few, many = (sum(calls(partial(take, loader.batches(0), n)).values()) for n in (1, 3))
        found.append((many - few) / 2)
    assert found[1] <= found[0] + 2 and found[0] < 60, found


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_a_batch_of_images_in_memory_is_copied_once_to_floats():
    """uint8 is gathered by numpy; torch then makes the floats, and normalises them in place."""
    images, labels = random_images(64, 16), np.arange(64) % 4
    loader = data.make_loaders(data.from_arrays((images, labels), (images, labels)), "crop_flip_cutout", 16).train
    list(loader.batches(0))
    few, many = (operators(partial(take, loader.batches(0, channels_last=True), n)) for n in (1, 3))
    floats = (many["aten._to_copy.default"] - few["aten._to_copy.default"]) / 2
    assert floats == 1 and many["aten.addcmul.out"] - few["aten.addcmul.out"] == 2


def test_networks_of_the_library_take_their_batches_as_they_come():
    """channels_last from the loader on: the step reorders no batch."""
    images, labels = random_images(64, 32), np.arange(64) % 4
    loaders = data.make_loaders(data.from_arrays((images, labels), (images, labels)), "crop_flip", 8)
    model = models.CustomResNet(4, widths=(4, 4, 4, 4))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), callbacks=[], device="cpu")
    batch = next(loaders.train.batches(0, channels_last=True))
    with Operators() as found:
        trainer._prepare(*batch)
    assert not found.counts


def test_evaluation_records_no_graph_and_waits_for_no_batch():
    images, labels = random_images(64, 16), np.arange(64) % 4
    arrays = data.from_arrays((images, labels), (images, labels))
    model, graphs = models.CustomResNet(4, widths=(4, 4, 4, 4)), []
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), callbacks=[], device="cpu")
    model.register_forward_hook(lambda module, inputs, output: graphs.append(output.grad_fn))
    loader = data.make_loaders(arrays).test
    waits = []
    for size in (64, 8):
        loader.batch_size = size
        waits.append(sum(operators(lambda: trainer.evaluate(loader))[name] for name in WAITS))
    assert set(graphs) == {None} and waits[0] == waits[1]


def test_evaluation_takes_large_ready_batches_small_images(tiny):
    loaders = data.make_loaders(tiny, batch_size=4, val_fraction=0.25)
    assert (loaders.train.batch_size, loaders.val.batch_size, loaders.test.batch_size) == (4, 2048, 2048)
    assert data.make_loaders(tiny, batch_size=32, size=224).test.batch_size == 32


class NoWaiting(Callback):
    """Between an epoch's first batch and its last, waiting for the GPU is an error."""

    def on_epoch_start(self, run):
        torch.cuda.set_sync_debug_mode("error" if run.epoch else "default")  # the first epoch chooses algorithms

    def on_batch_end(self, run):
        if run.batch == run.batches:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("augment", [name for name in data.AUGMENTATIONS if name != "photo"])
def test_an_epoch_on_a_gpu_never_waits(precision, augment):
    images, labels = random_images(256, 32), np.arange(256) % 4
    arrays = data.from_arrays((images, labels), (images, labels))
    loaders = data.make_loaders(arrays, augment, batch_size=32)
    model = models.CustomResNet(4, widths=(4, 4, 4, 4)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    trainer = Trainer(model, optimizer, callbacks=[NoWaiting()], device="cuda", precision=precision, ema=0.9)
    try:
        trainer.fit(loaders.train, loaders.test, epochs=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    turned = any(isinstance(operation, data.Rotate) for operation in data.AUGMENTATIONS[augment])
    assert loaders.train.path == ("whole batches" if turned else "whole batches on cuda")

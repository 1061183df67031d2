"""At the first fit on a CPU, freed memory stays with the process; nothing is set where the user said otherwise."""

import os
import subprocess
import sys

import pytest

from vision_wrapper import _allocator

# Pages that a fit's later steps took from the kernel; tensors of 64 MB come and go in each.
FAULTS_OF_STEPS = """
import resource, torch
from torch import nn
from vision_wrapper import Trainer
from vision_wrapper.trainer import Callback

class Count(Callback):
    def __init__(self):
        self.faults = []
    def on_batch_end(self, run):
        self.faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

model = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 10))
batches = [(torch.randn(16384, 64), torch.randint(0, 10, (16384,)))] * 10
count = Count()
Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[count], device="cpu").fit(batches, epochs=1)
print(count.faults[-1] - count.faults[3])
"""
needs_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="needs Linux with glibc"
)


def faults(**variables):
    environment = {k: v for k, v in os.environ.items() if k not in _allocator._USERS_OWN} | variables
    run = [sys.executable, "-c", FAULTS_OF_STEPS]
    return int(subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout)


@needs_glibc
def test_steps_take_no_new_pages_unless_the_user_says_so():
    assert faults() < 0.25 * faults(VISION_WRAPPER_ALLOCATOR="system")


@needs_glibc
@pytest.mark.parametrize("name", [_allocator.SWITCH, "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_user_chose_is_left(name, monkeypatch):
    for other in (_allocator.SWITCH, *_allocator._USERS_OWN):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "system")
    assert _allocator.keep_freed_memory.__wrapped__() is False

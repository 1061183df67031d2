"""What a user's function or object is, in words: the same for the same, other ones for others."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vision_wrapper._describe import description


def of_gamma(gamma):
    return lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=gamma)


class Focal:
    def __init__(self, gamma):
        self.gamma = gamma

    def __call__(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets)

    def loss(self, logits, targets):
        return self(logits, targets)


def with_default(logits, targets, gamma=2.0):
    return nn.functional.cross_entropy(logits, targets) ** gamma


OTHERS = {
    "constants": [lambda o: o * 0.5, lambda o: o * 0.1],
    "names": [lambda o: o.mean(), lambda o: o.sum()],
    "closures": [of_gamma(0.5), of_gamma(0.1)],
    "inner functions": [lambda o: lambda e: 0.5**e, lambda o: lambda e: 0.1**e],
    "defaults": [with_default, lambda logits, targets, gamma=3.0: with_default(logits, targets, gamma)],
    "partials": [functools.partial(with_default, gamma=1.0), functools.partial(with_default, gamma=3.0)],
    "objects": [Focal(2), Focal(5)],
    "methods": [Focal(2).loss, Focal(5).loss],
    "modules": [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)],
    "tensors": [{"weight": torch.ones(2000)}, {"weight": torch.ones(2000).index_fill(0, torch.tensor(1000), 2.0)}],
    "classes": [Focal, nn.Linear],
    "plain values": [[1, "a", None], [1, "a", 2]],
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_told_apart(name):
    first, second = map(description, OTHERS[name])
    assert first != second
    assert description(OTHERS[name][0]) == first and " at 0x" not in first


def test_the_same_is_the_same_in_another_process():
    code = "import test_describe as t; print([t.description(v) for values in t.OTHERS.values() for v in values])"
    here = str([description(value) for values in OTHERS.values() for value in values])
    for seed in ("1", "2"):  # of the hashes of texts, which give sets their order
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert found.stdout.strip() == here


def test_comments_and_documentation_are_no_difference():
    def first(x):
        """One."""
        return x + 1

    def second(x):
        """Another one."""
        return x + 1  # as above

    second.__qualname__ = first.__qualname__
    assert description(first) == description(second)


def test_functions_that_hold_each_other_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert description(even) != description(odd)

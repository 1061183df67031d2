"""What the tests of loaders compare by."""

from __future__ import annotations

import random

import numpy as np
import torch


def collect(batches):
    """All images and targets of an iterator of batches."""
    images, targets = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(targets)


def by_index(loader, epoch):
    """Each sample's input, by its index in the split."""
    images, targets = collect(loader.batches(epoch))
    order = loader.order(epoch)[: len(images)]
    labels = torch.from_numpy(loader.split.labels[order])
    if targets.ndim == 1:
        assert torch.equal(targets, labels)
    else:  # mixed: at least in part its own class, and probabilities
        assert torch.allclose(targets.sum(1), torch.ones(len(targets)))
        assert 0.3 < targets.gather(1, labels[:, None]).mean() < 1
    return dict(zip(order.tolist(), images, strict=True))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[i], b[i]) for i in a)


class GlobalNoise:
    """Draws from the global generators of python, numpy and torch; top level, so that spawn can pickle it."""

    def __call__(self, image):
        shift = random.randrange(50) + int(np.random.randint(50)) + int(torch.randint(50, ()))
        return (image // 2 + shift).astype(np.uint8)

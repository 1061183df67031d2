"""Small fits for the tests: a trainer with its loaders, ready batches, and what ends a fit early."""

import signal

import torch

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.trainer import Callback, Trainer


def make(images, *, dropout=0.0, augment="crop_flip", optimizer="adam", **arguments):
    vw.seed_everything(3)
    loaders = data.make_loaders(images, augment, batch_size=8, seed=3)
    model = models.CustomResNet(3, widths=(4, 4, 8, 8), dropout=dropout)
    made = {
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=0.01),
        "fused": lambda: torch.optim.Adam(model.parameters(), lr=0.01, fused=True),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    }[optimizer]()
    return Trainer(model, made, **{"callbacks": [], **arguments}), loaders


def ready_batches():
    """Three batches of four images of 16x16 and their targets, of three classes."""
    x = torch.randn(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return [(batch, torch.arange(4) % 3) for batch in x]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class StopAt(Callback):
    """As a kill would: an exception that nothing catches, after so many batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_batch_end(self, run):
        self.batches -= 1
        if self.batches == 0:
            self.stop()

    def stop(self):
        raise MemoryError("killed")


class CtrlC(StopAt):
    """As somebody would press it."""

    def stop(self):
        signal.raise_signal(signal.SIGINT)

"""An exponential moving average of the weights (Tarvainen & Valpola 2017, arXiv:1703.01780)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vision_wrapper.trainer.guards import uninterrupted


class WeightAverage:
    """Averages of a model's parameters and floating-point buffers, updated after each step of the optimizer."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self._swapped = False
        self._parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
        # By their places, since a forward pass may put another tensor there: self.mean = 0.9 * self.mean + …
        places = {id(buffer): (module, name) for module in model.modules() for name, buffer in module._buffers.items()}
        self._buffers = [places[id(buffer)] for buffer in model.buffers() if buffer.is_floating_point()]
        self.averages = [tensor.detach().clone() for tensor in self._live()]

    def _live(self) -> list[Tensor]:
        """What is averaged, as it is in the model now."""
        return [*self._parameters, *(getattr(module, name) for module, name in self._buffers)]

    @torch.no_grad()
    def update(self) -> None:
        """average = d * average + (1 - d) * weight, with d = min(decay, 1 - 1 / steps), steps counted from 1.

        The authors' code has 1 - 1 / (steps + 1), one step later: there the beginning counts as a step too. Here the
        average is the plain mean over the first steps, and the random weights of the beginning have no part in it,
        unless fp16 skips a first step.
        """
        self.steps += 1
        share = max(1 - self.decay, 1 / self.steps)
        torch._foreach_lerp_(self.averages, [tensor.detach() for tensor in self._live()], share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the averages, all of them: Ctrl-C waits for the end."""
        with uninterrupted():
            for live, average in zip(self._live(), self.averages, strict=True):
                value = live.detach().clone()
                live.copy_(average)
                average.copy_(value)
            self._swapped = not self._swapped

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model hold the averages for a while."""
        try:
            self.swap()
            yield
        finally:
            if self._swapped:  # and not stopped before
                self.swap()

    @torch.no_grad()
    def load(self, averages: list[Tensor], steps: int = 0) -> None:
        """Put back averages, and the steps they are of, from a checkpoint."""
        self.steps = steps
        for own, value in zip(self.averages, averages, strict=True):
            own.copy_(value)

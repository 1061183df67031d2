"""Leaving things as they were: models, optimizers and random states that helpers borrow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


def random_states() -> dict[str, Any]:
    """The states of python's, numpy's and torch's global generators (every device in use)."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def preserve_random_states() -> Iterator[None]:
    """Leave the global random states of python, numpy and torch as they were."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)


@contextmanager
def preserve_mode(model: nn.Module) -> Iterator[None]:
    """Leave the train flag of every submodule, the buffers and the random states as they were.

    Enough for passes without gradients; `preserve_state` is for the others.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with preserve_random_states():
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextmanager
def preserve_state(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, scaler: Any = None
) -> Iterator[None]:
    """Leave everything bit for bit as it was, also when the block raises or is interrupted.

    Everything is: parameters, their `.grad` and `requires_grad`, buffers, the train flag of every submodule, the random
    states of python, numpy and torch, and, where given, the optimizer (state, groups, attached schedulers' marks) and
    the gradient scaler. Takes as much memory again as these do.
    """
    parameters = [_ParameterCopy(parameter) for parameter in model.parameters()]
    with ExitStack() as stack:
        stack.enter_context(preserve_mode(model))
        if optimizer is not None:
            stack.enter_context(_preserve_optimizer(optimizer))
        if scaler is not None:
            stack.callback(scaler.load_state_dict, scaler.state_dict())
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.restore()


class _ParameterCopy:
    """A parameter with what it held: its values, its gradient (the tensor and its values) and its flag."""

    def __init__(self, parameter: nn.Parameter):
        self.parameter = parameter
        self.value = parameter.detach().clone()
        self.grad = parameter.grad
        self.grad_value = None if parameter.grad is None else parameter.grad.detach().clone()
        self.requires_grad = parameter.requires_grad

    @torch.no_grad()
    def restore(self) -> None:
        self.parameter.copy_(self.value)
        self.parameter.requires_grad_(self.requires_grad)
        self.parameter.grad = self.grad
        if self.grad is not None and self.grad_value is not None:
            self.grad.copy_(self.grad_value)


@contextmanager
def _preserve_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    # Tensors are put back in place, because schedulers and users may hold references to them.
    attributes = dict(vars(optimizer))
    groups = [(group, {k: _remember(v) for k, v in group.items()}) for group in optimizer.param_groups]
    state = {p: {k: _remember(v) for k, v in values.items()} for p, values in optimizer.state.items()}
    try:
        yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        optimizer.param_groups[:] = [group for group, _ in groups]
        for group, values in groups:
            group.clear()
            group.update({k: _recall(v) for k, v in values.items()})
        optimizer.state.clear()
        for parameter, values in state.items():
            optimizer.state[parameter] = {k: _recall(v) for k, v in values.items()}


def _remember(value: Any) -> tuple[Any, Any]:
    if isinstance(value, torch.Tensor):
        return value, value.detach().clone()
    return value, list(value) if isinstance(value, list) else None


@torch.no_grad()
def _recall(remembered: tuple[Any, Any]) -> Any:
    value, content = remembered
    if isinstance(value, torch.Tensor):
        value.copy_(content)
    elif isinstance(value, list):
        value[:] = content
    return value

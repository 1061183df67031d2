"""Leaving things as they were: models, optimizers and random states that helpers borrow."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    if not 0 <= states["numpy"][2] <= 624:  # numpy itself would read beyond its state
        raise ValueError("the position in numpy's random state lies outside of it")
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def samplers(loader: Any) -> list[Any]:
    """What a torch DataLoader draws its order with: the sampler, the batch sampler, and the one in that."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return list({id(sampler): sampler for sampler in found if sampler is not None}.values())


def loader_states(loader: Any) -> dict[str, list[Any]]:
    """The states of the generators that a torch DataLoader or its samplers have, and the epochs that these count."""
    return {
        "generators": [generator.get_state() for generator in _generators(loader)],
        "epochs": [sampler.epoch for sampler in _counting(loader)],
    }


def set_loader_states(loader: Any, states: dict[str, list[Any]]) -> None:
    """Put back what `loader_states` returned."""
    for generator, state in zip(_generators(loader), states["generators"], strict=False):
        generator.set_state(state)
    for sampler, epoch in zip(_counting(loader), states["epochs"], strict=False):
        sampler.epoch = epoch


def _generators(loader: Any) -> list[torch.Generator]:
    found = [getattr(owner, "generator", None) for owner in (loader, *samplers(loader))]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _counting(loader: Any) -> list[Any]:
    return [sampler for sampler in samplers(loader) if isinstance(getattr(sampler, "epoch", None), int)]


@contextmanager
def preserve_order(loader: Any) -> Iterator[None]:
    """Put back a loader's own generators, and the epoch of a sampler that counts epochs: the next order stays."""
    states = loader_states(loader)
    try:
        yield
    finally:
        set_loader_states(loader, states)


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
    """Leave the train flag of every submodule, the buffers, other tensors of it and the random states as they were.

    Enough for passes without gradients; `preserve_state` is for the others.
    """
    flags = [(module, module.training) for module in model.modules()]
    registries = _registries(model, "_buffers")
    restore = [_keep(buffer, set()) for buffer in model.buffers()]
    # Weights that are computed from parameters before each pass, as by pruning.
    attributes = [vars(module) for module in model.modules()]
    computed = [(own, k, v) for own in attributes for k, v in own.items() if isinstance(v, torch.Tensor)]
    restore += [_keep(value.detach(), set()) for _, _, value in computed]
    with preserve_random_states():
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
            for registry, content in registries:
                registry.clear()  # a buffer made by the first pass, such as a mask of its size
                registry.update(content)
            for own, name, value in computed:
                own[name] = value
            for recall in restore:
                recall()


@contextmanager
def preserve_state(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, scaler: Any = None
) -> Iterator[None]:
    """Leave the values of everything bit for bit as they were, also when the block raises or is interrupted.

    Everything is: parameters, their `.grad` and `requires_grad`, buffers, the train flag of every submodule, the random
    states of python, numpy and torch, and, where given, the optimizer (state, groups, attached schedulers' marks) and
    the gradient scaler. Takes as much memory again as these do. It is about values: modules that the block adds or
    replaces, and hooks, parametrizations or pruning that it puts on them, are not taken away.
    """
    seen: set[int] = set()
    registries = _registries(model, "_parameters")
    restore = [_keep(parameter, seen) for parameter in model.parameters()]
    restore += [_keep(vars(owner), seen) for owner in (optimizer, scaler) if owner is not None]
    with preserve_mode(model):
        try:
            yield
        finally:
            for registry, content in registries:
                registry.update(content)
            for recall in restore:
                recall()


@contextmanager
def preserve_hooks(model: nn.Module) -> Iterator[None]:
    """Leave the hooks of every submodule as they were, also where Ctrl-C comes while one is being added or removed."""
    names = [name for name, value in vars(nn.Module()).items() if isinstance(value, dict) and "hooks" in name]
    tables = [vars(module).get(name) for module in model.modules() for name in names]
    restore = [_keep(table, set()) for table in tables]
    try:
        yield
    finally:
        for recall in restore:
            recall()


def _registries(model: nn.Module, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each module's table of buffers or parameters, with a copy: a pass may put another tensor under a name."""
    tables = [getattr(module, name) for module in model.modules()]
    return [(table, dict(table)) for table in tables if isinstance(table, dict)]  # not those of TorchScript


def _keep(value: Any, seen: set[int]) -> Callable[[], Any]:
    """A function that puts what a value holds now back into the same object, and returns the object.

    In place, because schedulers and users may hold references. It looks into dicts, lists, tuples and optimizers that
    wrap another one; `seen` are the ids of what is kept already.
    """
    if id(value) in seen or not isinstance(value, (torch.Tensor, dict, list, tuple, torch.optim.Optimizer)):
        return lambda: value
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return _keep_tensor(value, seen)
    if isinstance(value, torch.optim.Optimizer):
        attributes = _keep(vars(value), seen)
        return lambda: (attributes(), value)[1]
    if isinstance(value, dict):
        items = [(key, _keep(item, seen)) for key, item in value.items()]

        def recall_dict() -> Any:
            value.clear()
            for key, recall in items:
                value[key] = recall()
            return value

        return recall_dict
    members = [_keep(member, seen) for member in value]

    def recall_members() -> Any:
        content = [recall() for recall in members]
        if isinstance(value, list):
            value[:] = content
        return value

    return recall_members


def _keep_tensor(tensor: torch.Tensor, seen: set[int]) -> Callable[[], torch.Tensor]:
    """Of a tensor: its memory, values and flag, and its gradient (the tensor and its values)."""
    memory, values, requires_grad = tensor.detach(), tensor.detach().clone(), tensor.requires_grad
    gradient = _keep(tensor.grad if tensor.is_leaf else None, seen)

    @torch.no_grad()
    def recall() -> torch.Tensor:
        if tensor.is_leaf:
            tensor.grad = None  # it may be of another type by now
        if memory.layout is torch.strided:
            tensor.data = memory  # as after `model.half()`
        if not _same_bits(tensor, values):  # what is written in place can take no part in a backward pass under way
            tensor.copy_(values)
        if tensor.is_leaf:
            if tensor.requires_grad != requires_grad:  # those made in inference mode refuse to be told
                tensor.requires_grad_(requires_grad)
            tensor.grad = gradient()
        return tensor

    return recall


_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same bits; numbers would take -0.0 for 0.0."""
    kind = _WHOLE_NUMBERS.get(a.element_size())
    return kind is not None and a.layout is torch.strided and torch.equal(a.view(kind), b.view(kind))

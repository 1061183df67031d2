"""Optimizers that torch does not have in this form, and the table of those that recipes name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vision_wrapper._lookup import Table
from vision_wrapper._numbers import is_number, number_from_0, whole_number
from vision_wrapper.errors import OtherModelError, SettingError
from vision_wrapper.trainer.precision import cpu_has_bf16

# Newton and Schulz's iteration with the coefficients of Jordan et al. (2024): singular values are driven to about 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 3  # as in airbench; five are usual for language models


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonal matrices, for convolution filters; Nesterov SGD for all else.

    The momentum of a filter bank (out, in, h, w), as a matrix (out, in * h * w), is replaced by about the nearest
    orthogonal one, and the bank is kept at the norm sqrt(out), so that the rate alone says how far a step goes (Jordan
    et al. 2024, kellerjordan.github.io/posts/muon; the form for CIFAR-10 is airbench's). Filters have no weight decay,
    since their norm is fixed. For networks with a norm after each convolution.

    Args:
        params: parameters, or groups of them with their own "lr" and "weight_decay".
        lr: of all parameters. Of filters it is about the angle, in radians, by which a step turns them; airbench begins
            at 0.24.
        momentum: of filters.
        sgd_momentum: of the others.
        weight_decay: of the others, as in torch's SGD.

    Raises:
        SettingError: an invalid number.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.6,
        sgd_momentum: float = 0.85,
        weight_decay: float = 0.0,
    ):
        lr, weight_decay = number_from_0("lr", lr), number_from_0("weight_decay", weight_decay)
        for name, value in (("momentum", momentum), ("sgd_momentum", sgd_momentum)):
            if not is_number(value) or not 0 < value < 1:
                raise SettingError(f"{name} must be in (0, 1), got {value!r}.")
        defaults = {"lr": lr, "momentum": momentum, "sgd_momentum": sgd_momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; a closure is called first, with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            self._step_filters([p for p in learning if p.ndim == 4], group)
            self._step_others([p for p in learning if p.ndim != 4], group)
        return loss

    def _step_filters(self, filters: list[Tensor], group: dict[str, Any]) -> None:
        if not filters:
            return
        directions = self._nesterov(filters, [_gradient(p) for p in filters], group["momentum"])
        for bank, direction in zip(filters, directions, strict=True):
            bank.mul_(len(bank) ** 0.5 / bank.norm().clamp_min(1e-12))
            step = orthogonalised(direction.flatten(1)).view(bank.shape)
            bank.add_(step.to(bank.dtype), alpha=-group["lr"])

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        gradients = [_gradient(p) for p in parameters]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        directions = self._nesterov(parameters, gradients, group["sgd_momentum"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    def _nesterov(self, parameters: list[Tensor], gradients: list[Tensor], momentum: float) -> list[Tensor]:
        """The gradients with momentum, looked one step ahead, as torch's SGD does; the buffers move on."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T, (m, n), by products of matrices alone.

    Singular values of more than 1/80 of the matrix's norm become 0.5 to 1.2; smaller ones grow, but less. In bf16, but
    in float32 on a CPU that does not compute it. A matrix of zeros stays one.
    """
    on_cpu = matrix.device.type == "cpu"
    x = matrix.to(torch.bfloat16 if not on_cpu or cpu_has_bf16() else torch.float32)
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Lookahead(torch.optim.Optimizer):
    """Another optimizer, whose weights every few steps go back part of the way (Zhang et al. 2019, arXiv:1907.08610).

    Every `steps` steps the slow weights move by `share` towards the weights, which are then set to them; in between,
    and where training ends there, the model holds the fast ones. It has the groups and the state of the other one:
    schedules, the LR finder and checkpoints treat it alike.

    Args:
        optimizer: the one that takes the steps.
        steps: between two synchronisations.
        share: of the way that the slow weights go, in (0, 1].

    Raises:
        SettingError: an invalid number, or what is no optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int = 5, share: float = 0.5):
        check_lookahead(steps, share)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise SettingError(
                "Lookahead takes another optimizer, such as torch.optim.Adam(model.parameters()), got "
                f"{type(optimizer).__name__}."
            )
        self.optimizer, self.steps, self.share = optimizer, int(steps), share
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.defaults = {**optimizer.defaults, "lookahead_steps": self.steps, "lookahead_share": share}
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self._taken = 0
        self._slow: list[Tensor] | None = None  # made at the first step, when the weights lie where they are trained

    def restart(self) -> None:
        """Take the slow weights anew at the next step; a fit that begins does it, since the weights may be others."""
        self._taken, self._slow = 0, None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the other optimizer."""
        super().add_param_group(param_group)
        self._slow = None  # they are of all groups

    def _parameters(self) -> Iterable[Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the other optimizer, and every so many a synchronisation."""
        if self._slow is None:
            self._slow = [parameter.detach().clone() for parameter in self._parameters()]
        with torch.enable_grad():
            loss = self.optimizer.step(closure)  # type: ignore[arg-type]
        self._taken += 1
        if self._taken % self.steps == 0:
            weights = list(self._parameters())
            torch._foreach_lerp_(self._slow, weights, self.share)
            torch._foreach_copy_(weights, self._slow)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The other optimizer's, with the slow weights and the number of steps taken."""
        return {**self.optimizer.state_dict(), "lookahead": {"taken": self._taken, "slow": self._slow}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned. Raises `OtherModelError` for another optimizer's state."""
        if "lookahead" not in state_dict:
            raise OtherModelError(
                "The state is not a Lookahead's: load it into the optimizer that it is of, lookahead.optimizer, and "
                "call lookahead.restart()."
            )
        own = {name: value for name, value in state_dict.items() if name != "lookahead"}
        kept = state_dict["lookahead"]
        slow = None
        if kept["slow"] is not None:
            slow = [
                torch.empty_like(parameter).copy_(value)
                for parameter, value in zip(self._parameters(), kept["slow"], strict=True)
            ]
        self.optimizer.load_state_dict(own)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        self._taken, self._slow = int(kept["taken"]), slow


def check_lookahead(steps: Any = 5, share: Any = 0.5) -> None:
    """Raise `SettingError` for numbers that `Lookahead` cannot take."""
    whole_number("steps of Lookahead", steps, 1)
    if not is_number(share) or not 0 < share <= 1:
        raise SettingError(f"Lookahead: share must be in (0, 1], got {share!r}.")


OPTIMIZERS: Table[Callable[..., torch.optim.Optimizer]] = Table(
    "optimizer",
    {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon, "sgd": torch.optim.SGD},
)
"""The optimizers that recipes take by name."""

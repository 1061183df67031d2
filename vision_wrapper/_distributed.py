"""The processes that train together: the group that the environment describes, of `torch.distributed`."""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from vision_wrapper.errors import ProcessError, SettingError

T = TypeVar("T")
_SLURM_PORTS = 15_000, 10_000  # the first, and how many: a job has one of them by its number
_VARIABLE = "VISION_WRAPPER_PROCESSES"
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@dataclass(frozen=True)
class Processes:
    """Processes that train together, and which of them this one is; a single one has no group and waits for nobody.

    All but `rank`, `count` and `is_main` have to be called by every process, in the same order.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank: plain values, and tensors on the CPU."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def main_first(self, function: Callable[[], T]) -> T:
        """What `function` returns in each process; the others begin when the main one has ended, as with a download."""
        found: list[T] = []
        self.on_main(lambda: found.append(function()))
        return found[0] if found else function()

    def on_main(self, function: Callable[[], T]) -> T:
        """Run `function` on the main process, as if that were alone, and return its result on every process.

        Raises its error on the main process, and `ProcessError` on the others.
        """
        if self.count == 1:
            return function()
        error, outcome = None, [None, ""]
        if self.is_main:
            try:
                with alone():
                    outcome[0] = function()  # type: ignore[call-overload]
            except BaseException as raised:  # the others wait for its word
                error, outcome = raised, [None, f"{type(raised).__name__}: {raised}"]
        dist.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        if outcome[1]:
            raise ProcessError(f"The main process ended with {outcome[1]}")
        return outcome[0]  # type: ignore[return-value]

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the main process's values."""
        if self.count > 1:
            for tensor in tensors:
                value = tensor.contiguous()  # as the backends ask for
                dist.broadcast(value, src=0)
                tensor.copy_(value)

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the mean of all processes' values."""
        if self.count > 1:
            for tensor in tensors:
                value = tensor.contiguous()
                dist.all_reduce(value)
                tensor.copy_(value / self.count)


@contextmanager
def alone() -> Iterator[None]:
    """What is made inside takes this process for the only one."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def join() -> Processes:
    """The processes that the environment describes, whose group is joined once; a single one where it describes none.

    A group that somebody has made already (`torch.distributed.init_process_group`, Ray Train) is taken as it is.
    torchrun, `accelerate launch` and notebook launchers set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; srun sets
    SLURM's variables. With CUDA, each process takes the GPU of its place on the machine. VISION_WRAPPER_PROCESSES=alone
    has each process of a launcher go its own way.

    Raises `SettingError` where what the environment says is no place in a group.
    """
    if _alone.get() or os.environ.get(_VARIABLE) == "alone" or not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        place = _place(os.environ)
        if place is None or place.count == 1:
            return Processes()
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if cuda and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, init_method=place.address, rank=place.rank, world_size=place.count)
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size())


def processes_here() -> int:
    """How many processes of the group share this machine, as far as the launcher says."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Place(NamedTuple):
    rank: int
    count: int
    local_rank: int  # on this machine
    address: str  # where they meet


def _place(environment: Mapping[str, str]) -> _Place | None:
    """This process's place in the group that a launcher describes; None where none does."""
    try:
        if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
            rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            place = _Place(rank, count, int(environment.get("LOCAL_RANK", rank)), "env://")
        # Of a step that srun began. A batch script has most of these too, but is one process.
        elif {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys():
            place = _Place(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_STEP_NUM_TASKS"]),
                int(environment.get("SLURM_LOCALID", "0")),
                _slurm_address(environment),
            )
        else:
            return None
    except ValueError as error:
        raise SettingError(
            f"The environment describes a group of processes with what is no number: {error}."
        ) from error
    if not 0 <= place.rank < place.count:
        raise SettingError(f"The environment describes process {place.rank} of {place.count}: ranks count from 0.")
    return place


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Process 0 is on the first of a step's machines, which are named like `gpu[07-09,12],cpu1`."""
    first = environment["SLURM_STEP_NODELIST"].split(",")[0]
    host = environment.get("MASTER_ADDR", re.sub(r"\[(\w+).*", r"\1", first))
    lowest, ports = _SLURM_PORTS
    step = int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0"))
    port = environment.get("MASTER_PORT", lowest + step % ports)
    return f"tcp://{host}:{port}"


def part_of(batch: T, rank: int, count: int) -> T:
    """Every count-th sample of an array or a tensor from number `rank` on; the first where there is none."""
    return batch[rank::count] if rank < len(batch) else batch[:1]  # type: ignore[arg-type, index]


def _leave() -> None:
    """Leave the group when the process ends, unless by an error: NCCL would wait for work that the others never end."""
    if dist.is_initialized() and getattr(sys, "last_value", None) is None:
        dist.destroy_process_group()

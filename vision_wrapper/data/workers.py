"""Processes that make batches beside the one that trains."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pickle import PicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vision_wrapper._state import preserve_random_states
from vision_wrapper.data.samples import Samples
from vision_wrapper.errors import SettingError, VisionWrapperError, WorkerError

_ENDED = (
    "Often the memory did not suffice: use fewer num_workers or a smaller batch_size. With fit(checkpoint=…) the same "
    "call goes on."
)
_DID_NOT_BEGIN = (
    "Where processes are spawned, as on macOS and Windows, they run the script again up to its main part: put what it "
    'does under `if __name__ == "__main__":`, and the functions of a notebook that they need into a module; or use '
    "num_workers=0."
)


class Workers:
    """Processes that live as long as the loader, and are given each epoch's batches in turn."""

    def __init__(self, samples: Samples, count: int):
        self._requests = _Requests()
        self.busy = self._began = False
        with preserve_random_states():
            self._loader = torch.utils.data.DataLoader(
                _Returning(samples),  # type: ignore[arg-type]
                batch_size=None,
                sampler=self._requests,
                num_workers=count,
                persistent_workers=True,
                worker_init_fn=_ignore_interrupt,
            )

    def run(self, requests: list[tuple[int, np.ndarray]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `Samples` for these requests, in order; only when the last such pass has ended."""
        self._requests.current, self.busy = requests, True
        dead = False
        try:
            with preserve_random_states():  # torch draws a base seed for its workers; ours need none
                batches = self._started()
            for batch in batches:
                self._began = True
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        except RuntimeError as error:
            dead = "DataLoader worker" in str(error)
            if not dead:
                raise
            forked = torch.multiprocessing.get_start_method() == "fork"
            advice = _ENDED if self._began or forked else _DID_NOT_BEGIN
            raise WorkerError(f"A process that loads images has ended: {error} {advice}") from error
        finally:
            self.busy = dead  # free, also when the pass is left before its end; the dead are never asked again

    def _started(self) -> Iterator[Any]:
        """The batches to come; the first time, the processes are started."""
        try:
            return iter(self._loader)
        except (PicklingError, AttributeError, TypeError) as error:  # as of a lambda, where processes are spawned
            raise SettingError(
                f"The augmentation or the data set cannot be sent to the processes that load images: {error} Define "
                "what they are made of at the top of a module, or pass num_workers=0."
            ) from error


class _Requests(torch.utils.data.Sampler):
    """Hands the current epoch's requests to torch's DataLoader.

    It does not know its `Workers`: in a reference cycle these would end when the garbage collector comes by, and then
    wait five seconds for each process.
    """

    def __init__(self):
        self.current: list[tuple[int, np.ndarray]] = []

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


class _Returning:
    """Returns the library's errors, which torch would raise anew as a page of traceback."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __getitem__(self, request: tuple[int, np.ndarray]) -> tuple[Tensor, Tensor] | Exception:
        try:
            return self.samples[request]
        except VisionWrapperError as error:
            return error


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C in a terminal reaches every process; the one that trains ends its step first, and needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

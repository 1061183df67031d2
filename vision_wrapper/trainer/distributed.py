"""Several processes that train together: their gradients, and when all of them stop."""

from __future__ import annotations

import time
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from vision_wrapper._distributed import Processes
from vision_wrapper.errors import SettingError

_MOST_STEPS = 1000  # between two agreements


class Synchronised(DistributedDataParallel):
    """Averages gradients over the processes, and says what to do about parameters that have none."""

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        """The module's; raises `SettingError` where the last step did not use every parameter."""
        try:
            return super().forward(*inputs, **settings)
        except RuntimeError as error:
            if "finished reduction in the prior iteration" not in str(error):
                raise
            raise SettingError(
                "Several processes wait for the gradients of parameters that the forward pass does not use. Take these "
                "out of the model, or freeze them: parameter.requires_grad_(False)."
            ) from error


class Agreement:
    """What any process wants, which all of them learn at the same step, about once a second."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self._steps = self._left = 1
        self._asked = time.monotonic()

    def reached(self, *wanted: bool) -> tuple[bool, ...]:
        """For each wish whether any process has it; between two agreements none."""
        self._left -= 1
        if self._left:
            return (False,) * len(wanted)
        now = time.monotonic()
        gathered = self._processes.gathered((wanted, now - self._asked))
        seconds = max(elapsed for _, elapsed in gathered)
        # A GPU has not made the steps yet that were launched: more than twice as many may take any time.
        most = min(_MOST_STEPS, 2 * self._steps)
        self._steps = self._left = max(1, min(most, round(self._steps / max(seconds, 1e-6))))
        self._asked = now
        return tuple(any(wishes) for wishes in zip(*(wishes for wishes, _ in gathered), strict=True))

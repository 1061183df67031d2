"""Callbacks: what a user adds to a run, without touching the loop."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from torch import nn

from vision_wrapper._files import PathLike, check_writable
from vision_wrapper._lookup import unknown_name
from vision_wrapper._numbers import number_from_0, whole_number
from vision_wrapper.errors import MissingPackageError
from vision_wrapper.models import freeze
from vision_wrapper.trainer.history import COLUMNS, History, check_monitor, check_validated, watched

if TYPE_CHECKING:
    from vision_wrapper.trainer.trainer import Trainer

HOOKS = ("on_fit_start", "on_epoch_start", "on_batch_end", "on_epoch_end", "on_fit_end")


@dataclass
class Run:
    """Where a fit stands; what every hook is given.

    Attributes:
        trainer: with `.model` and `.optimizer`.
        epochs: of the whole run.
        batches: in an epoch, or None where the loader has no length.
        epoch: finished epochs.
        batch: finished batches of this epoch.
        samples: of this epoch so far.
        total: samples of a whole training epoch, once one has ended.
        val_total: samples of the validation loader, likewise.
        history: rows of the finished epochs.
        validates: whether fit has a validation loader.
        stop: set it to a reason, and the run ends after this epoch.
    """

    trainer: Trainer
    epochs: int
    batches: int | None
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    total: int = 0
    val_total: int = 0
    history: History = field(default_factory=History)
    validates: bool = False
    stop: str | None = None


class Callback:
    """Override what you need; each hook is given the `Run`. A method `on_…` with another name is an error.

    What is to learn later belongs in the optimizer from the start, frozen until then: schedules and checkpoints know
    the groups that a run began with, so that `optimizer.add_param_group` in a hook ends it with an error.

    Attributes:
        everywhere: whether every one of several processes calls it. False, for callbacks that write or print, is the
            main one alone.
    """

    everywhere = True

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            if name.startswith("on_") and name not in HOOKS:
                raise unknown_name(f"hook in {cls.__name__}:", name, HOOKS)

    def on_fit_start(self, run: Run) -> None:
        """Before the first batch, also of a run that goes on."""

    def on_epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch, and again where a resumed run goes on inside it.

        What it changes it has to set, therefore, and not to halve or to double.
        """

    def on_batch_end(self, run: Run) -> None:
        """After each batch. Reading a tensor here makes a GPU wait."""

    def on_epoch_end(self, run: Run) -> None:
        """After validation; the epoch's row is `run.history[-1]`."""

    def on_fit_end(self, run: Run) -> None:
        """After the last epoch, and after an error or an interruption."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep of this callback: plain values and tensors.

        What is under "settings" has to be the same when the run goes on, unless it is extended.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""


def hooks_of(callbacks: list[Callback], name: str) -> list[Any]:
    """The bound hooks of that name which do something."""
    base = getattr(Callback, name)
    return [getattr(callback, name) for callback in callbacks if getattr(type(callback), name) is not base]


def epoch_line(run: Run) -> str:
    """One line an epoch: losses, accuracies with n/N, rate and seconds."""
    row, width = run.history[-1], len(str(run.epochs))
    parts = [f"epoch {row['epoch']:{width}}/{run.epochs}", f"train loss {row['train_loss']:.4f}"]
    if row["train_accuracy"] is not None:
        parts.append(_hits(row["train_accuracy"], run.total))
    if row["val_loss"] is not None:
        parts.append(f"val loss {row['val_loss']:.4f}")
    if row["val_accuracy"] is not None:
        parts.append(_hits(row["val_accuracy"], run.val_total))
    parts += [f"lr {row['lr']:.3g}", f"{row['seconds']:.1f} s"]
    return "  ".join(parts)


def _hits(accuracy: float, total: int) -> str:
    return f"accuracy {accuracy:.2%} ({round(accuracy * total)}/{total})"


class ProgressBar(Callback):
    """A bar over the whole run, with the time it will take, and a line an epoch; in notebooks too.

    Of a loader without a length it counts the batches alone.
    Quiet where standard error is no terminal, as in a log file: use `EpochLog` there. It refreshes by the clock.
    """

    everywhere = False

    def __init__(self):
        self._bar: Any = None

    def on_fit_start(self, run: Run) -> None:
        """Open the bar at the position of the run."""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        notebook = getattr(shell, "kernel", None) is not None  # having ipykernel imported is not being in one
        terminal = getattr(sys.stderr, "isatty", bool)()  # it may be None, or something that only writes
        if not (notebook or terminal):
            return
        if notebook:
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm
        total = None if run.batches is None else run.epochs * run.batches
        done = run.epoch * (run.batches or 0) + run.batch
        self._bar = tqdm(total=total, initial=done, unit="batch", dynamic_ncols=True)

    def on_epoch_start(self, run: Run) -> None:
        """Show which epoch it is."""
        if self._bar is not None:
            self._bar.set_description(f"epoch {run.epoch + 1}/{run.epochs}", refresh=False)

    def on_batch_end(self, run: Run) -> None:
        """Move on."""
        if self._bar is not None:
            self._bar.update()

    def on_epoch_end(self, run: Run) -> None:
        """Leave a line above the bar."""
        if self._bar is not None:
            self._bar.write(epoch_line(run))

    def on_fit_end(self, run: Run) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class EpochLog(Callback):
    """A line an epoch, to standard output or another text stream."""

    everywhere = False

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream

    def on_epoch_end(self, run: Run) -> None:
        """Print the line."""
        print(epoch_line(run), file=self.stream or sys.stdout, flush=True)


class FreezeBody(Callback):
    """Trains the head alone for the first `epochs`, and then everything: the usual way to fine-tune.

    The optimizer holds all parameters from the start; give the body a smaller rate with `models.parameter_groups`. The
    body's batch statistics stay as they are while it is frozen. `head` is as of `models.head_of`.
    """

    def __init__(self, epochs: int, head: nn.Module | str | None = None):
        self.epochs, self.head = whole_number("epochs", epochs, 0), head
        self._before: list[tuple[Any, str, bool]] = []  # what was frozen and in eval mode before

    def on_fit_start(self, run: Run) -> None:
        """Freeze, before the first batch is looked at."""
        if run.epoch < self.epochs:
            model = run.trainer.model
            self._before = [(p, "requires_grad", p.requires_grad) for p in model.parameters()]
            self._before += [(module, "training", module.training) for module in model.modules()]
            freeze(model, self.head)

    def on_epoch_start(self, run: Run) -> None:
        """Thaw when the time has come."""
        if run.epoch == self.epochs:
            self._thaw()

    def on_fit_end(self, run: Run) -> None:
        """Leave nothing frozen that was not."""
        self._thaw()

    def _thaw(self) -> None:
        for owner, name, value in self._before:
            setattr(owner, name, value)
        self._before = []

    def state_dict(self) -> dict[str, Any]:
        """How long the body stays frozen."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back: a run goes on as it began."""
        self.epochs = state["epochs"]


class CSVLog(Callback):
    """Keeps a CSV file of the history up to date, an epoch at a time."""

    everywhere = False

    def __init__(self, path: PathLike):
        self.path = path

    def on_fit_start(self, run: Run) -> None:
        """Raise `FileWriteError` where the file cannot be written."""
        check_writable(self.path)

    def on_epoch_end(self, run: Run) -> None:
        """Write the whole file anew, so that it is never half a line."""
        run.history.to_csv(self.path)


class EarlyStopping(Callback):
    """Ends the run when `monitor` has not improved by more than `min_delta` for `patience` epochs.

    Args:
        monitor: a loss or an accuracy of the history.
        patience: epochs, at least 1.
        min_delta: in the unit of `monitor`, at least 0.

    Raises:
        SettingError: another value, or, when training begins, a `val_` column without a validation loader.
    """

    def __init__(self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0):
        check_monitor(monitor)
        self.monitor, self.patience = monitor, whole_number("patience", patience, 1)
        self.min_delta = number_from_0("min_delta", min_delta)
        self.best, self.waited = -math.inf, 0

    def on_fit_start(self, run: Run) -> None:
        """Begin anew, unless the run goes on."""
        check_validated(self.monitor, run.validates, "EarlyStopping")
        if run.epoch == 0 and run.batch == 0:
            self.best, self.waited = -math.inf, 0

    def on_epoch_end(self, run: Run) -> None:
        """Compare, count, and stop."""
        value = watched(run.history[-1], self.monitor, "EarlyStopping")
        score = -value if self.monitor.endswith("loss") else value
        if score > self.best + self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            run.stop = f"{self.monitor} has not improved for {self.patience} epochs"

    def state_dict(self) -> dict[str, Any]:
        """The best score and how long ago it was, and what it was judged by."""
        settings = {"monitor": self.monitor, "patience": self.patience, "min_delta": self.min_delta}
        return {"best": self.best, "waited": self.waited, "settings": settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back; where an extended run watches something else, it begins anew."""
        if state["settings"]["monitor"] == self.monitor:
            self.best, self.waited = state["best"], state["waited"]


class TensorBoard(Callback):
    """Writes the history to a TensorBoard folder. Needs the extra: `pip install "vision-wrapper[tensorboard]"`."""

    everywhere = False

    def __init__(self, folder: PathLike):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                'TensorBoard is not installed: pip install "vision-wrapper[tensorboard]"'
            ) from error
        self.folder = folder
        self._make_writer = SummaryWriter
        self._writer: Any = None

    def on_fit_start(self, run: Run) -> None:
        """Open the folder; of an earlier run there, later epochs are hidden."""
        self._writer = self._make_writer(str(self.folder), purge_step=run.epoch + 1)

    def on_epoch_end(self, run: Run) -> None:
        """Write the row."""
        row = run.history[-1]
        for column in COLUMNS[1:]:
            if row[column] is not None:
                self._writer.add_scalar(column.replace("_", "/", 1), row[column], row["epoch"], time.time())

    def on_fit_end(self, run: Run) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

"""How a fit ends: callbacks that raise, Ctrl-C, and what a checkpoint has of it."""

import multiprocessing
import os
import signal
import sys
import time
import warnings

import pytest
import torch
from fits import CtrlC, equal, make, ready_batches, weights
from torch import nn

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.errors import CheckpointError, OtherRunError, SettingError
from vision_wrapper.trainer import Callback, EarlyStopping, EpochLog, FreezeBody, ProgressBar, Trainer, schedules

# ---- callbacks


class Breaks(Callback):
    def on_fit_end(self, run):
        raise RuntimeError("a hook of my own")


def test_a_hook_that_raises_at_the_end_leaves_nothing_open(images):
    trainer, loaders = make(images, ema=0.9, callbacks=[Breaks()])
    before = set(vars(trainer.optimizer))
    with pytest.raises(RuntimeError, match="of my own"):
        trainer.fit(loaders.train, epochs=1, schedule=schedules.cosine())
    assert trainer._average is None and set(vars(trainer.optimizer)) == before and trainer.epochs_trained == 1


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_an_optimizer_keeps_nothing_of_a_schedule_but_its_last_rate(images, kind):
    trainer, loaders = make(images, optimizer=kind)
    before = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in trainer.optimizer.param_groups]

    def cycle(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=50)  # it is left between the extremes

    for schedule in (cycle, schedules.one_cycle(0.5, peak_epoch=1, final_lr=0.0, cycle_momentum=True)):
        trainer.fit(loaders.train, epochs=2, schedule=schedule, every="batch")
        groups = trainer.optimizer.param_groups
        assert before == [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in groups]
    with pytest.warns(UserWarning, match="the highest rate is 0, where an earlier schedule"):
        trainer.fit(loaders.train, epochs=1, schedule=schedules.cosine())


def test_a_fit_leaves_the_counter_of_the_users_own_scheduler(images):
    trainer, loaders = make(images, optimizer="sgd")
    own = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)
    trainer.fit(loaders.train, epochs=1, schedule=schedules.cosine(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "optimizer.step() has been overridden"
        trainer.optimizer.step()
        own.step()


class Opens(Callback):
    def on_fit_start(self, run):
        self.opened = True

    def on_fit_end(self, run):
        assert self.opened


def test_a_fit_that_does_not_begin_does_not_end(images):
    trainer, loaders = make(images, callbacks=[Opens()])
    with pytest.raises(SettingError, match="peak_epoch"):
        trainer.fit(loaders.train, epochs=3, schedule=schedules.one_cycle(0.1, peak_epoch=5))


class Notes(Callback):
    def __init__(self, notes, fails=""):
        self.notes, self.fails = notes, fails

    def on_fit_start(self, run):
        self.notes.append("start")
        if self.fails == "start":
            raise RuntimeError("no start")

    def on_fit_end(self, run):
        self.notes.append("end")
        if self.fails == "end":
            raise RuntimeError("no end")


@pytest.mark.parametrize(("fails", "seen"), [("end", ["start", "start", "end", "end"]), ("start", ["start", "end"])])
def test_every_callback_that_was_started_is_ended(images, fails, seen):
    notes = []
    trainer, loaders = make(images, callbacks=[Notes(notes, fails), Notes(notes)])
    with pytest.raises(RuntimeError, match=f"no {fails}"):
        trainer.fit(loaders.train, epochs=1)
    assert notes == seen


def test_states_find_their_callbacks_in_another_list(images, tmp_path):
    def fit(epochs, callbacks):
        trainer, loaders = make(images, callbacks=callbacks)
        arguments = {"checkpoint": tmp_path / "last.ckpt", "extend": True}
        return trainer.fit(loaders.train, epochs=epochs, **arguments)

    fit(1, [EarlyStopping("train_loss", patience=9)])
    stopping = EarlyStopping("train_loss", patience=9)
    fit(2, [EpochLog(), FreezeBody(0), stopping])
    assert stopping.best > -float("inf")
    with pytest.raises(OtherRunError, match="state of a EarlyStopping"):
        fit(3, [EpochLog(), FreezeBody(0)])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"patience": 3}, "patience: 9 there, 3 here"),
        ({"patience": 9, "min_delta": 0.5}, "min_delta: 0.0 there, 0.5 here"),
        ({"patience": 9, "monitor": "train_accuracy"}, "monitor: 'train_loss' there, 'train_accuracy' here"),
    ],
)
def test_a_run_that_would_be_stopped_by_another_rule_is_another_run(images, tmp_path, other, words):
    def fit(epochs, stopping, at=100):
        trainer, loaders = make(images, callbacks=[CtrlC(at), stopping])
        trainer.fit(loaders.train, epochs=epochs, checkpoint=tmp_path / "last.ckpt", extend=True)
        return stopping

    fit(2, EarlyStopping("train_loss", patience=9), at=6)
    with pytest.raises(OtherRunError, match=f"EarlyStopping: {words}"):
        fit(2, EarlyStopping(**{"monitor": "train_loss", **other}))
    with pytest.raises(OtherRunError, match="FreezeBody: it was not among the callbacks"):
        trainer, loaders = make(images, callbacks=[EarlyStopping("train_loss", patience=9), FreezeBody(1)])
        trainer.fit(loaders.train, epochs=2, checkpoint=tmp_path / "last.ckpt")
    fit(2, EarlyStopping("train_loss", patience=9))
    extended = fit(3, EarlyStopping(**{"monitor": "train_loss", **other}))
    assert (extended.best > 0) == (extended.monitor == "train_accuracy")  # of a loss the score is its negative


def test_a_callback_whose_state_cannot_be_kept_is_refused_before_training(images, tmp_path):
    class Confused(Callback):
        def state_dict(self):
            return {"confusion": {(0, 1): 3}}

    trainer, loaders = make(images, callbacks=[Confused()])
    before = weights(trainer)
    with pytest.raises(CheckpointError, match=r"has the key \(0, 1\), a tuple"):
        trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / "last.ckpt")
    assert equal(weights(trainer), before) and not (tmp_path / "last.ckpt").exists()


class FindsLR(Callback):
    def __init__(self, loader):
        self.loader = loader

    def on_epoch_start(self, run):
        run.trainer.find_lr(self.loader, num_iter=12)


def test_finding_a_rate_within_a_fit_changes_nothing(images):
    calm, loaders = make(images, ema=0.9)
    calm.fit(loaders.train, epochs=2)
    trainer, loaders = make(images, ema=0.9)
    trainer.callbacks = [FindsLR(loaders.train)]
    trainer.fit(loaders.train, epochs=2)
    assert equal(weights(trainer), weights(calm))


# ---- Ctrl-C


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.randn(3, 16, 16), index % 3


class CtrlCInATerminal(Callback):
    """It reaches every process."""

    def on_batch_end(self, run):
        if run.batch == 2:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGINT)
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ctrl_c_with_workers_of_ones_own_loader(images, tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    loader = torch.utils.data.DataLoader(Slow(), batch_size=4, num_workers=2, multiprocessing_context=method)
    trainer, _ = make(images, callbacks=[CtrlCInATerminal()], accumulate=4)
    trainer.fit(loader, epochs=1, checkpoint=tmp_path / "last.ckpt")
    assert trainer.interrupted


class Fails:
    """A loader that fails after three batches, as where a worker has gone."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        yield from ready_batches()
        raise self.error


GONE = [RuntimeError("DataLoader worker (pid 7) exited"), FileNotFoundError("listener"), EOFError(), ConnectionError()]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_loader_that_fails_after_ctrl_c_ends_the_run(images, error):
    trainer, _ = make(images, callbacks=[CtrlC(3)], accumulate=4)
    assert len(trainer.fit(Fails(error), epochs=1)) == 0
    assert trainer.interrupted


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_loader_that_fails_otherwise_is_no_end_of_a_run(images, error):
    trainer, _ = make(images, accumulate=4)
    with pytest.raises(type(error)):
        trainer.fit(Fails(error), epochs=1)
    assert not trainer.interrupted


def test_a_step_that_fails_after_ctrl_c_is_said(images):
    class NoRoom(Callback):
        def on_batch_end(self, run):
            if run.batch == 3:
                raise OSError("no space left")

    trainer, _ = make(images, callbacks=[CtrlC(3), NoRoom()], accumulate=4)
    with pytest.raises(OSError, match="no space"):
        trainer.fit(ready_batches(), epochs=1)


def test_a_handler_that_python_cannot_put_back_is_left_alone(images, monkeypatch):
    """As where python is part of another program: `signal.signal` would return None."""
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("a handler was set"))
    trainer, loaders = make(images)
    assert len(trainer.fit(loaders.train, epochs=1)) == 1


def test_ctrl_c_that_is_ignored_stays_so(images):
    """As a shell has it for what a script starts in the background."""
    trainer, loaders = make(images, callbacks=[CtrlC(3)])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert len(trainer.fit(loaders.train, epochs=2)) == 2 and not trainer.interrupted
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class Writes:
    """What some programs put in the place of standard error."""

    def write(self, text):
        return len(text)


@pytest.mark.parametrize("stream", [None, Writes()])
def test_the_bar_needs_no_standard_error(images, monkeypatch, stream):
    trainer, loaders = make(images, callbacks=[ProgressBar()])
    monkeypatch.setattr(sys, "stderr", stream)
    assert len(trainer.fit(loaders.train, epochs=1)) == 1


def test_deterministic_puts_back_that_torch_was_only_to_warn(images):
    trainer, loaders = make(images, deterministic=True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        trainer.fit(loaders.train, epochs=1)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


class InterruptedAfter:
    """A loader during whose end Ctrl-C comes, as while its processes end."""

    def __init__(self, images, times=1):
        self.batches, self.times = ready_batches(), times

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        yield from self.batches
        if self.times:
            self.times -= 1
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_after_the_last_batch_keeps_the_epoch(images, tmp_path):
    path = tmp_path / "last.ckpt"
    calm, _ = make(images)
    calm.fit(InterruptedAfter(images, times=0), epochs=2)
    trainer, _ = make(images)
    trainer.fit(InterruptedAfter(images), epochs=2, checkpoint=path)
    assert trainer.interrupted and path.exists()
    trainer, _ = make(images)
    assert len(trainer.fit(InterruptedAfter(images, times=0), epochs=2, checkpoint=path)) == 2
    assert equal(weights(trainer), weights(calm))


class Draws(Callback):
    """Draws from torch's generator before each epoch."""

    def on_epoch_start(self, run):
        torch.rand(3)


def test_a_callback_that_draws_before_an_epoch_resumes_exactly(images, tmp_path):
    calm, loaders = make(images, dropout=0.3, callbacks=[Draws()])
    calm.fit(loaders.train, epochs=2)
    for at in (8, 100):
        trainer, loaders = make(images, dropout=0.3, callbacks=[Draws(), CtrlC(at)])
        trainer.fit(loaders.train, epochs=2, checkpoint=tmp_path / "last.ckpt")
    assert equal(weights(trainer), weights(calm))


@pytest.mark.parametrize("stop", [None, 2, 5])
def test_an_extended_run_of_a_plain_dataloader_is_the_straight_one(tmp_path, stop):
    """With schedule=None, more epochs are as if they had been asked for at once."""
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 3

    def fit(epochs, callbacks=(), **arguments):
        vw.seed_everything(5)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=list(callbacks))
        trainer.fit(loader, epochs=epochs, **arguments)
        return weights(trainer)

    checkpoint = tmp_path / "last.ckpt"
    fit(1, checkpoint=checkpoint)
    if stop is not None:
        fit(3, [CtrlC(stop)], checkpoint=checkpoint, extend=True)
    assert equal(fit(3, checkpoint=checkpoint, extend=True), fit(3))


def test_a_callback_that_draws_resumes_a_plain_dataloader_exactly(tmp_path):
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 3

    def fit(at=100, **arguments):
        vw.seed_everything(5)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[Draws(), CtrlC(at)])
        trainer.fit(loader, epochs=3, **arguments)
        return weights(trainer)

    fit(6, checkpoint=tmp_path / "last.ckpt")
    assert equal(fit(checkpoint=tmp_path / "last.ckpt"), fit())


class Refuses(Callback):
    def load_state_dict(self, state):
        raise ValueError("not mine")

    def state_dict(self):
        return {"mine": 1}


def test_a_checkpoint_that_is_refused_changes_nothing(images, tmp_path):
    trainer, loaders = make(images, ema=0.9, callbacks=[Refuses()])
    trainer.fit(loaders.train, epochs=2, schedule=schedules.cosine(), checkpoint=tmp_path / "last.ckpt")
    other, loaders = make(images, ema=0.9, callbacks=[Refuses()])
    before, rate = weights(other), other.optimizer.param_groups[0]["lr"]
    with pytest.raises(CheckpointError, match=r"Refuses does not take the state .* ValueError: not mine"):
        other.fit(loaders.train, epochs=2, schedule=schedules.cosine(), checkpoint=tmp_path / "last.ckpt")
    assert other.epochs_trained == 0 and other._average is None
    assert equal(weights(other), before) and other.optimizer.param_groups[0]["lr"] == rate


def test_loading_a_fits_checkpoint_is_what_the_fit_left(images, tmp_path):
    trainer, loaders = make(images, ema=0.9)
    trainer.fit(loaders.train, epochs=2, checkpoint=tmp_path / "last.ckpt")
    other, _ = make(images)
    other.load(tmp_path / "last.ckpt")
    assert other.epochs_trained == trainer.epochs_trained == 2
    assert equal(weights(other), weights(trainer))


def test_what_a_callback_saves_knows_its_epoch(images, tmp_path):
    class Saves(Callback):
        def on_epoch_end(self, run):
            run.trainer.save(tmp_path / f"{run.epoch}.ckpt")

    trainer, loaders = make(images, callbacks=[Saves()])
    trainer.fit(loaders.train, epochs=2)
    for epochs in (1, 2):
        other, _ = make(images)
        other.load(tmp_path / f"{epochs}.ckpt")
        assert other.epochs_trained == epochs


def test_another_network_with_weights_of_the_same_shapes_is_another_run(images, tmp_path):
    def fit(activation):
        loaders = data.make_loaders(images, batch_size=8, seed=3)
        model = models.CustomResNet(3, widths=(4, 4, 8, 8), activation=activation)
        trainer = Trainer(model, torch.optim.Adam(model.parameters()), callbacks=[])
        return trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / "last.ckpt")

    fit("relu")
    assert len(fit("relu")) == 1
    with pytest.raises(OtherRunError, match="network: 'CustomResNet"):
        fit("celu")

"""Callbacks: hooks, logs, early stopping, a body that thaws."""

import sys

import pytest
import torch
from fits import StopAt, equal, make, weights

from vision_wrapper.errors import FileWriteError, SettingError, UnknownNameError
from vision_wrapper.trainer import (
    Callback,
    CSVLog,
    EarlyStopping,
    EpochLog,
    FreezeBody,
    ProgressBar,
    Trainer,
    schedules,
)


def test_a_misspelt_hook_is_an_error():
    with pytest.raises(UnknownNameError, match="on_epoch_end"):

        class Wrong(Callback):
            def on_epoch_ends(self, run):
                pass


def test_early_stopping_needs_what_it_watches_before_training(images):
    trainer, loaders = make(images, callbacks=[EarlyStopping()])
    before = weights(trainer)
    with pytest.raises(SettingError, match="validation loader"):
        trainer.fit(loaders.train, epochs=2)
    assert equal(before, weights(trainer))


@pytest.mark.parametrize("least", [-1, None, "0.1"])
def test_early_stopping_needs_a_number_to_improve_by(least):
    with pytest.raises(SettingError, match="min_delta must be a number of at least 0"):
        EarlyStopping(min_delta=least)


def test_early_stopping_and_logs(images, tmp_path, capsys):
    trainer, loaders = make(
        images, callbacks=[EpochLog(), CSVLog(tmp_path / "log.csv"), EarlyStopping(patience=2, min_delta=9)]
    )
    history = trainer.fit(loaders.train, loaders.test, epochs=9)
    assert len(history) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "/45)" in lines[0]
    correct = trainer.evaluate(loaders.test).correct
    assert f"({correct}/15)" in lines[-1]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4


def test_the_bar_is_quiet_without_a_terminal(images, capsys, monkeypatch):
    trainer, loaders = make(images, callbacks=None)
    assert isinstance(trainer.callbacks[0], ProgressBar)
    trainer.fit(loaders.train, epochs=1)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trainer.fit(loaders.train, epochs=1)
    assert "epoch 1/1" in capsys.readouterr().err


def test_the_bar_counts_batches_where_a_loader_has_no_length(images, capsys, monkeypatch):
    trainer, loaders = make(images, callbacks=None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trainer.fit(iter(loaders.train), epochs=1)
    error = capsys.readouterr().err
    assert "epoch 1/1" in error and "6batch" in error


def test_a_log_that_cannot_be_written_is_named_before_training(images, tmp_path):
    trainer, loaders = make(images, callbacks=[CSVLog(tmp_path)])
    before = weights(trainer)
    with pytest.raises(FileWriteError, match="it is a folder"):
        trainer.fit(loaders.train, epochs=1)
    assert equal(before, weights(trainer))


def test_tensorboard(images, tmp_path):
    pytest.importorskip("tensorboard")
    from vision_wrapper.trainer import TensorBoard

    trainer, loaders = make(images, callbacks=[TensorBoard(tmp_path / "tb")])
    trainer.fit(loaders.train, loaders.test, epochs=1)
    assert list((tmp_path / "tb").iterdir())


def test_a_frozen_body_thaws_when_it_is_time(images, tmp_path):
    """The body stays as it was for two epochs, weights and statistics, and learns from the third on; also resumed."""

    class Watch(Callback):
        def __init__(self):
            self.seen = []

        def on_epoch_end(self, run):
            model = run.trainer.model
            self.seen.append((model.prep.conv.weight.clone(), model.prep.norm.running_mean.clone()))

    def fit(callbacks, checkpoint=None):
        trainer, loaders = make(images, optimizer="sgd")
        first = trainer.model.prep.conv.weight.clone(), trainer.model.prep.norm.running_mean.clone()
        watch = Watch()
        trainer.callbacks += [FreezeBody(2), watch, *callbacks]
        trainer.fit(loaders.train, epochs=4, checkpoint=checkpoint, checkpoint_seconds=0)
        return trainer, [first, *watch.seen]

    trainer, seen = fit([])
    same = [all(map(torch.equal, seen[0], later)) for later in seen]
    assert same == [True, True, True, False, False]
    assert all(p.requires_grad for p in trainer.model.parameters()) and trainer.model.prep.training
    for at in (3, 14, 20):
        path = tmp_path / f"{at}.ckpt"
        with pytest.raises(MemoryError):
            fit([StopAt(at)], path)
        resumed, _ = fit([], path)
        assert equal(weights(trainer), weights(resumed)), at
    with pytest.raises(SettingError, match="epochs must be"):
        FreezeBody(-1)


def test_what_somebody_froze_stays_frozen_when_the_body_thaws(images):
    trainer, loaders = make(images)
    trainer.callbacks.append(FreezeBody(1))
    prep = trainer.model.prep
    prep.requires_grad_(False).eval()
    before = prep.conv.weight.clone()
    trainer.fit(loaders.train, epochs=2)
    assert torch.equal(prep.conv.weight, before) and not prep.conv.weight.requires_grad and not prep.training
    assert trainer.model.layer2.conv.weight.requires_grad and trainer.model.layer2.training


def test_a_callback_that_leaves_eval_mode_does_not_stop_training(images):
    class Look(Callback):
        def on_epoch_end(self, run):
            run.trainer.model.eval()

    def fit(callbacks):
        trainer, loaders = make(images, callbacks=callbacks, dropout=0.3)
        return trainer.fit(loaders.train, epochs=3)["train_loss"], trainer.model.training

    assert fit([Look()]) == fit([])


@pytest.mark.parametrize("schedule", [None, schedules.cosine(), schedules.one_cycle(0.02)])
def test_groups_that_are_added_in_a_run_are_refused(images, schedule):
    class AddHead(Callback):
        def on_epoch_start(self, run):
            if run.epoch == 1:
                run.trainer.optimizer.add_param_group({"params": list(run.trainer.model.fc.parameters())})

    trainer, loaders = make(images, callbacks=[AddHead()])
    body = [p for name, p in trainer.model.named_parameters() if not name.startswith("fc")]
    trainer = Trainer(trainer.model, torch.optim.SGD(body, lr=0.1), callbacks=[AddHead()])
    with pytest.raises(SettingError, match="has 2 groups, but the run began with 1"):
        trainer.fit(loaders.train, epochs=3, schedule=schedule)

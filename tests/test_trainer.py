"""The loop: steps, history, callbacks, bad input, and resuming."""

import inspect
import math
import random
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.errors import (
    DamagedFileError,
    DataError,
    NonFiniteLossError,
    OtherModelError,
    OtherRunError,
    SettingError,
    UnknownNameError,
)
from vision_wrapper.trainer import (
    Callback,
    CSVLog,
    EarlyStopping,
    EpochLog,
    FreezeBody,
    History,
    ProgressBar,
    Trainer,
    schedules,
)


def make(images, *, dropout=0.0, augment="crop_flip", optimizer="adam", **arguments):
    vw.seed_everything(3)
    loaders = data.make_loaders(images, augment, batch_size=8, seed=3)
    model = models.CustomResNet(3, widths=(4, 4, 8, 8), dropout=dropout)
    made = {
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=0.01),
        "fused": lambda: torch.optim.Adam(model.parameters(), lr=0.01, fused=True),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    }[optimizer]()
    return Trainer(model, made, **{"callbacks": [], **arguments}), loaders


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_fit_learns_and_records(images):
    trainer, loaders = make(images)
    history = trainer.fit(loaders.train, loaders.test, epochs=6, batch_history=True)
    assert len(history) == 6 and list(history[0]) == list(history[-1])
    assert history[-1]["val_accuracy"] > 0.9 and history["epoch"] == [1, 2, 3, 4, 5, 6]
    assert len(history.batches) == 6 * 6
    assert trainer.evaluate(loaders.test).accuracy == history[-1]["val_accuracy"]
    assert trainer.predict(loaders.test).accuracy() == history[-1]["val_accuracy"]


def test_one_step_is_the_plain_one(images):
    """The fit of one epoch equals a bare PyTorch loop, bit for bit."""
    trainer, loaders = make(images, precision="fp32", channels_last=False)
    trainer.fit(loaders.train, epochs=1)
    other, loaders = make(images, precision="fp32", channels_last=False)
    model, optimizer = other.model, other.optimizer
    model.train()
    for x, y in loaders.train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert equal(weights(trainer), weights(other))


def test_three_frames_from_fit_to_the_optimizer(images):
    trainer, loaders = make(images)
    frames = []

    def look(*_):
        names = [frame.function for frame in inspect.stack() if "vision_wrapper" in frame.filename]
        frames.append(names[: names.index("fit") + 1])

    trainer.optimizer.register_step_pre_hook(look)
    trainer.fit(loaders.train, epochs=1)
    assert frames[0] == ["train_step", "_train_epoch", "fit"]


def test_schedule_steps_by_batch_or_by_epoch(images):
    trainer, loaders = make(images)
    schedule = schedules.one_cycle(0.02, 0.002, peak_epoch=1, annihilate=False)
    history = trainer.fit(loaders.train, epochs=3, schedule=schedule, batch_history=True)
    assert [row["lr"] for row in history.batches] == schedule.preview(3, 6)
    trainer, loaders = make(images)
    history = trainer.fit(
        loaders.train, epochs=3, schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.1), every="epoch"
    )
    assert history["lr"] == pytest.approx([0.01, 0.001, 0.0001])


def test_the_optimizer_keeps_its_own_step(images):
    trainer, loaders = make(images)
    before = set(vars(trainer.optimizer))
    trainer.fit(loaders.train, epochs=1, schedule=schedules.cosine())
    assert set(vars(trainer.optimizer)) == before


def test_accumulation_is_a_larger_batch(images):
    small, loaders = make(images, accumulate=3, precision="fp32", optimizer="sgd")
    large, _ = make(images, precision="fp32", optimizer="sgd")
    for trainer in (small, large):
        trainer.model.eval()  # batch norm's statistics would differ
        trainer.model.requires_grad_(True)
    x, y = next(iter(loaders.train))
    x, y = x[:6], y[:6]
    for i in range(3):
        small.train_step(x[2 * i : 2 * i + 2], y[2 * i : 2 * i + 2], share=1 / 3, update=i == 2)
    large.train_step(x, y)
    for a, b in zip(small.model.parameters(), large.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_ema_holds_the_average_after_fit(images):
    trainer, loaders = make(images, ema=0.9)
    seen = []

    class Average(Callback):
        def on_fit_start(self, run):
            self.average = {k: v.clone() for k, v in run.trainer.model.named_parameters()}

        def on_batch_end(self, run):
            for name, value in run.trainer.model.named_parameters():
                self.average[name].lerp_(value.detach(), 0.1)

    trainer.callbacks = [Average()]
    history = trainer.fit(loaders.train, loaders.test, epochs=2)
    for name, value in trainer.model.named_parameters():
        assert torch.allclose(value, trainer.callbacks[0].average[name], atol=1e-6), name
        seen.append(name)
    assert seen and trainer.evaluate(loaders.test).loss == history[-1]["val_loss"]


def test_losses_are_weighted_by_samples(images):
    trainer, loaders = make(images, precision="fp32")
    result = trainer.evaluate(loaders.test)  # 15 images in batches of 8: the last has 7
    logits = trainer.predict(loaders.test).logits
    expected = nn.functional.cross_entropy(logits, torch.from_numpy(images.test.labels))
    assert result.loss == pytest.approx(float(expected), rel=1e-5)
    assert result.total == 15 and result.accuracy == result.correct / 15


def state_of(trainer, loaders):
    return (
        weights(trainer), [p.grad for p in trainer.model.parameters()],
        [m.training for m in trainer.model.modules()], repr(trainer.optimizer.state_dict()),
        set(vars(trainer.optimizer)),
        loaders.train.epoch, random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(),
    )  # fmt: skip


@pytest.mark.parametrize("helper", ["evaluate", "predict", "find_lr"])
@pytest.mark.parametrize("fails", [False, True])
def test_helpers_leave_everything_as_it_was(images, helper, fails):
    trainer, loaders = make(images, dropout=0.3)
    trainer.fit(loaders.train, epochs=1)
    models.freeze(trainer.model)
    trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)
    before = state_of(trainer, loaders)
    arguments = {"num_iter": 12} if helper == "find_lr" else {}

    class Breaks(data.Loader):
        pass

    loader = loaders.train
    if fails:

        def broken():
            yield from list(loaders.train.batches(0))[:1]
            torch.rand(1)
            raise RuntimeError("disk gone")

        loader = broken()
        with pytest.raises(RuntimeError, match="disk gone"):
            getattr(trainer, helper)(loader, **arguments)
    else:
        getattr(trainer, helper)(loader, **arguments)
    after = state_of(trainer, loaders)
    assert equal(before[0], after[0]) and before[1:] == after[1:]


def test_frozen_parts_stay_frozen_through_fit(images):
    trainer, loaders = make(images)
    models.freeze(trainer.model)
    body = trainer.model.prep.norm.running_mean.clone(), trainer.model.prep.conv.weight.clone()
    trainer.fit(loaders.train, loaders.test, epochs=1)
    assert torch.equal(body[0], trainer.model.prep.norm.running_mean)
    assert torch.equal(body[1], trainer.model.prep.conv.weight)


class StopAt(Callback):
    """As a kill would: an exception that nothing catches, after so many batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_batch_end(self, run):
        self.batches -= 1
        if self.batches == 0:
            raise MemoryError("killed")


@pytest.mark.parametrize("at", [1, 5, 6, 7, 14])
@pytest.mark.parametrize(
    "arguments",
    [
        {"dropout": 0.3, "schedule": lambda: schedules.one_cycle(0.02, peak_epoch=1)},
        {"accumulate": 2, "ema": 0.9, "optimizer": "sgd", "schedule": lambda: schedules.plateau(patience=0)},
        {"optimizer": "fused"},
    ],
    ids=["dropout-onecycle", "accumulate-ema-plateau", "fused"],
)
def test_a_resumed_run_is_the_run(images, tmp_path, at, arguments):
    schedule, options = arguments.get("schedule", lambda: None), {k: v for k, v in arguments.items() if k != "schedule"}

    def fit(callbacks, checkpoint):
        trainer, loaders = make(images, callbacks=callbacks, **options)
        history = trainer.fit(
            loaders.train, loaders.test, epochs=3, schedule=schedule(), checkpoint=checkpoint, checkpoint_seconds=0,
            batch_history=True,
        )  # fmt: skip
        return trainer, history, trainer.predict(loaders.test)

    whole, history, predictions = fit([], None)
    with pytest.raises(MemoryError):
        fit([StopAt(at)], tmp_path / "last.ckpt")
    torch.rand(7)  # another process has other random states
    resumed, history2, predictions2 = fit([], tmp_path / "last.ckpt")
    assert equal(weights(whole), weights(resumed))
    assert torch.equal(predictions.logits, predictions2.logits)
    assert history.batches == history2.batches
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in history2.rows]


@pytest.mark.parametrize("own", [False, True], ids=["global", "own generator"])
@pytest.mark.parametrize("at", [5, 8])
def test_a_plain_dataloader_resumes_exactly_too(tmp_path, own, at):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    data_set = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())

    def fit(callbacks, checkpoint):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        generator = torch.Generator().manual_seed(7) if own else None
        loader = torch.utils.data.DataLoader(data_set, batch_size=8, shuffle=True, generator=generator)
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=callbacks)
        trainer.fit(loader, epochs=3, checkpoint=checkpoint, checkpoint_seconds=0)
        return weights(trainer)

    whole = fit([], None)
    with pytest.raises(MemoryError):
        fit([StopAt(at)], tmp_path / "c")
    torch.manual_seed(99)
    assert equal(whole, fit([], tmp_path / "c"))


def test_looking_leaves_the_order_of_a_loaders_own_generator():
    x = torch.randn(40, 6)
    generator = torch.Generator().manual_seed(7)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, shuffle=True, generator=generator
    )
    model = nn.Linear(6, 2)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[])
    before = generator.get_state()
    trainer.evaluate(loader)
    trainer.find_lr(loader, num_iter=12)
    data.check(None, {"train": loader}, model)
    assert torch.equal(before, generator.get_state())


def test_a_finished_run_is_left_as_it_is_and_another_is_an_error(images, tmp_path):
    trainer, loaders = make(images)
    trainer.fit(loaders.train, epochs=2, checkpoint=tmp_path / "c")
    final = weights(trainer)
    again, loaders = make(images)
    assert len(again.fit(loaders.train, epochs=2, checkpoint=tmp_path / "c")) == 2
    assert equal(final, weights(again))
    with pytest.raises(OtherRunError, match="epochs"):
        make(images)[0].fit(loaders.train, epochs=5, checkpoint=tmp_path / "c")


def test_ctrl_c_ends_with_a_checkpoint_and_the_history(images, tmp_path):
    class Press(Callback):
        def on_batch_end(self, run):
            if run.epoch == 1 and run.batch == 2:
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    trainer, loaders = make(images, callbacks=[Press()])
    assert len(trainer.fit(loaders.train, epochs=3, checkpoint=tmp_path / "c")) == 1
    assert signal.getsignal(signal.SIGINT) is before
    resumed, loaders = make(images)
    resumed.fit(loaders.train, epochs=3, checkpoint=tmp_path / "c")
    whole, loaders = make(images)
    whole.fit(loaders.train, epochs=3)
    assert equal(weights(whole), weights(resumed))


def test_save_and_load(images, tmp_path):
    trainer, loaders = make(images)
    trainer.fit(loaders.train, epochs=1)
    trainer.save(tmp_path / "t")
    other, _ = make(images)
    other.load(tmp_path / "t")
    assert equal(weights(trainer), weights(other))
    wrong = models.CustomResNet(4, widths=(4, 4, 8, 8))
    with pytest.raises(OtherModelError, match="fc"):
        Trainer(wrong, torch.optim.Adam(wrong.parameters())).load(tmp_path / "t")
    content = bytearray((tmp_path / "t").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(DamagedFileError):
        other.load(tmp_path / "t")


# ---- bad input


def test_bad_settings_are_errors_before_training(images):
    trainer, loaders = make(images)
    before = weights(trainer)
    for arguments in ({"epochs": 0}, {"epochs": 1.5}, {"epochs": True}, {"epochs": 1, "schedule": 3}):
        with pytest.raises(SettingError):
            trainer.fit(loaders.train, **arguments)
    with pytest.raises(SettingError, match="validation loader"):
        trainer.fit(loaders.train, epochs=1, schedule=schedules.plateau())
    with pytest.raises(DataError):
        trainer.fit([], epochs=1)
    assert equal(before, weights(trainer))
    model = models.CustomResNet(3, widths=(4, 4, 4, 4))
    with pytest.raises(SettingError, match="holds none"):
        Trainer(model, trainer.optimizer)
    for arguments in ({"ema": 1.0}, {"accumulate": 0}, {"clip_norm": 0}, {"l1": -1}, {"precision": "fp8"}):
        with pytest.raises(SettingError):
            Trainer(model, torch.optim.Adam(model.parameters()), **arguments)


def test_a_batch_the_model_cannot_take_is_named(images):
    trainer, loaders = make(images)
    model = models.CustomResNet(2, widths=(4, 4, 4, 4))
    few = Trainer(model, torch.optim.Adam(model.parameters()), callbacks=[])
    with pytest.raises(DataError, match="num_classes"):
        few.fit(loaders.train, epochs=1)
    grey = models.CustomResNet(3, in_channels=1, widths=(4, 4, 4, 4))
    with pytest.raises(DataError, match="channels"):
        Trainer(grey, torch.optim.Adam(grey.parameters()), callbacks=[]).fit(loaders.train, epochs=1)
    one = data.make_loaders(images, batch_size=44)
    with pytest.raises(SettingError, match="drop_last"):
        trainer.fit(one.train, epochs=1)
    with pytest.raises(SettingError, match="shuffle"):
        trainer.predict(torch.utils.data.DataLoader([(torch.zeros(3, 16, 16), 0)] * 4, shuffle=True))


def test_a_loss_that_is_not_finite_is_named_and_never_saved(images, tmp_path):
    trainer, loaders = make(images)
    trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / "good")
    good = (tmp_path / "good").read_bytes()

    def loss(logits, targets):
        loss.calls += 1
        return logits.sum() * (math.nan if loss.calls == 10 else 1e-3)

    loss.calls = 0
    broken, loaders = make(images, loss_fn=loss)
    with pytest.raises(NonFiniteLossError, match=r"epoch 2, batch 4, learning rate .* sample indices: \["):
        broken.fit(loaders.train, epochs=3, checkpoint=tmp_path / "bad", checkpoint_seconds=0)
    assert (tmp_path / "good").read_bytes() == good
    state = vw._files.read_tensors(tmp_path / "bad", "checkpoint")[0]
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_probabilities_are_warned_of(images):
    _, loaders = make(images)
    model = nn.Sequential(models.CustomResNet(3, widths=(4, 4, 4, 4)), nn.Softmax(1))
    with pytest.warns(UserWarning, match="expects logits"):
        Trainer(model, torch.optim.Adam(model.parameters()), callbacks=[]).fit(loaders.train, epochs=1)


def batches_of(images, count=3, classes=3):
    x = torch.randn(count, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return [(x[i], torch.arange(4) % classes) for i in range(count)]


@pytest.mark.parametrize("part", ["training, later", "validation"])
def test_targets_outside_are_named_wherever_they_come(images, part):
    good, bad = batches_of(images), batches_of(images)
    bad[-1 if part == "training, later" else 0][1][0] = 9
    trainer, _ = make(images)
    if part == "validation":
        before = weights(trainer)
        with pytest.raises(DataError, match=r"0\.\.2 for the model's 3 classes, got 0\.\.9"):
            trainer.fit(good, bad, epochs=1)
        assert equal(before, weights(trainer))
        with pytest.raises(DataError, match="no class of the model"):
            trainer.evaluate(bad)
    else:
        with pytest.raises(DataError, match="Epoch 1, batch 3: Target 9 is out of bounds"):
            trainer.fit(bad, epochs=1)


@pytest.mark.parametrize("helper", ["evaluate", "predict", "find_lr", "fit"])
@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((torch.zeros(4, 1, 16, 16), torch.zeros(4).long()), "does not take inputs of shape"),
        ((np.zeros((4, 3, 16, 16)), np.zeros(4)), "pairs of tensors"),
        ((torch.zeros(4, 3, 16, 16), torch.zeros(4).long(), 1), "pairs of tensors"),
        (torch.zeros(4, 3, 16, 16), "pairs of tensors"),
    ],
)
def test_batches_that_cannot_be_are_named_by_every_helper(images, helper, batch, words):
    trainer, _ = make(images)
    with pytest.raises(DataError, match=words):
        getattr(trainer, helper)([batch], **({"epochs": 1} if helper == "fit" else {}))


@pytest.mark.parametrize("targets", [torch.zeros(4), torch.zeros(4, 1).long(), torch.zeros(4).int()])
def test_targets_of_the_wrong_kind_are_named(images, targets):
    trainer, _ = make(images)
    with pytest.raises(DataError, match="Cross-entropy takes int64 targets"):
        trainer.fit([(torch.randn(4, 3, 16, 16), targets)], epochs=1)


def test_a_last_batch_of_one_is_named(images):
    trainer, _ = make(images)
    batches = batches_of(images)
    batches[-1] = (batches[-1][0][:1], batches[-1][1][:1])
    with pytest.raises(DataError, match="Epoch 1, batch 3: A batch of one"):
        trainer.fit(batches, epochs=1)
    with pytest.raises(DataError, match="A batch of one"):
        trainer.find_lr([batches[-1]])
    assert trainer.evaluate([batches[-1]]).total == 1


def test_a_loader_that_is_none_is_said(images):
    trainer, _ = make(images)
    for call in (lambda: trainer.fit(None, epochs=1), lambda: trainer.evaluate(5), lambda: trainer.find_lr(5)):
        with pytest.raises(SettingError, match="iterable of"):
            call()


def test_soft_targets_have_no_accuracy(images, capsys):
    trainer, _ = make(images, callbacks=[EpochLog()])
    soft = [(x, nn.functional.one_hot(y, 3).float() * 0.8 + 0.2 / 3) for x, y in batches_of(images)]
    history = trainer.fit(soft, soft, epochs=1)
    assert history[0]["train_accuracy"] is None and history[0]["val_accuracy"] is None
    assert "accuracy" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"callbacks": [print]}, "list of trainer.Callback"),
        ({"callbacks": EpochLog()}, "list of trainer.Callback"),
        ({"ema": "a"}, "ema"),
        ({"clip_norm": "a"}, "clip_norm"),
        ({"device": "nowhere"}, "no device 'nowhere'"),
    ],
)
def test_settings_of_a_trainer_that_cannot_be(images, arguments, words):
    with pytest.raises(SettingError, match=words):
        make(images, **arguments)


def test_a_frozen_model_and_lbfgs_are_refused(images):
    trainer, loaders = make(images)
    trainer.model.requires_grad_(False)
    with pytest.raises(SettingError, match="unfreeze"):
        trainer.fit(loaders.train, epochs=1)
    with pytest.raises(SettingError, match="LBFGS"):
        Trainer(trainer.model, torch.optim.LBFGS(trainer.model.parameters()))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (lambda o: None, "must return a torch scheduler"),
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "schedules.plateau"),
        (lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=12), 'every="batch"'),
        (schedules.one_cycle(0.1, peak_epoch=9), "outside the run"),
    ],
)
def test_a_refused_schedule_leaves_the_optimizer_alone(images, schedule, words):
    trainer, loaders = make(images)
    groups, attributes = repr(trainer.optimizer.state_dict()), set(vars(trainer.optimizer))
    with pytest.raises(SettingError, match=words):
        trainer.fit(loaders.train, epochs=2, schedule=schedule)
    assert repr(trainer.optimizer.state_dict()) == groups and set(vars(trainer.optimizer)) == attributes


# ---- the same run


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"body_lr": 0.02}, "the groups' rates"), ({"weight_decay": 0.3}, "groups: .*weight_decay"), ({}, None)],
)
@pytest.mark.parametrize("schedule", [None, schedules.one_cycle(0.1, peak_epoch=0.5)])
def test_other_groups_of_the_optimizer_are_another_run(images, tmp_path, changes, words, schedule):
    def fit(**changes):
        vw.seed_everything(3)
        model = models.CustomResNet(3, widths=(4, 4, 8, 8))
        groups = models.parameter_groups(model, lr=0.1, **{"body_lr": 0.01, "weight_decay": 0.1, **changes})
        trainer = Trainer(model, torch.optim.SGD(groups, lr=0.1), callbacks=[], device="cpu")
        trainer.fit(batches_of(images), epochs=2, schedule=schedule, checkpoint=tmp_path / "c")
        trainer.fit(batches_of(images), epochs=2, schedule=schedule, checkpoint=tmp_path / "c")  # the cell once more
        return weights(trainer)

    first = fit()
    if words is None:
        assert equal(first, fit())
    else:
        with pytest.raises(OtherRunError, match=words):
            fit(**changes)


@pytest.mark.parametrize("other", ["loss", "weights of the loss", "data", "batches"])
def test_another_run_is_refused_before_anything_changes(images, tmp_path, other):
    batches = batches_of(images)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]))
    first, _ = make(images, loss_fn=loss)
    first.fit(batches, epochs=2, checkpoint=tmp_path / "c")
    if other == "loss":
        loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    elif other == "weights of the loss":
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 4]))
    elif other == "data":
        batches = [(x * 3, y) for x, y in batches]
    else:
        batches = batches[:2]
    second, _ = make(images, loss_fn=loss, ema=None)
    before = weights(second), repr(second.optimizer.state_dict()), set(vars(second.optimizer))
    with pytest.raises(OtherRunError, match=r"loss|loader"):
        second.fit(batches, epochs=2, checkpoint=tmp_path / "c", schedule=schedules.one_cycle(0.1, peak_epoch=0.5))
    after = weights(second), repr(second.optimizer.state_dict()), set(vars(second.optimizer))
    assert equal(before[0], after[0]) and before[1:] == after[1:]


# ---- callbacks and history


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


def test_early_stopping_and_logs(images, tmp_path, capsys):
    trainer, loaders = make(
        images, callbacks=[EpochLog(), CSVLog(tmp_path / "log.csv"), EarlyStopping(patience=2, min_delta=9)]
    )
    history = trainer.fit(loaders.train, loaders.test, epochs=9)
    assert len(history) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "/45)" in lines[0]
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


def test_tensorboard(images, tmp_path):
    pytest.importorskip("tensorboard")
    from vision_wrapper.trainer import TensorBoard

    trainer, loaders = make(images, callbacks=[TensorBoard(tmp_path / "tb")])
    trainer.fit(loaders.train, loaders.test, epochs=1)
    assert list((tmp_path / "tb").iterdir())


def test_history_goes_to_files_and_back(images, tmp_path):
    trainer, loaders = make(images)
    history = trainer.fit(loaders.train, epochs=2, batch_history=True)
    history.to_json(tmp_path / "h.json")
    again = History.from_json(tmp_path / "h.json")
    assert again.rows == history.rows and again.batches == history.batches
    assert history["val_loss"] == [None, None]
    with pytest.raises(UnknownNameError, match="val_loss"):
        history["val_los"]
    pandas = pytest.importorskip("pandas")
    assert isinstance(history.to_dataframe(), pandas.DataFrame) and len(history.to_dataframe(batches=True)) == 12


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"clip_norm": 0.1}, {"l1": 1e-3}, {"deterministic": True}])
def test_options_train(images, options):
    trainer, loaders = make(images, **options)
    history = trainer.fit(loaders.train, loaders.test, epochs=2)
    assert math.isfinite(history[-1]["train_loss"]) and history[-1]["train_loss"] < history[0]["train_loss"]


def test_inputs_of_any_shape():
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    batches = [(x[i : i + 8], (x[i : i + 8, 0] > 0).long()) for i in range(0, 32, 8)]
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=0.05), callbacks=[])
    assert trainer.fit(batches, batches, epochs=20)[-1]["val_accuracy"] > 0.9
    assert trainer.predict(batches).indices.tolist() == list(range(32))


def test_a_warm_fused_optimizer_keeps_its_state_with_its_weights(images):
    """The trainer changes the memory format of the weights; a fused step would pair them with others' moments."""
    after = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = models.CustomResNet(3, widths=(4, 4, 8, 8))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        optimizer.step()
        loaders = data.make_loaders(images, batch_size=15, seed=0)
        Trainer(model, optimizer, callbacks=[]).fit(loaders.train, epochs=1)
        after.append(model.state_dict())
    assert all(torch.allclose(after[0][name], after[1][name], atol=1e-3) for name in after[0])


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("compile", [True, "graphs"])
def test_a_compiled_model_trains_and_predicts_alike(images, compile):
    def trained(compile):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 3))
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), callbacks=[], compile=compile)
        loaders = data.make_loaders(images, batch_size=15, seed=0)
        history = trainer.fit(loaders.train, loaders.test, epochs=2)
        return [*history["train_loss"], *history["val_loss"]], trainer.predict(loaders.test, tta="flip")

    (losses, predictions), (plain_losses, plain_predictions) = trained(compile), trained(False)
    assert losses == pytest.approx(plain_losses, rel=1e-4)
    assert torch.allclose(predictions.logits, plain_predictions.logits, atol=1e-4)


@pytest.mark.parametrize("arguments", [{"compile": "fast"}, {"compile": "graphs", "accumulate": 2}])
def test_ways_to_compile_that_cannot_be(arguments):
    model = nn.Linear(2, 2)
    with pytest.raises(SettingError, match="graphs"):
        Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)


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

"""The LR finder agrees with torch-lr-finder, without its traps."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from vision_wrapper.errors import DataError, SettingError
from vision_wrapper.trainer import Lookahead, Trainer, schedules
from vision_wrapper.trainer.lr_finder import suggest


@pytest.fixture
def task():
    torch.manual_seed(0)
    x = torch.randn(256, 10)
    y = (x @ torch.randn(10, 3)).argmax(1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))
    return model, loader


def trainer_of(model, **arguments):
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[], device="cpu", **arguments)


def test_it_agrees_with_the_packages_own_curve(task, capsys):
    from torch_lr_finder import LRFinder

    model, loader = task
    theirs_model = copy.deepcopy(model)
    theirs = LRFinder(theirs_model, torch.optim.SGD(theirs_model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    theirs.range_test(loader, start_lr=1e-3, end_lr=10, num_iter=60)
    capsys.readouterr()
    curve = trainer_of(model, precision="fp32").find_lr(loader, start_lr=1e-3, end_lr=10, num_iter=60)
    assert curve.lrs == pytest.approx(theirs.history["lr"][: len(curve.lrs)])
    assert curve.losses == pytest.approx(theirs.history["loss"][: len(curve.losses)], rel=1e-5)
    assert len(curve.lrs) == len(theirs.history["lr"])
    assert curve.suggestion is not None and 1e-3 < curve.suggestion < 10
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""  # the package prints and draws a bar


def test_twice_is_the_same_and_a_scheduler_is_no_obstacle(task):
    model, loader = task
    trainer = trainer_of(model)
    torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)
    first = trainer.find_lr(loader, num_iter=20)
    assert trainer.find_lr(loader, num_iter=20) == first
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.1
    trainer.fit(loader, epochs=1, schedule=schedules.cosine())


def test_nan_stops_it_and_is_said(task):
    model, loader = task
    calls = []

    def loss(logits, targets):
        calls.append(1)
        return nn.functional.cross_entropy(logits, targets) * (math.nan if len(calls) > 25 else 1)

    curve = trainer_of(model, loss_fn=loss).find_lr(loader, num_iter=100)
    assert len(calls) == 26 and len(curve.lrs) == 25
    assert all(math.isfinite(value) for value in curve.losses) and "not finite" in curve.reason


def test_groups_keep_their_proportion(task):
    model, loader = task
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters(), "lr": 0.1}]
    )
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append([g["lr"] for g in o.param_groups]))
    curve = Trainer(model, optimizer, callbacks=[]).find_lr(loader, num_iter=15, start_lr=1e-4, end_lr=1)
    assert np.allclose([a / b for a, b in seen], 0.1)
    assert curve.lrs == pytest.approx([b for _, b in seen])


def test_useless_curves_say_so():
    rates = np.geomspace(1e-5, 1, 50).tolist()
    flat = suggest(rates, [2.3] * 50)
    assert flat.suggestion is None and flat.max_lr is None and "hardly falls" in flat.reason
    assert suggest(rates[:5], [5, 4, 3, 2, 1]).suggestion is None
    step = [2.0 if rate < 1e-3 else 0.5 for rate in rates]
    assert suggest(rates, step).suggestion == pytest.approx(1e-3, rel=0.5)


def test_bad_ranges(task):
    model, loader = task
    for bad in ({"start_lr": 1, "end_lr": 0.1}, {"start_lr": None}, {"end_lr": "10"}):
        with pytest.raises(SettingError, match="find_lr needs numbers 0 < start_lr < end_lr"):
            trainer_of(model).find_lr(loader, **bad)
    with pytest.raises(SettingError):
        trainer_of(model).find_lr(loader, num_iter=1)


def test_a_burst_of_the_loss_is_not_taken_for_the_steepest_fall():
    """As Adam on CIFAR-10: a slow fall to 1.6, a burst to 6 at 0.1, and a fall from there that is no learning."""
    lrs = np.geomspace(1e-6, 10, 100)
    slow = 3.1 - 1.5 / (1 + np.exp(-2 * np.log(lrs / 1e-3)))
    burst = 4.5 * np.exp(-(np.log(lrs / 0.1) ** 2) / 0.5) + np.clip(np.log(lrs / 0.03), 0, 1)
    curve = suggest(lrs.tolist(), (slow + burst).tolist())
    assert curve.suggestion == pytest.approx(1e-3, rel=0.2)
    lowest = lrs[(slow + burst)[:60].argmin()]
    assert curve.max_lr == pytest.approx(lowest / 5) and 0.01 < lowest < 0.05


def test_a_loss_with_a_state_is_left_as_it_was(task):
    class Counting(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, logits, targets):
            self.calls += 1
            return super().forward(logits, targets)

    model, loader = task
    loss = Counting()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, callbacks=[])
    trainer.find_lr(loader, num_iter=12)
    trainer.evaluate(loader)
    assert float(loss.calls) == 0


def test_what_lookahead_took_in_an_earlier_fit_is_not_in_the_curve(task):
    model, loader = task
    before = copy.deepcopy(model.state_dict())
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), steps=2)
    trainer = Trainer(model, optimizer, callbacks=[], device="cpu")
    curve = trainer.find_lr(loader, num_iter=10)
    trainer.fit(loader, epochs=1)
    model.load_state_dict(before)
    assert trainer.find_lr(loader, num_iter=10) == curve


def test_groups_whose_rates_are_0_have_no_proportion(task):
    """An earlier schedule has ended there; all at one rate would be another optimizer, without a word."""
    model, loader = task
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters(), "lr": 0.1}]
    trainer = Trainer(model, torch.optim.SGD(groups), callbacks=[])
    trainer.fit(loader, epochs=1, schedule=schedules.cosine())
    with pytest.raises(SettingError, match="set each group's lr"):
        trainer.find_lr(loader)


def test_a_batch_of_one_is_refused_as_in_a_fit(task):
    _, loader = task
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    odd = torch.utils.data.DataLoader(torch.utils.data.Subset(loader.dataset, range(33)), batch_size=32)
    with pytest.raises(SettingError, match="The last batch has one image"):
        trainer_of(model).find_lr(odd)
    with pytest.raises(DataError, match="A batch of one image"):
        trainer_of(model).find_lr(list(odd))  # whose last batch is not known in advance

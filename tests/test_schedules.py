"""Schedules equal torch's, and can be previewed; every entry of the table."""

import numpy as np
import pytest
import torch
from torch import nn

from vision_wrapper import data
from vision_wrapper.errors import SettingError, UnknownNameError
from vision_wrapper.models import CustomResNet
from vision_wrapper.trainer import SCHEDULES, Lookahead, schedules

ARGUMENTS = {
    "one_cycle": {"max_lr": 0.1, "peak_epoch": 1},
    "multi_step": {"milestones": [1, 2]},
    "plateau": {"patience": 1},
    "warm_up": {"warm_up_epochs": 1},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_a_preview_of_every_step(name):
    rates = SCHEDULES[name](**ARGUMENTS.get(name, {})).preview(3, 7)
    assert len(rates) == 21
    assert all(0 <= rate <= 0.1 + 1e-12 for rate in rates)


def test_one_cycle_without_annihilation_is_torchs():
    schedule = schedules.one_cycle(max_lr=0.05, min_lr=0.005, peak_epoch=5, annihilate=False)
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.05, total_steps=24 * 98, pct_start=5 / 24, div_factor=10, final_div_factor=1,
        anneal_strategy="linear", cycle_momentum=False,
    )  # fmt: skip
    expected = []
    for _ in range(24 * 98):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 24 * 98:
            theirs.step()
    ours = schedule.preview(24, 98)
    assert ours == expected
    assert ours.index(max(ours)) == 489  # the peak of epoch 5, as experiments say
    assert ours[0] == pytest.approx(0.005) and ours[-1] == pytest.approx(0.005)


def test_one_cycle_leaves_momentum_alone():
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=0.1, betas=(0.8, 0.9))
    schedules.one_cycle(0.1, peak_epoch=1).build(optimizer, 3, 5)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_groups_keep_the_proportion_of_their_rates():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}])
    schedules.one_cycle(max_lr=1.0, peak_epoch=1).build(optimizer, 2, 4)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"] / 10)


@pytest.mark.parametrize("peak", [0, -1, 3, 24])
def test_a_peak_outside_the_run_is_an_error(peak):
    with pytest.raises(SettingError, match="outside the run"):
        schedules.one_cycle(0.1, peak_epoch=peak).preview(2, 10)


def test_bad_values_are_named():
    for make in (
        lambda: schedules.one_cycle(None),
        lambda: schedules.one_cycle(0.1, min_lr=0.2),
        lambda: schedules.one_cycle(0.1, anneal="quadratic"),
        lambda: schedules.multi_step([]),
        lambda: schedules.plateau(factor=2),
        lambda: schedules.plateau(monitor="accuracy"),
        lambda: schedules.constant(-1),
        lambda: schedules.from_function(lambda optimizer: None, every="step"),
    ):
        with pytest.raises(SettingError):
            make()
    with pytest.raises(UnknownNameError, match="one_cycle"):
        SCHEDULES["one_cylce"]


def test_torch_annihilates_by_default():
    """The trap: OneCycleLR's own defaults end at a ten-thousandth, and cycle Adam's beta1."""
    optimizer = torch.optim.Adam(CustomResNet(widths=(4, 4, 4, 4)).parameters(), lr=1, betas=(0.8, 0.9))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    assert scheduler.state_dict()["_schedule_phases"] and optimizer.param_groups[0]["min_lr"] == pytest.approx(4e-6)
    assert optimizer.param_groups[0]["betas"][0] != 0.8


def test_a_line_ends_at_its_last_rate_for_all_groups():
    rates = schedules.linear().preview(2, 5, lr=0.1)
    assert rates == pytest.approx([0.1 * (1 - step / 10) for step in range(10)])
    rates = schedules.linear(max_lr=0.4, final_lr=0.2).preview(1, 4)
    assert rates == pytest.approx([0.4, 0.35, 0.3, 0.25])
    parts = [nn.Linear(2, 2), nn.Linear(2, 2)]
    groups = [{"params": part.parameters(), "lr": lr} for part, lr in zip(parts, (1.0, 0.1), strict=True)]
    optimizer = torch.optim.SGD(groups)
    scheduler = schedules.linear(final_lr=0.5).build(optimizer, 1, 4)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05])
    for wrong in (-1, None, "low", False):
        for falling in (schedules.linear, schedules.cosine):
            with pytest.raises(SettingError, match="final_lr must be a number of at least 0"):
                falling(final_lr=wrong)
    with pytest.raises(SettingError, match="above the highest rate"):
        schedules.linear(final_lr=0.5).preview(1, 4, lr=0.1)
    assert schedules.linear().preview(1, 4, lr=0.0) == [0.0] * 4


def test_one_cycle_may_end_at_nothing():
    rates = schedules.one_cycle(max_lr=0.4, min_lr=0.1, peak_epoch=1, final_lr=0).preview(4, 5)
    assert (
        rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(0.4) and rates[-1] == pytest.approx(0, abs=1e-9)
    )


def test_cosine_keeps_the_proportion_of_its_groups_and_is_torchs():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = torch.optim.SGD([{"params": [weights[0]], "lr": 0.01}, {"params": [weights[1]], "lr": 0.1}])
    scheduler = schedules.cosine(0.1, final_lr=0.05).build(groups, 2, 5)
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(alone, 10, eta_min=0.05)
    for _ in range(11):
        first, second = (group["lr"] for group in groups.param_groups)
        assert first == pytest.approx(0.1 * second) and second == pytest.approx(alone.param_groups[0]["lr"])
        for step in (groups, scheduler, alone, theirs):
            step.step()


def test_groups_that_ended_at_0_have_to_be_set_again():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 0.01}, {"params": [weights[1]], "lr": 0.1}])
    scheduler = schedules.linear().build(optimizer, 1, 3)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    with pytest.raises(SettingError, match="proportion is not known"):
        schedules.one_cycle(0.5, peak_epoch=1).build(optimizer, 2, 3)


def test_warm_up_of_nothing_is_nothing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    schedules.warm_up(1, final_lr=0.1).build(optimizer, 2, 3)
    assert optimizer.param_groups[0]["lr"] == 0


def test_what_falls_does_not_rise():
    for schedule in (
        schedules.cosine(final_lr=1.0), schedules.linear(final_lr=1.0), schedules.warm_up(1, final_lr=1.0),
        schedules.cosine(0.1, final_lr=0.2),
    ):  # fmt: skip
        with pytest.raises(SettingError, match="above the highest rate"):
            schedule.preview(epochs=3, steps_per_epoch=4, lr=0.1)


def test_a_plateau_keeps_the_proportion_of_the_groups_rates():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 0.01}])
    scheduler = schedules.plateau(factor=0.1, patience=0, min_lr=0.01, monitor="val_loss").build(optimizer, 5, 1)
    for _ in range(5):
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 1e-4])


def test_numpys_rates_make_the_same_run():
    half, one = np.float32(0.5), np.int64(1)
    for make in (
        lambda rate, epochs: schedules.one_cycle(epochs, min_lr=rate, peak_epoch=epochs, final_lr=rate),
        lambda rate, epochs: schedules.cosine(epochs, final_lr=rate),
        lambda rate, epochs: schedules.linear(epochs, final_lr=rate),
        lambda rate, epochs: schedules.multi_step([epochs], factor=rate),
        lambda rate, epochs: schedules.plateau(factor=rate, threshold=rate, min_lr=rate),
        lambda rate, epochs: schedules.warm_up(epochs, max_lr=rate, final_lr=rate),
        lambda rate, epochs: schedules.constant(rate),
    ):
        assert make(half, one).describe() == make(np.float64(0.5), 1).describe() == make(0.5, 1).describe()
    assert schedules.one_cycle(np.float32(0.1), peak_epoch=1).preview(3, 7) == pytest.approx(
        schedules.one_cycle(float(np.float32(0.1)), peak_epoch=1).preview(3, 7), abs=1e-17
    )


def test_a_preview_needs_epochs_with_steps():
    for epochs, steps in ((0, 5), (2, 0), (1.5, 5)):
        with pytest.raises(SettingError, match="whole number of at least 1"):
            schedules.cosine().preview(epochs, steps)


def test_numpys_whole_numbers_make_the_same_run():
    three = np.int64(3)
    assert schedules.multi_step([three]).describe() == schedules.multi_step([3]).describe()
    assert schedules.multi_step(np.array([3, 5])).describe() == schedules.multi_step([3, 5]).describe()
    assert schedules.plateau(patience=three).describe() == schedules.plateau(patience=3).describe()
    assert repr(data.augmentation("crop_flip", pad=three)) == repr(data.augmentation("crop_flip", pad=3))
    assert type(Lookahead(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), steps=three).steps) is int


def test_one_cycle_does_not_end_above_its_peak():
    with pytest.raises(SettingError, match=r"final_lr <= max_lr, got final_lr=5.0"):
        schedules.one_cycle(0.1, final_lr=5.0)
    assert schedules.one_cycle(0.1, final_lr=0.1, peak_epoch=1).preview(2, 4)[-1] == pytest.approx(0.1)


def test_momentum_cannot_cycle_where_there_is_none():
    optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(SettingError, match="optimizer with momentum in every group, got Adagrad"):
        schedules.one_cycle(0.1, cycle_momentum=True).build(optimizer, 4, 4)
    without = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # torch would give it some
    with pytest.raises(SettingError, match="optimizer with momentum in every group, got SGD"):
        schedules.one_cycle(0.1, cycle_momentum=True).build(without, 4, 4)

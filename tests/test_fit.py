"""A fit at its edges: loaders of unknown length, rates of groups, some of the parameters, losses of one's own."""

import functools
import signal

import pytest
import torch
from fits import CtrlC, equal, make, ready_batches, weights
from torch import nn

from vision_wrapper import data, models
from vision_wrapper.errors import CheckpointError, OtherRunError, SettingError
from vision_wrapper.trainer import Trainer, schedules

# ---- loaders whose length is unknown or wrong


class Unsized:
    """Three batches, and whatever is said of their number."""

    def __init__(self, said=None):
        self.batches, self.said = ready_batches(), said

    def __iter__(self):
        return iter(self.batches)


class Missized(Unsized):
    def __len__(self):
        return self.said


def moved(before, after):
    return max(float((after[name].float() - before[name].float()).abs().max()) for name in before if "norm" not in name)


@pytest.mark.parametrize("said", [None, 4])
def test_a_short_last_window_is_not_stepped_twice(images, tmp_path, said):
    """The checkpoint before validation has the step of the last window."""

    def fit(validation, **arguments):
        trainer, _ = make(images, accumulate=2, optimizer="sgd")
        train = Unsized() if said is None else Missized(said)
        history = trainer.fit(train, validation, epochs=2, **arguments)
        return trainer, history

    right, _ = fit(ready_batches())
    cut, _ = fit(interrupting(ready_batches()), checkpoint=tmp_path / "last.ckpt")
    assert cut.interrupted
    resumed, history = fit(ready_batches(), checkpoint=tmp_path / "last.ckpt")
    assert len(history) == 2 and equal(weights(resumed), weights(right))


def interrupting(batches):
    """A validation loader during which Ctrl-C comes; iterators are not looked at before training."""
    signal.raise_signal(signal.SIGINT)
    yield from batches


@pytest.mark.parametrize("said", [None, 3, 4])
def test_a_last_window_is_a_whole_step_whatever_the_loader_says_of_its_length(images, said):
    """Clipping, the average, the mean over the batches that there are: as with a loader that knows its length."""
    arguments = {"accumulate": 2, "clip_norm": 1e-3, "ema": 0.5, "precision": "fp32", "optimizer": "sgd"}
    right, _ = make(images, **arguments)
    right.fit(Missized(3), epochs=2)
    trainer, _ = make(images, **arguments)
    before = weights(trainer)
    trainer.fit(Unsized() if said is None else Missized(said), epochs=2)
    assert 0 < moved(before, weights(trainer)) < 0.01
    assert moved(weights(right), weights(trainer)) < 1e-6
    assert all(p.grad is None for p in trainer.model.parameters())


def test_more_batches_than_the_loader_said_are_trained_on(images):
    trainer, _ = make(images, accumulate=2)
    norms = []
    look = lambda *_: norms.append(float(trainer.model.fc.weight.grad.norm()))  # noqa: E731
    trainer.optimizer.register_step_pre_hook(look)
    loader = Missized(3)
    loader.batches = loader.batches[:1] * 5  # the same one five times
    trainer.model.eval().requires_grad_(True)
    trainer.fit(loader, epochs=1)
    assert len(norms) == 3 and all(p.grad is None for p in trainer.model.parameters())
    assert min(norms) > 0.5 * max(norms)  # the last one counts as one batch too, not as a part of a window


def test_a_last_window_is_a_whole_step_of_a_scaler_too(images):
    trainer, _ = make(images, accumulate=2, precision="fp32")
    trainer._scaler = torch.amp.GradScaler("cpu")
    trainer._optimizer_step = functools.partial(trainer._scaler.step, trainer.optimizer)
    assert len(trainer.fit(Unsized(), epochs=3)) == 3


# ---- groups, rates


def with_groups(images, lr=0.01, body=0.001):
    trainer, loaders = make(images, precision="fp32")
    parameters = list(trainer.model.parameters())
    groups = [{"params": parameters[:-2], "lr": body}, {"params": parameters[-2:], "lr": lr}]
    return Trainer(trainer.model, torch.optim.SGD(groups), callbacks=[], precision="fp32"), loaders


def test_the_history_has_the_rate_of_the_leading_group(images):
    trainer, loaders = with_groups(images)
    assert trainer.fit(loaders.train, epochs=1)["lr"] == [0.01]
    history = trainer.fit(loaders.train, epochs=2, schedule=schedules.linear(0.1), batch_history=True)
    assert history.batches[0]["lr"] == pytest.approx(0.1)


def test_a_rate_that_is_a_tensor_is_kept_as_it_was(images):
    trainer, loaders = make(images)
    trainer = Trainer(trainer.model, torch.optim.SGD(trainer.model.parameters(), lr=torch.tensor(0.1)), callbacks=[])
    history = trainer.fit(loaders.train, epochs=2, schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.1))
    assert history["lr"] == pytest.approx([0.1, 0.01])


def test_a_schedule_starts_anew_after_another_fit(images):
    """torch notes in the optimizer where a schedule began, and would begin there again."""
    trainer, loaders = make(images)
    trainer.fit(loaders.train, epochs=1, schedule=schedules.constant())
    rates = trainer.fit(loaders.train, epochs=2, schedule=schedules.warm_up(1, max_lr=0.5), batch_history=True).batches
    assert max(row["lr"] for row in rates) == pytest.approx(0.5)
    assert "initial_lr" not in trainer.optimizer.param_groups[0]
    trainer.optimizer.param_groups[0]["lr"] = 0.2
    step = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # noqa: E731
    assert trainer.fit(loaders.train, epochs=1, schedule=step)["lr"] == [0.2]


def test_a_schedule_that_begins_where_another_ended_at_0_is_warned_of(images):
    trainer, loaders = make(images)
    trainer.fit(loaders.train, epochs=1, schedule=schedules.linear())
    assert trainer.optimizer.param_groups[0]["lr"] == 0
    with pytest.warns(UserWarning, match="the highest rate is 0, where an earlier schedule"):
        trainer.fit(loaders.train, epochs=1, schedule=schedules.linear())
    trainer.fit(loaders.train, epochs=1, schedule=schedules.linear(0.1))


def test_what_torch_noted_of_the_users_own_scheduler_stays(images):
    trainer, loaders = make(images)
    torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1)
    trainer.fit(loaders.train, epochs=1, schedule=schedules.one_cycle(0.5, peak_epoch=0.5))
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.01


@pytest.mark.parametrize("arguments", [{}, {"final_lr": 0.0}, {"annihilate": False}, {"anneal": "cos"}])
def test_a_cycle_leaves_the_rate_it_ends_at(images, arguments):
    """torch's own goes on past its end, to a rate below 0, which would climb the loss in the next fit."""
    trainer, loaders = with_groups(images, lr=0.01, body=0.001)
    cycle = schedules.one_cycle(0.01, peak_epoch=0.5, **arguments)
    ended = trainer.fit(loaders.train, epochs=2, schedule=cycle)["lr"][-1]
    body, head = (group["lr"] for group in trainer.optimizer.param_groups)
    assert head == ended >= 0 and body == pytest.approx(head / 10)
    if not ended:
        with pytest.raises(SettingError, match="all 0"):
            trainer.fit(loaders.train, epochs=1, schedule=cycle)
        return
    trainer.fit(loaders.train, epochs=2, schedule=schedules.one_cycle(0.02, peak_epoch=1, annihilate=False))
    body, head = (group["lr"] for group in trainer.optimizer.param_groups)
    assert head == pytest.approx(0.02 / 25) and body == pytest.approx(head / 10)


def halving(optimizer):
    """A scheduler of somebody's own, which notes nothing in the optimizer."""

    class Halving:
        def __init__(self):
            self.rate, self.steps = optimizer.param_groups[1]["lr"], 0

        def step(self):
            self.steps += 1
            optimizer.param_groups[1]["lr"] = self.rate / 2**self.steps

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    return Halving()


def cycle_of_own_rates(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], total_steps=18)


def changing_ranks(optimizer):
    """Of two groups, the one that leads falls below the other."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda e: 1.0, lambda e: 0.01**e])


@pytest.mark.parametrize(
    ("schedule", "every"), [(halving, "epoch"), (cycle_of_own_rates, "batch"), (changing_ranks, "epoch")]
)
def test_any_scheduler_goes_on_in_another_process(images, tmp_path, schedule, every):
    def run(at):
        trainer, loaders = with_groups(images)
        trainer.callbacks = [CtrlC(at)]
        return trainer.fit(loaders.train, epochs=3, schedule=schedule, every=every, checkpoint=tmp_path / "last.ckpt")

    trainer, loaders = with_groups(images)
    straight = trainer.fit(loaders.train, epochs=3, schedule=schedule, every=every)
    run(14)
    assert run(100)["lr"] == straight["lr"]


@pytest.mark.parametrize("name", ["warm_up", "linear", "cosine", "one_cycle"])
def test_the_same_trainer_goes_on_with_the_same_rates(images, tmp_path, name):
    """A schedule is built from the rates that the run began with, not from those it was interrupted at."""
    schedule = {
        "warm_up": schedules.warm_up(1, final_lr=0.001),
        "linear": schedules.linear(final_lr=0.001),
        "cosine": schedules.cosine(final_lr=0.001),
        "one_cycle": schedules.one_cycle(0.05, peak_epoch=1),
    }[name]
    calm, loaders = make(images)
    straight = calm.fit(loaders.train, epochs=3, schedule=schedule, batch_history=True)
    trainer, loaders = make(images)
    trainer.callbacks = [CtrlC(8)]
    fit = lambda: trainer.fit(  # noqa: E731
        loaders.train, epochs=3, schedule=schedule, checkpoint=tmp_path / "last.ckpt", batch_history=True
    )
    fit()
    assert trainer.interrupted
    for _ in range(2):  # the second one finds it finished
        assert [row["lr"] for row in fit().batches] == [row["lr"] for row in straight.batches]
    assert equal(weights(trainer), weights(calm))


def test_extending_in_the_same_process_is_extending_in_a_new_one(images, tmp_path):
    def extended(anew, folder):
        trainer, loaders = make(images)
        arguments = {"checkpoint": tmp_path / folder / "last.ckpt", "batch_history": True}
        trainer.fit(loaders.train, epochs=1, schedule=schedules.cosine(), **arguments)
        if anew:
            trainer, loaders = make(images)
        return trainer.fit(loaders.train, epochs=2, schedule=schedules.cosine(), extend=True, **arguments).batches

    rates = [[row["lr"] for row in extended(anew, str(anew))] for anew in (False, True)]
    assert rates[0] == rates[1] and rates[0][-1] > 0


def test_batches_that_are_kept_from_a_resume_on_are_counted_from_the_beginning(images, tmp_path):
    def fit(at, wanted):
        trainer, loaders = make(images)
        trainer.callbacks = [CtrlC(at)]
        return trainer.fit(loaders.train, epochs=3, checkpoint=tmp_path / "last.ckpt", batch_history=wanted).batches

    trainer, loaders = make(images)
    straight = trainer.fit(loaders.train, epochs=3, batch_history=True).batches
    assert fit(8, False) == []
    kept = fit(100, True)
    assert kept == straight[-len(kept) :] and len(straight) == 3 * len(loaders.train) > len(kept) > 0


def test_extending_takes_the_schedule_that_is_given(images, tmp_path):
    """It goes on where the longer cycle would be; one that steps at other times is another run."""

    def fit(epochs, peak, **arguments):
        trainer, loaders = make(images, optimizer="sgd")
        schedule = schedules.one_cycle(0.1, peak_epoch=peak)
        return trainer.fit(loaders.train, epochs=epochs, schedule=schedule, batch_history=True, **arguments).batches

    arguments = {"checkpoint": tmp_path / "last.ckpt", "extend": True}
    steps = len(fit(2, 1, **arguments))
    rates = [row["lr"] for row in fit(4, 3, **arguments)]
    assert rates[steps:] == [row["lr"] for row in fit(4, 3)][steps:] and max(rates[steps:]) == pytest.approx(0.1)
    trainer, loaders = make(images, optimizer="sgd")
    with pytest.raises(OtherRunError, match="schedule"):
        trainer.fit(loaders.train, epochs=6, schedule=schedules.multi_step([2]), **arguments)


def test_extending_a_scheduler_that_counts_nowhere(images, tmp_path):
    def fit(epochs, **arguments):
        trainer, loaders = with_groups(images)
        return trainer.fit(loaders.train, epochs=epochs, schedule=halving, **arguments)["lr"]

    fit(1, checkpoint=tmp_path / "last.ckpt")
    assert fit(3, checkpoint=tmp_path / "last.ckpt", extend=True) == fit(3)


# ---- some of the parameters, a scaler


def test_gradients_of_parameters_that_are_not_optimized_are_not_clipped_with(images):
    """They are never put to 0, and would make the norm larger with every step."""

    def head_after(frozen):
        trainer, loaders = make(images)
        model = trainer.model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen or name.startswith("fc"))
        alone = Trainer(model, torch.optim.SGD(model.fc.parameters(), lr=0.1), callbacks=[], clip_norm=0.1)
        alone.fit(loaders.train, epochs=2)
        return model.fc.weight

    assert torch.equal(head_after(frozen=False), head_after(frozen=True))


def test_a_step_that_an_error_cuts_short_does_not_spoil_the_next_fit(images):
    def make_scaled():
        trainer, _ = make(images, precision="fp32", clip_norm=1.0)
        trainer._scaler = torch.amp.GradScaler("cpu")
        trainer._optimizer_step = functools.partial(trainer._scaler.step, trainer.optimizer)
        return trainer

    def fails(*_, **__):
        raise MemoryError("no room")

    trainer, calm = make_scaled(), make_scaled()
    step, trainer.optimizer.step = trainer.optimizer.step, fails
    with pytest.raises(MemoryError):
        trainer.fit(ready_batches(), epochs=1)
    trainer.optimizer.step = step
    trainer.model.load_state_dict(calm.model.state_dict())  # the failed step has moved batch norm's statistics
    trainer.fit(ready_batches(), epochs=1)
    calm.fit(ready_batches(), epochs=1)
    assert equal(weights(trainer), weights(calm))


# ---- losses of one's own


class WithParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits * self.scale, targets)


def test_a_loss_with_a_parameter_is_evaluated(images):
    trainer, loaders = make(images, loss_fn=WithParameter())
    trainer.fit(loaders.train, loaders.test, epochs=1)
    assert trainer.evaluate(loaders.test).loss > 0


class WeighsAtFirst(nn.Module):
    weight = None

    def forward(self, logits, targets):
        if self.weight is None:
            self.weight = torch.ones(logits.shape[1]) * logits.mean().detach().exp()
        return nn.functional.cross_entropy(logits, targets, self.weight)


def test_a_loss_that_makes_its_weights_in_an_evaluation_trains(images):
    trainer, loaders = make(images, loss_fn=WeighsAtFirst())
    trainer.evaluate(loaders.test)
    assert len(trainer.fit(loaders.train, epochs=1)) == 1


def test_targets_that_a_loss_passes_over_are_no_error(images):
    batches = ready_batches()
    batches[0][1][0] = -100
    trainer, _ = make(images)
    assert len(trainer.fit(batches, epochs=1)) == 1


def test_one_output_is_right_for_a_loss_of_ones_own(images):
    """Its accuracy is not known: the largest of one logit is always the first."""
    loss = lambda logits, targets: nn.functional.mse_loss(logits[:, 0], targets.float())  # noqa: E731
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, callbacks=[])
    history = trainer.fit(ready_batches(), ready_batches(), epochs=1)
    assert history["train_accuracy"] == history["val_accuracy"] == [None] and history["val_loss"][0] > 0


def test_frozen_batch_norm_takes_a_batch_of_one(images):
    trainer, _ = make(images)
    models.freeze(trainer.model)
    loader = data.make_loaders(data.leave_out(images, train=range(len(images.train) - 9)), batch_size=4).train
    assert len(trainer.fit(loader, epochs=1)) == 1


def test_a_plateau_of_what_there_is_not_is_said(images):
    loaders = data.make_loaders(images, "crop_flip_mixup", batch_size=8)
    trainer, _ = make(images)
    with pytest.raises(SettingError, match="watches train_accuracy"):
        trainer.fit(loaders.train, epochs=2, schedule=schedules.plateau(monitor="train_accuracy"))


def test_l1_without_weights_that_learn(images):
    trainer, loaders = make(images, l1=1e-3)
    for parameter in trainer.model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    assert len(trainer.fit(loaders.train, epochs=1)) == 1


class Hoards(torch.optim.lr_scheduler.StepLR):
    def state_dict(self):
        return {**super().state_dict(), "seen": {1, 2}}


def test_a_schedule_that_cannot_be_kept_is_an_error_before_training(images, tmp_path):
    trainer, loaders = make(images)
    before = weights(trainer)
    with pytest.raises(CheckpointError, match="seen"):
        trainer.fit(loaders.train, epochs=1, schedule=lambda o: Hoards(o, 1), checkpoint=tmp_path / "last.ckpt")
    assert equal(weights(trainer), before) and not (tmp_path / "last.ckpt").exists()


def test_the_loss_is_computed_in_float32_in_training_as_in_evaluation(images):
    """Autocast is for the network: in it a loss that multiplies matrices would be rounded, in `evaluate` it was not."""
    seen = []

    def loss(logits, targets):
        seen.append((logits @ torch.eye(3)).dtype)
        return nn.functional.cross_entropy(logits, targets)

    trainer, loaders = make(images, loss_fn=loss, precision="bf16", device="cpu")
    trainer.fit(loaders.train, loaders.test, epochs=1)
    assert set(seen) == {torch.float32}

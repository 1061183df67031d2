"""The loop: steps, history, what a trainer trains."""

import functools
import inspect
import math
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from fits import equal, make, weights
from torch import nn

from vision_wrapper import data, models
from vision_wrapper.errors import DataError, SettingError, UnknownNameError
from vision_wrapper.trainer import Callback, History, Trainer, schedules
from vision_wrapper.trainer.ema import WeightAverage


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

            self.steps = 0

        def on_batch_end(self, run):
            self.steps += 1
            for name, value in run.trainer.model.named_parameters():
                self.average[name].lerp_(value.detach(), max(0.1, 1 / self.steps))

    trainer.callbacks = [Average()]
    history = trainer.fit(loaders.train, loaders.test, epochs=2)
    for name, value in trainer.model.named_parameters():
        assert torch.allclose(value, trainer.callbacks[0].average[name], atol=1e-6), name
        seen.append(name)
    assert seen and trainer.evaluate(loaders.test).loss == history[-1]["val_loss"]


@pytest.mark.parametrize("size", [4, 3, 1])
def test_weights_and_ignored_targets_count_as_over_all_samples_at_once(size):
    logits = torch.tensor([[2.0, 0.0], [0.5, 1.0], [1.0, -1.0], [0.0, 3.0]])
    targets = torch.tensor([0, 1, -100, 0])
    batches = [(logits[i : i + size], targets[i : i + size]) for i in range(0, 4, size)]
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data, model[0].bias.data = torch.eye(2), torch.zeros(2)
    for arguments in ({}, {"weight": torch.tensor([1.0, 9.0])}):
        for loss in (nn.CrossEntropyLoss(**arguments), functools.partial(nn.functional.cross_entropy, **arguments)):
            trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, callbacks=[], precision="fp32")
            found = trainer.evaluate(batches)
            assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, targets, **arguments)))
            assert (found.correct, found.total, found.accuracy) == (2, 3, 2 / 3)
        likelihoods = nn.Sequential(model, nn.LogSoftmax(1))
        for loss in (nn.NLLLoss(**arguments), functools.partial(nn.functional.nll_loss, **arguments)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            again = Trainer(likelihoods, optimizer, loss, callbacks=[], precision="fp32").evaluate(batches)
            assert again.loss == pytest.approx(found.loss) and again[1:] == found[1:]
    with pytest.raises(DataError, match="ignores every target"):
        trainer.evaluate([(logits, torch.full((4,), -100))])
    loss = nn.CrossEntropyLoss(ignore_index=0, weight=torch.tensor([1.0, 0.5]))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, callbacks=[], precision="fp32")
    batches = [(x, y.clamp(min=0).to(torch.uint8)) for x, y in batches]
    found = trainer.evaluate(batches)
    assert (found.correct, found.total) == (1, 1) and found.loss == pytest.approx(float(np.log1p(np.exp(-0.5))))


def test_batches_of_classes_and_of_probabilities_are_evaluated_together():
    model = nn.Linear(2, 2)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[], precision="fp32")
    inputs, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    classes, probabilities = (inputs[:1], targets[:1]), (inputs[1:], torch.eye(2)[targets[1:]])
    expected = trainer.evaluate([(inputs, targets)]).loss
    for batches in ([classes, probabilities], [probabilities, classes]):
        found = trainer.evaluate(batches)
        assert found == (pytest.approx(expected), None, None, 4) and type(found.loss) is float


def test_the_random_beginning_has_no_part_in_an_average():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.999)
    nn.init.ones_(model.weight)
    for _ in range(98):
        average.update()
    assert float(average.averages[0]) == pytest.approx(1)


def test_a_buffer_that_the_forward_pass_replaces_is_averaged_and_exchanged():
    class Watching(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen = self.seen + 1.0
            return super().forward(x)

    model = Watching()
    average = WeightAverage(model, decay=0.5)
    for _ in range(3):  # 1, then 1.5, then 2.25
        model(torch.zeros(1, 2))
        average.update()
    average.swap()
    assert float(model.seen) == pytest.approx(2.25) and float(average.averages[-1]) == 3.0
    average.swap()
    assert float(model.seen) == 3.0


class Interrupting(list):
    """A list in the midst of which Ctrl-C is pressed."""

    def __iter__(self):
        for place, item in enumerate(super().__iter__()):
            if place == 1:
                signal.raise_signal(signal.SIGINT)
            yield item


def test_ctrl_c_while_the_averages_are_exchanged_leaves_no_mixture():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    own = [p.detach().clone() for p in model.parameters()]
    average = WeightAverage(model, decay=0.9)
    average.load([torch.zeros_like(p) for p in own])
    average.averages = Interrupting(average.averages)
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise AssertionError("not reached")
    assert all(torch.equal(a, b) for a, b in zip(own, model.parameters(), strict=True))
    with pytest.raises(KeyboardInterrupt):
        average.swap()
    assert not any(p.any() for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(own, average.averages[:], strict=True))


def test_a_network_with_outputs_to_spare_is_predicted_with(images):
    """Such as one of ImageNet's thousand classes, whose head was not replaced: a fit only warns of it."""
    model = models.CustomResNet(5, widths=(4, 4, 8, 8))
    with pytest.warns(UserWarning, match="5 outputs for 3 classes"):
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), callbacks=[])
        loaders = data.make_loaders(images, batch_size=8)
        trainer.fit(loaders.train, epochs=1)
    predictions = trainer.predict(loaders.test)
    assert predictions.classes == (*images.classes, "output 3", "output 4")
    assert predictions.accuracy() == trainer.evaluate(loaders.test).accuracy


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

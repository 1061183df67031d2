"""Checkpoints: a resumed run is the run, and another run is refused."""

import functools
import signal
import types

import pytest
import torch
from fits import StopAt, equal, make, ready_batches, weights
from torch import nn

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.errors import CheckpointError, DamagedFileError, NonFiniteLossError, OtherModelError, OtherRunError
from vision_wrapper.trainer import Callback, Trainer, schedules


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
    assert rows_of(history) == rows_of(history2)


def rows_of(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def warm_up_and_steps(optimizer):
    torchs = torch.optim.lr_scheduler
    parts = [torchs.LinearLR(optimizer, total_iters=2), torchs.MultiStepLR(optimizer, [1, 2])]
    return torchs.SequentialLR(optimizer, parts, [2])


def chained(optimizer):
    torchs = torch.optim.lr_scheduler
    return torchs.ChainedScheduler([warm_up_and_steps(optimizer), torchs.ExponentialLR(optimizer, 0.9)])


@pytest.mark.parametrize("schedule", [warm_up_and_steps, chained])
def test_a_schedule_that_is_made_of_others_resumes(images, tmp_path, schedule):
    def fit(callbacks, checkpoint):
        trainer, loaders = make(images, callbacks=callbacks)
        arguments = {"schedule": schedule, "checkpoint": checkpoint, "checkpoint_seconds": 0}
        return trainer, trainer.fit(loaders.train, epochs=5, **arguments)

    whole, history = fit([], None)
    with pytest.raises(MemoryError):
        fit([StopAt(8)], tmp_path / "last.ckpt")  # before the steps' turn comes
    resumed, again = fit([], tmp_path / "last.ckpt")
    assert equal(weights(whole), weights(resumed)) and rows_of(history) == rows_of(again)


class Enough(Callback):
    """Ends the run from inside its first epoch."""

    def on_batch_end(self, run):
        run.stop = "enough"


def test_a_reason_to_stop_inside_an_epoch_ends_the_resumed_run_after_it(images, tmp_path):
    def fit(callbacks, checkpoint):
        trainer, loaders = make(images, callbacks=[Enough(), *callbacks])
        arguments = {"epochs": 3, "checkpoint": checkpoint, "checkpoint_seconds": 0}
        return trainer, trainer.fit(loaders.train, loaders.test, **arguments)

    whole, history = fit([], None)
    with pytest.raises(MemoryError):
        fit([StopAt(3)], tmp_path / "last.ckpt")
    resumed, again = fit([], tmp_path / "last.ckpt")
    assert len(history) == 1 and rows_of(history) == rows_of(again)
    assert equal(weights(whole), weights(resumed))


class WithLoss(nn.Linear):
    def loss(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets) + 1e-4 * self.weight.norm()


@pytest.mark.parametrize("how", ["method", "closure", "weight"])
def test_a_loss_that_uses_the_network_is_the_same_one_whatever_its_weights(tmp_path, how):
    batches = [(torch.randn(4, 6), torch.arange(4) % 2) for _ in range(3)]

    def fit():
        model = WithLoss(6, 2)
        weight, cross_entropy = model.weight, nn.functional.cross_entropy
        loss = {
            "method": model.loss,
            "closure": lambda o, t: model.loss(o, t),
            "weight": lambda o, t: cross_entropy(o, t) + 1e-4 * weight.norm(),
        }[how]
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, callbacks=[])
        return trainer, trainer.fit(batches, epochs=2, checkpoint=tmp_path / "c")

    first, history = fit()
    again, history2 = fit()
    assert rows_of(history) == rows_of(history2) and equal(weights(first), weights(again))


class Changed(Callback):
    def state_dict(self):
        return {"seen": 1}

    def load_state_dict(self, state):
        self.seen = state["seen of a later version"]


def test_a_callback_that_does_not_take_its_state_is_named(images, tmp_path):
    trainer, loaders = make(images, callbacks=[Changed()])
    trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / "c")
    trainer, loaders = make(images, callbacks=[Changed()])
    with pytest.raises(CheckpointError, match=r"Changed does not take the state.*KeyError.*later version") as error:
        trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / "c")
    assert not isinstance(error.value, DamagedFileError)


class Spoils(Callback):
    """As a step with an infinite gradient: the loss was finite, and the weights are not any more."""

    def on_batch_end(self, run):
        if run.epoch == 1 and run.batch == run.batches:
            with torch.no_grad():
                next(run.trainer.model.parameters())[0] = float("nan")


def test_weights_that_are_not_finite_never_replace_a_checkpoint(images, tmp_path):
    trainer, loaders = make(images, callbacks=[Spoils()])
    with pytest.raises(NonFiniteLossError, match="Epoch 2: the step of batch 6 made weights NaN"):
        trainer.fit(loaders.train, epochs=3, checkpoint=tmp_path / "c", checkpoint_seconds=0)
    trainer, loaders = make(images)
    trainer.load(tmp_path / "c")
    assert all(value.isfinite().all() for value in weights(trainer).values())


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


class Drawn(torch.utils.data.Sampler):
    """Batches in an order of a generator of its own, or of the epochs that it counts; its end may draw once more."""

    def __init__(self, generator=None, ends_with_a_draw=False):
        self.epoch, self.ends_with_a_draw = 0, ends_with_a_draw
        if generator is not None:
            self.generator = generator

    def __len__(self):
        return 5

    def __iter__(self):
        generator = getattr(self, "generator", None) or torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        yield from torch.randperm(40, generator=generator).view(5, 8).tolist()
        if self.ends_with_a_draw:
            torch.rand(1)


class Epochs(Callback):
    """Tells the data set of the epoch, as one does with samplers; loaders with workers fork when they are iterated."""

    def __init__(self, data_set):
        self.data_set = data_set

    def on_epoch_start(self, run):
        self.data_set.scale = 1.0 + run.epoch


class Scaled(torch.utils.data.Dataset):
    scale = 0.0
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.scale * self.x[index], int(self.x[index].sum() > 0)


LOADERS = {
    "batch sampler's generator": lambda made: {"batch_sampler": Drawn(torch.Generator().manual_seed(7))},
    "sampler's epochs": lambda made: {"batch_sampler": Drawn()},
    "draws at its end": lambda made: {"batch_sampler": Drawn(ends_with_a_draw=True)},
    "global generator": lambda made: {"batch_size": 8, "shuffle": True, "generator": torch.default_generator},
    "workers": lambda made: {"batch_size": 8, "shuffle": True, "num_workers": 2},
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("at", [5, 8])
def test_what_a_dataloader_draws_with_resumes_too(tmp_path, name, at):
    def fit(callbacks, checkpoint, workers=None):
        torch.manual_seed(5)
        made = Scaled()
        settings = LOADERS[name](made)
        if workers is not None and "num_workers" in settings:
            settings["num_workers"] = workers
        loader = torch.utils.data.DataLoader(made, **settings)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        trainer = Trainer(
            model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[Epochs(made), *callbacks], device="cpu"
        )
        history = trainer.fit(loader, epochs=3, checkpoint=checkpoint, checkpoint_seconds=0)
        return weights(trainer), history["train_loss"]

    class KilledAfterTheWrite(StopAt):
        def on_epoch_end(self, run):
            if at == 5 and run.epoch == 1:
                self.stop()

    whole, losses = fit([], None)
    with pytest.raises(MemoryError):
        fit([KilledAfterTheWrite(-1 if at == 5 else at)], tmp_path / "c")
    torch.rand(3)
    resumed, losses2 = fit([], tmp_path / "c")
    assert losses == losses2 and equal(whole, resumed)
    if name == "workers":  # the hook has been called before they look at the data set
        assert fit([], None, workers=0)[1] == losses


def test_a_partial_loss_is_the_same_in_every_process(tmp_path):
    """Functions have addresses, and long tensors are printed in part."""

    def smoothed(logits, targets, base, weight):
        return base(logits, targets, weight=weight[:3], label_smoothing=0.1)

    def fit(base, weight):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
        loss = functools.partial(smoothed, base=base, weight=weight)
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), loss, callbacks=[])
        return trainer.fit(ready_batches(), epochs=1, checkpoint=tmp_path / "c")

    def copied():  # elsewhere in memory, as in another process
        return types.FunctionType(nn.functional.cross_entropy.__code__, nn.functional.__dict__, "cross_entropy",
                                  nn.functional.cross_entropy.__defaults__)  # fmt: skip

    bases = [copied() for _ in range(2)]
    for base in bases:
        base.__kwdefaults__ = nn.functional.cross_entropy.__kwdefaults__
    weight = torch.ones(2000)
    assert len(fit(bases[0], weight)) == len(fit(bases[1], weight)) == 1
    weight[1000] = 2.0
    with pytest.raises(OtherRunError, match="loss"):
        fit(bases[1], weight)


GAMMA = 0.5
ANOTHER_PART = {
    "step": (lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
             lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.1)),
    "lambda": (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.5**e),
               lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.1**e)),
    "global": (lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=GAMMA),) * 2,
    "loss": (lambda o, t: nn.functional.cross_entropy(o, t), lambda o, t: nn.functional.cross_entropy(o, 2 - t)),
    "samples": (0.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("part", ANOTHER_PART)
def test_another_function_or_other_samples_are_another_run(images, tmp_path, monkeypatch, part):
    def fit(value):
        torch.manual_seed(0)
        x = torch.cat([batch for batch, _ in ready_batches()]) + (value if part == "samples" else 0.0)
        samples = torch.utils.data.TensorDataset(x, torch.arange(12) % 3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
        loss = value if part == "loss" else None
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), loss, callbacks=[])
        schedule = value if part in ("step", "lambda", "global") else None
        loader = torch.utils.data.DataLoader(samples, batch_size=4)
        return trainer.fit(loader, epochs=2, schedule=schedule, checkpoint=tmp_path / "c")["lr"]

    first, second = ANOTHER_PART[part]
    rates = fit(first)
    assert fit(first) == rates
    monkeypatch.setitem(globals(), "GAMMA", 0.1)
    with pytest.raises(OtherRunError, match={"loss": "loss", "samples": "loader"}.get(part, "schedule")):
        fit(second)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_a_callback_may_load_in_a_fit(images, tmp_path, schedule):
    class BackToTheFirst(Callback):
        def on_epoch_end(self, run):
            if run.epoch == 1:
                run.trainer.save(tmp_path / "first")
            else:
                run.trainer.load(tmp_path / "first")

    trainer, loaders = make(images, callbacks=[BackToTheFirst()])
    made = {"one_cycle": lambda: schedules.one_cycle(0.02, peak_epoch=1), "cosine": lambda: schedules.cosine(0.02)}
    history = trainer.fit(loaders.train, epochs=3, schedule=made[schedule]())
    assert history["lr"] == make(images)[0].fit(loaders.train, epochs=3, schedule=made[schedule]())["lr"]
    assert not {"max_lr", "initial_lr"} & set(trainer.optimizer.param_groups[0])


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


@pytest.mark.parametrize(("there", "here"), [("adam", "sgd"), ("sgd", "adam")])
def test_the_state_of_another_optimizer_is_refused(images, tmp_path, there, here):
    trainer, loaders = make(images, optimizer=there)
    trainer.fit(loaders.train, epochs=1)
    trainer.save(tmp_path / "t")
    other, _ = make(images, optimizer=here)
    before, state = weights(other), repr(other.optimizer.state_dict())
    with pytest.raises(OtherModelError, match=r"of the class (Adam, this one is SGD|SGD, this one is Adam)"):
        other.load(tmp_path / "t")
    assert equal(before, weights(other)) and repr(other.optimizer.state_dict()) == state


def test_loading_a_fit_takes_nothing_of_its_schedule(images, tmp_path):
    trainer, loaders = make(images, optimizer="sgd")
    schedule = schedules.one_cycle(0.1, peak_epoch=1, cycle_momentum=True)
    trainer.fit(loaders.train, epochs=2, schedule=schedule, checkpoint=tmp_path / "c")
    other, _ = make(images, optimizer="sgd")
    other.load(tmp_path / "c")
    assert other.optimizer.param_groups[0].keys() == trainer.optimizer.param_groups[0].keys()
    assert other.optimizer.param_groups[0]["momentum"] == trainer.optimizer.param_groups[0]["momentum"] == 0.9


def test_a_rate_in_a_tensor_is_the_same_run_again(images, tmp_path):
    """Schedules change the tensor, which the optimizer's defaults share with its group."""
    trainer, loaders = make(images)
    optimizer = torch.optim.Adam(trainer.model.parameters(), lr=torch.tensor(0.01))
    trainer = Trainer(trainer.model, optimizer, callbacks=[])
    for _ in range(2):  # the cell, and the cell once more
        history = trainer.fit(loaders.train, epochs=2, schedule=schedules.cosine(), checkpoint=tmp_path / "c")
    assert len(history) == 2


# ---- another run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"body_lr": 0.02}, "the groups' rates"),
        ({"lr": 0.01, "body_lr": 0.001}, "the groups' rates"),
        ({"weight_decay": 0.3}, "groups: .*weight_decay"),
        ({}, None),
    ],
)
@pytest.mark.parametrize("schedule", [None, schedules.one_cycle(0.1, peak_epoch=0.5)])
def test_other_groups_of_the_optimizer_are_another_run(images, tmp_path, changes, words, schedule):
    def fit(**changes):
        vw.seed_everything(3)
        model = models.CustomResNet(3, widths=(4, 4, 8, 8))
        groups = models.parameter_groups(model, **{"lr": 0.1, "body_lr": 0.01, "weight_decay": 0.1, **changes})
        trainer = Trainer(model, torch.optim.SGD(groups, lr=0.1), callbacks=[], device="cpu")
        trainer.fit(ready_batches(), epochs=2, schedule=schedule, checkpoint=tmp_path / "c")
        trainer.fit(ready_batches(), epochs=2, schedule=schedule, checkpoint=tmp_path / "c")  # the cell once more
        return weights(trainer)

    first = fit()
    if words is None:
        assert equal(first, fit())
    else:
        with pytest.raises(OtherRunError, match=words):
            fit(**changes)


def test_a_run_goes_on_with_its_validation_or_says_so(images, tmp_path):
    trainer, loaders = make(images)
    trainer.fit(loaders.train, loaders.test, epochs=1, checkpoint=tmp_path / "c")
    trainer, loaders = make(images)
    with pytest.raises(OtherRunError, match="validation: True there, False here"):
        trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / "c")
    trainer, loaders = make(images)
    history = trainer.fit(loaders.train, epochs=2, checkpoint=tmp_path / "c", extend=True)
    assert history[0]["val_loss"] is not None and history[1]["val_loss"] is None


def test_of_an_optimizers_settings_only_the_other_ones_are_named(images, tmp_path):
    trainer, loaders = make(images)
    trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / "c")
    trainer, loaders = make(images)
    trainer = Trainer(trainer.model, torch.optim.Adam(trainer.model.parameters(), lr=0.02), callbacks=[])
    with pytest.raises(OtherRunError, match=r"another run \(optimizer lr: '0.01' there, '0.02' here\)\. Use"):
        trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("other", ["loss", "weights of the loss", "data", "batches"])
def test_another_run_is_refused_before_anything_changes(images, tmp_path, other):
    batches = ready_batches()
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

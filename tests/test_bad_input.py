"""Settings, batches and losses that cannot be: errors with words, before anything changes."""

import math
import warnings

import numpy as np
import pytest
import torch
from fits import equal, make, ready_batches, weights
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import vision_wrapper as vw
from vision_wrapper import data, explain, models, viz
from vision_wrapper.errors import DataError, FileWriteError, NonFiniteLossError, SettingError
from vision_wrapper.evaluation import Predictions
from vision_wrapper.trainer import EpochLog, Lookahead, Muon, Trainer, schedules


def test_bad_settings_are_errors_before_training(images):
    trainer, loaders = make(images)
    before = weights(trainer)
    for arguments in ({"epochs": 0}, {"epochs": 1.5}, {"epochs": True}, {"epochs": 1, "schedule": 3}):
        with pytest.raises(SettingError):
            trainer.fit(loaders.train, **arguments)
    for seconds in (-1, None, "60", math.nan):
        with pytest.raises(SettingError, match="checkpoint_seconds must be a number"):
            trainer.fit(loaders.train, epochs=1, checkpoint="never.ckpt", checkpoint_seconds=seconds)
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


@pytest.mark.parametrize("part", ["training, later", "validation"])
def test_targets_outside_are_named_wherever_they_come(images, part):
    good, bad = ready_batches(), ready_batches()
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
        with pytest.raises(DataError, match=r"Epoch 1, batch 3: The loss .* Target 9 is out of bounds"):
            trainer.fit(bad, epochs=1)


@pytest.mark.parametrize("helper", ["evaluate", "predict", "find_lr", "fit"])
@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((torch.zeros(4, 1, 16, 16), torch.zeros(4).long()), "does not take inputs of shape"),
        ((np.zeros((4, 3, 16, 16)), np.zeros(4)), "pairs of tensors"),
        ((torch.zeros(4, 3, 16, 16), torch.zeros(4).long(), 1), "pairs of tensors"),
        (torch.zeros(4, 3, 16, 16), "pairs of tensors"),
        ((torch.zeros(3, 16, 16), torch.tensor(0)), "one sample. Give the DataLoader a batch_size"),
    ],
)
def test_batches_that_cannot_be_are_named_by_every_helper(images, helper, batch, words):
    trainer, _ = make(images)
    with pytest.raises(DataError, match=words):
        getattr(trainer, helper)([batch], **({"epochs": 1} if helper == "fit" else {}))


@pytest.mark.parametrize("helper", ["evaluate", "predict", "find_lr", "fit"])
@pytest.mark.parametrize("batch", [3, (torch.zeros(4, 3, 16, 16), torch.zeros(4).long(), 1)])
def test_a_later_batch_that_is_no_pair_is_named_too(images, helper, batch):
    trainer, loaders = make(images)
    with pytest.raises(DataError, match="pairs of tensors"):
        getattr(trainer, helper)([next(iter(loaders.test)), batch], **({"epochs": 1} if helper == "fit" else {}))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: Muon(model.parameters(), lr="x"), "lr must be a number of at least 0, got 'x'"),
        (lambda model: Muon(model.parameters(), lr=math.inf), "lr must be a number of at least 0, got inf"),
        (lambda model: Muon(model.parameters(), momentum=None), r"momentum must be in \(0, 1\), got None"),
        (lambda model: models.scale_head(model, 0), "scale must be a positive number, got 0"),
        (lambda model: models.scale_head(model, math.nan), "scale must be a positive number, got nan"),
        (
            lambda model: models.scale_head(model, 0.5, head="layer1"),
            r"has \d+ layers with parameters; pass",
        ),
        (lambda model: models.summary(model, (3, -1, 32)), "input_size is that of one image"),
        (lambda model: schedules.from_function(3), "function of the optimizer, got 3"),
        (lambda model: schedules.cosine().preview(2, 2, lr=-1), "lr must be a number of at least 0, got -1"),
        (lambda model: explain.gradcam(model, torch.zeros(1, 1, 16, 16), [0]), "CustomResNet does not take images"),
        (lambda model: explain.trust(model, torch.zeros(1, 3, 16, 16), [0], ["layer1", "layer2"]), "maps of one layer"),
    ],
)
def test_arguments_that_cannot_be_are_said(call, words):
    with pytest.raises(SettingError, match=words):
        call(models.CustomResNet(num_classes=3, widths=(4, 4, 8, 8)))


def test_a_cycle_that_the_run_does_not_finish_is_warned_of(images):
    trainer, loaders = make(images, accumulate=2)
    batches = len(loaders.train)
    with pytest.warns(UserWarning, match=f"made for {2 * batches} steps, but the run has {batches} .*accumulate"):
        trainer.fit(
            loaders.train, epochs=2, schedule=lambda o: OneCycleLR(o, 0.1, total_steps=2 * batches), every="batch"
        )


class Centres(nn.Module):
    """A loss that learns."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(3, 3))

    def forward(self, logits, targets):
        return nn.functional.mse_loss(logits, self.centres[targets])


def test_a_loss_that_learns_has_to_be_a_part_of_the_model(images):
    trainer, _ = make(images)
    model, loss = trainer.model, Centres()
    with pytest.raises(SettingError, match=r"parameters of the loss, Centres\. Make it a part of the model"):
        Trainer(model, torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1), loss)
    alone = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, callbacks=[])
    with pytest.warns(UserWarning, match="Centres, has parameters that nothing trains. Make it a part of the model"):
        alone.fit(ready_batches(), epochs=1)
    model.loss, before = loss, loss.centres.detach().clone()
    whole = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, callbacks=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole.fit(ready_batches(), epochs=1)
        Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), Centres().requires_grad_(False), callbacks=[]).fit(
            ready_batches(), epochs=1
        )
    assert not torch.equal(before, loss.centres)


def test_a_trainer_keeps_what_its_step_is_built_on(images):
    trainer, _ = make(images)
    other = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    for name, value in (("optimizer", other), ("model", nn.Linear(2, 2)), ("precision", "other")):
        with pytest.raises(SettingError, match=f"A trainer's {name} stays .* make another Trainer"):
            setattr(trainer, name, value)
    trainer.optimizer = trainer.optimizer
    trainer.clip_norm = 1.0


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from ((x, int(y)) for batch, targets in ready_batches() for x, y in zip(batch, targets, strict=True))


def test_chained_streams_have_no_length_and_are_trained_on(images):
    trainer, _ = make(images)
    loader = torch.utils.data.DataLoader(Stream() + Stream(), batch_size=8)
    assert trainer.fit(loader, epochs=1)


def test_inputs_of_another_number_format_are_told_how_to_be_converted(images):
    trainer, _ = make(images)
    batches = [(x.double(), y) for x, y in ready_batches()]
    with pytest.raises(DataError, match=r"inputs torch\.float64: convert these, inputs\.to\(torch\.float32\)"):
        trainer.predict(batches)


def test_a_view_that_fails_is_named_and_not_the_model(images):
    def failing(batch):
        raise ValueError("no such view")

    trainer, _ = make(images)
    with pytest.raises(SettingError, match=r"A view for test-time averaging failed on a batch .*no such view"):
        trainer.predict(ready_batches(), tta=[failing])


def test_parameters_that_nothing_will_train_are_warned_of(images):
    trainer, loaders = make(images)
    models.freeze(trainer.model)
    held = Trainer(trainer.model, torch.optim.SGD(models.parameter_groups(trainer.model, 0.1)), callbacks=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held.fit(loaders.train, epochs=1)
    models.unfreeze(trainer.model)
    with pytest.warns(UserWarning, match=r"parameters are not frozen, but the optimizer does not hold them \(prep"):
        held.fit(loaders.train, epochs=1)


@pytest.mark.parametrize("ended_at", [None, 0.0])
def test_a_fit_at_the_rate_where_a_cycle_ended_is_warned_of(images, ended_at):
    trainer, loaders = make(images)
    cycle = schedules.one_cycle(0.01, peak_epoch=0.5, final_lr=ended_at)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(loaders.train, epochs=1, schedule=cycle)
    for schedule in (None, schedules.cosine()):
        with pytest.warns(UserWarning, match="Hardly anything will be learned: the highest rate is"):
            trainer.fit(loaders.train, epochs=1, schedule=schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(loaders.train, epochs=1, schedule=cycle)


def test_predictions_of_augmented_images_are_warned_of(images):
    trainer, _ = make(images)
    with pytest.warns(UserWarning, match="predictions are of augmented images"):
        trainer.predict(data.make_loaders(images, augment="crop_flip").train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.predict(data.make_loaders(images, augment="none").train)


@pytest.mark.parametrize("arguments", [{"sampler": [2, 1, 0]}, {"batch_sampler": [[2, 1], [0]]}])
def test_a_loader_with_an_order_of_its_own_has_no_indices(arguments):
    samples = torch.utils.data.TensorDataset(torch.zeros(3, 3, 16, 16), torch.arange(3))
    model = models.CustomResNet(num_classes=3, widths=(4, 4, 8, 8))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[])
    with pytest.raises(SettingError, match="has a sampler of its own"):
        trainer.predict(torch.utils.data.DataLoader(samples, **arguments))
    assert len(trainer.predict(torch.utils.data.DataLoader(samples, batch_size=2))) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 0}, "channels must be a whole number of at least 1, got 0"),
        ({"channels": "x"}, "channels must be a whole number"),
        ({"test": None}, r"test must be a pair \(images, labels\)"),
    ],
)
def test_arrays_that_cannot_be_are_said(arguments, words):
    pair = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
    with pytest.raises((DataError, SettingError), match=words):
        data.from_arrays(pair, **{"test": pair, **arguments})


@pytest.mark.parametrize("targets", [torch.zeros(4), torch.zeros(4, 1).long(), torch.zeros(4).int()])
def test_targets_of_the_wrong_kind_are_named(images, targets):
    trainer, _ = make(images)
    with pytest.raises(DataError, match="Cross-entropy takes int64 targets"):
        trainer.fit([(torch.randn(4, 3, 16, 16), targets)], epochs=1)


@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), lambda logits, targets: logits.sum() + "1", nn.CrossEntropyLoss(torch.ones(5))]
)
def test_a_loss_that_cannot_be_computed_is_named_by_every_helper(images, loss):
    trainer, _ = make(images, loss_fn=loss)
    for call in (lambda b: trainer.fit(b, epochs=1), trainer.evaluate, trainer.find_lr):
        with pytest.raises(DataError, match=r"The loss of outputs \(4, 3\) and targets \(4,\) \(torch.int64\) failed"):
            call(ready_batches())


@pytest.mark.parametrize("loss", ["ce", nn.CrossEntropyLoss, nn.CrossEntropyLoss(reduction="sum")])
def test_what_is_no_mean_loss_is_refused(images, loss):
    with pytest.raises(SettingError, match="loss"):
        make(images, loss_fn=loss)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"), r"got a tensor \(4,\)"),
        (lambda o, t: float(nn.functional.cross_entropy(o, t)), r"mean loss, .* got \d"),
        (lambda o, t: None, "got None"),
    ],
)
def test_a_loss_that_returns_no_mean_is_said_by_every_helper(images, loss, words):
    trainer, _ = make(images, loss_fn=loss)
    for call in (lambda b: trainer.fit(b, epochs=1), trainer.evaluate, trainer.find_lr):
        with pytest.raises(SettingError, match=words):
            call(ready_batches())


def test_a_loss_without_a_gradient_is_said(images):
    trainer, _ = make(images, loss_fn=lambda o, t: nn.functional.cross_entropy(o, t).detach())
    assert trainer.evaluate(ready_batches()).total == 12
    with pytest.raises(SettingError, match="depends on no parameter that learns"):
        trainer.fit(ready_batches(), epochs=1)


def test_what_is_no_model_or_optimizer_is_said(images):
    trainer, loaders = make(images)
    for model, optimizer in (("resnet18", trainer.optimizer), (trainer.model, None), (trainer.model, torch.optim.Adam)):
        with pytest.raises(SettingError, match="model must be" if model == "resnet18" else "optimizer must be"):
            Trainer(model, optimizer)
    trainer.model.fc = nn.Linear(8, 3)  # which the optimizer does not know
    for call in (lambda: trainer.fit(loaders.train, epochs=1), lambda: trainer.find_lr(loaders.train)):
        with pytest.raises(SettingError, match=r"not fc.weight, fc.bias: a part was replaced"):
            call()


def test_what_a_run_will_need_is_asked_for_before_training(images, tmp_path):
    trainer, loaders = make(images)
    before = weights(trainer)
    with pytest.raises(DataError, match="validation loader gave no batch"):
        trainer.fit(loaders.train, [], epochs=1)
    (tmp_path / "file").write_text("")
    good, bad = ready_batches(), ready_batches()
    bad[1][1][0] = 9
    with pytest.raises(DataError, match=r"^The loss .* Target 9 is out of bounds"):  # at no batch of the training
        trainer.fit(good, bad, epochs=1)
    trainer.model.load_state_dict(before)
    for path, why in (("file/last.ckpt", "is a file, not a folder"), (".", "it is a folder")):
        with pytest.raises(FileWriteError, match=why):
            trainer.fit(loaders.train, epochs=1, checkpoint=tmp_path / path)
    assert equal(before, weights(trainer))


def test_a_last_batch_of_one_is_named(images):
    trainer, _ = make(images)
    batches = ready_batches()
    batches[-1] = (batches[-1][0][:1], batches[-1][1][:1])
    with pytest.raises(DataError, match="Epoch 1, batch 3: A batch of one"):
        trainer.fit(batches, epochs=1)
    with pytest.raises(DataError, match="A batch of one"):
        trainer.find_lr([batches[-1]])
    assert trainer.evaluate([batches[-1]]).total == 1
    samples = torch.utils.data.TensorDataset(torch.randn(9, 3, 16, 16), torch.arange(9) % 3)
    for sampler, last in ((None, 1), (torch.utils.data.SubsetRandomSampler(range(8)), 4)):
        loader = torch.utils.data.DataLoader(samples, batch_size=4, sampler=sampler)
        if last == 1:  # known in advance
            with pytest.raises(SettingError, match=r"one image \(9 images, batch_size=4\)"):
                trainer.fit(loader, epochs=1)
        else:
            assert trainer.fit(loader, epochs=1)
    trainer.fit(torch.utils.data.DataLoader(samples, batch_size=4, drop_last=True), epochs=1)
    whole = [batch for batch in ready_batches() if len(batch[1]) > 1]  # of a loader whose samples are batches
    assert trainer.fit(torch.utils.data.DataLoader(whole, batch_size=1, collate_fn=lambda parts: parts[0]), epochs=1)


def test_a_loader_that_is_none_is_said(images):
    trainer, _ = make(images)
    for call in (lambda: trainer.fit(None, epochs=1), lambda: trainer.evaluate(5), lambda: trainer.find_lr(5)):
        with pytest.raises(SettingError, match="iterable of"):
            call()
    samples = torch.utils.data.TensorDataset(*ready_batches()[0])
    with pytest.raises(SettingError, match="TensorDataset gives samples, not batches"):
        trainer.fit(samples, epochs=1)


def test_soft_targets_have_no_accuracy(images, capsys):
    trainer, _ = make(images, callbacks=[EpochLog()])
    soft = [(x, nn.functional.one_hot(y, 3).float() * 0.8 + 0.2 / 3) for x, y in ready_batches()]
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
    for call in (lambda: trainer.fit(loaders.train, epochs=1), lambda: trainer.find_lr(loaders.train)):
        with pytest.raises(SettingError, match="unfreeze"):
            call()
        trainer.model.fc.requires_grad_(True)
        body = [p for p in trainer.model.parameters() if not p.requires_grad]
        with pytest.raises(SettingError, match="that the optimizer holds is frozen"):
            Trainer(trainer.model, torch.optim.SGD(body), callbacks=[]).fit(loaders.train, epochs=1)
        trainer.model.fc.requires_grad_(False)
    lbfgs = torch.optim.LBFGS(trainer.model.parameters())
    for optimizer in (lbfgs, Lookahead(lbfgs)):
        with pytest.raises(SettingError, match="LBFGS"):
            Trainer(trainer.model, optimizer)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (lambda o: None, "must return a torch scheduler"),
        (lambda o: StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), 1), "optimizer that it is given"),
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "schedules.plateau"),
        (lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=12), 'every="batch"'),
        (lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=1), "made for 1 steps, but the run has 2"),
        (torch.optim.lr_scheduler.StepLR, r"lambda optimizer: StepLR\(optimizer"),
        (schedules.one_cycle(0.1, peak_epoch=9), "outside the run"),
    ],
)
def test_a_refused_schedule_leaves_the_optimizer_alone(images, schedule, words):
    trainer, loaders = make(images)
    groups, attributes = repr(trainer.optimizer.state_dict()), set(vars(trainer.optimizer))
    with pytest.raises(SettingError, match=words):
        trainer.fit(loaders.train, epochs=2, schedule=schedule)
    assert repr(trainer.optimizer.state_dict()) == groups and set(vars(trainer.optimizer)) == attributes


def test_the_neighbour_of_what_was_meant_is_named(images, tmp_path):
    """What lies at hand after a fit, passed in place of another: said in words, and not by an attribute it lacks."""
    trainer, loaders = make(images)
    predictions = trainer.predict(loaders.test)
    mistakes, split, model = predictions.mistakes(), images.train, trainer.model
    wrong = {
        "predictions.mistakes": (
            lambda: viz.plot_misclassified(predictions),
            lambda: viz.plot_gradcam(model, predictions),
        ),
        "Trainer.predict": (
            lambda: viz.plot_confusion_matrix(mistakes),
            lambda: viz.plot_per_class(mistakes),
            lambda: viz.plot_reliability(mistakes),
        ),
        "Trainer.fit": (lambda: viz.plot_history(trainer), lambda: viz.plot_learning_rate(schedules.cosine())),
        "Trainer.find_lr": (lambda: viz.plot_lr_curve(trainer),),
        "load_classifier": (lambda: vw.export(model, tmp_path / "c.onnx"),),
        "data.stats": (lambda: viz.plot_class_distribution(images), lambda: viz.plot_image_sizes(images)),
        "loader.split": (lambda: viz.plot_samples(loaders.train),),
        "data.load": (
            lambda: data.class_weights(split),
            lambda: data.cached(split, tmp_path),
            lambda: data.leave_out(split, train=[0]),
        ),
        "torch.nn.Module": (
            lambda: viz.plot_gradcam(trainer, mistakes),
            lambda: models.summary(trainer),
            lambda: models.freeze(trainer),
            lambda: models.parameter_groups(trainer, lr=0.1),
            lambda: data.check(loaders=loaders, model=trainer),
            lambda: vw.save_classifier(tmp_path / "c", trainer, loaders.preprocess, images.classes),
            lambda: explain.default_layer(trainer, next(iter(loaders.test))[0][0]),
        ),
    }
    for words, calls in wrong.items():
        for call in calls:
            with pytest.raises(SettingError, match=f"{words}.*got [A-Z]"):
                call()
    with pytest.raises(SettingError, match=r"a model, .*got the class CustomResNet"):
        vw.load_classifier(tmp_path / "c", model=models.CustomResNet)
    for classes in (None, 3):
        with pytest.raises(SettingError, match="sequence of names"):
            vw.save_classifier(tmp_path / "c", model, loaders.preprocess, classes)
    with pytest.raises(SettingError, match="classes must be a sequence of names, got 3"):
        Predictions(predictions.logits, predictions.targets, classes=3)

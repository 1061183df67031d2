"""Faults of well-known notebooks, each made impossible. Those without a test here have one beside the code it is of."""

from __future__ import annotations

import functools
import itertools

import albumentations as A
import numpy as np
import pytest
import torch
from conftest import random_images
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SubsetRandomSampler

from vision_wrapper import data, models, viz
from vision_wrapper.errors import SettingError
from vision_wrapper.trainer import Trainer
from vision_wrapper.viz.cam import overlay


def make(tiny, **arguments):
    torch.manual_seed(0)
    loaders = data.make_loaders(tiny, batch_size=5, seed=0)
    model = models.CustomResNet(3, widths=(4, 4, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Trainer(model, optimizer, callbacks=[], device="cpu", precision="fp32", **arguments), loaders


class Given(nn.Module):
    """Gives its input as logits, and takes part in training without changing."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale


@pytest.fixture
def uneven():
    """Batches of 8 and 2 samples: all of the first are right with a loss near 0, all of the second wrong."""
    right, wrong = torch.tensor([9.0, 0]).repeat(8, 1), torch.tensor([0, 3.0]).repeat(2, 1)
    batches = [(right, torch.zeros(8).long()), (wrong, torch.zeros(2).long())]
    loss = nn.functional.cross_entropy(torch.cat([right, wrong]), torch.zeros(10).long())
    model = Given()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), callbacks=[], device="cpu", precision="fp32")
    return trainer, batches, float(loss)


def test_a_schedule_for_batches_is_not_stepped_by_epochs(tiny):
    """A schedule meant for batches stepped by epochs."""
    for make_schedule in (
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3 * 5),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * 5),
    ):
        trainer, loaders = make(tiny)
        with pytest.raises(SettingError, match='every="batch"'):
            trainer.fit(loaders.train, epochs=3, schedule=make_schedule)
        history = trainer.fit(loaders.train, epochs=3, schedule=make_schedule, every="batch", batch_history=True)
        assert len({row["lr"] for row in history.batches}) > 10
    torch_s = torch.optim.lr_scheduler
    for make_schedule in (  # three epochs of five batches: some of these might be meant
        lambda optimizer: torch_s.LinearLR(optimizer, 1.0, 0.01, total_iters=15),
        lambda optimizer: torch_s.PolynomialLR(optimizer, total_iters=15),
        lambda optimizer: torch_s.CosineAnnealingWarmRestarts(optimizer, T_0=5),
        lambda optimizer: torch_s.MultiStepLR(optimizer, [1, 10]),
        lambda optimizer: torch_s.StepLR(optimizer, 5),
        lambda optimizer: torch_s.SequentialLR(
            optimizer, [torch_s.LinearLR(optimizer, total_iters=2), torch_s.ConstantLR(optimizer)], [5]
        ),
    ):
        trainer, loaders = make(tiny)
        with pytest.warns(UserWarning, match='every="batch"') as said:
            trainer.fit(loaders.train, epochs=3, schedule=make_schedule)
        assert said[0].filename == __file__
    by_epoch = make(tiny)[0].fit(
        loaders.train, epochs=3, schedule=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=3)
    )
    assert len(set(by_epoch["lr"])) == 3


def test_the_optimizer_owns_the_models_parameters(tiny):
    """The finder's optimizer owning another model's parameters."""
    trainer, loaders = make(tiny)
    other = models.CustomResNet(3, widths=(4, 4, 8, 8))
    with pytest.raises(SettingError, match="holds none"):
        Trainer(other, trainer.optimizer)
    both = torch.optim.SGD([*trainer.model.parameters(), other.fc.weight], lr=0.1)
    with pytest.raises(SettingError, match="only"):
        Trainer(trainer.model, both)
    seen = []
    trainer.optimizer.register_step_post_hook(lambda *_: seen.append(trainer.model.fc.weight.detach().clone()))
    trainer.find_lr(loaders.train, start_lr=1e-3, num_iter=3)
    assert len({value.numpy().tobytes() for value in seen}) == 3  # the finder moves the weights that are judged


def test_mistakes_are_those_of_the_trained_model(tiny):
    """Misclassified images of a fresh, untrained model."""
    trainer, loaders = make(tiny)
    untrained = trainer.predict(loaders.test).logits
    history = trainer.fit(loaders.train, loaders.test, epochs=2)
    predictions = trainer.predict(loaders.test)
    with torch.no_grad():
        expected = trainer.model.eval()(loaders.preprocess.batch(tiny.test.images))
    assert torch.allclose(predictions.logits, expected, atol=1e-5)
    assert not torch.allclose(predictions.logits, untrained, atol=1e-3)
    wrong = np.flatnonzero(expected.argmax(1).numpy() != tiny.test.labels)
    assert [mistake.index for mistake in predictions.mistakes("index")] == wrong.tolist()
    assert len(wrong) == round(9 * (1 - history[-1]["val_accuracy"]))


def test_accuracy_is_of_the_whole_set(uneven):
    """Accuracy of the last batch for the whole."""
    trainer, batches, _ = uneven
    row = trainer.fit(batches, batches, epochs=1)[0]
    assert row["train_accuracy"] == row["val_accuracy"] == 0.8
    assert trainer.evaluate(batches).correct == 8 and trainer.predict(batches).accuracy() == 0.8


def test_losses_are_means_over_the_samples(uneven):
    """Test loss summed over batches and divided by samples."""
    trainer, batches, loss = uneven
    row = trainer.fit(batches, batches, epochs=1)[0]
    assert [row["train_loss"], row["val_loss"], trainer.evaluate(batches).loss] == pytest.approx([loss] * 3)


def test_an_own_augmentation_fills_in_the_images_scale(tiny):
    """A hole filled with 0..1 values in a 0..255 image."""
    for fill in (0.5, (0.49, 0.48, 0.45)):
        hole = A.CoarseDropout(fill=fill)
        for augment in (hole, A.Compose([A.HorizontalFlip(), A.OneOf([hole, A.NoOp()])])):
            with pytest.raises(SettingError, match=r"0\.\.255"):
                data.make_loaders(tiny, augment)
    for fill in (0, 1, 127.5, (0, 0, 0), "random"):
        assert data.make_loaders(tiny, A.Compose([A.CoarseDropout(fill=fill)])).train


@pytest.mark.parametrize(
    "order",
    [
        lambda samples: {"shuffle": True},
        lambda samples: {"sampler": SubsetRandomSampler(range(len(samples)))},
        lambda samples: {"sampler": DistributedSampler(samples, num_replicas=1, rank=0)},
        lambda samples: {"batch_sampler": BatchSampler(RandomSampler(samples), 2, False)},
    ],
)
def test_a_shuffled_loader_is_refused_where_indices_count(tiny, order):
    """A shuffled test loader."""
    trainer, loaders = make(tiny)
    samples = [(torch.zeros(3, 16, 16), 0)] * 4
    with pytest.raises(SettingError, match="shuffle"):
        trainer.predict(DataLoader(samples, **order(samples)))
    assert not loaders.test.shuffle and len(trainer.predict(DataLoader(samples, batch_size=2))) == 4


def test_a_distributed_sampler_orders_each_epoch_anew_in_one_process_too(tiny):
    """The same order in every epoch."""
    seen = []

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            seen.append(index)
            return torch.zeros(3, 16, 16), index % 3

    trainer, _ = make(tiny)
    sampler = DistributedSampler(Samples(), num_replicas=1, rank=0)
    trainer.fit(DataLoader(Samples(), batch_size=4, sampler=sampler), epochs=2)
    first, second = seen[-16:-8], seen[-8:]
    assert sorted(first) == sorted(second) == list(range(8)) and first != second


def test_pictures_are_rgb(tiny):
    """CAM in BGR."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200  # red
    assert np.array_equal(overlay(image, np.zeros((4, 4))), image)
    strong = overlay(np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 0.9))[0, 0].astype(int)
    assert strong[0] > strong[2] + 50  # strong evidence is red
    reds = random_images(6, 16) // np.array([1, 8, 8], np.uint8)
    source = data.from_arrays((reds, np.arange(6) % 2), (reds, np.arange(6) % 2))
    for figure in (viz.plot_samples(source), viz.plot_augmented(data.make_loaders(source, "flip").train)):
        shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
        assert shown and all(picture[..., 0].max() > 99 > picture[..., 1:].max() for picture in shown)


def test_log_probabilities_are_warned_of(tiny):
    """`log_softmax` fed to cross-entropy."""
    loaders = data.make_loaders(tiny, batch_size=8)
    model = nn.Sequential(models.CustomResNet(3, widths=(4, 4, 8, 8)), nn.LogSoftmax(1))
    losses = (None, nn.CrossEntropyLoss(label_smoothing=0.1), functools.partial(F.cross_entropy, label_smoothing=0.1))
    for loss, precision in itertools.product(losses, ("fp32", "bf16")):
        options = {"callbacks": [], "device": "cpu", "precision": precision}
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, **options)
        with pytest.warns(UserWarning, match="expects logits"):
            trainer.fit(loaders.train, epochs=1)
        with pytest.warns(UserWarning, match="expects logits"):
            trainer.find_lr(loaders.train, num_iter=3)
    mixed = data.make_loaders(tiny, "crop_flip_mixup", batch_size=8).train
    with pytest.warns(UserWarning, match="expects logits"):
        Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), callbacks=[]).fit(mixed, epochs=1)


@pytest.mark.filterwarnings("error:.*expects logits")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_not_taken_for_probabilities(tiny, precision):
    for augment in ("none", "crop_flip_mixup"):
        model = models.CustomResNet(3, widths=(4, 4, 8, 8))
        options = {"callbacks": [], "device": "cpu", "precision": precision}
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)
        trainer.fit(data.make_loaders(tiny, augment, batch_size=8).train, epochs=1)


@pytest.mark.filterwarnings("error")
def test_log_probabilities_are_right_for_their_own_loss(tiny):
    """`log_softmax` fed to cross-entropy: with NLLLoss it belongs there."""
    loaders = data.make_loaders(tiny, batch_size=8)
    model = nn.Sequential(models.CustomResNet(3, widths=(4, 4, 8, 8)), nn.LogSoftmax(1))
    Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.NLLLoss(), callbacks=[]).fit(loaders.train, epochs=1)

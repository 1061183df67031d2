"""Networks that keep more than parameters and buffers: extra states, grids, lazy layers, computed weights."""

import pytest
import torch
from fits import StopAt, equal, ready_batches, weights
from torch import nn
from torch.nn.utils import prune

from vision_wrapper import explain
from vision_wrapper.errors import CheckpointError, SettingError
from vision_wrapper.trainer import Trainer


class Counting(nn.Module):
    """Counts its training passes in what a state dict calls extra."""

    def __init__(self, counted=dict):
        super().__init__()
        self.fc, self.passes, self.counted = nn.Linear(3 * 16 * 16, 3), 0, counted

    def forward(self, x):
        self.passes += self.training
        return self.fc(x.flatten(1))

    def get_extra_state(self):
        return self.counted({"passes": self.passes})

    def set_extra_state(self, state):
        self.passes = state["passes"]


class Grid(nn.Module):
    """Keeps a grid of the size it saw last."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.grid = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), None

    def forward(self, x):
        x = self.conv(x)
        if self.grid is None or self.grid.shape != x.shape[2:]:
            self.grid = torch.linspace(0, 1, x.shape[2] * x.shape[3]).view(x.shape[2:])
        return self.fc((x * self.grid).mean((2, 3)))


class WithAuxiliaryLogits(nn.Module):
    """Returns more than its logits in train mode, as torchvision's GoogLeNet does."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 3)

    def forward(self, x):
        logits = self.fc(x.flatten(1))
        return (logits, logits) if self.training else logits


def trainer_of(model, **arguments):
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), **{"callbacks": [], **arguments})


def test_an_extra_state_is_kept(tmp_path):
    torch.manual_seed(0)
    first, whole = Counting(), Counting()
    whole.load_state_dict(first.state_dict())
    with pytest.raises(MemoryError):
        trainer_of(first, callbacks=[StopAt(4)]).fit(
            ready_batches(), epochs=2, checkpoint=tmp_path / "c", checkpoint_seconds=0
        )
    resumed = Counting()
    trainer = trainer_of(resumed)
    trainer.fit(ready_batches(), epochs=2, checkpoint=tmp_path / "c")
    trainer_of(whole).fit(ready_batches(), epochs=2)
    assert resumed.passes == whole.passes == 6
    assert torch.equal(resumed.fc.weight, whole.fc.weight)
    trainer.save(tmp_path / "by hand")
    resumed.passes = 0
    trainer.load(tmp_path / "by hand")
    assert resumed.passes == 6


def test_an_extra_state_that_cannot_be_kept_is_said_before_training(tmp_path):
    model = Counting(counted=frozenset)
    before = model.fc.weight.clone()
    with pytest.raises(CheckpointError, match="frozenset"):
        trainer_of(model).fit(ready_batches(), epochs=1, checkpoint=tmp_path / "c")
    assert torch.equal(model.fc.weight, before)


@pytest.mark.parametrize("looked_at_by", ["evaluate", "predict"])
def test_what_a_pass_keeps_can_be_trained_with(looked_at_by):
    trainer = trainer_of(Grid())
    getattr(trainer, looked_at_by)(ready_batches())
    assert len(trainer.fit(ready_batches(), ready_batches(), epochs=2)) == 2
    trainer.find_lr(ready_batches(), num_iter=3)
    found = explain.cam(trainer.model, ready_batches()[0][0], targets=[0, 1, 2, 0], layers=[trainer.model.conv])
    assert found.maps.shape == (1, 4, 16, 16)


def test_lazy_layers_have_to_see_a_batch_first():
    model = nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(), nn.LazyLinear(3))
    with pytest.raises(SettingError, match="lazy layers"):
        trainer_of(model)
    model(ready_batches()[0][0])
    assert len(trainer_of(model).fit(ready_batches(), epochs=1)) == 1


@pytest.mark.parametrize("how", ["prune", "weight_norm"])
def test_weights_that_are_computed_before_each_pass_stay(how):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    if how == "prune":
        prune.l1_unstructured(model[1], "weight", amount=0.3)
    else:
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(model[1])
    trainer = trainer_of(model)
    kept, computed, before = model[1].weight, model[1].weight.clone(), weights(trainer)
    trainer.find_lr(ready_batches(), num_iter=10, end_lr=100.0)
    trainer.evaluate(ready_batches())
    assert equal(weights(trainer), before)
    assert model[1].weight is kept and torch.equal(kept, computed)


def test_more_than_logits_in_train_mode_alone_is_said():
    trainer = trainer_of(WithAuxiliaryLogits())
    before = weights(trainer)
    for call in (lambda: trainer.fit(ready_batches(), epochs=1), lambda: trainer.find_lr(ready_batches())):
        with pytest.raises(SettingError, match=r"got tuple.* in train mode as in eval mode"):
            call()
    assert equal(before, weights(trainer))

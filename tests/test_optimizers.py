"""Muon and Lookahead against their definitions, and as parts of a run."""

import copy

import pytest
import torch
from fits import StopAt, equal, make, weights
from torch import nn

from vision_wrapper import data, models
from vision_wrapper.errors import OtherModelError, SettingError
from vision_wrapper.models import build_model
from vision_wrapper.recipes.verify import _leaves  # every value, bit for bit
from vision_wrapper.trainer import Lookahead, Muon, Trainer, optimizers, schedules
from vision_wrapper.trainer.optimizers import orthogonalised
from vision_wrapper.trainer.precision import cpu_has_bf16


def with_gradients(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return module


def alike(make_module):
    """Two modules of the same weights."""
    first, second = make_module(), make_module()
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (32, 32)])
def test_orthogonalising_drives_every_singular_value_to_about_one(shape):
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, 1, shape[1]))
    values = torch.linalg.svdvals(orthogonalised(matrix).float())
    before = torch.linalg.svdvals(matrix) / torch.linalg.norm(matrix)
    reached = values[before > 0.05]  # smaller ones need more iterations than training has use for
    assert len(reached) > 5 and reached.min() > 0.4 and reached.max() < 1.4
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.einsum("ij,ij->", u @ vh, orthogonalised(matrix).float()) > 0.6 * len(before)  # towards U V^T
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_muon_steps_filters_by_an_orthogonal_matrix_of_its_rate():
    conv = with_gradients(nn.Conv2d(8, 16, 3, bias=False))
    gradient = conv.weight.grad.clone()
    Muon(conv.parameters(), lr=0.0).step()
    at_norm = conv.weight.detach().clone()
    assert at_norm.norm() == pytest.approx(4.0)  # sqrt of 16 filters
    Muon(conv.parameters(), lr=0.1).step()
    step = (at_norm - conv.weight.detach()).flatten(1) / 0.1
    rounding = 1e-2 if cpu_has_bf16() else 1e-4  # orthogonalised in bf16
    assert torch.allclose(step, orthogonalised(gradient.flatten(1)).float(), atol=rounding)  # momentum scales, no more


def orthogonalised_as_in_airbench(matrix):
    """Three iterations of Newton and Schulz, in float32."""
    x = matrix / matrix.norm()
    for _ in range(3):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_is_airbenchs_step_for_filters(monkeypatch):
    monkeypatch.setattr(optimizers, "cpu_has_bf16", lambda: False)  # in float32
    conv = nn.Conv2d(4, 6, 3, bias=False)
    expected, buffer = conv.weight.detach().clone(), torch.zeros_like(conv.weight)
    optimizer = Muon(conv.parameters(), lr=0.24)
    for seed in range(4):
        gradient = with_gradients(conv, seed).weight.grad.clone()
        optimizer.step()
        buffer = 0.6 * buffer + gradient
        direction = gradient + 0.6 * buffer
        expected = expected * 6**0.5 / expected.norm()
        expected -= 0.24 * orthogonalised_as_in_airbench(direction.flatten(1)).view_as(expected)
        assert torch.allclose(conv.weight, expected, atol=1e-5), seed


def test_muon_is_nesterov_sgd_for_all_but_filters():
    ours, theirs = alike(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    groups = [
        [{"params": list(m[0].parameters()), "weight_decay": 0.01}, {"params": list(m[1].parameters()), "lr": 0.3}]
        for m in (ours, theirs)
    ]
    optimizers = Muon(groups[0], lr=0.1), torch.optim.SGD(groups[1], lr=0.1, momentum=0.85, nesterov=True)
    for seed in range(4):
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            with_gradients(module, seed)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_muon_leaves_what_has_no_gradient_and_calls_a_closure():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2))
    before = [p.detach().clone() for p in module.parameters()]
    assert Muon(module.parameters()).step(lambda: 3.0) == 3.0
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    for wrong in ({"lr": -1}, {"momentum": 1.0}, {"sgd_momentum": 0.0}, {"weight_decay": -1}):
        with pytest.raises(SettingError, match="must be"):
            Muon(module.parameters(), **wrong)


@pytest.mark.parametrize("fused", [False, True])
def test_lookahead_is_its_definition(fused):
    ours, plain = alike(lambda: nn.Linear(3, 2))
    optimizer = Lookahead(torch.optim.Adam(ours.parameters(), lr=0.1, fused=fused), steps=3, share=0.4)
    theirs = torch.optim.Adam(plain.parameters(), lr=0.1, fused=fused)
    slow = [p.detach().clone() for p in plain.parameters()]
    for step in range(1, 8):
        for module, used in ((ours, optimizer), (plain, theirs)):
            with_gradients(module, step)
            used.step()
        if step % 3 == 0:
            with torch.no_grad():
                for kept, parameter in zip(slow, plain.parameters(), strict=True):
                    kept += 0.4 * (parameter - kept)
                    parameter.copy_(kept)
        assert all(torch.allclose(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)), step


def test_lookahead_has_the_groups_of_the_other_one():
    layer = nn.Linear(2, 2)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer = Lookahead(sgd)
    optimizer.param_groups[0]["lr"] = 0.2
    assert sgd.param_groups[0]["lr"] == 0.2 and optimizer.defaults["lookahead_steps"] == 5
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is sgd.param_groups and optimizer.state is sgd.state
    for wrong in ({"steps": 0}, {"steps": True}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(SettingError, match="Lookahead"):
            Lookahead(sgd, **wrong)
    with pytest.raises(SettingError, match=r"Lookahead takes another optimizer.*got generator"):
        Lookahead(layer.parameters())
    with pytest.raises(OtherModelError, match="The state is not a Lookahead's"):
        optimizer.load_state_dict(sgd.state_dict())


def trainer_of(images, kind, channels_last):
    """A trainer with whitened filters, groups and one of the optimizers, and its loaders."""
    torch.manual_seed(0)
    loaders = data.make_loaders(images, "crop_alternating_flip", batch_size=9, seed=3)
    model = build_model("whitened_convnet", num_classes=3, widths=(4, 8, 8))
    groups = models.parameter_groups(model, lr=0.05, body_lr=0.1, weight_decay=1e-3)
    optimizer = {
        "muon": lambda: Muon(groups),
        "lookahead": lambda: Lookahead(torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True), steps=3),
        "lookahead of muon": lambda: Lookahead(Muon(groups), steps=4),
    }[kind]()
    return Trainer(model, optimizer, callbacks=[], channels_last=channels_last), loaders


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["muon", "lookahead", "lookahead of muon"])
def test_a_run_with_it_resumes_bit_for_bit(images, tmp_path, kind, channels_last):
    def fit(callbacks, checkpoint=None):
        trainer, loaders = trainer_of(images, kind, channels_last)
        trainer.callbacks += callbacks
        history = trainer.fit(
            loaders.train, epochs=3, schedule=schedules.linear(), checkpoint=checkpoint, checkpoint_seconds=0
        )
        return weights(trainer), history["train_loss"], trainer.optimizer.state_dict()

    whole = fit([])
    with pytest.raises(MemoryError):
        fit([StopAt(7)], tmp_path / "last.ckpt")
    resumed = fit([], tmp_path / "last.ckpt")
    assert equal(whole[0], resumed[0]) and whole[1] == resumed[1]
    if kind != "muon":
        kept, again = (state["lookahead"] for *_, state in (whole, resumed))
        assert kept["taken"] == again["taken"] == 15
        assert all(torch.equal(a, b) for a, b in zip(kept["slow"], again["slow"], strict=True))


@pytest.mark.parametrize("kind", ["muon", "lookahead", "lookahead of muon"])
def test_the_lr_finder_leaves_it_as_it_was(images, kind):
    trainer, loaders = trainer_of(images, kind, True)
    trainer.fit(loaders.train, epochs=1)
    before, kept = _leaves(copy.deepcopy(trainer.optimizer.state_dict())), weights(trainer)
    curve = trainer.find_lr(loaders.train, num_iter=12)
    assert len(curve.lrs) > 3
    assert _leaves(trainer.optimizer.state_dict()) == before and equal(weights(trainer), kept)


def test_muon_learns(images):
    trainer, loaders = trainer_of(images, "muon", True)
    history = trainer.fit(loaders.train, loaders.test, epochs=6)
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"] and history[-1]["val_accuracy"] > 0.6


def test_training_with_a_scaled_head_is_training_with_scaled_logits(images):
    """Page's reparametrisation: the same function after every step."""
    scale = 0.125
    scaled, _ = make(images)
    plain, loaders = make(images)
    nets = scaled.model, plain.model
    nets[1].load_state_dict(nets[0].state_dict())
    models.scale_head(nets[0], scale)
    groups = models.parameter_groups(nets[0], lr=0.1, weight_decay=0.01, head_scale=scale)
    ours = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    theirs = torch.optim.SGD(models.parameter_groups(nets[1], lr=0.1, weight_decay=0.01), momentum=0.9, nesterov=True)
    for inputs, targets in list(loaders.train)[:4]:
        for net, optimizer, factor in ((nets[0], ours, 1.0), (nets[1], theirs, scale)):
            loss = nn.functional.cross_entropy(net(inputs) * factor, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert torch.allclose(nets[0](inputs), nets[1](inputs) * scale, atol=1e-5)


def test_lookahead_begins_anew_with_each_fit(images):
    """Weights that were loaded or averaged between two fits are not pulled back."""
    trainer, loaders = trainer_of(images, "lookahead", True)
    trainer.fit(loaders.train, epochs=1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    moved = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.fit(loaders.train, epochs=1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(moved, trainer.model.parameters(), strict=True))


def test_a_state_with_and_one_without_lookahead_are_told_apart(images, tmp_path):
    with_it, _ = trainer_of(images, "lookahead of muon", True)
    without, _ = trainer_of(images, "muon", True)
    with_it.save(tmp_path / "with.ckpt")
    without.save(tmp_path / "without.ckpt")
    with pytest.raises(OtherModelError, match="of the class Lookahead of Muon, this one is Muon"):
        without.load(tmp_path / "with.ckpt")
    with pytest.raises(OtherModelError, match="of the class Muon, this one is Lookahead of Muon"):
        with_it.load(tmp_path / "without.ckpt")


def test_a_group_can_be_added_to_lookahead():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = Lookahead(torch.optim.SGD(first.parameters(), lr=0.1), steps=1)
    with_gradients(first)
    optimizer.step()
    optimizer.add_param_group({"params": second.parameters()})
    with_gradients(second)
    optimizer.step()
    assert len(optimizer.optimizer.param_groups) == 2

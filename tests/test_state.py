"""Leaving things as they were."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import vision_wrapper as vw
from vision_wrapper._state import preserve_mode, preserve_order, preserve_random_states, random_states
from vision_wrapper.models import CustomResNet


def everything(model, optimizer=None):
    """All that must not change, as comparable plain values."""
    seen = {f"p.{n}": p.detach().numpy().tobytes() for n, p in model.named_parameters()}
    seen |= {f"g.{n}": None if p.grad is None else p.grad.numpy().tobytes() for n, p in model.named_parameters()}
    seen |= {f"r.{n}": p.requires_grad for n, p in model.named_parameters()}
    seen |= {f"b.{n}": b.numpy().tobytes() for n, b in model.named_buffers()}
    seen |= {f"t.{n}": m.training for n, m in model.named_modules()}
    states = random_states()
    seen["random"] = (states["python"], states["numpy"][1].tobytes(), states["numpy"][2:], states["torch"].tolist())
    if optimizer is not None:
        seen["optimizer"] = str(optimizer.state_dict())
        seen["attributes"] = sorted(vars(optimizer))
        seen["groups"] = [sorted(group) for group in optimizer.param_groups]
    return seen


def training_step(model, optimizer):
    optimizer.zero_grad()
    model(torch.rand(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    random.random(), np.random.rand()


@pytest.fixture
def model():
    model = CustomResNet(widths=(4, 4, 4, 4), dropout=0.5)
    model.layer1.eval()  # a submodule that the user has frozen
    model.fc.bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_preserve_state_bit_for_bit(model, error, fresh, kind):
    optimizer = kind(model.parameters(), lr=0.1)
    if not fresh:
        training_step(model, optimizer)
    before, later = everything(model, optimizer), None
    gradients = [p.grad for p in model.parameters()]
    try:
        with vw.preserve_state(model, optimizer):
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=5)
            model.eval().requires_grad_(True)
            for _ in range(3):
                training_step(model.train(), optimizer)
                scheduler.step()
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
            later = everything(model, optimizer)
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert later is not None and all(later[key] != before[key] for key in ("p.fc.weight", "random", "optimizer"))
    assert everything(model, optimizer) == before
    assert all(a is p.grad for a, p in zip(gradients, model.parameters(), strict=True))
    assert len(optimizer.param_groups) == 1


def test_training_goes_on_as_if_nothing_had_been(model):
    def weights_after(disturbed):
        torch.manual_seed(0)
        torch.nn.init.ones_(model.fc.weight)
        copy = CustomResNet(widths=(4, 4, 4, 4))
        optimizer = torch.optim.Adam(copy.parameters(), lr=0.1)
        training_step(copy, optimizer)
        if disturbed:
            with vw.preserve_state(copy, optimizer):
                training_step(copy, optimizer)
        training_step(copy, optimizer)
        return torch.cat([p.detach().ravel() for p in copy.parameters()])

    assert torch.equal(weights_after(False), weights_after(True))


def test_preserve_mode_leaves_flags_buffers_and_random_states(model):
    before = everything(model)
    with pytest.raises(ZeroDivisionError), preserve_mode(model):
        model.train()(torch.rand(4, 3, 8, 8))
        assert everything(model) != before
        raise ZeroDivisionError
    assert everything(model) == before


def test_preserve_random_states_covers_every_generator():
    expected = random_states()
    with preserve_random_states():
        random.random(), np.random.rand(), torch.rand(1)
    now = random_states()
    assert now["python"] == expected["python"]
    assert now["numpy"][1].tolist() == expected["numpy"][1].tolist() and now["numpy"][2:] == expected["numpy"][2:]
    assert torch.equal(now["torch"], expected["torch"])


def test_the_scaler_is_put_back(model):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))  # makes its scale tensor
    with vw.preserve_state(model, None, scaler):
        scaler.update(2.0)
    assert scaler.get_scale() == 8.0


def test_the_epoch_of_a_distributed_sampler_stays():
    images = torch.utils.data.TensorDataset(torch.arange(6))
    sampler = torch.utils.data.DistributedSampler(images, num_replicas=2, rank=0)
    sampler.set_epoch(3)
    with preserve_order(torch.utils.data.DataLoader(images, sampler=sampler)):
        sampler.set_epoch(5)
    assert sampler.epoch == 3

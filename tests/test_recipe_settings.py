"""The settings of each recipe, as its source or its page has them."""

import numpy as np
import pytest
import torch

from vision_wrapper import data, recipes
from vision_wrapper.recipes import RECIPES
from vision_wrapper.trainer import Muon

CLASSIC = (
    "custom-resnet-onecycle", "custom-resnet-adam", "custom-resnet-sgd", "custom-resnet-late-peak",
    "custom-resnet-avgpool", "resnet18-layernorm",
)  # fmt: skip


@pytest.mark.parametrize("name", CLASSIC)
def test_the_classic_recipes_have_nothing_that_their_originals_had_not(name):
    recipe, plain = RECIPES[name], recipes.Recipe("plain", "")
    for field in ("groups", "lookahead", "whiten", "head_scale", "progressive_size", "label_smoothing", "ema", "size"):
        assert getattr(recipe, field) == getattr(plain, field), field
    assert "Alternating" not in str(data.AUGMENTATIONS[recipe.augment])


def test_the_new_recipes_leave_the_networks_unchanged():
    plain = RECIPES["custom-resnet-adam"].build_model(10)
    for name in ("custom-resnet-page", "custom-resnet-fast", "custom-resnet-best"):
        begins = {} if name == "custom-resnet-page" else {"init": "dirac"}
        assert RECIPES[name].model_args == begins
        assert str(RECIPES[name].build_model(10)) == str(plain)
    assert RECIPES["resnet18-layernorm-best"].model_args["norm"] == "layer"
    assert [RECIPES[f"{n}"].epochs for n in ("custom-resnet-fast", "custom-resnet-best", "resnet18-best")] == [
        10,
        24,
        40,
    ]


PLAIN_CROP, HOLES = (data.Pad(4), data.RandomCrop()), data.Cutout(8, holes=8)
LINEAR = {"anneal_strategy": "linear"}
# What the experiments ran: network, parameters, optimizer with its arguments, batch, epochs, augmentation; and the
# arguments of torch's OneCycleLR, as fractions of 24 epochs.
PUBLISHED = {
    "custom-resnet-onecycle": (
        {}, 6_573_130, torch.optim.Adam, {"lr": 0.01, "weight_decay": 1e-4}, 512, 24,
        (*PLAIN_CROP, data.Flip(), data.Cutout(8)),
        {"max_lr": 0.05, "pct_start": 5 / 24, "div_factor": 10, "final_div_factor": 1, **LINEAR},
    ),
    "custom-resnet-adam": (
        {}, 6_573_130, torch.optim.Adam, {"lr": 1e-3, "betas": (0.95, 0.99), "weight_decay": 0}, 128, 24,
        (*PLAIN_CROP, data.Flip()),
        None,
    ),
    "custom-resnet-sgd": (
        {"bias": True}, 6_575_370, torch.optim.SGD, {"momentum": 0.9, "nesterov": False, "weight_decay": 0}, 512, 24,
        (*PLAIN_CROP, data.Flip(0.8), data.Cutout(8, holes=8, p=0.5)),
        {"max_lr": 0.05, "pct_start": 5 / 24, "div_factor": 10, "final_div_factor": 1e4, "anneal_strategy": "cos"},
    ),
    "custom-resnet-late-peak": (
        {}, 6_573_130, torch.optim.Adam, {"lr": 0.01, "weight_decay": 1e-4}, 512, 24,
        (*PLAIN_CROP, data.Flip(), data.Cutout(8, fill="mean")),
        {"max_lr": 4.64e-2, "pct_start": 3 / 24, "div_factor": 100, "final_div_factor": 100, **LINEAR},
    ),
    "custom-resnet-avgpool": (
        {"pool": "avg", "activation_after_add": True}, 6_573_130, torch.optim.Adam, {"lr": 0.01, "weight_decay": 1e-4},
        512, 20,
        (data.Pad(3), data.RandomCrop(), data.Flip(), HOLES),
        {"max_lr": 0.01, "pct_start": 5 / 24, **LINEAR, "three_phase": True},
    ),
    "resnet18-layernorm": (
        {"norm": "layer", "strides": (1, 1, 2, 2)}, 11_173_962, torch.optim.Adam, {"lr": 1e-3, "weight_decay": 1e-4},
        128, 40,
        (*PLAIN_CROP, data.Rotate(5.0), data.Cutout(16, p=0.5)),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIC)
def test_every_classic_recipe_as_it_was_published(name):
    recipe = RECIPES[name]
    network, parameters, optimizer_class, arguments, batch_size, epochs, operations, cycle = PUBLISHED[name]
    assert dict(recipe.model_args) == network
    model = recipe.build_model(10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    optimizer = recipe.build_optimizer(model)
    assert type(optimizer) is optimizer_class and arguments.items() <= optimizer.defaults.items()
    assert (recipe.batch_size, recipe.epochs) == (batch_size, epochs)
    assert data.AUGMENTATIONS[recipe.augment] == operations and not recipe.augment_args
    schedule = recipe.build_schedule(max_lr=0.05)
    if cycle is None:
        assert (schedule is None) == (name == "custom-resnet-adam")
        return
    steps = 98
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    torchs = torch.optim.lr_scheduler.OneCycleLR(plain, total_steps=24 * steps, cycle_momentum=False, **cycle)
    expected = []
    for _ in range(epochs * steps):
        expected.append(torchs.get_last_lr()[0])
        plain.step()
        torchs.step()
    assert schedule.every == "batch" and schedule.preview(epochs, steps) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_plateau_of_the_published_resnet18():
    schedule = RECIPES["resnet18-layernorm"].build_schedule()
    found = schedule.build(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), 40, 391)
    assert isinstance(found, torch.optim.lr_scheduler.ReduceLROnPlateau) and schedule.monitor == "val_accuracy"
    assert (found.factor, found.patience, found.mode) == (0.2, 3, "max")


ALTERNATING = (data.Pad(4, "reflect"), data.RandomCrop(), data.AlternatingFlip())
MUON = {"momentum": 0.6, "sgd_momentum": 0.85}
NESTEROV = {"momentum": 0.9, "nesterov": True}
# As the table "The same networks, further" has them: network; class, rate and further defaults of the optimizer; rates
# of filters, of norms and biases and of the head; their weight decays; the highest rate, as a part of the first one,
# and its epoch; batch, epochs; augmentation; label smoothing; the head's scale.
FURTHER = {
    "custom-resnet-page": (
        "custom_resnet", torch.optim.SGD, NESTEROV, (0.4, 0.4, 0.4), (5e-4, 0, 5e-4), (0.4, 5), 512, 24,
        (data.Pad(4, "reflect"), data.RandomCrop(), data.Flip(), data.Cutout(8)), 0.0, 0.125,
    ),
    "custom-resnet-fast": (
        "custom_resnet", Muon, MUON, (0.08, 0.08, 0.03), (5e-4, 0, 5e-4), (None, 0), 512, 10, ALTERNATING, 0.2, 0.125,
    ),
    "custom-resnet-best": (
        "custom_resnet", Muon, MUON, (0.08, 0.08, 0.03), (5e-4, 0, 5e-4), (None, 0), 512, 24,
        (*ALTERNATING, data.Cutout(8, fill="mean")), 0.2, 0.125,
    ),
    "resnet18-best": (
        "resnet18", torch.optim.SGD, NESTEROV, (0.2, 0.2, 0.2), (5e-4, 0, 5e-4), (0.2, 8), 256, 40,
        (*ALTERNATING, data.Cutout(12, fill="mean")), 0.1, 1.0,
    ),
    "resnet18-layernorm-best": (
        "resnet18", torch.optim.AdamW, {}, (1e-3, 1e-3, 1e-3), (0.05, 0, 0.05), (1e-3, 8), 128, 40,
        (*ALTERNATING, data.Cutout(12, fill="mean")), 0.1, 1.0,
    ),
    "speedrun": (
        "whitened_convnet", Muon, MUON, (0.24, 106.0, 1.66), (2.4e-3, 0, 2.4e-3), (None, 0), 2000, 8,
        (data.Pad(2, "reflect"), *ALTERNATING[1:]), 0.2, 1 / 9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FURTHER)
def test_every_further_recipe_as_its_page_says(name):
    recipe = RECIPES[name]
    network, kind, defaults, rates, decays, (highest, peak), batch, epochs, operations, smoothing, scale = FURTHER[name]
    assert (recipe.model, recipe.batch_size, recipe.epochs) == (network, batch, epochs)
    assert (recipe.label_smoothing, recipe.head_scale, recipe.drop_last) == (smoothing, scale, True)
    assert data.augmentation(recipe.augment, **recipe.augment_args) == operations
    plain = recipe.changed(head_scale=1.0)  # a scaled head has its rate and decay scaled too
    optimizer = plain.build_optimizer(plain.build_model(10))
    assert type(optimizer) is kind and defaults.items() <= optimizer.defaults.items()
    groups = {group["name"]: group for group in optimizer.param_groups}
    for group, rate, decay in zip(("body", "body_norms_biases", "head"), rates, decays, strict=True):
        assert (groups[group]["lr"], groups[group]["weight_decay"]) == (rate, decay), group
    found = recipe.build_schedule().preview(epochs, 100)
    top = max(0, peak * 100 - 1)
    assert found[top] == max(found) == pytest.approx(highest or found[0]) and found[-1] < 0.01 * max(found)
    slopes = np.diff(found[top:])
    assert slopes == pytest.approx(slopes.mean(), rel=1e-3) and slopes.mean() < 0  # linear


def test_folder_as_its_page_says():
    recipe = RECIPES["folder"]
    assert (recipe.model, recipe.model_args, recipe.pretrained) == (
        "resnet18",
        {"stem": "imagenet"},
        "IMAGENET1K_V1",
    )
    assert (recipe.freeze_epochs, recipe.val_fraction, recipe.normalisation) == (2, 0.15, "imagenet")
    optimizer = recipe.changed(pretrained=None).build_optimizer(recipe.changed(pretrained=None).build_model(3))
    rates = {group["name"].split("_")[0]: group["lr"] for group in optimizer.param_groups}
    assert rates["body"] == pytest.approx(rates["head"] / 10)

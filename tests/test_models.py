"""Every network of MODELS."""

import json
import math
import os
import pickle
import random

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from vision_wrapper import models
from vision_wrapper.errors import (
    DamagedFileError,
    DataNotFoundError,
    OtherModelError,
    SettingError,
    UnknownNameError,
)
from vision_wrapper.models import MODELS, build_model
from vision_wrapper.models.layers import ACTIVATIONS, NORMS, GhostBatchNorm, GlobalMaxPool
from vision_wrapper.recipes import RECIPES
from vision_wrapper.recipes.checks import check_parts

PARAMETERS = {"custom_resnet": 6_573_130, "resnet18": 11_173_962, "resnet34": 21_282_122, "whitened_convnet": 1_972_514}
SMALL = {"widths": (4, 8, 8, 8)}
SMALL_OF = {"custom_resnet": SMALL, "whitened_convnet": {"widths": (4, 8, 8)}}


def count(model):
    return sum(p.numel() for p in model.parameters())


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_global_maximum_is_torchs_with_its_gradient(channels_last):
    images = torch.randn(3, 5, 4, 6).round(decimals=1).relu()  # with ties
    images[0] = 0
    found = []
    for pool in (GlobalMaxPool(), nn.AdaptiveMaxPool2d(1)):
        x = images.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        y = pool(x.requires_grad_())
        (y * torch.arange(5).view(5, 1, 1)).sum().backward()
        found.append((y.detach(), x.grad))
    (ours, our_gradient), (theirs, their_gradient) = found
    assert ours.shape == (3, 5, 1, 1) and torch.equal(ours, theirs) and torch.equal(our_gradient, their_gradient)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_parameters(name, norm):
    assert count(build_model(name, norm=norm)) == PARAMETERS[name]


def test_parameters_of_the_custom_resnet_with_bias():
    assert count(models.CustomResNet(bias=True)) == 6_575_370


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_for_any_size_channels_and_classes(name, norm):
    arguments = SMALL_OF.get(name, {})
    for channels, classes, (height, width) in ((3, 10, (32, 32)), (1, 2, (28, 33)), (4, 101, (17, 64))):
        model = build_model(name, norm=norm, in_channels=channels, num_classes=classes, **arguments).eval()
        with torch.no_grad():
            logits = model(torch.rand(2, channels, height, width))
        assert logits.shape == (2, classes) and logits.dtype == torch.float32
        assert torch.isfinite(logits).all()
        assert not torch.allclose(logits.exp().sum(1), torch.ones(2))  # logits, not log-probabilities


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_used(name, norm):
    arguments = SMALL_OF.get(name, {})
    model = build_model(name, norm=norm, **arguments)
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("after", [True, False])
def test_the_custom_resnet_is_the_assignments(pool, after):
    model = models.CustomResNet(pool=pool, activation_after_add=after, **SMALL).eval()
    maps = {}
    for name in ("prep", "layer1", "layer2", "layer3"):
        getattr(model, name).register_forward_hook(lambda _m, _i, out, name=name: maps.__setitem__(name, out))
    x = torch.rand(2, 3, 32, 32)
    logits = model(x)
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(4, 32, 32), (8, 16, 16), (8, 8, 8), (8, 4, 4)]
    pooled = maps["layer3"].amax((2, 3)) if pool == "max" else maps["layer3"].mean((2, 3))
    assert torch.allclose(logits, model.fc(pooled), atol=1e-6)
    block, residual = model.layer1
    y = block(x := model.prep(x))
    convolved = nn.functional.max_pool2d(block.conv(x), 2)  # pooling before norm and ReLU
    assert torch.allclose(y, torch.relu(block.norm(convolved)), atol=1e-6)
    total = y + residual.conv2(residual.conv1(y))
    assert torch.allclose(maps["layer1"], torch.relu(total) if after else total, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    for name, arguments in SMALL_OF.items():
        model = build_model(name, activation=activation, **arguments)
        kinds = {type(m) for m in model.modules() if type(m).__module__ == "torch.nn.modules.activation"}
        assert kinds == {type(ACTIVATIONS[activation]())}
        again = build_model(name, **model.architecture["arguments"])
        assert model.architecture == again.architecture


def test_ghost_batch_norm_takes_each_part_by_itself():
    x = torch.randn(70, 3, 4, 4) * torch.arange(1, 71).view(-1, 1, 1, 1)
    ghost, plain = GhostBatchNorm(3), nn.BatchNorm2d(3)
    expected = torch.cat([nn.functional.batch_norm(part, None, None, training=True) for part in x.split(35)])
    assert torch.allclose(ghost(x), expected, atol=1e-5)
    plain(x)
    # The running statistics move as far as by one batch, each part's by its share.
    parts = torch.stack([part.mean((0, 2, 3)) for part in x.split(35)])
    share = 1 - 0.9**0.5
    assert torch.allclose(ghost.running_mean, (1 - share) * share * parts[0] + share * parts[1], atol=1e-6)
    assert ghost.num_batches_tracked == 1
    ghost.load_state_dict(plain.state_dict())
    assert torch.equal(ghost.eval()(x), plain.eval()(x))
    few = torch.randn(40, 3, 4, 4)
    assert torch.equal(ghost.train()(few), plain.train()(few))  # too few for two parts


def test_dirac_passes_channels_on():
    x = torch.rand(2, 3, 32, 32)
    model = models.CustomResNet(init="dirac", widths=(4, 8, 8, 8))
    assert torch.allclose(model.prep.conv(x)[:, :3], x, atol=1e-6)
    assert not torch.allclose(model.prep.conv(x)[:, 3], x[:, 0], atol=0.1)
    inner = torch.rand(2, 8, 8, 8)
    assert torch.allclose(model.layer1[1].conv1.conv(inner), inner, atol=1e-6)
    with pytest.raises(SettingError, match="init must be"):
        models.CustomResNet(init="zero")


def test_whitening_decorrelates_patches():
    generator = torch.Generator().manual_seed(0)
    smooth = nn.functional.avg_pool2d(torch.randn(500, 3, 18, 18, generator=generator), 3, 1)
    mixed = torch.einsum("dc,nchw->ndhw", torch.tensor([[3.0, 1, 1], [1, 3, 1], [1, 1, 3]]), smooth)
    layer = models.Whitening(3)
    layer.fit(mixed)
    outputs = layer(mixed).detach().permute(1, 0, 2, 3).flatten(1)
    second_moments = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(second_moments[:12, :12], torch.eye(12), atol=0.05)
    assert torch.equal(outputs[:12], -outputs[12:])
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    for wrong in (mixed[:0], mixed[:, :2], mixed[:, :, :1], mixed[0], mixed * float("nan")):
        with pytest.raises(SettingError, match=r"Whitening\.fit"):
            models.Whitening(3).fit(wrong)
    flat = models.Whitening(1)
    flat.fit(torch.ones(4, 1, 8, 8))  # without any variance but one
    assert torch.isfinite(flat.weight).all()


def test_the_whitened_network_learns_shifts_and_no_scales():
    model = models.WhitenedConvNet()
    assert count(model) == 1_971_362
    assert not [n for n, _ in model.named_parameters() if "norm" in n and "weight" in n]
    assert {"block1.norm1.weight", "whiten.weight"} <= model.state_dict().keys()
    with pytest.raises(SettingError, match="at least 9x9"):
        model(torch.rand(1, 3, 8, 8))
    with pytest.raises(SettingError, match="3 whole numbers"):
        models.WhitenedConvNet(widths=(4, 8))


def test_the_shifted_batch_norm_has_airbenchs_constants():
    norm = NORMS["shift"](1)
    x = torch.tensor([0.0, 4e-3]).view(2, 1, 1, 1)  # variance 4e-6: torch's eps of 1e-5 would leave half of it
    assert norm(x).flatten().tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)
    # From 0 and 1, four tenths of the way to the batch's mean and unbiased variance.
    assert norm.running_mean.item() == pytest.approx(0.4 * 2e-3)
    assert norm.running_var.item() == pytest.approx(0.6 + 0.4 * 8e-6, rel=1e-6)


def test_celu_has_pages_alpha():
    x = torch.tensor([-1.0, -0.075, -0.01, 0.5])
    expected = [0.075 * math.expm1(min(v, 0) / 0.075) + max(v, 0) for v in x.tolist()]
    assert ACTIVATIONS["celu"]()(x).tolist() == pytest.approx(expected, abs=1e-6)


def test_dropout_acts_in_training_alone():
    model = models.CustomResNet(dropout=0.9, norm="layer", **SMALL)
    x = torch.rand(2, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_strides_of_the_stages():
    maps = []
    model = models.resnet18(strides=(1, 1, 2, 2)).eval()
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _m, _i, out: maps.append(out.shape[-1]))
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    assert maps == [32, 32, 16, 8]


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_torchvisions_weights_give_torchvisions_logits(name, tmp_path):
    theirs = getattr(torchvision.models, name)(num_classes=12).eval()
    for module in theirs.modules():  # not the values of a fresh network
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = build_model(name, num_classes=12, stem="imagenet", weights=tmp_path / "w.pth").eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("wrapped", [None, "net", "state_dict"])
def test_the_names_of_pytorch_cifar(parallel, wrapped, tmp_path):
    model = models.resnet18()
    state = model.state_dict()
    prefix = "module." if parallel else ""
    theirs = {
        prefix + name.replace("downsample", "shortcut").replace("fc.", "linear."): value
        for name, value in state.items()
    }
    assert f"{prefix}layer2.0.shortcut.1.running_mean" in theirs and f"{prefix}linear.bias" in theirs
    converted = models.from_pytorch_cifar(theirs)
    assert list(converted) == list(state)
    torch.save({wrapped: theirs, "acc": 93.0, "epoch": 4} if wrapped else theirs, tmp_path / "ckpt.pth")
    torch.manual_seed(99)
    again = models.resnet18(weights=tmp_path / "ckpt.pth")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), state.values(), strict=True))


def test_torchvisions_names_pass_the_converter_unchanged():
    state = models.CustomResNet(**SMALL).state_dict()
    assert models.from_pytorch_cifar(state) == state


def test_a_head_for_other_classes_stays_fresh(tmp_path):
    from safetensors.torch import save_file

    trained = models.resnet18(num_classes=5)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(1)
    fresh = models.resnet18(num_classes=3)
    torch.manual_seed(1)
    tuned = models.resnet18(num_classes=3, weights=tmp_path / "w.safetensors")
    assert torch.equal(tuned.fc.weight, fresh.fc.weight) and torch.equal(tuned.fc.bias, fresh.fc.bias)
    assert torch.equal(tuned.conv1.weight, trained.conv1.weight)


def test_weights_of_another_network_change_nothing(tmp_path):
    torch.save(models.resnet18().state_dict(), tmp_path / "w.pth")
    model = models.CustomResNet(**SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(OtherModelError, match=r"another network: prep\.conv\.weight is missing.*and \d+ more"):
        models.load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    with pytest.raises(OtherModelError, match="the model has"):
        models.resnet18(in_channels=1, weights=tmp_path / "w.pth")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".weights"])
@pytest.mark.parametrize("plain_pickle", [True, False])
def test_a_hostile_file_runs_nothing(tmp_path, suffix, plain_pickle):
    path, marker = tmp_path / f"w{suffix}", tmp_path / "was-here"
    if plain_pickle:
        path.write_bytes(pickle.dumps({"fc.weight": Hostile(marker)}))
    else:
        torch.save({"fc.weight": Hostile(marker)}, path)
    with pytest.raises(DamagedFileError, match=path.name):
        models.resnet18(weights=path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04"])
def test_damaged_weights(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=path.name):
        models.resnet18(weights=path)


def test_truncated_weights(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(models.CustomResNet(**SMALL).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DamagedFileError, match=r"w\.pth"):
        models.load_weights(models.CustomResNet(**SMALL), path)


def test_something_else_than_a_state_dict(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "w.pth")
    with pytest.raises(DamagedFileError, match="state dict"):
        models.resnet18(weights=tmp_path / "w.pth")


def test_weights_that_are_not_there():
    with pytest.raises(DataNotFoundError, match=r"no/such\.pth"):
        models.resnet18(weights="no/such.pth")
    with pytest.raises(UnknownNameError, match="did you mean 'IMAGENET1K_V1'"):
        models.resnet18(weights="IMAGENET1K_V2", stem="imagenet")
    with pytest.raises(DataNotFoundError):
        models.load_weights(models.CustomResNet(**SMALL), "IMAGENET1K_V1")


def test_torchvisions_weights_by_name(tmp_path, monkeypatch):
    theirs = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **_: theirs)
    model = models.resnet18(num_classes=4, stem="imagenet", weights="IMAGENET1K_V1")
    assert torch.equal(model.layer4[1].conv2.weight, theirs["layer4.1.conv2.weight"]) and model.fc.out_features == 4

    def offline(self, **_):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(DataNotFoundError, match=r"IMAGENET1K_V1 is not on this machine.*pass its path"):
        models.resnet18(stem="imagenet", weights="IMAGENET1K_V1")


@pytest.mark.parametrize("name", MODELS)
def test_freeze_and_unfreeze(name):
    model = build_model(name, num_classes=3, **SMALL_OF.get(name, {}))
    models.freeze(model)
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    assert learning == ["fc.weight", "fc.bias"]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    assert model.training and model.fc.training
    before = [m.running_mean.clone() for m in norms]
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(torch.equal(a, m.running_mean) for a, m in zip(before, norms, strict=True))
    models.unfreeze(model)
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_parameter_groups(name):
    model = build_model(name, **SMALL_OF.get(name, {}))
    groups = models.parameter_groups(model, lr=0.1, body_lr=0.01, weight_decay=5e-4)
    by_name = {group["name"]: group for group in groups}
    assert set(by_name) == {"head", "head_norms_biases", "body", "body_norms_biases"}
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert by_name["head"]["params"] == [model.fc.weight] and by_name["head_norms_biases"]["params"] == [model.fc.bias]
    assert all(p.ndim == 4 for p in by_name["body"]["params"])
    assert all(p.ndim == 1 for p in by_name["body_norms_biases"]["params"])
    assert {n: (g["lr"], g["weight_decay"]) for n, g in by_name.items()} == {
        "head": (0.1, 5e-4),
        "head_norms_biases": (0.1, 0.0),
        "body": (0.01, 5e-4),
        "body_norms_biases": (0.01, 0.0),
    }
    torch.optim.SGD(groups)  # names and all
    models.freeze(model)
    assert {g["name"] for g in models.parameter_groups(model, lr=0.1)} == {"head", "head_norms_biases"}
    models.unfreeze(model)
    assert {g["lr"] for g in models.parameter_groups(model, lr=0.1)} == {0.1}


def test_rates_of_numpy_become_pythons():
    groups = models.parameter_groups(build_model("resnet18"), lr=np.float32(0.5), weight_decay=np.float64(0.25))
    assert {type(group[key]) for group in groups for key in ("lr", "weight_decay")} == {float}
    assert {group["lr"] for group in groups} == {0.5}


class HeadFirst(nn.Module):
    """Its head is registered before another linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.excite = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())

    def forward(self, x):
        features = self.conv(x).relu().mean((2, 3))
        return self.classifier(features * self.excite(features))


def test_a_head_that_is_not_clear_is_asked_for():
    model = HeadFirst()
    for ask in (models.freeze, lambda m: models.parameter_groups(m, 0.1), lambda m: models.scale_head(m, 0.5)):
        with pytest.raises(SettingError, match=r"classifier or excite\.0: say it, as head='classifier'"):
            ask(model)
    for head in ("classifier", model.classifier):
        models.freeze(model, head)
        learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert learning == ["classifier.weight", "classifier.bias"] and model.classifier.training
        assert not model.excite.training and not model.conv.training
        models.unfreeze(model)
        assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())
    groups = {group["name"]: group for group in models.parameter_groups(model, 0.1, body_lr=0.01, head="classifier")}
    assert groups["head"]["params"] == [model.classifier.weight] and groups["body"]["lr"] == 0.01
    before = model.classifier.weight.clone(), model.excite[0].weight.clone()
    models.scale_head(model, 0.5, head="classifier")
    assert torch.equal(model.classifier.weight, before[0] / 2) and torch.equal(model.excite[0].weight, before[1])
    for head in ("fc", nn.Linear(8, 4), 3):
        with pytest.raises(SettingError, match="head must be a part of HeadFirst"):
            models.head_of(model, head)


def test_the_head_of_an_own_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 2))
    assert models.head_of(model) is model[3]
    with pytest.raises(SettingError, match="no linear layer"):
        models.head_of(nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_summary_shows_totals_and_sizes():
    table = models.summary(models.CustomResNet())
    assert table.total_params == table.trainable_params == 6_573_130
    text = str(table)
    for words in ("6,573,130", "[1, 512, 4, 4]", "[1, 10]", "Total params", "Params size (MB)", "Input size (MB)"):
        assert words in text


@pytest.mark.parametrize("fails", [False, True])
def test_summary_leaves_everything_as_it_was(fails):
    model = models.CustomResNet(dropout=0.5, **SMALL)
    model.layer1.eval()  # frozen by the user
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    before = (
        {n: v.clone() for n, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [p.grad.clone() for p in model.parameters()],
        states(),
    )
    if fails:
        with pytest.raises(SettingError, match="does not take an image of"):
            models.summary(model, (5, 8, 8))
    else:
        models.summary(model, (3, 8, 8))
    assert all(torch.equal(before[0][n], v) for n, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == before[1]
    assert all(torch.equal(g, p.grad) for g, p in zip(before[2], model.parameters(), strict=True))
    assert states() == before[3]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_summary_of_other_inputs():
    assert models.summary(nn.Flatten(), (1, 4, 4)).total_params == 0
    with pytest.raises(SettingError, match="without the batch"):
        models.summary(models.CustomResNet(**SMALL), (1, 3, 32, 32))


WRONG_WIDTHS = ([4, 8, 16, -1], [4, 8, 16, 1.5], [4, 8, 16, 0], "abcd", "abc", 0, None, [[]] * 4)


@pytest.mark.parametrize("name", ["custom_resnet", "whitened_convnet", "resnet18"])
def test_whole_numbers_of_numpy_are_whole_numbers(name):
    widths = {key: np.array(value) for key, value in SMALL_OF.get(name, {}).items()}
    model = build_model(name, num_classes=np.int64(3), in_channels=np.int32(1), **widths).eval()
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 3)
    arguments = json.loads(json.dumps(model.architecture["arguments"]))
    assert repr(build_model(name, **arguments)) == repr(model)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("custom_resnet", {"num_classes": 1}, "num_classes must be .* at least 2, got 1"),
        ("custom_resnet", {"num_classes": 2.0}, "num_classes"),
        ("custom_resnet", {"in_channels": 0}, "in_channels"),
        ("custom_resnet", {"pool": "mean"}, 'pool must be "max" or "avg", got \'mean\''),
        ("custom_resnet", {"dropout": 1.0}, r"dropout is a probability in \[0, 1\)"),
        ("custom_resnet", {"widths": (4, 8)}, "4 whole numbers"),
        *(("custom_resnet", {"widths": widths}, "4 whole numbers") for widths in WRONG_WIDTHS),
        *(("whitened_convnet", {"widths": widths}, "3 whole numbers") for widths in (*WRONG_WIDTHS, (4, 8, True))),
        ("resnet18", {"stem": "photo"}, "stem must be"),
        ("custom_resnet", {"dropout": "0.1"}, "dropout"),
        ("resnet18", {"strides": (1, 2, 2)}, "four numbers"),
        ("resnet18", {"strides": 2}, "four numbers"),
        ("resnet34", {"strides": (1, 2, 2, 3)}, "1 or 2"),
    ],
)
def test_settings_that_cannot_be(name, arguments, words):
    with pytest.raises(SettingError, match=words):
        build_model(name, **arguments)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="Unknown model 'resnet19'; did you mean 'resnet18'"):
        build_model("resnet19")
    with pytest.raises(UnknownNameError, match="Unknown norm 'bacth'; did you mean 'batch'"):
        build_model("resnet18", norm="bacth")
    with pytest.raises(UnknownNameError, match="Unknown argument of resnet18 'classes'; did you mean 'num_classes'"):
        build_model("resnet18", classes=4)


def test_an_image_that_is_too_small_is_said():
    with pytest.raises(SettingError, match="at least 8x8"):
        models.CustomResNet(10, widths=(4, 4, 4, 4))(torch.zeros(2, 3, 4, 4))


def test_a_summary_of_lazy_layers_says_what_to_do():
    with pytest.raises(SettingError, match="lazy layers"):
        models.summary(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3)), (3, 8, 8))


class Own(nn.Module):
    """Somebody's own network, with the names that pytorch-cifar uses too."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.module = nn.Linear(2, 2)


def test_a_networks_own_names_are_not_changed(tmp_path):
    model, other = Own(), Own()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    models.load_weights(other, tmp_path / "own.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_network_that_names_its_arguments_nowhere(monkeypatch):
    """As all of torchvision's: `**kwargs` takes what its inner class takes."""
    monkeypatch.setitem(models.MODELS, "own", lambda *, channels=4, **kwargs: models.CustomResNet(**kwargs))
    model = build_model("own", num_classes=4, widths=(4, 4, 8, 8))
    assert model.fc.out_features == 4
    recipe = RECIPES["quickstart"].changed(model="own", model_args={"widths": (4, 4, 8, 8)})
    check_parts(recipe)


def test_weights_that_are_no_state_dict_are_told_apart_from_damage(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(DamagedFileError) as raised:
        models.load_weights(nn.Linear(2, 2), tmp_path / "whole.pth")
    assert "torch.save(model.state_dict(), path)" in str(raised.value) and "weights_only" not in str(raised.value)

"""Grad-CAM, and every trap of the package that computes it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vision_wrapper import explain, models
from vision_wrapper.errors import SettingError, UnknownNameError
from vision_wrapper.explain.methods import BATCH


class Net(nn.Module):
    """Convolution, norm, ReLU, dropout, another convolution, logits: what the traps need. `relu` is any function."""

    def __init__(self, relu=None, fails=False):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU() if relu is None else relu
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.fc = nn.Linear(8, 4)
        self.fails = fails

    def forward(self, x):
        if self.fails and len(x) > 1:
            raise IndexError("of the model")
        x = self.drop(self.relu(self.bn(self.conv1(x))))
        return self.fc(self.conv2(x).mean((2, 3)))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def make(seed=0, **arguments) -> Net:
    torch.manual_seed(seed)
    net = Net(**arguments).eval()
    with torch.no_grad():
        net.bn.running_mean.normal_()
        net.bn.weight.normal_()
    return net


def inputs(count=5, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


TARGETS = [0, 1, 2, 3, 0]


def snapshot(model: nn.Module) -> dict:
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "inplace": [getattr(m, "inplace", None) for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "random": (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()),
    }


def assert_same(before: dict, after: dict) -> None:
    for key in ("training", "inplace", "requires_grad", "hooks"):
        assert before[key] == after[key], key
    assert all(torch.equal(before["state"][k], after["state"][k]) for k in before["state"])
    for (one_id, one), (other_id, other) in zip(before["grads"], after["grads"], strict=True):
        assert one_id == other_id and (one is None or torch.equal(one, other))
    assert torch.equal(before["random"][0], after["random"][0])
    assert np.array_equal(before["random"][1], after["random"][1]) and before["random"][2] == after["random"][2]


def by_hand(model: Net, layer: str, images: torch.Tensor, targets) -> np.ndarray:
    """Grad-CAM as in the paper, at the layer's own size, scaled to [0, 1]."""
    kept = []
    hook = dict(model.named_modules())[layer].register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model(images.requires_grad_())
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[range(len(targets)), targets].sum(), kept)
    cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    cam = cam - cam.amin((1, 2), keepdim=True)
    return (cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-12)).detach().numpy()


def test_the_maps_are_grad_cam():
    model = make()
    cams = explain.gradcam(model, inputs(), TARGETS, "bn")  # the layer's map has the input's size: nothing is resized
    expected = by_hand(model, "bn", inputs(), TARGETS)
    assert cams.layers == ("bn",)
    assert cams.maps.shape == (1, 5, 16, 16) and cams.maps.dtype == np.float32
    np.testing.assert_allclose(cams.maps[0], expected, atol=1e-5)
    assert np.array_equal(cams.empty[0], expected.max((1, 2)) == 0)


def test_maps_depend_on_the_target():
    model = make()
    a, b = (explain.gradcam(model, inputs(), [c] * 5, "conv1").maps for c in (0, 1))
    assert not np.allclose(a, b)


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_changes(raises):
    model = make(relu=nn.ReLU(inplace=True), fails=raises)
    model.train()
    model.bn.eval()
    model.conv1.weight.requires_grad_(False)
    model.fc(torch.ones(1, 8)).sum().backward()
    before = snapshot(model)
    if raises:
        with pytest.raises(IndexError, match="of the model"):  # grad-cam's context manager would swallow it
            explain.gradcam(model, inputs(), TARGETS, "conv1")
    else:
        explain.gradcam(model, inputs(), TARGETS)
        explain.default_layer(model, inputs()[:1])
        explain.stages(model, inputs()[:1])
    assert_same(before, snapshot(model))


def test_errors_of_the_arguments_leave_the_model_alone():
    model = make(relu=nn.ReLU(inplace=True)).train()
    before = snapshot(model)
    for arguments in ((inputs(), [0], "conv1"), (inputs(), TARGETS, "fc"), (inputs(), TARGETS, "convv")):
        with pytest.raises((SettingError, UnknownNameError)):
            explain.gradcam(model, *arguments)
    assert_same(before, snapshot(model))


def test_a_model_in_train_mode_is_evaluated():
    model = make()
    expected = explain.gradcam(model, inputs(), TARGETS, "conv2").maps
    assert np.array_equal(explain.gradcam(model.train(), inputs(), TARGETS, "conv2").maps, expected)


def test_frozen_parameters():
    model = make()
    expected = explain.gradcam(model, inputs(), TARGETS, "conv2").maps
    model.requires_grad_(False)
    assert np.array_equal(explain.gradcam(model, inputs(), TARGETS, "conv2").maps, expected)


def test_frozen_parameters_behind_a_detached_part():
    model = make(relu=Function(lambda x: x.detach().relu()))
    expected = explain.gradcam(model, inputs(), TARGETS, "conv2").maps
    model.requires_grad_(False)
    assert np.array_equal(explain.gradcam(model, inputs(), TARGETS, "conv2").maps, expected)


def test_a_layer_before_any_parameter():
    model = nn.Sequential(nn.AvgPool2d(2), make()).eval()
    assert explain.gradcam(model, inputs(), TARGETS, "0").maps.any()


def test_hooks_are_gone_while_the_error_is_still_held():
    model = make(fails=True)
    with pytest.raises(IndexError) as held:  # its traceback keeps grad-cam's object alive
        explain.gradcam(model, inputs(), TARGETS, "conv1")
    assert held.value and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_inside_modes_of_the_caller(mode):
    model = make()
    expected = explain.gradcam(model, inputs(), TARGETS, "conv2").maps
    with mode():
        assert np.array_equal(explain.gradcam(model, inputs(), TARGETS, "conv2").maps, expected)


def test_a_model_and_images_made_in_inference_mode():
    with torch.inference_mode():
        model, images = make(), inputs()
    assert np.isfinite(explain.gradcam(model, images, TARGETS, "conv2").maps).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    model = make().to(dtype)
    before = snapshot(model)
    expected = explain.gradcam(make(), inputs(), TARGETS, "conv2")
    got = explain.gradcam(model, inputs().to(dtype), TARGETS, "conv2")
    assert got.maps.dtype == np.float32
    both = ~(got.empty | expected.empty)
    assert both.any()
    np.testing.assert_allclose(got.maps[both], expected.maps[both], atol=0.1)
    assert_same(before, snapshot(model))


def test_a_model_with_autocast_inside():
    class Casting(Net):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    torch.manual_seed(0)
    assert np.isfinite(explain.gradcam(Casting(), inputs(), TARGETS, "conv2").maps).all()


def test_a_compiled_model():
    model = make()
    compiled = torch.compile(model)  # nothing is compiled before the first call
    expected = explain.gradcam(model, inputs(), TARGETS, "conv2").maps
    assert np.array_equal(explain.gradcam(compiled, inputs(), TARGETS, "conv2").maps, expected)  # type: ignore[arg-type]


def test_an_in_place_relu_after_the_layer():
    expected = explain.gradcam(make(), inputs(), TARGETS, "bn").maps
    model = make(relu=nn.ReLU(inplace=True))
    assert np.array_equal(explain.gradcam(model, inputs(), TARGETS, "bn").maps, expected)
    assert model.relu.inplace


@pytest.mark.parametrize("function", [F.relu_, lambda x: x.add_(1), lambda x: F.relu(x, inplace=True)])
def test_an_output_that_a_function_changes_in_place(function):
    """Its map is that of the output as the layer gave it."""
    model, kept = make(relu=Function(function)), make(relu=Function(lambda x: function(x.clone())))
    for method in ("gradcam", "ablationcam", "scorecam"):
        maps = [explain.cam(net, inputs(), TARGETS, "bn", method).maps for net in (model, kept)]
        assert np.array_equal(*maps) and maps[0].max() > 0.99


@pytest.mark.parametrize("targets", [[0], [0] * 6, [], 0, [0.0] * 5, [[0]] * 5, [0, 0, 0, 0, 4], [-1] * 5])
def test_targets_that_do_not_fit(targets):
    with pytest.raises(SettingError, match="targets must"):  # fewer gave zero maps, silently
        explain.gradcam(make(), inputs(), targets, "conv1")


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8), np.zeros((2, 3, 8, 8))]
)
def test_images_that_do_not_fit(images):
    with pytest.raises(SettingError, match="Expected normalised images"):
        explain.gradcam(make(), images, [0, 0])


def test_no_positive_evidence_is_empty():
    model = make()
    with torch.no_grad():
        model.fc.weight.fill_(-1)
        model.conv2.weight.abs_()
    cams = explain.gradcam(model, inputs(), TARGETS, "drop")  # what ReLU gives is positive, its gradient negative
    assert cams.empty.all() and not cams.maps.any()


class Vgg(nn.Module):
    """Of small images VGG's body leaves one place, which its pool then repeats."""

    def __init__(self):
        super().__init__()
        parts = [[nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for i in range(4)]
        self.features = nn.Sequential(*(layer for part in parts for layer in part))
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.fc = nn.Linear(4 * 49, 4)

    def forward(self, x):
        return self.fc(self.avgpool(self.features(x)).flatten(1))


def test_a_pool_that_repeats_a_place_is_no_map():
    torch.manual_seed(0)
    model, images = Vgg().eval(), inputs(size=16)
    assert explain.default_layer(model, images[:1]) == "features.4"  # 8x8, where the pool has 7x7 of one place
    cams = explain.gradcam(model, images, TARGETS, "avgpool")
    assert cams.empty.all() and not cams.maps.any()  # the same everywhere says nothing
    assert explain.default_layer(model, inputs(1, 128)) == "avgpool"  # of a map that it makes smaller


def test_a_broken_model_gives_zeros_and_not_nan():
    model = make()
    with torch.no_grad():
        model.fc.weight.fill_(float("nan"))
    cams = explain.gradcam(model, inputs(), TARGETS, "conv2")
    assert cams.empty.all() and not cams.maps.any()


def test_several_layers_in_any_order_and_as_modules():
    model = models.CustomResNet(widths=(4, 8, 8, 8)).eval()
    images = inputs(size=32)
    together = explain.gradcam(model, images, TARGETS, [model.layer3, "prep", "layer1"])
    assert together.layers == ("layer3", "prep", "layer1")
    for name, maps, empty in zip(together.layers, together.maps, together.empty, strict=True):
        alone = explain.gradcam(model, images, TARGETS, name)
        assert np.array_equal(alone.maps[0], maps) and np.array_equal(alone.empty[0], empty)


def test_more_images_than_a_batch():
    model, images = make(), inputs(BATCH + 3)
    targets = [TARGETS[i % len(TARGETS)] for i in range(len(images))]
    whole = explain.gradcam(model, images, torch.tensor(targets), "conv2")
    parts = [explain.gradcam(model, images[i : i + 7], targets[i : i + 7], "conv2") for i in range(0, len(images), 7)]
    np.testing.assert_allclose(np.concatenate([part.maps for part in parts], axis=1), whole.maps, atol=1e-5)
    assert np.array_equal(np.concatenate([part.empty for part in parts], axis=1), whole.empty)


def test_no_images():
    cams = explain.gradcam(make(), inputs(0), [], "conv2")
    assert cams.maps.shape == (1, 0, 16, 16) and cams.empty.shape == (1, 0)


def test_layers_that_cannot_serve():
    model = make()
    with pytest.raises(UnknownNameError, match=r"Unknown layer 'conv3'.*conv"):
        explain.gradcam(model, inputs(), TARGETS, "conv3")
    with pytest.raises(SettingError, match="not a part"):
        explain.gradcam(model, inputs(), TARGETS, nn.ReLU())
    with pytest.raises(SettingError, match="gives no map"):
        explain.gradcam(model, inputs(), TARGETS, "fc")
    with pytest.raises(SettingError, match="layers is empty"):
        explain.gradcam(model, inputs(), TARGETS, [])
    twice = models.resnet18().eval()
    with pytest.raises(SettingError, match="runs 2 times"):
        explain.gradcam(twice, inputs(size=32), TARGETS, "layer4.0.relu")


def test_a_layer_without_a_gradient_is_an_error():
    model = make(relu=Function(lambda x: x.detach().relu()))
    with pytest.raises(SettingError, match="no gradient"):
        explain.gradcam(model, inputs(), TARGETS, "conv1")
    assert explain.gradcam(model, inputs(), TARGETS, "conv2").maps.shape == (1, 5, 16, 16)


def test_a_model_without_maps():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(SettingError, match="No layer"):
        explain.gradcam(model, inputs(), TARGETS)
    with pytest.raises(SettingError, match="must return logits"):
        explain.default_layer(nn.Conv2d(3, 4, 3), inputs())


class ChannelsLast(nn.Module):
    """A convolution, then a layer over channels that lie last, as in ConvNeXt and Swin."""

    def __init__(self):
        super().__init__()
        self.conv, self.mlp, self.fc = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, x):
        return self.fc(self.mlp(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.mark.parametrize("shape", [(16, 16), (15, 29)])
def test_a_layer_with_its_channels_last_gives_no_map(shape):
    model, images = ChannelsLast(), torch.randn(2, 3, *shape)
    assert explain.stages(model, images[0]) == ("conv",)
    with pytest.raises(SettingError, match=r"'mlp': it has its channels last.*such as conv"):
        explain.gradcam(model, images, [0, 1], "mlp")


RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(
    ("model", "size", "layer", "stages"),
    [
        (lambda: models.CustomResNet(widths=(4, 8, 8, 8)), 32, "layer2", ("prep", "layer1", "layer2", "layer3")),
        (models.resnet18, 32, "layer3", RESNET_STAGES),
        (lambda: models.resnet18(strides=(1, 1, 2, 2)), 32, "layer4", RESNET_STAGES),
        (lambda: models.resnet18(stem="imagenet"), 224, "layer4", RESNET_STAGES),
        (lambda: models.CustomResNet(widths=(4, 8, 8, 8)), 8, "prep", ("prep", "layer1", "layer2")),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)),
            6,
            "0",
            ("0", "1"),
        ),
    ],
)
def test_the_layer_that_is_chosen(model, size, layer, stages):
    model = model()
    image = torch.zeros(1, 3, size, size)
    assert explain.default_layer(model, image) == layer
    assert explain.default_layer(model, image[0]) == layer
    assert explain.stages(model, image) == stages


def test_every_model_of_the_table():
    for make_model in models.MODELS.values():
        model = make_model(num_classes=4)
        assert explain.gradcam(model, inputs(2, 32), [0, 3]).maps.shape == (1, 2, 32, 32)

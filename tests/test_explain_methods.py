"""Every method of maps against its formula, and the checks of how far to trust them."""

import copy

import numpy as np
import pytest
import torch
from test_explain import TARGETS, assert_same, inputs, make, snapshot
from torch import nn

from vision_wrapper import explain
from vision_wrapper.errors import SettingError, UnknownNameError
from vision_wrapper.explain import full_gradient, sanity
from vision_wrapper.models import resnet18

LAYER = "bn"  # its map has the input's size: nothing is resized


def found_at(model, layer, images, targets):
    """Activations and gradients (N, C, h, w) at a layer, and logits (N, classes)."""
    kept = []
    hook = dict(model.named_modules())[layer].register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model(images.requires_grad_())
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[range(len(targets)), targets].sum(), kept)
    return kept[0].detach(), gradient, logits.detach()


def to_unit(maps):
    """Positive parts from 0 to 1."""
    maps = maps.relu()
    maps = maps - maps.amin((1, 2), keepdim=True)
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-7)).numpy()


def plus_plus(a, g):
    weights = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + 1e-6)
    weights = torch.where(g != 0, weights, 0.0)
    return ((g.relu() * weights).sum((2, 3), keepdim=True) * a).sum(1)


FORMULAS = {
    "gradcam": lambda a, g: (g.mean((2, 3), keepdim=True) * a).sum(1),
    "gradcam++": plus_plus,
    "hirescam": lambda a, g: (g * a).sum(1),
    "layercam": lambda a, g: (g.relu() * a).sum(1),
    "xgradcam": lambda a, g: ((g * a).sum((2, 3), keepdim=True) / (a.sum((2, 3), keepdim=True) + 1e-7) * a).sum(1),
}


@pytest.mark.parametrize("method", FORMULAS)
def test_methods_of_the_gradient_are_their_formulas(method):
    model = make()
    cams = explain.cam(model, inputs(), TARGETS, LAYER, method)
    a, g, _ = found_at(model, LAYER, inputs(), TARGETS)
    np.testing.assert_allclose(cams.maps[0], to_unit(FORMULAS[method](a, g)), atol=2e-4)
    assert cams.method == method and cams.layers == (LAYER,)


def logits_from(model, layer, images, activations):
    """The network's logits with other activations at a layer."""
    hook = dict(model.named_modules())[layer].register_forward_hook(lambda m, i, o: activations)
    with torch.no_grad():
        logits = model(images)
    hook.remove()
    return logits


@pytest.mark.parametrize("layer", ["bn", "relu"])  # with negative activations and without
def test_ablation_weighs_by_the_fall_of_the_logit(layer):
    model = make()
    cams = explain.cam(model, inputs(), TARGETS, layer, "ablationcam")
    a, _, logits = found_at(model, layer, inputs(), TARGETS)
    falls = []
    for channel in range(a.shape[1]):
        without = a.clone()
        without[:, channel] = 0
        falls.append((logits - logits_from(model, layer, inputs(), without))[range(5), TARGETS])
    weights = torch.stack(falls, 1)  # (N, C)
    np.testing.assert_allclose(cams.maps[0], to_unit((weights[:, :, None, None] * a).sum(1)), atol=1e-3)


def test_ablation_does_not_turn_around_with_the_sign_of_the_logit():
    """A bias of the last layer moves every logit and changes no fall."""
    maps = []
    for shift in (-50.0, 50.0):
        model = make()
        with torch.no_grad():
            list(model.modules())[-1].bias += shift
        maps.append(explain.cam(model, inputs(), TARGETS, LAYER, "ablationcam").maps)
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-3)


def test_score_cam_is_its_definition():
    model = make()
    cams = explain.cam(model, inputs(), TARGETS, LAYER, "scorecam")
    a, _, _ = found_at(model, LAYER, inputs(), TARGETS)
    masks = a - a.amin((2, 3), keepdim=True)
    masks = masks / (a.amax((2, 3), keepdim=True) - a.amin((2, 3), keepdim=True) + 1e-8)
    with torch.no_grad():
        scores = torch.stack(
            [model(inputs() * masks[:, c : c + 1])[range(5), TARGETS] for c in range(a.shape[1])], dim=1
        )
    expected = to_unit((scores.softmax(1)[:, :, None, None] * a).sum(1))
    np.testing.assert_allclose(cams.maps[0], expected, atol=1e-4)


def test_eigen_cam_is_the_first_component_where_activations_are_large():
    model = make()
    cams = explain.cam(model, inputs(), TARGETS, LAYER, "eigencam")
    a, _, _ = found_at(model, LAYER, inputs(), TARGETS)
    for maps, found in zip(a.double(), cams.maps[0], strict=True):
        rows = maps.flatten(1).T
        centred = rows - rows.mean(0)
        u, s, _ = torch.linalg.svd(centred, full_matrices=False)
        projection = u[:, 0] * s[0]
        projection = projection * torch.sign(projection @ rows.sum(1))
        np.testing.assert_allclose(found, to_unit(projection.view(1, 16, 16))[0], atol=1e-4)
    others = explain.cam(model, inputs(), [0, 1, 2, 0, 1], LAYER, "eigencam")
    np.testing.assert_allclose(others.maps, cams.maps, atol=1e-6)  # whatever the class


@pytest.mark.parametrize("make_model", [make, lambda: resnet18(num_classes=4)], ids=["small", "branches"])
def test_full_gradients_are_complete(make_model):
    """Input and biases times their gradients add up to the logit: none is missing, and none is paired wrongly."""
    torch.manual_seed(1)
    model = make_model().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    images = inputs().double().requires_grad_()
    kept = []

    def keep(module, args, output):
        bias = full_gradient._bias_of(module)
        if bias is not None:
            kept.append((bias, output))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(keep)
    chosen = model(images)[range(5), TARGETS]
    gradients = torch.autograd.grad(chosen.sum(), [images, *(output for _, output in kept)])
    total = (gradients[0] * images).flatten(1).sum(1)
    for (bias, output), gradient in zip(kept, gradients[1:], strict=True):
        total = total + (gradient * bias.view(1, -1, *[1] * (output.ndim - 2))).flatten(1).sum(1)
    assert torch.allclose(total, chosen, atol=1e-8)


class InPlace(nn.Module):
    """A functional ReLU that overwrites what the norm gave, as in torchvision's DenseNet."""

    def __init__(self, inplace):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.inplace = inplace

    def forward(self, x):
        x = nn.functional.relu(self.bn(self.conv(x)), inplace=self.inplace)
        return self.fc(x.mean((2, 3)))


def in_place(inplace):
    torch.manual_seed(0)
    model = InPlace(inplace).eval()
    with torch.no_grad():
        model.bn.running_mean.normal_()
    return model


def with_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model.eval()


def unit(values):
    """Absolute values (N, C, h, w), each image's from 0 to 1."""
    values = values.abs()
    low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    return (values - low) / (high - low)


@pytest.mark.parametrize(
    "make_model", [make, lambda: with_statistics(resnet18(num_classes=4)), lambda: in_place(False)]
)
def test_full_grad_is_its_definition(make_model):
    """Written out with a gradient at a zero that is added to each layer's output."""
    torch.manual_seed(2)
    model, images = make_model(), inputs().requires_grad_()
    added, biases = [], []

    def add_zero(module, args, output):
        bias = full_gradient._bias_of(module)
        if bias is None or output.ndim != 4:
            return None
        added.append(torch.zeros_like(output).requires_grad_())
        biases.append(bias)
        return output + added[-1]

    handles = [m.register_forward_hook(add_zero) for m in model.modules() if not list(m.children())]
    gradients = torch.autograd.grad(model(images)[range(5), TARGETS].sum(), [images, *added])
    for handle in handles:
        handle.remove()
    total = unit(gradients[0] * images).sum(1)
    assert len(biases) > 1
    for bias, gradient in zip(biases, gradients[1:], strict=True):
        maps = unit(gradient * bias.view(1, -1, 1, 1)).sum(1, keepdim=True)
        maps = nn.functional.interpolate(maps, (16, 16), mode="bilinear", align_corners=True)  # as theirs
        total = total + maps[:, 0]
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    expected = ((total - low) / (high - low)).detach().numpy()
    np.testing.assert_allclose(explain.cam(model, inputs(), TARGETS, method="fullgrad").maps[0], expected, atol=1e-3)


def test_full_grad_of_outputs_that_are_changed_in_place():
    maps = [explain.cam(in_place(inplace), inputs(), TARGETS, method="fullgrad").maps for inplace in (False, True)]
    np.testing.assert_allclose(*maps, atol=1e-6)


def test_full_grad_refuses_biases_it_does_not_know():
    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))

    with pytest.raises(SettingError, match="not those of LayerNorm"):
        explain.cam(ChannelsLast(), inputs(), TARGETS, method="fullgrad")


def test_full_grad_is_of_all_layers():
    model = make()
    cams = explain.cam(model, inputs(), TARGETS, method="fullgrad")
    assert cams.layers == ("all",) and cams.maps.shape == (1, 5, 16, 16) and not cams.empty.any()
    assert cams.maps.min() == 0 and cams.maps.max(axis=(2, 3)).min() == pytest.approx(1, abs=1e-6)
    assert not np.allclose(cams.maps, explain.cam(model, inputs(), [0, 0, 0, 0, 0], method="fullgrad").maps)
    with pytest.raises(SettingError, match="leave layers= out"):
        explain.cam(model, inputs(), TARGETS, LAYER, method="fullgrad")


@pytest.mark.parametrize("method", explain.METHODS)
def test_every_method_leaves_the_model_as_it_was_and_says_nothing(method, capfd):
    model = make().train()
    before = snapshot(model)
    cams = explain.cam(model, inputs(), TARGETS, method=method)
    assert_same(before, snapshot(model))
    assert cams.maps.dtype == np.float32 and cams.maps.min() >= 0 and cams.maps.max() <= 1
    with torch.no_grad():
        explain.cam(copy.deepcopy(model).bfloat16(), inputs()[:2], TARGETS[:2], method=method)
    said = capfd.readouterr()
    assert said.out == said.err == ""


@pytest.mark.parametrize("method", explain.METHODS)
def test_every_method_maps_batches_as_single_images(method, monkeypatch):
    model = make()
    together = explain.cam(model, inputs(), TARGETS, method=method).maps[0]
    alone = [explain.cam(model, inputs()[i : i + 1], TARGETS[i : i + 1], method=method).maps[0, 0] for i in range(5)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)


def test_an_unknown_method_has_near_names():
    with pytest.raises(UnknownNameError, match=r"did you mean .*'gradcam"):
        explain.cam(make(), inputs(), TARGETS, method="gradcamm")


# ---- trust


class Corner(nn.Module):
    """Decides by bright spots in one corner of the image alone, and its maps say so."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.block = nn.Identity()
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.fill_(-1.0)  # what is blurred is not bright enough
            self.conv.weight[0, :, 1, 1] = 1.0
            self.conv.weight[1, :, 1, 1] = -1.0

    def forward(self, x):
        maps = self.block(self.conv(x).relu())
        return maps[:, :, :4, :4].mean((2, 3)) * 10


def corner_images():
    generator = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(6, 3, 16, 16, generator=generator)
    images[:, :, 1, 1] += 3.0
    return images


def test_maps_that_mark_what_counts_pass_and_others_do_not():
    model = Corner()
    found = explain.trust(model, corner_images(), [0] * 6, "block", "hirescam", steps=8)
    areas = found.areas()
    assert len(found.deletion) == 9 and found.deletion[0] > 0.95 and found.deletion[-1] == pytest.approx(0.5)
    assert areas["deletion"] < areas["random_deletion"] - 0.05
    assert areas["insertion"] > areas["random_insertion"]
    assert str(found).endswith(": better than random maps.")
    assert found.insertion[-1] == pytest.approx(found.deletion[0])
    blind = explain.trust(model, corner_images().flip(0), [1] * 6, "block", "hirescam", steps=4)  # no evidence for it
    assert np.isnan(blind.randomised).all() and np.isnan(blind.deletion).all()
    assert str(blind) == "All maps are empty: there is nothing to trust."


def test_empty_maps_are_left_out_of_the_curves():
    """An image whose map marks nothing has no place that goes first."""
    images = torch.cat([corner_images(), torch.zeros(3, 3, 16, 16)])
    found = explain.trust(Corner(), images, [0] * 9, "block", "hirescam", steps=4)
    alone = explain.trust(Corner(), corner_images(), [0] * 6, "block", "hirescam", steps=4)
    assert found.deletion == pytest.approx(alone.deletion) and found.insertion == pytest.approx(alone.insertion)


def test_shuffled_weights_are_by_seed_and_the_model_stays():
    """The correlation is of maps of shuffled weights, which the seed decides."""
    torch.manual_seed(0)
    model = make()
    before = snapshot(model)
    found = explain.trust(model, inputs(), TARGETS, LAYER, "gradcam", steps=2, seed=3)
    again = explain.trust(model, inputs(), TARGETS, LAYER, "gradcam", steps=2, seed=3)
    assert_same(before, snapshot(model))
    np.testing.assert_array_equal(found.randomised, again.randomised)
    assert found.randomised.shape == (5,) and np.nanmax(np.abs(found.randomised)) <= 1
    assert not np.array_equal(
        found.randomised, explain.trust(model, inputs(), TARGETS, LAYER, steps=2, seed=4).randomised
    )


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(0).random((2, 8, 8))
    b[a > 0.8] = 0.5  # ties
    assert sanity._rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)


def test_trust_of_what_cannot_be():
    with pytest.raises(SettingError, match="steps must be"):
        explain.trust(make(), inputs(), TARGETS, steps=0)
    with pytest.raises(SettingError, match="at least one image"):
        explain.trust(make(), inputs()[:0], [])


def test_a_network_that_keeps_its_outputs_can_be_checked():
    class Keeping(type(make())):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    torch.manual_seed(0)
    model = Keeping().eval()
    model(inputs())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert explain.trust(model, inputs(), TARGETS, steps=2).randomised.shape == (5,)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.inference_mode():
        born_there = make()
        assert explain.trust(born_there, inputs(), TARGETS, steps=2).randomised.shape == (5,)

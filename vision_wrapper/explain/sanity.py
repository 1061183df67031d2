"""How far maps may be trusted."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vision_wrapper._numbers import whole_number
from vision_wrapper._seeding import checked_seed
from vision_wrapper._state import preserve_state
from vision_wrapper.errors import SettingError
from vision_wrapper.explain.borrow import borrowed, plain
from vision_wrapper.explain.layers import MIN_SIDE, layer_names, probed
from vision_wrapper.explain.maps import cam, checked_images
from vision_wrapper.explain.methods import BATCH


@dataclass(frozen=True, eq=False)
class Trust:
    """How far maps may be trusted, from `trust`.

    Attributes:
        randomised: rank correlation (Spearman) of each map with that of the same network with shuffled weights, (N,)
            in [-1, 1]; NaN where a map is empty. Near 1, the map shows the image rather than what was learned.
        deletion: mean probability of the class while the places that the map marks are removed, most important first,
            (steps + 1,); a good map lets it fall at once. Empty maps mark nothing, so their images are left out; NaN
            where all are empty.
        insertion: the same while they are put into a blurred image; a good map lets it rise at once.
        random_deletion: of random maps as smooth as these.
        random_insertion: likewise.
    """

    randomised: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    def areas(self) -> dict[str, float]:
        """The mean height of each curve, in [0, 1], by its name."""
        names = ("deletion", "insertion", "random_deletion", "random_insertion")
        curves = {name: getattr(self, name) for name in names}
        return {name: float((curve[1:] + curve[:-1]).mean() / 2) for name, curve in curves.items()}

    def __str__(self) -> str:
        if np.isnan(self.deletion).all():
            return "All maps are empty: there is nothing to trust."
        areas = self.areas()
        known = self.randomised[np.isfinite(self.randomised)]
        correlation = f"{known.mean():.2f}" if len(known) else "unknown, those are empty"
        better = areas["deletion"] < areas["random_deletion"], areas["insertion"] > areas["random_insertion"]
        verdict = {
            (True, True): "better than random maps",
            (True, False): "better than random maps at deletion alone",
            (False, True): "better than random maps at insertion alone",
            (False, False): "no better than random maps",
        }[better]
        return (
            f"Rank correlation with the maps of shuffled weights: {correlation} (0 is best). Deletion "
            f"{areas['deletion']:.2f} (random {areas['random_deletion']:.2f}, lower is better), insertion "
            f"{areas['insertion']:.2f} (random {areas['random_insertion']:.2f}, higher is better): {verdict}."
        )


def trust(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    layer: str | nn.Module | None = None,
    method: str = "gradcam",
    steps: int = 16,
    seed: int | None = None,
) -> Trust:
    """Check maps against shuffled weights (Adebayo et al. 2018, arXiv:1810.03292) and by deletion and insertion.

    Deletion sets places to the mean that images are normalised by, insertion begins with a blurred image (Petsiuk et
    al. 2018, arXiv:1806.07421). Leaves the model as it was.

    Args:
        model: as of `cam`.
        images: as of `cam`; at least one.
        targets: as of `cam`.
        layer: one, as of `cam`.
        method: as of `cam`.
        steps: parts in which the places are removed.
        seed: of the shuffling and of the random maps; None is that of `seed_everything`.

    Raises what `cam` raises.
    """
    steps = whole_number("steps", steps, 1)
    images, seed = checked_images(images), checked_seed(seed)
    if not len(images):
        raise SettingError("trust needs at least one image.")
    if layer is not None and not isinstance(layer, (str, nn.Module)):
        raise SettingError(f"trust is of the maps of one layer, a name or a module; got {layer!r}.")
    name = None if layer is None else layer_names(model, layer)[0]
    found = cam(model, images, targets, name, method)
    with _shuffled(model, seed) as shuffled:
        others = cam(shuffled, images, targets, None if method == "fullgrad" else found.layers[0], method)
    with borrowed(model, images) as (net, inputs), torch.no_grad():
        size = (MIN_SIDE, MIN_SIDE) if method == "fullgrad" else _probe_size(net, inputs, found.layers[0])
        marked = np.flatnonzero(~found.empty[0])
        chosen = torch.as_tensor(targets).cpu().long()[marked]
        curves = partial(_curves, net, inputs[marked], chosen, steps=steps)
        deletion, insertion = curves(found.maps[0][marked])
        random_deletion, random_insertion = curves(_random_maps(len(marked), size, inputs.shape[2:], seed))
    ranks = [
        np.nan if a or b else _rank_correlation(x, y)
        for x, y, a, b in zip(found.maps[0], others.maps[0], found.empty[0], others.empty[0], strict=True)
    ]
    return Trust(np.array(ranks), deletion, insertion, random_deletion, random_insertion)


def _probe_size(net: nn.Module, images: Tensor, layer: str) -> tuple[int, int]:
    with torch.enable_grad():
        size = probed(net, images).layers[layer].map_size
    assert size is not None
    return size


@contextmanager
def _shuffled(model: nn.Module, seed: int) -> Iterator[nn.Module]:
    """For a while, the network with weights that have changed places within each tensor; statistics of norms stay."""
    net, generator = plain(model), torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), ExitStack() as stack:
        if any(tensor.is_inference() for tensor in [*net.parameters(), *net.buffers()]):
            net = copy.deepcopy(net)
        else:
            stack.enter_context(preserve_state(net))
        with torch.no_grad():
            for parameter in net.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view(parameter.shape))
        yield net


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    x, y = (rankdata(values.ravel()) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    lengths = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / lengths) if lengths > 0 else math.nan  # of a map that is the same everywhere there is none


def _random_maps(count: int, size: tuple[int, int], shape: Sequence[int], seed: int) -> np.ndarray:
    """Uniform noise at the layer's map size, scaled up as its maps are, (N, H, W)."""
    noise = np.random.default_rng(seed).random((count, 1, *size), dtype=np.float32)
    return nn.functional.interpolate(torch.from_numpy(noise), tuple(shape), mode="bilinear")[:, 0].numpy()


def _curves(
    net: nn.Module, images: Tensor, targets: Tensor, maps: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability of the classes while the marked places go (deletion) and come (insertion), (steps + 1,) each.

    NaN without images.
    """
    n, _, height, width = images.shape
    if not n:
        return np.full(steps + 1, np.nan), np.full(steps + 1, np.nan)
    order = torch.from_numpy(maps.reshape(n, -1)).sort(dim=1, descending=True, stable=True)[1]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(height * width).expand(n, -1))
    rank = rank.view(n, 1, height, width).to(images.device)
    side = 2 * (min(height, width) // 6) + 1
    padding = (side // 2,) * 4
    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, padding, mode="replicate"), side, 1)
    curves: tuple[list[float], list[float]] = ([], [])
    for step in range(steps + 1):
        chosen = rank < round(step / steps * height * width)
        for curve, mixed in zip(
            curves, (images.masked_fill(chosen, 0.0), torch.where(chosen, images, blurred)), strict=True
        ):
            probability = torch.cat([net(part).float().softmax(1).cpu() for part in mixed.split(BATCH)])
            curve.append(float(probability.gather(1, targets[:, None]).mean()))
    return np.array(curves[0]), np.array(curves[1])

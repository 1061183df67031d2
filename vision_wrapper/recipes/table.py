"""The recipes: a quick start, one for your own photographs, published CIFAR-10 experiments, and what passes them.

What a recipe reached is not written here: `evidence.with_expected` adds it, from the records of runs.
"""

from __future__ import annotations

from typing import Any

from vision_wrapper._lookup import Table
from vision_wrapper._seeding import checked_seed
from vision_wrapper.errors import SettingError
from vision_wrapper.recipes.checks import check_parts
from vision_wrapper.recipes.evidence import with_expected
from vision_wrapper.recipes.recipe import Recipe

_ADAM = {"optimizer": "adam", "lr": 0.01, "optimizer_args": {"weight_decay": 1e-4}}
_NESTEROV = {"optimizer": "sgd", "optimizer_args": {"momentum": 0.9, "nesterov": True}}
# The body at 0.08 (tried in `benchmarks/try_means.py`), the head at its own rate; both fall from the first step, as in
# airbench.
_MUON = {
    "optimizer": "muon",
    "groups": {"body_lr": 0.08, "weight_decay": 5e-4},
    "head_scale": 0.125,
    "schedule": "linear",
}

RECIPES: Table[Recipe] = Table(
    "recipe",
    {
        recipe.name: with_expected(recipe)
        for recipe in (
            Recipe(
                "quickstart",
                "A small custom ResNet in a few epochs: about a minute on the digits, which are its own data.",
                data="digits",
                model_args={"widths": (16, 32, 64, 64)},
                optimizer="adam",
                lr=0.01,
                optimizer_args={"weight_decay": 1e-4},
                schedule="one_cycle",
                schedule_args={"max_lr": 0.01, "min_lr": 0.001, "peak_epoch": 2, "final_lr": 1e-5},
                batch_size=64,
                epochs=8,
                augment="crop_rotate",
                val_fraction=0.1,
            ),
            Recipe(
                "folder",
                "ResNet-18 fine-tuned on your own photographs: the head first, then all, the body more slowly.",
                data="",
                model="resnet18",
                model_args={"stem": "imagenet"},
                pretrained="IMAGENET1K_V1",
                optimizer="adamw",
                lr=1e-3,
                groups={"body_lr": 1e-4, "weight_decay": 0.01},
                freeze_epochs=2,
                schedule="one_cycle",
                schedule_args={"max_lr": 1e-3, "final_lr": 0.0, "peak_epoch": 2},
                batch_size=32,
                epochs=10,
                augment="photo",
                size=224,
                normalisation="imagenet",
                val_fraction=0.15,
                label_smoothing=0.1,
                tta="flip",
            ),
            Recipe(
                "custom-resnet-onecycle",
                "The assignment as it was set: peak at epoch 5, LRMAX from the finder, no annihilation.",
                **_ADAM,
                schedule="one_cycle",
                schedule_args={"peak_epoch": 5, "annihilate": False},
                find_lr=True,
                augment="crop_flip_cutout",
                tta="flip",
                published="target 90%; none of the published runs had this setting",
            ),
            Recipe(
                "custom-resnet-adam",
                "Adam at a constant rate.",
                optimizer="adam",
                lr=1e-3,
                optimizer_args={"betas": (0.95, 0.99)},
                batch_size=128,
                augment="crop_flip",
                tta="flip",
                published="90.53% last epoch, 90.56% best (train 96.55%)",
            ),
            Recipe(
                "custom-resnet-sgd",
                "Convolutions with bias, SGD with one cosine cycle; its peak rate is not published, so the finder's.",
                model_args={"bias": True},
                optimizer="sgd",
                lr=0.01,
                optimizer_args={"momentum": 0.9},
                schedule="one_cycle",
                schedule_args={"peak_epoch": 5, "anneal": "cos"},
                find_lr=True,
                augment="crop_flip_holes",
                tta="flip",
                published="85.63% last epoch, 87.51% best (train 86.81%)",
            ),
            Recipe(
                "custom-resnet-late-peak",
                "A high peak at epoch 3 and a long fall; holes filled with the mean.",
                **_ADAM,
                schedule="one_cycle",
                schedule_args={"max_lr": 4.64e-2, "min_lr": 4.64e-4, "final_lr": 4.64e-6, "peak_epoch": 3},
                augment="crop_flip_cutout_mean",
                tta="flip",
                published="90.22% (train 92.53%)",
            ),
            Recipe(
                "custom-resnet-avgpool",
                "Average pooling, ReLU after each addition, a cycle of three phases stopped at epoch 20 of 24.",
                model_args={"pool": "avg", "activation_after_add": True},
                **_ADAM,
                schedule="one_cycle",
                schedule_args={"max_lr": 0.01, "peak_epoch": 5, "three_phase": True},
                epochs=20,
                schedule_epochs=24,
                augment="small_crop_flip_holes",
                tta="flip",
                published="80.63% (train 82.86%)",
            ),
            Recipe(
                "resnet18-layernorm",
                "ResNet-18 with layer norm and a rate that falls on a plateau of the test accuracy.",
                model="resnet18",
                model_args={"norm": "layer", "strides": (1, 1, 2, 2)},
                optimizer="adam",
                lr=1e-3,
                optimizer_args={"weight_decay": 1e-4},
                schedule="plateau",
                schedule_args={"factor": 0.2, "patience": 3, "monitor": "val_accuracy"},
                batch_size=128,
                epochs=40,
                augment="crop_rotate_cutout",
                tta="flip",
                published="90.03% last epoch, 90.15% best; 997 wrong",
            ),
            Recipe(
                "custom-resnet-page",
                "Nearly the published settings of the same network: Nesterov SGD up and down, logits times 0.125.",
                **_NESTEROV,
                lr=0.4,
                groups={"weight_decay": 5e-4},
                head_scale=0.125,
                schedule="one_cycle",
                schedule_args={"max_lr": 0.4, "min_lr": 0.4 / 489, "final_lr": 0.0, "peak_epoch": 5},
                augment="crop_flip_cutout",
                augment_args={"pad_mode": "reflect"},
                drop_last=True,
                tta="flip",
                published="93.92% last epoch, 94.41% with flips (ResNet-9, 24 epochs)",
            ),
            Recipe(
                "custom-resnet-fast",
                "The custom ResNet in 10 epochs, with Muon for its filters, which begin as identities.",
                model_args={"init": "dirac"},
                **_MUON,
                lr=0.03,
                epochs=10,
                augment="crop_alternating_flip",
                label_smoothing=0.2,
                drop_last=True,
                tta="flip_shift",
                published="94.1% with flips (Page's final network, 10 epochs)",
                goal=(0.94, 0.945),
            ),
            Recipe(
                "custom-resnet-best",
                "The custom ResNet in 24 epochs, as far as it goes: as custom-resnet-fast, with cutout.",
                model_args={"init": "dirac"},
                **_MUON,
                lr=0.03,
                augment="crop_alternating_flip_cutout",
                augment_args={"hole_size": 8},
                label_smoothing=0.2,
                drop_last=True,
                tta="flip_shift",
                published="94.68% last epoch, 95.12% with flips (Page's final network, 24 epochs)",
                goal=(0.95, 0.955),
            ),
            Recipe(
                "resnet18-best",
                "ResNet-18 in 40 epochs.",
                model="resnet18",
                **_NESTEROV,
                lr=0.2,
                groups={"weight_decay": 5e-4},
                schedule="one_cycle",
                schedule_args={"max_lr": 0.2, "min_lr": 0.008, "final_lr": 0.0, "peak_epoch": 8},
                batch_size=256,
                epochs=40,
                augment="crop_alternating_flip_cutout",
                label_smoothing=0.1,
                drop_last=True,
                tta="flip_shift",
                published="95.3% (ResNet-18, 70 epochs)",
                goal=(0.956, 0.96),
            ),
            Recipe(
                "resnet18-layernorm-best",
                "ResNet-18 with layer norm and Adam, 40 epochs: one cycle in place of the plateau.",
                model="resnet18",
                model_args={"norm": "layer"},
                optimizer="adamw",
                lr=1e-3,
                groups={"weight_decay": 0.05},
                schedule="one_cycle",
                schedule_args={"max_lr": 1e-3, "min_lr": 4e-5, "final_lr": 0.0, "peak_epoch": 8},
                batch_size=128,
                epochs=40,
                augment="crop_alternating_flip_cutout",
                label_smoothing=0.1,
                drop_last=True,
                tta="flip_shift",
                published="90.03% (`resnet18-layernorm`, with other strides)",
                goal=(0.935, 0.94),
            ),
            Recipe(
                "speedrun",
                "Least work to 94%: a small network whose first layer is whitened, Muon for its filters.",
                model="whitened_convnet",
                whiten=True,
                optimizer="muon",
                # Airbench's rates for a loss that is summed over 2,000 images, made those of the mean: filters 0.24,
                # biases 0.053 * 2000, the head 0.67 * 2000 for logits / 256 and weights of variance 1.
                lr=1.66,
                groups={"body_lr": 0.24, "norms_biases_lr": 106.0, "weight_decay": 2.4e-3},
                head_scale=1 / 9,
                schedule="linear",
                batch_size=2000,
                epochs=8,
                augment="crop_alternating_flip",
                augment_args={"pad": 2},
                label_smoothing=0.2,
                drop_last=True,
                tta="flip_shift",
                published="94.01% with averaging, 200 runs of 0.29 PFLOP (airbench94_muon, which it is modelled on)",
                goal=(None, 0.94),
            ),
        )
    },
)
"""The recipes that `run` and the command line take by name, each a `Recipe`."""


def plan_of(recipe: str | Recipe, settings: dict[str, Any]) -> Recipe:
    """What is to be run: the recipe of that name, or the one given, with these settings, and with a seed.

    Raises `UnknownNameError` for an unknown recipe or setting, `SettingError` for anything but a name or a Recipe, and
    for settings that the network, the optimizer or the schedule refuses: before data are read, or a first of several
    runs is trained.
    """
    if not isinstance(recipe, (str, Recipe)):
        raise SettingError(f"recipe must be a name of RECIPES or a Recipe, got {recipe!r}.")
    plan = (RECIPES[recipe] if isinstance(recipe, str) else recipe).changed(**settings)
    check_parts(plan)
    return plan if plan.seed is not None else plan.changed(seed=checked_seed(None))

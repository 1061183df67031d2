"""The recipes: six published CIFAR-10 experiments as their code ran them, and a quick start."""

from __future__ import annotations

from vision_wrapper._lookup import Table
from vision_wrapper.recipes.recipe import Recipe

_ADAM = {"optimizer": "adam", "lr": 0.01, "optimizer_args": {"weight_decay": 1e-4}}

RECIPES: Table[Recipe] = Table(
    "recipe",
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                "quickstart",
                "A small custom ResNet on the digits that scikit-learn carries; offline, about a minute.",
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
                "custom-resnet-onecycle",
                "The assignment as it was set: peak at epoch 5, LRMAX from the finder, no annihilation.",
                **_ADAM,
                schedule="one_cycle",
                schedule_args={"peak_epoch": 5, "annihilate": False},
                find_lr=True,
                augment="crop_flip_cutout",
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
                published="85.63% last epoch, 87.51% best (train 86.81%)",
            ),
            Recipe(
                "custom-resnet-late-peak",
                "A high peak at epoch 3 and a long fall; holes filled with the mean.",
                **_ADAM,
                schedule="one_cycle",
                schedule_args={"max_lr": 4.64e-2, "min_lr": 4.64e-4, "final_lr": 4.64e-6, "peak_epoch": 3},
                augment="crop_flip_cutout_mean",
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
                published="90.03% last epoch, 90.15% best; 997 wrong",
            ),
        )
    },
)

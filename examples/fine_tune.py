"""Fine-tune: weights learned on some classes, a new head for others, the head first and then all layers.

For photographs the weights are ImageNet's: models.resnet18(num_classes=…, stem="imagenet", weights="IMAGENET1K_V1").
Here they are learned on the digits 0 to 4, so that the example needs no download.
"""

from pathlib import Path

import numpy as np
import torch

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.trainer import Trainer

WIDTHS = (8, 16, 32, 64)
WEIGHTS = Path("runs/digits_0_to_4.safetensors")


def some_digits(first: int, each: int) -> data.ImageData:
    """Five digits from `first` on, `each` training images of each."""
    digits, splits = data.load("digits"), []
    for split, count in ((digits.train, each), (digits.test, None)):
        chosen = [i for d in range(first, first + 5) for i in np.flatnonzero(split.labels == d)[:count]]
        splits.append((np.stack([split[i][0] for i in chosen]), split.labels[chosen] - first))
    return data.from_arrays(train=splits[0], test=splits[1], classes=digits.classes[first : first + 5])


def fit(model: torch.nn.Module, loaders: data.Loaders, groups: list[dict], epochs: int) -> float:
    trainer = Trainer(model, torch.optim.Adam(groups), callbacks=[])
    return trainer.fit(loaders.train, loaders.test, epochs=epochs)[-1]["val_accuracy"]


vw.seed_everything(1)
WEIGHTS.parent.mkdir(exist_ok=True)
first, digits = models.CustomResNet(num_classes=5, widths=WIDTHS), some_digits(0, each=140)
loaders = data.make_loaders(digits, augment="crop", batch_size=32)
print(f"0 to 4: {fit(first, loaders, models.parameter_groups(first, lr=0.005), epochs=3):.1%}")
vw.save_classifier(WEIGHTS, first, loaders.preprocess, classes=digits.classes)

loaders = data.make_loaders(some_digits(5, each=10), augment="crop", batch_size=10)  # ten images a class
model = models.load_weights(models.CustomResNet(num_classes=5, widths=WIDTHS), WEIGHTS)
model.fc.reset_parameters()  # five other classes: a new head
models.freeze(model)
print(f"5 to 9, the head alone: {fit(model, loaders, models.parameter_groups(model, lr=0.01), epochs=5):.1%}")
models.unfreeze(model)
groups = models.parameter_groups(model, lr=0.003, body_lr=0.001, weight_decay=1e-4)
print(f"5 to 9, all layers: {fit(model, loaders, groups, epochs=5):.1%}")

"""A network of your own: any module from images (N, C, H, W) to logits (N, classes)."""

from pathlib import Path

import torch
from torch import Tensor, nn

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.trainer import Trainer


class SmallNet(nn.Module):
    """Grey images (N, 1, 32, 32) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),  # (N, 16, 16, 16)
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),  # (N, 32, 8, 8)
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))  # logits, not probabilities: cross-entropy takes these


vw.seed_everything(1)
digits = data.load("digits", channels=1)  # grey, as they are; without channels= they come as RGB
loaders = data.make_loaders(digits, batch_size=64)

model = SmallNet()
print(models.summary(model, input_size=(1, 32, 32)))
trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=0.003))
trainer.fit(loaders.train, loaders.test, epochs=3)
print(trainer.evaluate(loaders.test))

# The file holds the weights, not the code: to load a network of your own, pass one.
Path("runs").mkdir(exist_ok=True)
vw.save_classifier("runs/own_model.safetensors", model, loaders.preprocess, classes=digits.classes)
classifier = vw.load_classifier("runs/own_model.safetensors", model=SmallNet())
print(classifier.predict([digits.test[0][0]])[0])

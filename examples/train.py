"""Train a small network on the digits, offline, in seconds."""

from pathlib import Path

import torch

import vision_wrapper as vw
from vision_wrapper import data, models, viz
from vision_wrapper.trainer import Trainer, schedules

vw.seed_everything(1)
Path("runs").mkdir(exist_ok=True)

digits = data.load("digits")
loaders = data.make_loaders(digits, augment="crop", batch_size=64)  # no flips: a mirrored 2 is no 2

model = models.CustomResNet(num_classes=10, widths=(8, 16, 32, 64))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
trainer = Trainer(model, optimizer)
history = trainer.fit(
    loaders.train, loaders.test, epochs=3, schedule=schedules.one_cycle(max_lr=0.01, min_lr=0.001, peak_epoch=1)
)
history.to_csv("runs/train.csv")
viz.plot_history(history).savefig("runs/train.png")

predictions = trainer.predict(loaders.test)
low, high = predictions.accuracy_interval()
print(f"Accuracy {predictions.accuracy():.1%} on {len(predictions)} test images (95%: {low:.1%} to {high:.1%})")

"""Find a learning rate, and train with one cycle up to it and back."""

from pathlib import Path

import torch

import vision_wrapper as vw
from vision_wrapper import data, models, viz
from vision_wrapper.trainer import Trainer, schedules

vw.seed_everything(1)
Path("runs").mkdir(exist_ok=True)

loaders = data.make_loaders(data.load("digits"), augment="crop", batch_size=64)
model = models.CustomResNet(num_classes=10, widths=(8, 16, 32, 64))
trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=0.01))

# The rate rises from batch to batch until the loss explodes. Weights, optimizer and random states are put back.
curve = trainer.find_lr(loaders.train)
viz.plot_lr_curve(curve).savefig("runs/find_learning_rate.png")
if curve.max_lr is None:  # the curve shows nothing, and no number is made up
    raise SystemExit(f"No suggestion: {curve.reason}")
print(f"Steepest fall of the loss: {curve.suggestion:.2e}; for the peak of a cycle: {curve.max_lr:.2e}")

# Linear, stepped by batch, and without annihilation: it ends at the rate it began with.
epochs = 3
schedule = schedules.one_cycle(max_lr=curve.max_lr, min_lr=curve.max_lr / 10, peak_epoch=1, annihilate=False)
figure = viz.plot_schedule(schedule, epochs=epochs, steps_per_epoch=len(loaders.train))
figure.savefig("runs/schedule.png")
history = trainer.fit(loaders.train, loaders.test, epochs=epochs, schedule=schedule)
print(f"Accuracy after the last epoch: {history[-1]['val_accuracy']:.1%}")

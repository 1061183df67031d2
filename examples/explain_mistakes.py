"""Which images are classified wrongly, and what the network looked at."""

from pathlib import Path

import torch

import vision_wrapper as vw
from vision_wrapper import data, models, viz
from vision_wrapper.trainer import Trainer, schedules

vw.seed_everything(1)
runs = Path("runs/mistakes")
runs.mkdir(parents=True, exist_ok=True)

loaders = data.make_loaders(data.load("digits"), batch_size=64)
model = models.CustomResNet(num_classes=10, widths=(8, 16, 32, 64))
trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=0.003))
trainer.fit(loaders.train, loaders.test, epochs=2, schedule=schedules.one_cycle(max_lr=0.003))

predictions = trainer.predict(loaders.test)
for result in predictions.per_class():
    print(f"{result.name}: {result.correct} of {result.count}")

mistakes = predictions.mistakes(order="confidence")  # the most confident first
print(f"{len(mistakes)} of {len(predictions)} are wrong.")
mistakes.to_csv(runs / "mistakes.csv")

twenty = mistakes[:20]
viz.plot_misclassified(twenty).savefig(runs / "misclassified.png")  # raw pixels, found by their index
viz.plot_gradcam(model, twenty, target="predicted").savefig(runs / "gradcam.png")
viz.plot_gradcam(model, twenty, target="true").savefig(runs / "gradcam_true.png")
viz.plot_confusion_matrix(predictions).savefig(runs / "confusion_matrix.png")
viz.plot_reliability(predictions).savefig(runs / "reliability.png")

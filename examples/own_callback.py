"""A callback of your own: override the hooks you need; a misspelt one is an error."""

import torch

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.trainer import Callback, Run, Trainer


class StopAt(Callback):
    """Ends the training once the validation accuracy is high enough."""

    def __init__(self, accuracy: float):
        self.accuracy = accuracy

    def on_epoch_end(self, run: Run) -> None:
        row = run.history[-1]
        print(f"epoch {row['epoch']}: {row['val_accuracy']:.1%}")
        if row["val_accuracy"] >= self.accuracy:
            run.stop = f"{self.accuracy:.0%} is reached"


vw.seed_everything(1)
loaders = data.make_loaders(data.load("digits"), batch_size=64)
model = models.CustomResNet(num_classes=10, widths=(8, 16, 32, 64))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
trainer = Trainer(model, optimizer, callbacks=[StopAt(accuracy=0.9)])  # these take the place of the progress bar
history = trainer.fit(loaders.train, loaders.test, epochs=10)
print(f"Stopped after {len(history)} of 10 epochs.")

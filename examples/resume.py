"""Interrupt a run and make the same call again: it continues, and ends exactly where it would have ended."""

from pathlib import Path

import torch

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.trainer import Callback, Run, Trainer, schedules

EPOCHS = 3


class PowerCut(Callback):
    """Stops the run after its first epoch."""

    def on_epoch_end(self, run: Run) -> None:
        raise RuntimeError("The power went out.")


def train(checkpoint: Path | None, callbacks: list[Callback]) -> torch.nn.Module:
    vw.seed_everything(1)
    loaders = data.make_loaders(data.load("digits"), augment="crop", batch_size=64)
    model = models.CustomResNet(num_classes=10, widths=(8, 16, 32, 64))
    trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=0.005), callbacks=callbacks)
    schedule = schedules.one_cycle(max_lr=0.005, peak_epoch=1)
    history = trainer.fit(loaders.train, loaders.test, epochs=EPOCHS, schedule=schedule, checkpoint=checkpoint)
    print(f"{len(history)} epochs: {history['val_accuracy']}")
    return model


checkpoint = Path("runs/resume/last.ckpt")
checkpoint.unlink(missing_ok=True)
checkpoint.parent.mkdir(parents=True, exist_ok=True)
try:
    train(checkpoint, [PowerCut()])
except RuntimeError as error:
    print(error)
resumed = train(checkpoint, [])  # continues from the checkpoint
uninterrupted = train(None, [])
weights = uninterrupted.state_dict()
same = all(torch.equal(value, weights[name]) for name, value in resumed.state_dict().items())
print(f"Same weights as without the interruption: {same}")

# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # CIFAR-10 with a custom ResNet and one cycle
#
# From the raw images to Grad-CAM: statistics, samples, the network's summary, the learning rate finder, 24 epochs of
# one cycle with its peak at epoch 5 and no annihilation, curves, twenty misclassified images, and what the network
# looked at in each of them.
#
# `jupytext --to notebook cifar10_assignment.py` turns this script into a notebook. On Colab choose *Runtime > Change
# runtime type > T4 GPU* first. The package is not on PyPI yet: make it with `pip wheel --no-deps .` in a clone, upload
# the `.whl` file, and put its name into the next cell.

# %%
# %pip install -q vision-wrapper

# %% [markdown]
# ## Settings

# %%
import os
from pathlib import Path

import torch

import vision_wrapper as vw
from vision_wrapper import data, models, viz
from vision_wrapper.trainer import Trainer, schedules

QUICK = os.environ.get("VISION_WRAPPER_QUICK") == "1"  # try it out: two epochs of a narrow network on the digits
DATA = "digits" if QUICK else os.environ.get("CIFAR10", "cifar10")  # a folder of images, or downloaded once
EPOCHS, PEAK_EPOCH = (2, 0.5) if QUICK else (24, 5)
BATCH_SIZE = 64 if QUICK else 512
WIDTHS = (8, 16, 32, 64) if QUICK else (64, 128, 256, 512)
# On Colab a folder of Google Drive outlives the session.
RUN = Path(os.environ.get("RUN", "runs/assignment-quick" if QUICK else "runs/assignment"))

RUN.mkdir(parents=True, exist_ok=True)
vw.seed_everything(1)

# %% [markdown]
# ## The data
# Mean and standard deviation are those of the raw training pixels: nothing is augmented or normalised before.

# %%
cifar = data.load(DATA, root="data")
if Path(DATA).is_dir():
    cifar = data.cached(cifar, RUN / "images")  # each file is decoded once, and no worker processes are needed
stats = data.stats(cifar)
print(stats)

# %%
viz.plot_class_distribution(stats)

# %%
viz.plot_samples(cifar.train)

# %% [markdown]
# Pad by 4, random 32x32 crop, flip, one hole of 8x8. Only the training images are augmented; normalisation comes last.

# %%
loaders = data.make_loaders(cifar, augment="crop_flip_cutout", batch_size=BATCH_SIZE)

# %% [markdown]
# ## The network

# %%
model = models.CustomResNet(num_classes=len(cifar.classes), widths=WIDTHS)
print(models.summary(model, input_size=(3, 32, 32)))

# %% [markdown]
# ## The learning rate
# The finder trains on rising rates and then puts everything back: weights, optimizer and random states.

# %%
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
trainer = Trainer(model, optimizer)
curve = trainer.find_lr(loaders.train, num_iter=50 if QUICK else 200)
print(f"LRMAX: {curve.max_lr}. {curve.reason}")
viz.plot_lr_curve(curve)

# %% [markdown]
# One cycle: from LRMIN = LRMAX / 10 up to LRMAX at epoch 5, and back to LRMIN, linearly, with a step after each batch.
# There is no annihilation: it ends at the rate it began with.

# %%
found = RUN / "lr_max.txt"  # a resumed run needs the rate it began with; on a GPU the finder may suggest another
if not found.exists():
    assert curve.max_lr is not None, curve.reason
    found.write_text(f"{curve.max_lr}")
LRMAX = float(found.read_text())
schedule = schedules.one_cycle(max_lr=LRMAX, min_lr=LRMAX / 10, peak_epoch=PEAK_EPOCH, annihilate=False)
viz.plot_schedule(schedule, epochs=EPOCHS, steps_per_epoch=len(loaders.train))

# %% [markdown]
# ## Training
# After an interruption run this cell again: it continues. As the assignment asks, it is validated on the test set.

# %%
history = trainer.fit(
    loaders.train, loaders.test, epochs=EPOCHS, schedule=schedule, checkpoint=RUN / "last.ckpt", batch_history=True
)
history.to_csv(RUN / "history.csv")
assert not trainer.interrupted, "Run this cell again: it continues."

# %%
viz.plot_history(history)

# %% [markdown]
# ## The result
# The accuracy is that of the last epoch, not of the best one on the test set.

# %%
predictions = trainer.predict(loaders.test)
low, high = predictions.accuracy_interval()
print(f"Test accuracy {predictions.accuracy():.2%} (95% interval {low:.2%} to {high:.2%})")
viz.plot_per_class(predictions)

# %%
viz.plot_confusion_matrix(predictions)

# %% [markdown]
# ## Twenty misclassified images
# Those that the network was most confident about.

# %%
mistakes = predictions.mistakes(order="confidence")[:20]
viz.plot_misclassified(mistakes)

# %% [markdown]
# ## Grad-CAM of the same twenty

# %%
viz.plot_gradcam(model, mistakes, target="predicted")

# %% [markdown]
# ## To hand in

# %%
figures = {
    "lr_curve": viz.plot_lr_curve(curve),
    "history": viz.plot_history(history),
    "misclassified": viz.plot_misclassified(mistakes),
    "gradcam": viz.plot_gradcam(model, mistakes, target="predicted"),
}
for name, figure in figures.items():
    figure.savefig(RUN / f"{name}.png", bbox_inches="tight")
mistakes.to_csv(RUN / "mistakes.csv")
vw.save_classifier(RUN / "model.safetensors", model, loaders.preprocess, classes=cifar.classes)

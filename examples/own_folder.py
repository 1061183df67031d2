"""Train on a folder of images, save one file, and predict new images with it.

python own_folder.py PHOTOS   with PHOTOS/train/CLASS/* and PHOTOS/test/CLASS/*, or PHOTOS/CLASS/*
python own_folder.py          makes a tiny folder first

For photographs, consider fine-tuning instead: vision-wrapper train folder --data PHOTOS
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

import vision_wrapper as vw
from vision_wrapper import data, models
from vision_wrapper.trainer import Trainer, schedules


def make_tiny_folder(folder: Path) -> Path:
    """Forty images of each of three digits: FOLDER/zero/0.png, …"""
    split, names = data.load("digits").train, ("zero", "one", "two")
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in [i for i in range(len(split)) if split.labels[i] == label][:40]:
            Image.fromarray(split[index][0]).save(folder / name / f"{index}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()

    vw.seed_everything(1)
    images = data.load(arguments.folder or make_tiny_folder(Path("runs/tiny_folder")))  # a fifth is held out
    print(data.stats(images))
    workers = None if arguments.folder else 0  # so few small files need no worker processes
    loaders = data.make_loaders(images, augment="crop", batch_size=16, num_workers=workers)

    model = models.CustomResNet(num_classes=len(images.classes), widths=(8, 16, 32, 64))
    trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=0.005))
    trainer.fit(loaders.train, loaders.test, epochs=arguments.epochs, schedule=schedules.one_cycle(max_lr=0.005))

    Path("runs").mkdir(exist_ok=True)
    vw.save_classifier("runs/own_folder.safetensors", model, loaders.preprocess, classes=images.classes)
    classifier = vw.load_classifier("runs/own_folder.safetensors")  # elsewhere: no training code, no data set needed
    file = images.test.origin(0)
    print(f"{file}: {classifier.predict([file])[0]}")


if __name__ == "__main__":
    main()

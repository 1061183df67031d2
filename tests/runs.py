"""Reduced recipes and the command line, as the tests run them."""

import contextlib
import io
import sys

import numpy as np
import pytest

from vision_wrapper import cli, data
from vision_wrapper.recipes import RECIPES

SMALL_ARGUMENTS = {"custom_resnet": {"widths": (4, 4, 8, 8)}, "whitened_convnet": {"widths": (4, 8, 8)}}


def reduced(name):
    """A recipe with a small network where there is one, small images, and 2 epochs; it downloads nothing."""
    recipe = RECIPES[name].changed(epochs=2, batch_size=4, pretrained=None)
    recipe = recipe.changed(
        model_args={**recipe.model_args, **SMALL_ARGUMENTS.get(recipe.model, {})},
        size=recipe.size and 32,
        val_fraction=min(recipe.val_fraction, 0.1),
    )
    if recipe.find_lr:
        recipe = recipe.changed(find_lr=False, schedule_args={**recipe.schedule_args, "max_lr": 0.01})
    return recipe


def command(*arguments, cwd, expect=0):
    """What the command says, in this process: starting one takes seconds."""
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["vision-wrapper", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert (ended.value.code or 0) == expect, said.getvalue()
    return said.getvalue()


def coloured_images():
    """60 and 30 images of 16x16, of three classes that are a colour each; one has the name of a tag."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    pixels = rng.integers(0, 150, (90, 16, 16, 3)).astype(np.uint8)
    pixels[np.arange(90), :, :, labels] += 100
    return data.from_arrays((pixels[:60], labels[:60]), (pixels[60:], labels[60:]), ("<b>red</b>", "green", "blue"))

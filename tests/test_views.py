"""Test-time averaging: which views, and what they count for."""

import pytest
import torch
from fits import make

from vision_wrapper.errors import SettingError, UnknownNameError
from vision_wrapper.trainer import VIEWS, View
from vision_wrapper.trainer.views import AS_IT_IS, averaged_logits, views_of

IMAGES = torch.arange(2 * 1 * 4 * 5.0).view(2, 1, 4, 5)


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_keeps_shape_and_images(name):
    shown = [view.show(IMAGES) for view in VIEWS[name]]
    assert all(view.shape == IMAGES.shape for view in shown)
    assert len({tuple(view.flatten().tolist()) for view in shown}) == len(shown)  # no view twice
    assert torch.equal(IMAGES.flatten(), torch.arange(40.0))


def test_flip_and_shift_counts_the_moved_ones_half():
    views = VIEWS["flip_shift"]
    assert [view.weight for view in views] == [2, 2, 1, 1, 1, 1]
    moved = views[2].show(IMAGES)
    assert torch.equal(moved[:, :, :-1, :-1], IMAGES[:, :, 1:, 1:])  # up and left by a pixel
    assert torch.equal(moved[:, :, -1, :-1], IMAGES[:, :, -2, 1:])  # the last row is reflected
    assert torch.equal(views[3].show(IMAGES)[:, :, 1:, 1:], IMAGES[:, :, :-1, :-1])
    assert torch.equal(views[4].show(IMAGES), moved.flip(-1))


def test_logits_are_the_weighted_mean():
    def forward(images):
        return images.double().mean((1, 2, 3))[:, None]  # float32 comes back

    views = (AS_IT_IS, View(lambda images: images * 4, 2.0))
    logits = averaged_logits(forward, IMAGES, views)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, forward(IMAGES).float() * 3)


def test_predict_takes_names_and_own_lists(images):
    trainer, loaders = make(images)
    trainer.fit(loaders.train, epochs=1)
    plain, flipped = trainer.predict(loaders.test), trainer.predict(loaders.test, tta="flip")
    own = trainer.predict(loaders.test, tta=[lambda x: x, lambda x: x.flip(-1)])
    assert torch.equal(own.logits, flipped.logits) and not torch.equal(own.logits, plain.logits)
    assert torch.equal(trainer.predict(loaders.test, tta=[lambda x: x]).logits, plain.logits)
    assert trainer.predict(loaders.test, tta="flip_shift").logits.shape == plain.logits.shape
    with pytest.raises(UnknownNameError, match="did you mean 'flip'"):
        trainer.predict(loaders.test, tta="flipp")
    with pytest.raises(SettingError, match="must return a batch"):
        trainer.predict(loaders.test, tta=[lambda x: x[:1]])
    with pytest.raises(SettingError, match="got NoneType"):
        trainer.predict(loaders.test, tta=[lambda x: None])
    for wrong in ([], [3], 5, [View(lambda x: x, 0.0)], [View(lambda x: x, "a")], [View(lambda x: x, float("inf"))]):
        with pytest.raises(SettingError, match="tta must be"):
            views_of(wrong)


@pytest.mark.parametrize("outputs", [lambda x: (x.flatten(1), x), lambda x: {"logits": x.flatten(1)}])
def test_outputs_that_are_no_tensor_are_said(outputs):
    with pytest.raises(SettingError, match=r"tensor of logits \(N, classes\), got (tuple|dict)"):
        averaged_logits(outputs, torch.randn(2, 3, 4, 4), (AS_IT_IS,))

"""data.check finds each fault that was put in, finds nothing in what is right, and changes nothing."""

import numpy as np
import pytest
import torch
from conftest import random_images
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vision_wrapper import data, models
from vision_wrapper.data.splits import FolderSplit
from vision_wrapper.errors import DataError, SettingError, UnknownNameError
from vision_wrapper.trainer import Trainer


def names(findings):
    return [finding.check for finding in findings]


def small_model(classes=3):
    return models.CustomResNet(classes, widths=(4, 4, 8, 8))


def test_nothing_is_found_in_what_is_right(tiny):
    loaders = data.make_loaders(tiny, "crop_flip", batch_size=8)
    findings = data.check(tiny, loaders, small_model(), near_duplicates=True)
    assert findings == () and str(findings) == "Nothing found."


def test_nothing_is_found_in_the_digits():
    digits = data.load("digits")
    assert data.check(digits, data.make_loaders(digits, "crop"), small_model(10)) == ()


def test_labels_outside_and_missing_and_unbalanced(tiny):
    labels = np.array([0] * 22 + [1] * 2)
    images = data.from_arrays((random_images(24, 16), labels), (tiny.test.images, tiny.test.labels), tuple("abc"))
    assert names(data.check(images)) == ["missing_class"]
    labels[-1] = 2
    images = data.from_arrays((random_images(24, 16), labels), (tiny.test.images, tiny.test.labels), tuple("abc"))
    (finding,) = data.check(images)
    assert finding.check == "imbalance" and "class_weights" in finding.fix and "balanced=True" in finding.fix
    images.train.labels[3] = 7  # as a split of one's own may have it
    (finding,) = data.check(images)
    assert finding.check == "label_outside" and finding.indices == (3,) and finding.severity == "error"


def test_the_lines_that_mend_an_imbalance_work(tiny):
    labels = np.array([0] * 22 + [1, 2])
    images = data.from_arrays((random_images(24, 16), labels), (tiny.test.images, tiny.test.labels), tuple("abc"))
    weights = data.class_weights(images)
    assert weights.tolist() == pytest.approx([24 / 66, 8, 8])
    assert float(weights[torch.from_numpy(labels)].mean()) == pytest.approx(1)
    loaders = data.make_loaders(images, balanced=True, batch_size=6)
    drawn = [labels[loaders.train.order(epoch)] for epoch in range(3)]
    assert all(np.bincount(epoch).tolist() == [8, 8, 8] for epoch in drawn)
    assert len({tuple(loaders.train.order(epoch)) for epoch in range(3)}) == 3
    assert (loaders.train.order(1) == loaders.train.order(1)).all()
    model = small_model()
    loss = nn.CrossEntropyLoss(weight=weights)
    history = Trainer(model, torch.optim.Adam(model.parameters()), loss, callbacks=[]).fit(loaders.train, epochs=1)
    assert len(history) == 1


@pytest.mark.parametrize("kind", ["arrays", "folder"])
def test_duplicates_between_train_and_test(kind, tiny, image_folder):
    if kind == "arrays":
        tiny.test.images[4] = tiny.train.images[7]
        images, mine = tiny, 7
    else:
        copied = image_folder / "train/dog/2.png"
        (image_folder / "test/dog/9.png").write_bytes(copied.read_bytes())
        images = data.load(image_folder)
        mine = images.train.paths.index(str(copied))
    (finding,) = data.check(images)
    assert finding.check == "duplicate" and finding.indices == (mine,)
    assert images.train.origin(mine) in finding.message and "also in train (identical)" in finding.message
    rest = data.leave_out(images, train=finding.indices)
    assert len(rest.train) == len(images.train) - 1 and data.check(rest) == ()


def test_near_duplicates_and_conflicting_labels(tiny):
    smooth = np.kron(random_images(1, 4), np.ones((1, 4, 4, 1), dtype=np.uint8))[0]
    tiny.train.images[2] = smooth
    tiny.test.images[0] = np.clip(smooth.astype(int) + 2, 0, 255).astype(np.uint8)
    tiny.train.images[10] = tiny.train.images[11]
    assert names(data.check(tiny)) == ["conflicting_labels"]
    conflict, near = data.check(tiny, near_duplicates=True)
    assert conflict.indices == (10, 11) and near.check == "near_duplicate" and near.indices == (2,)
    with pytest.raises(DataError, match="indices from 24 to 24"):
        data.leave_out(tiny, train=[24])


def test_equal_images_with_a_label_outside_are_both_findings(tiny):
    tiny.train.images[10] = tiny.train.images[11]
    tiny.train.labels[10] = 7
    found = {finding.check: finding for finding in data.check(tiny)}
    assert "label_outside" in found and "(7)" in found["conflicting_labels"].message


def test_a_few_bright_spots_are_normalised_all_the_same(tiny):
    images = np.zeros((12, 64, 64, 3), np.uint8)
    images[:, 30:33, 30:33] = 255
    sparse = data.from_arrays((images, np.arange(12) % 3), (images, np.arange(12) % 3))
    assert "not_scaled" not in names(data.check(sparse, data.make_loaders(sparse, batch_size=4)))


@pytest.mark.parametrize(
    ("scale", "found"),
    [
        (lambda x: x, "not_scaled"),
        (lambda x: x / 255, "not_normalised"),
        (lambda x: ((x / 255 - 0.5) / 0.25 - 0.5) / 0.25, "normalised_twice"),
        (lambda x: x * float("nan"), "not_finite"),
        (lambda x: (x / 255 - 0.5) / 0.25, None),
    ],
)
def test_values_of_a_foreign_loader(scale, found):
    images = torch.from_numpy(random_images(8, 16)).permute(0, 3, 1, 2).float()
    loader = DataLoader(TensorDataset(scale(images), torch.arange(8) % 3), batch_size=4)
    assert names(data.check(None, {"train": loader})) == ([found] if found else [])
    if found in ("not_scaled", "normalised_twice"):  # fit says so by itself
        model = small_model()
        with pytest.warns(UserWarning, match=r"0\.\.255|normalised twice"):
            Trainer(model, torch.optim.Adam(model.parameters()), callbacks=[]).fit(loader, epochs=1)


def test_statistics_that_do_not_fit(tiny):
    wrong = data.Preprocess((16, 16), 3, (0.1, 0.1, 0.1), (0.2, 0.2, 0.2))
    findings = data.check(tiny, data.make_loaders(tiny, preprocess=wrong))
    assert "statistics" in names(findings) and "0.100" in str(findings)
    # Without the data, the training loader alone knows the training images.
    (found,) = [f for f in data.check(loaders=data.make_loaders(tiny, preprocess=wrong)) if f.check == "statistics"]
    assert "The train loader" in found.message


class Noisy(Dataset):
    """An image with noise from numpy's global generator, which forked workers share."""

    def __init__(self, seeded=False):
        self.seeded = seeded

    def __len__(self):
        return 8

    def __getitem__(self, index):
        random = np.random.default_rng(torch.randint(2**31, ()).item()) if self.seeded else np.random
        return torch.from_numpy(random.normal(size=(3, 8, 8))).float(), index % 3


def test_randomness_where_there_must_be_none(tiny):
    findings = data.check(None, {"val": DataLoader(Noisy(), batch_size=4)})
    assert names(findings) == ["random_evaluation"] and "Augment the training" in findings[0].fix
    shuffled = DataLoader(Noisy(), batch_size=4, shuffle=True)
    assert "Do not shuffle" in data.check(None, {"test": shuffled})[0].fix


def numpy_seed_of_old(worker):
    np.random.seed(0)  # what many scripts did


def test_workers_that_draw_the_same_augmentations():
    same = DataLoader(Noisy(), batch_size=4, num_workers=2, worker_init_fn=numpy_seed_of_old)
    assert names(data.check(None, {"train": same})) == ["same_streams", "same_epochs"]
    right = DataLoader(Noisy(seeded=True), batch_size=4, num_workers=2)
    assert data.check(None, {"train": right}) == ()


def test_a_last_batch_of_one(tiny):
    loader = DataLoader(TensorDataset(torch.randn(9, 3, 8, 8), torch.arange(9) % 3), batch_size=4)
    assert names(data.check(None, {"train": loader})) == ["last_batch"]


def test_models_that_do_not_fit(tiny):
    loaders = data.make_loaders(tiny, batch_size=8)
    assert names(data.check(tiny, loaders, small_model(2))) == ["target_outside", "number_of_classes"]
    more = data.check(tiny, loaders, small_model(5))
    assert names(more) == ["number_of_classes"] and more[0].severity == "warning"
    grey = models.CustomResNet(3, in_channels=1, widths=(4, 4, 8, 8))
    assert names(data.check(tiny, loaders, grey)) == ["input_shape"]
    softmax = nn.Sequential(small_model(), nn.Softmax(1))
    assert names(data.check(tiny, loaders, softmax)) == ["softmax"]


def test_looking_changes_nothing(tiny):
    loaders = data.make_loaders(tiny, "crop_flip", batch_size=8)
    model = small_model().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state(), np.random.get_state()[1]
    data.check(tiny, loaders, model)
    assert loaders.train.epoch == 0 and model.training and model.layer1.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before[0].items())
    assert torch.equal(before[1], torch.get_rng_state()) and (before[2] == np.random.get_state()[1]).all()


def test_real_images_have_near_duplicates(cifar_folder):
    """CIFAR-10 shares pictures between train and test, which others have counted too (Barz & Denzler 2020)."""
    cars = {
        part: FolderSplit(sorted(map(str, (cifar_folder / part / "automobile").iterdir())), np.zeros(count, int), 3)
        for part, count in (("train", 5000), ("test", 1000))
    }
    images = data.ImageData("cars", cars["train"], cars["test"], ("automobile",))
    (finding,) = data.check(images, near_duplicates=True)
    assert finding.check == "near_duplicate" and 10 <= int(finding.message.split()[0]) <= 30


class Wrapped(nn.Module):
    """A network whose logits lie in something else, as those of HuggingFace do."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.inner = kind, nn.Sequential(nn.Flatten(), nn.Linear(768, 3))

    def forward(self, images):
        logits = self.inner(images)
        return {"tuple": (logits, images), "dict": {"logits": logits}, "NoneType": None}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "NoneType"])
def test_a_network_that_returns_no_tensor(kind, tiny):
    loaders, model = data.make_loaders(tiny, batch_size=8), Wrapped(kind)
    (finding,) = data.check(tiny, loaders, model)
    assert finding.check == "output_type" and finding.severity == "error" and f"returned {kind}" in finding.message
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), callbacks=[])
    for act in (lambda: trainer.fit(loaders.train, epochs=1), lambda: trainer.find_lr(loaders.train)):
        with pytest.raises(DataError, match=f"returned {kind}. Wrap it"):
            act()


def test_what_is_no_data_and_no_loaders(tiny):
    loaders = data.make_loaders(tiny, batch_size=8)
    with pytest.raises(SettingError, match=r"got Loaders.*check\(loaders=loaders\)"):
        data.check(loaders)
    with pytest.raises(UnknownNameError, match=r"Unknown loader 'training'.*Known: test, train, val"):
        data.check(loaders={"training": loaders.train})
    with pytest.raises(SettingError, match=r"loaders must be .* got Loader"):
        data.check(tiny, loaders.train)
    images, labels = torch.zeros(4, 3, 8, 8), torch.arange(4) % 2
    dicts = DataLoader([{"x": image, "y": label} for image, label in zip(images, labels, strict=True)], batch_size=2)
    with pytest.raises(DataError, match=r"got dict\. Have its dataset"):
        data.check(loaders={"train": dicts})
    with pytest.raises(DataError, match="got dict"):
        data.check(loaders={"test": dicts}, model=small_model())


def test_batches_that_are_no_pairs_of_batches():
    for batch, words in (
        ((torch.zeros(3, 8, 8), torch.tensor(0)), "one sample. Give the DataLoader a batch_size"),
        (torch.zeros(2, 3, 8, 8), "pairs of tensors .* got Tensor.* collate_fn"),
    ):
        with pytest.raises(DataError, match=words):
            data.check(loaders={"train": [batch]})


def test_near_duplicates_of_five_channels():
    train, test = (np.repeat(random_images(6, 4, 5, seed), 4, 1).repeat(4, 2) for seed in (0, 1))
    test[2] = np.clip(train[4].astype(int) + 9, 0, 255).astype(np.uint8)
    images = data.from_arrays((train, np.arange(6) % 2), (test, np.arange(6) % 2))
    (finding,) = data.check(images, near_duplicates=True)
    assert finding.check == "near_duplicate" and finding.indices == (4,)


def test_a_model_in_half_precision_is_given_its_own_kind_of_number(tiny):
    loaders = data.make_loaders(tiny, batch_size=8)
    assert data.check(loaders=loaders, model=small_model(3).bfloat16()) == data.check(
        loaders=loaders, model=small_model(3)
    )
    double = small_model(3).double()
    trainer = Trainer(double, torch.optim.SGD(double.parameters(), lr=0.1), callbacks=[], precision="fp32")
    with pytest.raises(DataError, match=r"Its weights are torch.float64, the inputs torch.float32"):
        trainer.fit(loaders.train, epochs=1)

"""Finding a name in a table."""

import pytest

from vision_wrapper._lookup import Table, check_names, unknown_name
from vision_wrapper.data import AUGMENTATIONS, DATASETS
from vision_wrapper.errors import UnknownNameError, VisionWrapperError
from vision_wrapper.models import MODELS
from vision_wrapper.models.layers import NORMS

TABLES = {"model": MODELS, "norm": NORMS, "data set": DATASETS, "augmentation": AUGMENTATIONS}


@pytest.mark.parametrize("kind", TABLES)
def test_an_unknown_name_raises_with_the_nearest_and_all_known(kind):
    table = TABLES[kind]
    name = next(iter(table))
    with pytest.raises(UnknownNameError) as caught:
        table[name + "x"]
    message = str(caught.value)
    assert message.startswith(f"Unknown {kind} '{name}x'; did you mean ")
    assert repr(name) in message.split("Known:")[0]
    assert all(known in message.split("Known:")[1] for known in table)


def test_the_error_is_each_builtin_error_that_fits():
    for kind in (KeyError, ValueError, VisionWrapperError):
        with pytest.raises(kind):
            Table("thing", {"a": 1})["b"]


def test_no_hint_where_nothing_is_near():
    assert str(unknown_name("thing", "zzz", ["b", "a"])) == "Unknown thing 'zzz'. Known: a, b."


def test_capitals_hide_no_near_name():
    assert "did you mean 'cifar10' or 'cifar100'?" in str(unknown_name("data set", "CIFAR-10", DATASETS))
    assert "did you mean 'Cat'?" in str(unknown_name("class", "cat", ["Cat", "Dog"]))


def test_get_and_in_keep_the_meaning_of_a_dict():
    table = Table("thing", {"a": 1})
    assert table.get("b") is None and "b" not in table and list(table) == ["a"]


def test_check_names():
    check_names("setting", ["a"], ["a", "b"])
    with pytest.raises(UnknownNameError, match="Unknown setting 'epoch'; did you mean 'epochs'"):
        check_names("setting", ["epoch"], iter(["epochs", "seed"]))

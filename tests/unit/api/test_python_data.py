"""Data given in Python: what is taken for an image, a label and a split, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from tests.layouts import photograph, put
from toast_cli.data.base import DataSet
from toast_cli.data.identity import describe_data_differences, identify_data
from toast_cli.data.python_data import PythonData, PythonDataOptions
from toast_cli.recipe.parse import build_recipe, replace_recipe_fields, set_data_source
from toast_cli.utils.errors import ToastError


def opened(data: Any, classes: tuple[str, ...] | None = None, **options: Any) -> DataSet:
    return PythonData(data, classes).open(PythonDataOptions(**options), None)


def pairs(count: int = 20) -> list[tuple[Any, Any]]:
    return [(photograph(number), "cat" if number % 2 else "dog") for number in range(count)]


class Counting(Dataset[Any]):
    """A data set that counts how often an item is read."""

    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items, self.read = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.read += 1
        return self.items[index]


def test_every_form_of_an_image_is_the_same_image(tmp_path: Path) -> None:
    image = photograph(3)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [str(tmp_path / "a.png"), tmp_path / "a.png", image, array, array / 255.0, tensor, tensor / 255]
    split = opened({"train": [*((form, 0) for form in forms), (image, 1)]}, val_fraction=0).splits["train"]
    for index in range(len(forms)):
        assert np.array_equal(np.asarray(split.load(index).image), array), index
    grey = {"train": [(array[..., 0], 0), (tensor[:1], 0), (array[..., 0].astype(np.uint16) * 257, 1)]}
    greys = opened(grey, val_fraction=0).splits["train"]
    assert all(np.array_equal(np.asarray(greys.load(i).image)[..., 1], array[..., 0]) for i in range(3))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ((torch.randn(3, 8, 8)), "before they are normalized"),
        (np.full((8, 8, 3), np.nan), "before they are normalized"),
        (torch.zeros(8, 8, 3), r"\[C, H, W\]"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        ("gone.jpg", "gone.jpg"),
    ],
)
def test_what_is_no_image_is_refused_when_it_is_read(image: Any, words: str) -> None:
    split = opened({"train": [(image, 0), (photograph(1), 1)]}, val_fraction=0).splits["train"]
    with pytest.raises(ToastError, match=words) as refused:
        split.load(0)
    assert refused.value.code == "image.unreadable"


def test_splits_are_held_out_as_of_a_folder_and_again_alike() -> None:
    data = opened(pairs(40))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 28, "val": 4, "test": 8}
    assert data.classes == ("cat", "dog") and data.splits["val"].labels.count(0) == 2  # type: ignore[attr-defined]
    named = opened({"train": pairs(20), "validation": pairs(4), "test": pairs(6)})
    assert {name: len(split) for name, split in named.splits.items()} == {"train": 20, "val": 4, "test": 6}
    assert set(opened({"train": pairs()}).splits) == {"train", "val"}
    assert set(opened({"test": pairs(1)}, ("cat", "dog")).splits) == {"test"}
    assert not describe_data_differences(identify_data(data), identify_data(opened(pairs(40))))
    changed = pairs(40)
    changed[7] = (photograph(99), changed[7][1])
    assert "with other content" in describe_data_differences(identify_data(data), identify_data(opened(changed)))[0]


def test_labels_are_names_or_indices() -> None:
    numbers = [(image, int(label == "dog")) for image, label in pairs()]
    assert opened(numbers).classes == ("0", "1")
    by_index, by_name = opened(numbers, ("cat", "dog")), opened(pairs(), ("cat", "dog"))
    assert by_index.classes == by_name.classes == ("cat", "dog")
    assert by_index.splits["train"].labels == by_name.splits["train"].labels  # type: ignore[attr-defined]
    assert opened([(image, np.int64(label)) for image, label in numbers]).classes == ("0", "1")
    assert opened(numbers, ("cat", "dog", "emu")).notes[0] == "train: no image of class 'emu'"


def test_an_image_may_have_several_labels() -> None:
    names = [["cat", "dog"], ("dog",), set(), {"emu", "cat"}]
    indices = [[1, 0], (np.int64(1),), [], {2, 0}]
    vectors = [torch.tensor([1, 1, 0]), np.array([False, True, False]), np.zeros(3, int), [True, False, True]]
    for labels, classes in ((names, None), (indices, ("cat", "dog", "emu")), (vectors, ("cat", "dog", "emu"))):
        items = [(photograph(number), label) for number, label in enumerate(labels)]
        data = opened({"train": items, "test": items[2:3]}, classes, val_fraction=0)
        split: Any = data.splits["train"]
        assert data.target == "labels" and data.classes == ("cat", "dog", "emu")
        assert split.labels == ((0, 1), (1,), (), (0, 2)) and data.splits["test"].labels == ((),)  # type: ignore[attr-defined]
        assert split.label_vector.encode(split.load(3).label).tolist() == [1, 0, 1]
    many = opened([(photograph(number), ["cat", "dog"] if number % 2 else []) for number in range(40)])
    held: Any = many.splits["val"]
    assert held.labels.count((0, 1)) in (1, 2, 3) and "20 of 40 images have none" in many.notes[0]
    with pytest.raises(ToastError, match=r"item 0 has names of labels, and item 2 has the name of a class"):
        opened([(photograph(0), ["cat"]), (photograph(1), []), (photograph(2), "cat")])


def test_a_label_may_be_a_number_or_several() -> None:
    ages = [(photograph(number), float(number)) for number in range(20)]
    data = opened(ages)
    assert data.target == "number" and data.classes == ("number",) and set(data.splits) == {"train", "val", "test"}
    both = [(image, np.array([age, age / 2], np.float32)) for image, age in ages]
    data = opened({"train": both}, ("age", "weight"), val_fraction=0)
    split: Any = data.splits["train"]
    assert data.classes == ("age", "weight") and split.labels[3] == (3.0, 1.5)
    assert split.label_vector.encode(split.load(3).label).tolist() == [3.0, 1.5]
    items = Counting([(image, torch.tensor(age)) for image, age in ages])
    items.targets = torch.arange(20.0)  # type: ignore[attr-defined]
    assert opened(items).target == "number" and items.read == 1
    items.targets = [{"boxes": []}] * 20  # type: ignore[attr-defined]
    assert opened(items).target == "number" and items.read == 22
    zeros = [(image, [float(number % 2), 0.0 + (number % 3 == 0)]) for number, (image, _) in enumerate(ages)]
    assert opened(zeros, ("a", "b")).warnings == ("every number is 0 or 1: are they labels?",)


def test_a_data_set_with_targets_is_not_read_to_learn_its_labels(tmp_path: Path) -> None:
    for number in range(8):
        put(tmp_path / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    folder = ImageFolder(str(tmp_path))
    folder.loader = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        folder[0]
    folder = ImageFolder(str(tmp_path))
    data = opened(Subset(folder, [0, 1, 2, 5, 6, 7]), test_fraction=0, val_fraction=0)
    split: Any = data.splits["train"]
    assert data.classes == ("cat", "dog") and split.labels == (0, 0, 0, 1, 1, 1)
    assert split.names[0].endswith("1.png") and split.stamp(0) != split.stamp(1) != None  # noqa: E711
    items = Counting(pairs(10))
    items.targets = [label for _, label in items.items]  # type: ignore[attr-defined]
    opened(items)
    assert items.read == 1  # its first item, to see that its targets are its labels
    plain = Counting(pairs(10))
    assert opened(plain).classes == ("cat", "dog") and plain.read == 10


def test_a_data_set_whose_targets_are_not_its_labels_is_noticed() -> None:
    items = Counting(pairs(10))
    items.targets = ["dog"] * 10  # type: ignore[attr-defined]
    with pytest.raises(ToastError) as refused:
        split = opened({"train": items}, ("cat", "dog"), val_fraction=0).splits["train"]
        split.load(1)
    assert refused.value.code == "data.unequal-labels"


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from pairs()


@pytest.mark.parametrize(
    ("data", "classes", "code"),
    [
        (Endless(), None, "data.not-indexable"),
        (7, None, "data.not-indexable"),
        ((pair for pair in pairs()), None, "data.not-indexable"),
        ([photograph(1)], None, "data.not-a-pair"),
        ([{"image": photograph(1), "label": 0}], None, "data.not-a-pair"),
        ([(photograph(1), True)], None, "data.invalid-label"),
        ([(photograph(1), {0.5, 1.5})], None, "data.invalid-label"),
        ([(photograph(1), [0, "a"])], None, "data.invalid-label"),
        ([(photograph(1), float("nan"))], None, "data.invalid-label"),
        ([(photograph(1), 1.5), (photograph(2), 1.5)], None, "data.constant-number"),
        ([(photograph(1), (1.5, 2.0)), (photograph(2), (2.5, 3.0))], None, "data.invalid-label"),
        ([(photograph(1), (1.5, 2.0)), (photograph(2), (2.5,))], ("a", "b"), "data.invalid-label"),
        ([(photograph(1), np.array([0, 2]))], ("a", "b", "c"), "data.invalid-label"),
        ([(photograph(1), np.array([0, 1]))], None, "data.invalid-label"),
        ([(photograph(1), np.array([0, 1]))], ("a", "b", "c"), "data.invalid-label"),
        ([(photograph(1), [0, 1, 1])], ("a", "b", "c"), "data.invalid-label"),
        ([(photograph(1), [0, 3])], ("a", "b", "c"), "data.invalid-label"),
        ([(photograph(1), ["a"]), (photograph(2), "b")], None, "data.invalid-label"),
        ([(photograph(1), []), (photograph(2), [])], None, "data.too-few-classes"),
        ({"train": [], "test": [(photograph(1), 0.5)]}, None, "data.no-images"),
        ({"train": [(photograph(1), ["a"])], "test": pairs()}, None, "data.invalid-label"),
        ([(photograph(1), 0), (photograph(2), "a")], None, "data.invalid-label"),
        ([(photograph(1), -1), (photograph(2), 0)], None, "data.invalid-label"),
        ([(photograph(1), 2), (photograph(2), 0)], ("a", "b"), "data.invalid-label"),
        ([(photograph(1), 1), (photograph(2), 2)], None, "data.class-without-images"),
        ([(photograph(1), "a"), (photograph(2), "b")], ("a", "c"), "data.unknown-class"),
        ({"train": pairs(), "extra": pairs()}, None, "data.unknown-split"),
        ({"val": pairs(), "valid": pairs()}, None, "data.unknown-split"),
        ([(photograph(1), "a")], None, "data.too-few-classes"),
        ([], None, "data.too-few-classes"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(data: Any, classes: Any, code: str) -> None:
    with pytest.raises(ToastError) as refused:
        opened(data, classes)
    assert refused.value.code == code


def test_a_recipe_keeps_its_data_when_another_field_is_replaced() -> None:
    recipe = build_recipe({"backbone": "vit_demo_3", "dataset": "python", "method": "linear"}, {}, origin="a test")
    source = PythonData(pairs()).make_source()
    bound = set_data_source(recipe, source)
    assert replace_recipe_fields(bound, seed=3).plugins.dataset is source
    assert replace_recipe_fields(bound, dataset="demo").plugins.dataset is not source
    assert recipe.plugins.dataset is not source
    with pytest.raises(ToastError) as refused:
        recipe.plugins.dataset.open(recipe.dataset, None)
    assert refused.value.code == "data.given-in-python"


def test_an_image_that_cannot_be_read_is_skipped_where_asked() -> None:
    from toast_cli.backbones.base import Preprocessing
    from toast_cli.backbones.image_options import ImageOptions
    from toast_cli.data.base import BatchOptions, LoaderOptions
    from toast_cli.data.images.loader import build_image_loader

    data = opened({"train": [*pairs(4), ("gone.jpg", "cat")]}, val_fraction=0)
    seen_as = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
    options = LoaderOptions(images=ImageOptions(on_error="skip"))
    split: Any = data.splits["train"]
    loader = build_image_loader(split, seen_as, BatchOptions(5), options)
    assert [len(batch["label"]) for batch in loader] == [4] and list(loader.skipped) == ["gone.jpg"]

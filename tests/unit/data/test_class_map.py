"""One class map for all splits, whatever the data lie in."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from tests.unit.data.conftest import MakeFolder, noise
from toast_cli import registry
from toast_cli.data.base import DataSet
from toast_cli.data.class_map import read_class_file, sort_class_names
from toast_cli.recipe.parse import build_dataset_options
from toast_cli.utils.errors import ToastError


def opened(dataset: str, **fields: object) -> DataSet:
    options = build_dataset_options(dataset, fields)
    return registry.load_entry(registry.SOURCES, options.name).open(options, None)


def as_folder(root: Path) -> str:
    return f"folder:{root}"


def as_table(root: Path) -> str:
    files = sorted(root.rglob("*.png"))
    lines = [f"{file},{file.parent.name},{file.parent.parent.name}\n" for file in files]
    (root / "images.csv").write_text("path,label,split\n" + "".join(lines))
    return f"table:{root / 'images.csv'}"


def as_hf(root: Path) -> str:
    import datasets

    tables = {}
    for part in (folder for folder in root.iterdir() if folder.is_dir()):
        files = sorted(part.rglob("*.png"))
        rows = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        tables[part.name] = table.class_encode_column("label")  # numbers, by the names of this split alone
    datasets.DatasetDict(tables).save_to_disk(root.parent / "saved")
    return f"hf:{root.parent / 'saved'}"


SOURCES = [as_folder, as_table, as_hf]
Spelled = Callable[[Path], str]


@pytest.fixture(autouse=True)
def silent() -> None:
    pytest.importorskip("datasets").disable_progress_bars()


@pytest.mark.parametrize("source", SOURCES)
def test_labels_that_differ_between_splits_are_shown_both_ways(make_folder: MakeFolder, source: Spelled) -> None:
    root = make_folder({"train/cat": 3, "train/dog": 3, "val/cat": 1, "test/cat": 1, "test/Dog": 2})
    with pytest.raises(ToastError) as error:
        opened(source(root))
    assert error.value.code == "data.unknown-class"
    assert "test" in error.value.what and "'Dog'" in error.value.what and "'dog'" in error.value.why


@pytest.mark.parametrize("source", SOURCES)
def test_a_split_without_some_of_the_classes_keeps_their_numbers(make_folder: MakeFolder, source: Spelled) -> None:
    root = make_folder({"train/ant": 3, "train/cat": 3, "train/dog": 3, "val/dog": 2, "test/cat": 1})
    data = opened(source(root))
    assert data.classes == ("ant", "cat", "dog")
    assert data.splits["val"].labels == (2, 2)
    assert data.splits["test"].labels == (1,)


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_decides_the_classes_and_their_order(make_folder: MakeFolder, source: Spelled) -> None:
    root = make_folder({"train/cat": 3, "train/dog": 3, "val/cat": 1, "test/dog": 1})
    (root.parent / "classes.txt").write_text("dog\nzebra\ncat\n")
    data = opened(source(root), class_file=str(root.parent / "classes.txt"))
    assert data.classes == ("dog", "zebra", "cat")
    assert set(data.splits["train"].labels) == {0, 2}
    assert data.splits["test"].labels == (0,)
    assert "no image of class 'zebra'" in data.notes[0]


@pytest.mark.parametrize("source", SOURCES)
def test_labels_that_the_file_does_not_name_are_shown(make_folder: MakeFolder, source: Spelled) -> None:
    root = make_folder({"train/cat": 3, "train/dog": 3, "val/cat": 1})
    (root.parent / "classes.txt").write_text("dog\nzebra\n")
    with pytest.raises(ToastError) as refused:
        opened(source(root), class_file=str(root.parent / "classes.txt"))
    assert refused.value.code == "data.unknown-class"
    assert "'cat'" in str(refused.value)


def test_names_of_one_number_keep_their_order_whatever_a_set_does() -> None:
    names = ["1", "01", "001", "2", "02", "10"]
    assert {sort_class_names(list(order)) for order in permutations(names)} == {("001", "01", "1", "02", "2", "10")}


def test_an_adapters_configuration_is_a_class_file(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"classes": ["b", "a"], "format": 1}))
    assert read_class_file("adapter_config.json", tmp_path) == ("b", "a")


@pytest.mark.parametrize("text", ["", "one\n", "a\nb\na\n", "{}", "[1", '"ab"'])
@pytest.mark.parametrize("name", ["classes.txt", "classes.json"])
def test_a_file_of_no_use_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ToastError) as error:
        read_class_file(str(tmp_path / name), None)
    assert name in error.value.what


def test_numbered_classes_of_a_table_are_sorted_as_numbers(tmp_path: Path) -> None:
    import datasets

    files = [tmp_path / f"{number}.png" for number in range(22)]
    for number, file in enumerate(files):
        noise(8, 8, number).save(file)
    rows = {"image": list(map(str, files)), "label": [number % 11 for number in range(22)]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    assert opened(f"hf:{tmp_path / 'saved'}").classes == tuple(map(str, range(11)))

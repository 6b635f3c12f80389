"""Tables whose images have several labels, or numbers: reading, splits, batches, identity and the audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.layouts import photograph, put
from toast_cli import registry
from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.audit.check import check_dataset
from toast_cli.data.base import BatchOptions, DataSet, LoaderOptions
from toast_cli.data.identity import DataIdentity, describe_data_differences, identify_data
from toast_cli.data.images.loader import build_image_loader
from toast_cli.data.splits import hold_out
from toast_cli.data.subset import SplitSubset
from toast_cli.recipe.parse import build_dataset_options, build_recipe
from toast_cli.storage.checksums import parse_record
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.visualize.data_preview import format_label

TAGGED = ["indoor|cute", "cute", "", "indoor", "cute | indoor", "cute|cute", "räre", "räre|indoor", "", "indoor"]
BY_TAG = {"label_column": "tags", "label_separator": "|"}


def write_table(folder: Path, columns: dict[str, Sequence[Any]]) -> Path:
    """Write images and a table of them, all of the train split."""
    rows = [["path", *columns]]
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        put(folder / f"{number:02d}.png", number)
        rows.append([f"{number:02d}.png", *map(str, values)])
    (folder / "t.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    return folder


def opened(folder: Path, **fields: Any) -> DataSet:
    options = build_dataset_options("table:t.csv", {"val_fraction": 0, "test_fraction": 0, **fields})
    return registry.load_entry(registry.SOURCES, "table").open(options, folder)


def test_a_separator_and_columns_say_the_same(tmp_path: Path) -> None:
    flags = {
        name: [("yes" if name in tags else "no") if name == "cute" else str(name in tags) for tags in TAGGED]
        for name in ("cute", "indoor", "räre")
    }
    write_table(tmp_path, {"tags": TAGGED, **flags})
    data, by_column = opened(tmp_path, **BY_TAG), opened(tmp_path, label_columns=list(flags))
    assert (data.target, data.classes) == ("labels", ("cute", "indoor", "räre"))
    expected = ((0, 1), (0,), (), (1,), (0, 1), (0,), (2,), (1, 2), (), (1,))
    assert data.splits["train"].labels == by_column.splits["train"].labels == expected  # type: ignore[attr-defined]
    assert any("2 of 10 images have none of the labels" in note for note in data.notes)


@pytest.mark.parametrize(
    ("columns", "fields", "code"),
    [
        ({"tags": ["a|b", "?"]}, BY_TAG, "data.unlabelled-images"),
        ({"tags": ["", ""]}, BY_TAG, "data.unlabelled-images"),
        ({"a": [1, 0], "b": [0, "maybe"]}, {"label_columns": ["a", "b"]}, "data.invalid-row"),
        ({"a": [1, 0], "b": [0, ""]}, {"label_columns": ["a", "b"]}, "data.unlabelled-images"),
        ({"a": [1, 0], "b": [0, 0]}, {"label_columns": ["a", "b"]}, "data.class-without-images"),
        ({"age": [1, "old"]}, {"target_column": "age"}, "data.invalid-row"),
        ({"age": [1, "inf"]}, {"target_column": "age"}, "data.invalid-row"),
        ({"age": [1, ""]}, {"target_column": "age"}, "data.unlabelled-images"),
        ({"age": [3, "3.0"]}, {"target_column": "age"}, "data.constant-number"),
        ({"age": [3, 4]}, {"target_column": "ages"}, "data.missing-column"),
    ],
)
def test_a_table_that_cannot_be_learned_from_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], fields: dict[str, Any], code: str
) -> None:
    with pytest.raises(ToastError) as refused:
        opened(write_table(tmp_path, columns), **fields)
    assert refused.value.code == code
    assert refused.value.what_to_do


def test_options_that_contradict_each_other_are_refused() -> None:
    for fields in ({**BY_TAG, "target_column": "age"}, {"target_column": ["a", "a"]}, {"label_columns": []}):
        with pytest.raises(UsageError):
            build_dataset_options("table:t.csv", fields)


def test_numbers_that_are_missing_may_be_left_out(tmp_path: Path) -> None:
    write_table(tmp_path, {"age": [31, "NaN", -100, 2.5], "height": [1, 2, "", 4]})
    data = opened(tmp_path, target_column=["age", "height"], on_missing_label="skip")
    assert (data.target, data.classes) == ("number", ("age", "height"))
    assert data.splits["train"].labels == ((31.0, 1.0), (2.5, 4.0))  # type: ignore[attr-defined]
    assert any("2 of 4 images have no label, left out" in note for note in data.notes)


def test_rare_labels_are_in_both_parts_of_a_split_and_never_only_in_the_held_out_one() -> None:
    rng = np.random.default_rng(0)
    rates = [0.5, 0.3, 0.05, 0.02, 0.01]
    labels = [tuple(np.flatnonzero(rng.random(5) < rates).tolist()) for _ in range(400)] + [(3, 4), (4,)]
    names = [f"{number}.jpg" for number in range(len(labels))]
    kept, held = hold_out(names, labels, 0.2, seed=0)
    assert sorted([*kept, *held]) == list(range(len(labels))) and hold_out(names, labels, 0.2, seed=1) != (kept, held)
    for label in range(5):
        count, out = (sum(label in labels[index] for index in part) for part in (range(len(labels)), held))
        assert 1 <= out < count
        assert abs(out - 0.2 * count) <= max(1, 0.05 * count), f"label {label}: {out} of {count}"
    empty = sum(not each for each in labels)
    assert abs(sum(not labels[index] for index in held) - 0.2 * empty) <= 1


def test_shots_are_per_label_and_have_no_meaning_for_numbers(tmp_path: Path) -> None:
    write_table(tmp_path, {"tags": TAGGED, "age": range(10)})
    labels: Any = opened(tmp_path, **BY_TAG, shots=2).splits["train"].labels  # type: ignore[attr-defined]
    assert all(sum(label in each for each in labels) >= 2 for label in range(3)) and len(labels) < 10
    with pytest.raises(UsageError) as refused:
        opened(tmp_path, target_column="age", shots=2)
    assert refused.value.code == "data.shots-of-numbers"


def test_batches_hold_vectors_and_an_image_that_cannot_be_read_is_nan(tmp_path: Path) -> None:
    write_table(tmp_path, {"tags": TAGGED, "age": range(10)})
    (tmp_path / "00.png").write_bytes(b"broken")
    options = LoaderOptions(images=ImageOptions(on_error="skip"))
    seen_as = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for fields, expected in ((BY_TAG, [[1, 0, 0], [0, 0, 0]]), ({"target_column": "age"}, [[1], [2]])):
        split: Any = SplitSubset(opened(tmp_path, **fields).splits["train"], (0, 1, 2))  # type: ignore[arg-type]
        broken, rest = build_image_loader(split, seen_as, BatchOptions(1), options), SplitSubset(split, (1, 2))
        assert next(iter(broken))["label"].isnan().all()
        batch = next(iter(build_image_loader(rest, seen_as, BatchOptions(2), options)))  # type: ignore[arg-type]
        torch.testing.assert_close(batch["label"], torch.tensor(expected, dtype=torch.float32))


def test_identity_survives_json_and_names_what_changed(tmp_path: Path) -> None:
    write_table(tmp_path, {"tags": TAGGED, "age": range(10)})
    for fields, cell in ((BY_TAG, "cute,0"), ({"target_column": "age"}, "indoor,77")):
        before = identify_data(opened(tmp_path, **fields))
        again = parse_record(DataIdentity, json.dumps(before.dump()), 1, tmp_path)
        assert again == before and not describe_data_differences(again, before)
        lines = (tmp_path / "t.csv").read_text().splitlines()
        changed = [lines[0], f"00.png,{cell}", *lines[2:]]
        (tmp_path / "t.csv").write_text("\n".join(changed) + "\n")
        (line,) = describe_data_differences(again, identify_data(opened(tmp_path, **fields)))
        assert "1 with another label (00.png)" in line
        (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")


def test_the_audit_counts_labels_and_summarizes_numbers(tmp_path: Path) -> None:
    write_table(tmp_path, {"tags": TAGGED, "age": range(10)})
    photograph(1).save(tmp_path / "03.png")  # the picture of 01, with other labels
    labels = check_dataset(opened(tmp_path, **BY_TAG), lambda items, total, text: items)
    assert labels["splits"]["train"]["images_of_class"] == {"cute": 4, "indoor": 5, "räre": 2}
    assert any("other labels than an earlier copy" in problem for problem in labels["problems"])
    data = opened(tmp_path, target_column="age")
    numbers = check_dataset(data, lambda items, total, text: items)
    assert numbers["splits"]["train"]["numbers"] == {"age": {"least": 0, "median": 4.5, "most": 9}}
    assert not any("no image of" in warning for warning in numbers["warnings"])
    assert format_label(torch.tensor([2.5]), data) == "age 2.5"
    assert format_label(torch.tensor([0.0, 1, 1]), opened(tmp_path, **BY_TAG)) == "indoor, räre"


def test_a_recipe_that_names_no_task_gets_the_one_of_its_data() -> None:
    base = {"backbone": "vit_demo_3", "method": "linear"}
    for fields, task in ((BY_TAG, "multilabel"), ({"target_column": "age"}, "regression"), ({}, "classification")):
        recipe = build_recipe({**base, "dataset": {"name": "table", "path": "t.csv", **fields}}, {}, origin="a test")
        assert recipe.task.name == task


def test_columns_of_the_datasets_library_hold_labels_and_numbers(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), tags=datasets.List(datasets.ClassLabel(names=["b", "a"])), age=datasets.Value("float32")
    )
    rows = {"image": [photograph(n) for n in range(4)], "tags": [[0], [1, 0], [], [1]], "age": [1.5, 2, 3, 4]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "set")

    def read(**fields: Any) -> DataSet:
        options = build_dataset_options("hf:set", {"val_fraction": 0, **fields})
        return registry.load_entry(registry.SOURCES, "hf").open(options, tmp_path)

    tags, ages = read(), read(target_column="age")
    assert (tags.target, tags.classes) == ("labels", ("b", "a"))
    assert tags.splits["test"].labels == ((0,), (0, 1), (), (1,))  # type: ignore[attr-defined]
    assert (ages.target, ages.splits["test"].labels) == ("number", ((1.5,), (2.0,), (3.0,), (4.0,)))  # type: ignore[attr-defined]
    with pytest.raises(UsageError) as refused:
        read(target_column="age", streaming=True)
    assert refused.value.code == "data.not-with-streaming"

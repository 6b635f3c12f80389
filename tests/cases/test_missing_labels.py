"""Missing labels are no classes: they are refused or left out, counted and named, whatever stands for them.

Public reports: Toloka/crowd-kit #134, WeikaiTan/Toronto-3D #1, chanzuckerberg/cellxgene #1115.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.layouts import encoded
from toast_cli.data.base import DataSet
from toast_cli.data.images.table import TableOptions, open_table
from toast_cli.data.labels import describe_placeholder_labels, describe_suspicious_numbers, read_labels
from toast_cli.utils.errors import ToastError


@pytest.mark.parametrize(
    ("stored", "labels"),
    [
        (["a", "b", None, "", "  ", "\u200b"], ["a", "b", None, None, None, None]),
        (["a", "nan", "NaN", "NA", "N/A", "null", "None", "?", "<NA>"], ["a", *[None] * 8]),
        (["none", "na", "unknown", "-", "other"], ["none", "na", "unknown", "-", "other"]),
        ([0.0, 1.0, math.nan], ["0.0", "1.0", None]),
        ([0, 1, 2, -1], ["0", "1", "2", None]),
        (["0", "1", "-1"], ["0", "1", None]),
        (["3.0", "4.0", "-1.0"], ["3.0", "4.0", None]),
        ([0, 1, -100], ["0", "1", None]),
        ([-1, 1], ["-1", "1"]),
        ([-2, -1, 0, 1], ["-2", "-1", "0", "1"]),
        (["-1", "a", "0"], ["-1", "a", "0"]),
        ([0, 1, "1.0", 2.0, -1.0], ["0", "1", "1", "2", None]),
        (["01", "1"], ["01", "1"]),
        (["1", "1.5", "15", "2"], ["1", "1.5", "15", "2"]),
        (["1", "1.1", "11"], ["1", "1.1", "11"]),
        (["0.5", "1", "5"], ["0.5", "1", "5"]),
        (["1.5", "-2.5", "3"], ["1.5", "-2.5", "3"]),
        (["1.5.0", "1", "2"], ["1.5.0", "1", "2"]),
        ([True, False], ["True", "False"]),
    ],
)
def test_what_stands_for_no_label(stored: list[Any], labels: list[str | None]) -> None:
    assert read_labels(stored) == labels


def test_a_class_that_a_file_lists_is_a_class() -> None:
    assert read_labels(["NA", "DE", "None", "-1"], ["NA", "DE", "-1"]) == ["NA", "DE", None, "-1"]


def table(root: Path, labels: list[Any], splits: list[str] | None = None, **options: Any) -> DataSet:
    for number in range(len(labels)):
        Image.new("RGB", (6, 5), (number, 0, 0)).save(root / f"{number}.png")
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    rows = rows if splits is None else [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    header = "path,label" + (",split" if splits else "")
    (root / "t.csv").write_text("\n".join((header, *rows)) + "\n")
    return open_table(TableOptions(path=str(root / "t.csv"), **options), None)


def test_a_table_refuses_them_with_their_number_and_rows_or_leaves_them_out(tmp_path: Path) -> None:
    labels = ["0", "1", "-1", "0", "1", "-1"]
    with pytest.raises(ToastError) as refused:
        table(tmp_path, labels)
    assert refused.value.code == "data.unlabelled-images"
    assert "2 of 6 images have no label" in refused.value.what and "'-1'; rows 3, 6" in refused.value.why
    assert "class_file" in refused.value.what_to_do and "on_missing_label=skip" in refused.value.what_to_do
    data = table(tmp_path, labels, on_missing_label="skip", test_fraction=0, val_fraction=0)
    assert data.classes == ("0", "1") and data.splits["train"].names == ("0.png", "1.png", "3.png", "4.png")  # type: ignore[attr-defined]
    assert any("2 of 6 images have no label, left out" in note for note in data.notes)


def test_kinds_of_missing_labels_that_are_not_named_are_counted(tmp_path: Path) -> None:
    data = table(tmp_path, ["a", "b", "nan", "NA", "?", "null", ""], on_missing_label="skip")
    assert any("'nan' (1), 'NA' (1), '?' (1) and 2 more; rows" in note for note in data.notes)


def test_merged_spellings_of_a_number_are_noted_and_equal_classes_reported(tmp_path: Path) -> None:
    data = table(tmp_path, ["1", " 1", "1.0", "01", "2", "2.0", "3.0"])
    assert data.classes == ("01", "1", "2", "3")
    assert "labels in several spellings: read '1', ' 1', '1.0' as class '1'; '2', '2.0' as class '2'" in data.notes
    assert data.warnings == ("classes '01', '1' are the same number: are they one class?",)
    assert describe_suspicious_numbers(["cat", "7", "007", "+7", "1_0", "10"], 99)[0].startswith("classes '7', '007'")
    plain = table(tmp_path, ["0", "1", "0", "1"])
    assert not plain.warnings and not any("spellings" in note for note in plain.notes)


def test_a_class_called_na_is_listed_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("DE\nNA\n")
    data = table(tmp_path, ["NA", "DE"], class_file=str(tmp_path / "classes.txt"))
    assert data.classes == ("DE", "NA")


def test_an_unlabelled_test_split_is_not_read_and_one_labelled_in_part_is_refused(tmp_path: Path) -> None:
    splits = ["train", "train", "test", "test"]
    data = table(tmp_path, ["a", "b", "nan", ""], splits)
    assert "test" not in data.splits and any("test: not read, 2 of 2 images" in note for note in data.notes)
    with pytest.raises(ToastError) as refused:
        table(tmp_path, ["a", "b", "a", "nan"], splits)
    assert refused.value.code == "data.unlabelled-images" and "test: 1 of 2 images has no label" in refused.value.what


def test_parquet_and_the_library_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    from toast_cli.data.streams.hugging_face import HuggingFaceOptions, open_hf

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    labels = [0.0, 1.0, math.nan, 0.0, 1.0, 1.0]
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(encoded(number, "png"))
    names = [f"{number}.png" for number in range(6)]
    parquet.write_table(pyarrow.table({"path": names, "label": labels}), tmp_path / "t.parquet")
    pictures = [{"bytes": encoded(number, "png"), "path": None} for number in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float64")})
    made = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "h"))
    for open_source, options in (
        (open_table, TableOptions(path=str(tmp_path / "t.parquet"))),
        (open_hf, HuggingFaceOptions(path=str(tmp_path / "h"))),
    ):
        with pytest.raises(ToastError) as refused:
            open_source(options, None)  # type: ignore[operator]
        assert refused.value.code == "data.unlabelled-images" and "1 of 6 images" in refused.value.what
        kept = open_source(options.model_copy(update={"on_missing_label": "skip"}), None)  # type: ignore[operator]
        assert kept.classes == ("0.0", "1.0") and sum(map(len, kept.splits.values())) == 5


@pytest.mark.parametrize(
    ("labels", "images", "suspicious"),
    [
        ([str(number) for number in range(10)], 20, True),
        ([f"{number / 4}" for number in range(40)], 4000, True),
        ([str(number) for number in range(10)], 1000, False),
        ([str(number) for number in range(100)], 50_000, False),
        (["0.0", "1.0", "2.0"], 6, False),
        (["cat", "1", "2", "3", "4", "5"], 6, False),
    ],
)
def test_numbers_that_look_like_measurements_are_reported(labels: list[str], images: int, suspicious: bool) -> None:
    assert bool(describe_suspicious_numbers(labels, images)) == suspicious


def test_a_table_warns_of_measurements(tmp_path: Path) -> None:
    assert "10 different numbers for" in table(tmp_path, [number // 2 for number in range(20)]).warnings[0]


@pytest.mark.parametrize(
    ("labels", "suspicious"),
    [
        (["cat", "dog", "-"], True),
        (["cat", "dog", "--"], True),
        (["1", "2", "\u2014"], True),
        (["cat", "..."], True),
        (["cat", "dog", "-1"], True),
        (["cat", "dog", "1"], False),
        (["-", "+"], False),
        (["A+", "A-"], False),
        (["cat", "?!"], False),
        (["-"], False),
        (["-1", "1"], False),
        (["cat", "-", "*"], False),
    ],
)
def test_dashes_among_words_are_kept_and_reported(labels: list[str], suspicious: bool) -> None:
    assert read_labels(labels) == labels
    assert bool(describe_placeholder_labels(labels)) == suspicious


def test_a_table_warns_of_dashes_unless_a_file_lists_them(tmp_path: Path) -> None:
    labels = ["cat", "dog", "-"] * 2
    data = table(tmp_path, labels)
    assert data.classes == ("-", "cat", "dog") and ["'-'" in warning for warning in data.warnings] == [True]
    (tmp_path / "classes.txt").write_text("-\ncat\ndog\n")
    assert table(tmp_path, labels, class_file=str(tmp_path / "classes.txt")).warnings == ()

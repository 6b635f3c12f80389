from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toast_cli.data.base import DataSet
from toast_cli.data.images.table import TableOptions, open_table
from toast_cli.utils.errors import ToastError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for number in range(6):
        Image.new("RGB", (10, 8), (number,) * 3).save(tmp_path / f"{number}.png")
    return tmp_path / "images.csv"


def opened(table: Path, text: str, **options: object) -> DataSet:
    table.write_text(text, encoding="utf-8")
    return open_table(TableOptions(path=str(table), **options), None)  # type: ignore[arg-type]


SPLIT = "path,label,split\n0.png,a,train\n1.png,b,train\n2.png,b,validation\n3.png,a,test\n"


def test_the_split_column_decides(table: Path) -> None:
    data = opened(table, SPLIT)
    assert {part: split.names for part, split in data.splits.items()} == {
        "train": ("0.png", "1.png"),
        "val": ("2.png",),
        "test": ("3.png",),
    }
    assert data.splits["test"].labels == (0,)


def test_columns_go_by_other_names_when_told(table: Path) -> None:
    text = "label,file,bird\nx,0.png,a\nx,1.png,b\nx,2.png,a\nx,3.png,b\n"
    assert opened(table, text, image_column="file", label_column="bird").classes == ("a", "b")


def test_four_columns_are_a_box(table: Path) -> None:
    data = opened(table, "path,label,x,y,width,height\n0.png,a,1,2,3,4\n1.png,b,0,0,10,8\n")
    mask = data.splits["train"].load(0).mask
    assert mask is not None and mask.shape == (8, 10)
    assert np.argwhere(mask).min(axis=0).tolist() == [2, 1]
    assert mask.sum() == 12
    assert not opened(table, SPLIT).splits["train"].has_masks


def test_numbers_are_classes_in_their_own_order(table: Path) -> None:
    assert opened(table, "path,label\n0.png,10\n1.png,9\n2.png,10\n3.png,9\n").classes == ("9", "10")


def test_cells_may_be_quoted_and_a_tab_may_part_them(table: Path) -> None:
    (table.parent / "a, b.png").write_bytes((table.parent / "0.png").read_bytes())
    assert opened(table, 'path,label\n"a, b.png",a\n1.png,b\n').splits["train"].names[0] == "a, b.png"
    assert opened(table.with_suffix(".tsv"), "path\tlabel\na, b.png\ta\n1.png\tb\n").classes == ("a", "b")


def test_whole_paths_are_taken_as_they_are(table: Path, tmp_path: Path) -> None:
    data = opened(table, f"path,label\n{tmp_path / '4.png'},a\n1.png,b\n")
    assert np.asarray(data.splits["train"].load(0).image)[0, 0, 0] == 4


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        ("", "data.empty-table", "images.csv"),
        ("path,label\n", "data.empty-table", "images.csv"),
        ("file,label\n0.png,a\n", "data.missing-column", "'path'"),
        ("path,label\n0.png,a\n1.png\n", "data.invalid-row", "row 2: "),
        ("path,label\n0.png,a\n1.png,b,c\n", "data.invalid-row", "row 2: "),
        ("path,label\n0.png,a\n1.png,\n", "data.invalid-row", "row 2: column 'label'"),
        ("path,label\n0.png,a\n1.png,b\ngone.png,b\n", "data.missing-files", "1 of 3 images"),
        ("path,label\n0.png,a\n", "data.too-few-classes", "'a'"),
        (SPLIT.replace("test", "tset"), "data.invalid-row", "row 4: 'tset'"),
        (SPLIT.replace("3.png,a", "3.png,c"), "data.unknown-class", "'c'"),
        ("path,label,x,y,width,height\n0.png,a,1,2,3,four\n", "data.invalid-row", "row 1: the box"),
        ("path,label,x,y,width,height\n0.png,a,1,2,0,4\n", "data.invalid-row", "row 1: a box needs"),
        ('path,label\n"0.png,a\n', "data.unreadable-table", "images.csv"),
    ],
)
def test_an_odd_table_is_told_where(table: Path, text: str, code: str, fact: str) -> None:
    with pytest.raises(ToastError) as refused:
        opened(table, text)
    assert refused.value.code == code
    assert fact in refused.value.what


def test_other_files_are_no_tables(table: Path) -> None:
    with pytest.raises(ToastError) as refused:
        opened(table.with_suffix(".xlsx"), "x")
    assert refused.value.code == "data.unknown-table-format"
    with pytest.raises(ToastError) as refused:
        opened(table.with_suffix(".parquet"), "x")
    assert refused.value.code == "data.unreadable-table"
    table.write_bytes(b"path,label\n\xff\xfe.png,a\n")
    with pytest.raises(ToastError) as error:
        open_table(TableOptions(path=str(table)), None)
    assert "UTF-8" in error.value.why


@pytest.mark.parametrize(
    "named", [{"split_column": "fold"}, {"box_columns": ("a", "b", "c", "d")}, {"box_corners": True}]
)
def test_a_column_that_was_named_and_is_not_there_is_refused(table: Path, named: dict[str, Any]) -> None:
    with pytest.raises(ToastError) as refused:
        opened(table, SPLIT, **named)
    assert refused.value.code == "data.missing-column"


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_header_with_semicolons_or_tabs_decides_the_separator_and_a_note_says_so(
    table: Path, separator: str, name: str
) -> None:
    lines = ("path|label|note", "0.png|a|1,5", "1.png|b|x,y", "2.png|a|", "3.png|b|")
    data = opened(table, "\n".join(lines).replace("|", separator), val_fraction=0, test_fraction=0)
    assert data.classes == ("a", "b") and len(data.splits["train"]) == 4
    assert f"{table}: its columns are separated by {name}" in data.notes


def test_decimal_commas_are_read_where_they_separate_no_columns_and_no_thousands(table: Path) -> None:
    def write(*cells: str) -> str:
        return "path;p;x;y;width;height\n" + "".join(f"{n}.png;{cell};1,5;2;3;4\n" for n, cell in enumerate(cells))

    def read(*cells: str, **options: Any) -> DataSet:
        return opened(table, write(*cells), target_column="p", val_fraction=0, test_fraction=0, **options)

    data = read("0,76", "-1,234", ",5", "2", "1,5e3", "NA", on_missing_label="skip")
    assert data.splits["train"].labels == ((0.76,), (-1.234,), (0.5,), (2.0,), (1500.0,))  # type: ignore[attr-defined]
    assert f"{table}: read with decimal commas: p, x" in data.notes
    for ambiguous in (("1,234", "2,500"), ("1,5", "2.5"), ("1,5", "1,2,3")):
        with pytest.raises(ToastError, match="Write a point before decimals") as refused:
            read(*ambiguous, "3", "4")
        assert refused.value.code == "data.invalid-row"


def test_a_table_with_commas_keeps_the_semicolons_and_tabs_in_its_cells(table: Path) -> None:
    text = 'path,label,"a;note;with;parts",x\ty\tz\n0.png,red; blue,1,2\n1.png,grün,;;;,\t\n'
    data = opened(table, text, val_fraction=0, test_fraction=0)
    assert data.classes == ("grün", "red; blue")
    assert not any("separated" in note for note in data.notes)


def test_a_table_with_semicolons_and_other_columns_is_told_which_it_has(table: Path) -> None:
    with pytest.raises(ToastError) as refused:
        opened(table, "Bild;Art\n0.png;a, b\n")
    assert refused.value.code == "data.missing-column" and "Its columns are Bild, Art." in str(refused.value)


def test_corners_are_a_box_when_told_and_said_when_not(table: Path) -> None:
    text = "path,label,xmin,ymin,xmax,ymax\n" + "".join(f"{n}.png,{'ab'[n % 2]},2,1,6,4\n" for n in range(6))
    unread = opened(table, text)
    assert not unread.splits["train"].has_masks
    assert "dataset.box_columns=[xmin,ymin,xmax,ymax] dataset.box_corners=true" in unread.notes[0]
    data = opened(table, text, box_columns=("xmin", "ymin", "xmax", "ymax"), box_corners=True)
    mask = data.splits["train"].load(0).mask
    assert mask is not None and mask[1:4, 2:6].all() and mask.sum() == 12
    assert not any("boxes" in note for note in data.notes)


@pytest.mark.parametrize("again", ["0.png,a,test", "./0.png,b,train", "x/../0.png,a,train"])
def test_an_image_on_two_lines_is_refused(table: Path, again: str) -> None:
    (table.parent / "x").mkdir()
    with pytest.raises(ToastError) as refused:
        opened(table, f"{SPLIT}{again}\n")
    assert refused.value.code == "data.duplicate-image"
    assert "rows 1 and 5" in str(refused.value)


def test_a_table_without_train_lines_is_refused(table: Path) -> None:
    with pytest.raises(ToastError) as refused:
        opened(table, SPLIT.replace("train", "val"))
    assert refused.value.code == "data.no-train-split"

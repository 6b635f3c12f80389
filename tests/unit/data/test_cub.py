from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toast_cli.data.datasets.cub import CubOptions, open_cub
from toast_cli.utils.errors import ToastError

SPECIES = ("001.Grey_Heron", "002.Wren", "003.Kite")
PER_CLASS = 6


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """The official layout in small: three species of six images, every third one for test; 40 × 30 pixels each."""
    root = tmp_path / "CUB_200_2011"
    lines: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    number = 0
    for label, species in enumerate(SPECIES, start=1):
        (root / "images" / species).mkdir(parents=True)
        for place in range(PER_CLASS):
            number += 1
            name = f"{species}/bird_{place}.jpg"
            Image.new("RGB", (40, 30), (label * 60, 0, 0)).save(root / "images" / name)
            lines["images"].append(f"{number} {name}")
            lines["image_class_labels"].append(f"{number} {label}")
            lines["train_test_split"].append(f"{number} {int(number % 3 != 0)}")
            lines["bounding_boxes"].append(f"{number} {number}.0 5.0 10.0 20.0")
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")
    (root / "classes.txt").write_text("".join(f"{i} {species}\n" for i, species in enumerate(SPECIES, start=1)))
    return tmp_path


def change(cub: Path, file: str, line: int, text: str | None) -> None:
    """Replace line `line` (from 1) of an annotation file, or delete it."""
    path = cub / "CUB_200_2011" / file
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")


def test_the_official_split_is_kept_and_validation_comes_out_of_train(cub: Path) -> None:
    data = open_cub(CubOptions(), cub)
    assert data.classes == SPECIES
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 9, "val": 3, "test": 6}
    assert set(data.splits["val"].labels) == {0, 1, 2}
    assert data.splits["test"].names == tuple(f"{species}/bird_{place}.jpg" for species in SPECIES for place in (2, 5))
    assert data.splits["test"].labels == (0, 0, 1, 1, 2, 2)
    assert "validation: 10% of train held out per class (3 images), seed 0, split " in data.notes[1]


def test_the_bounding_box_becomes_the_mask(cub: Path) -> None:
    split = open_cub(CubOptions(), cub).splits["test"]
    sample = split.load(2)  # image number 9: the box starts at x = 9
    assert split.has_masks
    expected = np.zeros((30, 40), dtype=bool)
    expected[5:25, 9:19] = True
    assert sample.mask is not None
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.label == 1
    assert sample.image.getpixel((0, 0))[0] == pytest.approx(120, abs=3)  # type: ignore[index]


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ("2.5 3.5 4.0 2.0", slice(3, 6), slice(2, 7)),
        ("-5 -5 10 10", slice(0, 5), slice(0, 5)),
        ("30 20 100 100", slice(20, 30), slice(30, 40)),
        ("-20 0 10 30", slice(0, 0), slice(0, 0)),
    ],
)
def test_a_box_covers_every_pixel_it_touches_inside_the_image(cub: Path, box: str, rows: slice, columns: slice) -> None:
    change(cub, "bounding_boxes.txt", 3, f"3 {box}")
    mask = open_cub(CubOptions(), cub).splits["test"].load(0).mask
    expected = np.zeros((30, 40), dtype=bool)
    expected[rows, columns] = True
    assert mask is not None
    np.testing.assert_array_equal(mask, expected)


def test_a_copy_of_another_size_is_noted_and_used(cub: Path) -> None:
    note = open_cub(CubOptions(), cub).notes[0]
    assert "This copy has 12 training and 6 test images of 3 classes" in note
    assert "5,994 and 5,794 of 200" in note


def test_the_data_dir_may_be_the_folder_itself(cub: Path) -> None:
    assert open_cub(CubOptions(), cub / "CUB_200_2011") == open_cub(CubOptions(), cub)


def test_the_data_dir_may_come_from_the_environment(cub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOAST_DATA_DIR", str(cub))
    assert open_cub(CubOptions(), None).classes == SPECIES


def test_shots_leave_validation_and_test_alone(cub: Path) -> None:
    full, few = open_cub(CubOptions(), cub), open_cub(CubOptions(shots=1), cub)
    assert few.splits["train"].labels == (0, 1, 2)
    assert (few.splits["val"], few.splits["test"]) == (full.splits["val"], full.splits["test"])


def test_labels_follow_the_ids_of_the_classes_not_their_lines(cub: Path) -> None:
    change(cub, "classes.txt", 1, "3 003.Kite")
    change(cub, "classes.txt", 3, "1 001.Grey_Heron")
    assert open_cub(CubOptions(), cub).classes == SPECIES


def test_missing_data_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(ToastError, match="CUB-200-2011") as refused:
        open_cub(CubOptions(), tmp_path)
    assert refused.value.code == "data.missing-dataset"
    for part in ("CUB_200_2011.tgz", "caltech", str(tmp_path / "CUB_200_2011" / "images.txt"), "--data-dir"):
        assert part in refused.value.what_to_do


@pytest.mark.parametrize(
    "file", ["image_class_labels.txt", "train_test_split.txt", "classes.txt", "bounding_boxes.txt"]
)
def test_a_missing_annotation_file_is_named(cub: Path, file: str) -> None:
    (cub / "CUB_200_2011" / file).unlink()
    with pytest.raises(ToastError, match=file) as refused:
        open_cub(CubOptions(), cub)
    assert refused.value.code == "data.unreadable-file"


@pytest.mark.parametrize(
    ("file", "line", "text", "fact"),
    [
        ("images.txt", 4, "four 001/x.jpg", ""),
        ("images.txt", 4, "4", ""),
        ("images.txt", 4, "3 001.Grey_Heron/bird_3.jpg", "id 3 .*line 3"),
        ("image_class_labels.txt", 2, "2 9", r"class 9 .*classes\.txt"),
        ("image_class_labels.txt", 2, "2 wren", r"class wren .*classes\.txt"),
        ("image_class_labels.txt", 2, "77 1", r"image 77 .*images\.txt"),
        ("train_test_split.txt", 5, "5 2", "1 for train or 0 for test"),
        ("bounding_boxes.txt", 6, "6 1.0 2.0 3.0", "x, y, width and height"),
        ("bounding_boxes.txt", 6, "6 1.0 2.0 x 3.0", "x, y, width and height"),
        ("bounding_boxes.txt", 6, "6 1.0 2.0 nan 3.0", "nan"),
        ("bounding_boxes.txt", 6, "6 1.0 2.0 0.0 3.0", "0.0"),
    ],
)
def test_an_odd_line_is_named_with_its_file(cub: Path, file: str, line: int, text: str, fact: str) -> None:
    change(cub, file, line, text)
    with pytest.raises(ToastError, match=rf"{file}, line {line}: .*{fact}") as refused:
        open_cub(CubOptions(), cub)
    assert refused.value.code == "data.invalid-annotation"


def test_an_image_without_a_label_is_named(cub: Path) -> None:
    change(cub, "image_class_labels.txt", 7, None)
    with pytest.raises(ToastError, match=r"images\.txt, line 7: image 7 .*image_class_labels\.txt") as refused:
        open_cub(CubOptions(), cub)
    assert refused.value.code == "data.invalid-annotation"


def test_a_missing_image_is_named_before_any_training(cub: Path) -> None:
    (cub / "CUB_200_2011/images/002.Wren/bird_1.jpg").unlink()
    with pytest.raises(ToastError) as error:
        open_cub(CubOptions(), cub)
    assert error.value.code == "data.missing-files"
    assert "1 of 18 images" in str(error.value)
    assert os.path.join("002.Wren", "bird_1.jpg") in error.value.why  # noqa: PTH118


def test_a_species_without_training_images_is_named(cub: Path) -> None:
    for number in range(7, 13):
        change(cub, "train_test_split.txt", number, f"{number} 0")
    with pytest.raises(ToastError) as refused:
        open_cub(CubOptions(), cub)
    assert refused.value.code == "data.class-without-images"
    assert "'002.Wren'" in str(refused.value)

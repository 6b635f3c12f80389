"""Class maps beside images: found, matched, checked, and whatever is wrong with them named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toast_cli.data.audit.check import check_dataset
from toast_cli.data.base import DataSet, get_image_folders
from toast_cli.data.datasets.ade20k import Ade20kOptions as Ade
from toast_cli.data.datasets.ade20k import open_ade20k
from toast_cli.data.datasets.voc import VOC_CLASSES, open_voc
from toast_cli.data.datasets.voc import VocOptions as Voc
from toast_cli.data.segmentation.dataset import read_class_map
from toast_cli.data.segmentation.mask_folder import MaskFolderOptions, open_mask_folder
from toast_cli.utils.errors import ToastError

MakePairs = Callable[..., Path]


def save_image(path: Path, width: int = 12, height: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)


def save_map(path: Path, values: object, width: int = 12, height: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(values, np.uint8), (height, width)).copy()).save(path)


@pytest.fixture
def pairs(tmp_path: Path) -> MakePairs:
    """`pairs(train=3)` makes three images and class maps; `pairs(**{"": 3})` without a split."""

    def make(**splits: int) -> Path:
        root = tmp_path / "pairs"
        for split, count in splits.items():
            for number in range(count):
                save_image(root / "images" / split / f"{number}.jpg")
                save_map(root / "masks" / split / f"{number}.png", number % 3)
        (root / "classes.txt").write_text("ground\ncat\ndog\n")
        return root

    return make


def opened(root: Path, **options: object) -> DataSet:
    return open_mask_folder(MaskFolderOptions(path=str(root), **options), None)  # type: ignore[arg-type]


def sizes(data: DataSet) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def test_folders_that_are_split_are_taken_as_they_are(pairs: MakePairs) -> None:
    data = opened(pairs(train=5, val=2, test=3))
    assert data.classes == ("ground", "cat", "dog")
    assert sizes(data) == {"train": 5, "val": 2, "test": 3}
    sample = data.splits["test"].load(2)
    assert sample.classes.shape == (10, 12) and (sample.classes == 2).all()
    assert sample.label == -1 and sample.image.size == (12, 10)


def test_folders_that_are_not_split_are_divided_and_that_is_said(pairs: MakePairs) -> None:
    data = opened(pairs(**{"": 20}))
    assert sizes(data) == {"train": 14, "test": 4, "val": 2}
    images = [pair[0] for split in data.splits.values() for pair in split.pairs]  # type: ignore[attr-defined]
    assert len(set(images)) == 20
    assert [note.split(",")[0] for note in data.notes] == [
        "validation: 10% of train held out (2 images)",
        "test: 20% of all images held out (4 images)",
    ]


def test_folders_and_classes_may_have_other_names(pairs: MakePairs) -> None:
    root = pairs(train=3)
    (root / "images").rename(root / "photos")
    (root / "masks").rename(root / "labels")
    (root / "classes.txt").unlink()
    data = opened(root, images="photos", masks="labels", classes=("a", "b", "c"))
    assert data.classes == ("a", "b", "c") and sizes(data) == {"train": 2, "val": 1}


def test_images_in_folders_of_their_own_may_share_a_name(pairs: MakePairs) -> None:
    root = pairs(**{"train/a": 3, "train/b": 3})
    data = opened(root, val_fraction=0)
    assert sizes(data) == {"train": 6}
    assert all(image.parent.name == map.parent.name for image, map in data.splits["train"].pairs)  # type: ignore[attr-defined]


def test_unlabelled_pixels_are_kept_as_such(pairs: MakePairs) -> None:
    root = pairs(train=2)
    save_map(root / "masks/train/0.png", 255)
    assert (opened(root, val_fraction=0).splits["train"].load(0).classes == 255).all()


def test_reducing_the_zero_label_makes_it_no_class_and_one_the_first(pairs: MakePairs) -> None:
    root = pairs(train=2)
    save_map(root / "masks/train/0.png", [0, 1, 2, 3, 255, 0, 1, 2, 3, 255, 0, 1])
    split = opened(root, val_fraction=0, reduce_zero_label=True).splits["train"]
    assert split.load(0).classes[0].tolist() == [255, 0, 1, 2, 255, 255, 0, 1, 2, 255, 255, 0]


def test_a_palettes_numbers_are_the_classes_whatever_their_colours(pairs: MakePairs) -> None:
    root = pairs(train=2)
    coloured = Image.fromarray(np.full((10, 12), 2, np.uint8)).convert("P")
    coloured.putdata([2] * 120)
    coloured.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    coloured.save(root / "masks/train/0.png")
    assert (opened(root, val_fraction=0).splits["train"].load(0).classes == 2).all()


def test_checking_counts_an_image_for_every_class_in_it_and_names_those_without_one(pairs: MakePairs) -> None:
    root = pairs(train=3)
    save_map(root / "masks/train/0.png", 255)
    save_map(root / "masks/train/1.png", [1] * 6 + [2] * 6)
    data = opened(root, val_fraction=0)
    report = check_dataset(data, lambda items, *_: items)
    found = report["splits"]["train"]
    assert found["images_per_class"] == {"least": 0, "median": 1, "most": 2} and found["unlabelled"] == 1
    assert found["empty_classes"] == ["ground"]
    assert "train: 1 image has no pixel with a class" in report["warnings"]


class TestWhatIsWrongIsNamed:
    def refused(self, root: Path, code: str, **options: object) -> str:
        with pytest.raises(ToastError) as found:
            opened(root, **options)
        assert found.value.code == code
        return str(found.value)

    def refused_at_loading(self, root: Path, code: str, **options: object) -> str:
        split = opened(root, val_fraction=0, **options).splits["train"]
        with pytest.raises(ToastError) as found:
            split.load(0)
        assert found.value.code == code
        return str(found.value)

    def test_an_image_without_a_class_map(self, pairs: MakePairs) -> None:
        root = pairs(train=6)
        for number in (1, 4):
            (root / f"masks/train/{number}.png").unlink()
        said = self.refused(root, "data.unpaired-files")
        assert "2 of 6 images" in said and "1.jpg, 4.jpg" in said
        assert str(root / "images/train/1.jpg") in said

    def test_a_class_map_without_an_image(self, pairs: MakePairs) -> None:
        root = pairs(train=3)
        save_map(root / "masks/train/lonely.png", 0)
        said = self.refused(root, "data.unpaired-files")
        assert "1 of 4 class maps" in said and "lonely.png" in said

    def test_an_image_and_a_class_map_in_different_folders(self, pairs: MakePairs) -> None:
        root = pairs(train=3)
        (root / "masks/train/late").mkdir()
        (root / "masks/train/2.png").rename(root / "masks/train/late/2.png")
        said = self.refused(root, "data.unpaired-files")
        assert "1 of 3 images" in said and str(root / "masks/train") in said

    def test_two_images_of_one_name(self, pairs: MakePairs) -> None:
        root = pairs(train=3)
        save_image(root / "images/train/1.png")
        assert "1.png" in self.refused(root, "data.duplicate-image")

    def test_a_class_map_of_another_size(self, pairs: MakePairs) -> None:
        root = pairs(train=2)
        save_map(root / "masks/train/0.png", 0, width=10, height=12)
        said = self.refused_at_loading(root, "data.mask-size-mismatch")
        assert all(fact in said for fact in ("masks/train/0.png", "images/train/0.jpg", "10×12", "12×10"))

    def test_values_that_are_no_class(self, pairs: MakePairs) -> None:
        root = pairs(train=2)
        save_map(root / "masks/train/0.png", [0, 1, 2, 3, 3, 9, 0, 0, 0, 0, 0, 0])
        said = self.refused_at_loading(root, "data.unknown-class")
        assert "masks/train/0.png" in said and "3 (20 pixels), 9 (10 pixels)" in said and "0 to 2" in said

    def test_colours_in_place_of_classes(self, pairs: MakePairs) -> None:
        root = pairs(train=2)
        save_image(root / "masks/train/0.png")
        assert "masks/train/0.png" in self.refused_at_loading(root, "data.coloured-class-map")

    def test_a_damaged_class_map(self, pairs: MakePairs) -> None:
        root = pairs(train=2)
        (root / "masks/train/0.png").write_bytes(b"no picture")
        assert "masks/train/0.png" in self.refused_at_loading(root, "data.unreadable-class-map")

    def test_classes_that_nobody_names_or_names_twice(self, pairs: MakePairs) -> None:
        root = pairs(train=2)
        assert "'cat'" in self.refused(root, "data.duplicate-class", classes=("cat", "dog", "cat"))
        self.refused(root, "data.too-few-classes", classes=("cat",))
        (root / "classes.txt").unlink()
        said = self.refused(root, "data.unknown-class-names")
        assert "classes.txt" in said and "dataset.classes" in said

    def test_a_missing_folder(self, pairs: MakePairs) -> None:
        root = pairs(train=2)
        said = self.refused(root, "data.missing-folder", masks="labels")
        assert str(root / "labels") in said and "images/*.jpg" in said
        for part in ("images", "masks"):
            (root / part / "train").rename(root / part / "test")
        self.refused(root, "data.no-train-split")


def test_the_folders_of_images_and_of_class_maps_are_told(pairs: MakePairs) -> None:
    root = pairs(train=2)
    assert get_image_folders(opened(root).splits["train"]) == {root / "images/train", root / "masks/train"}


def voc(root: Path, train: list[str], val: list[str], augmented: list[str] | None = None) -> Path:
    home = root / "VOCdevkit/VOC2012"
    for name in {*train, *val, *(augmented or [])}:
        save_image(home / f"JPEGImages/{name}.jpg")
        for folder in ("SegmentationClass", *(["SegmentationClassAug"] if augmented is not None else [])):
            save_map(home / f"{folder}/{name}.png", 20)
    lists = home / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, ids in (("train", train), ("val", val), ("trainaug", augmented)):
        if ids is not None:
            (lists / f"{name}.txt").write_text("".join(f"{one}\n" for one in ids))
    return root


def test_voc_is_tested_on_its_validation_list_and_validated_on_a_part_of_train(tmp_path: Path) -> None:
    root = voc(tmp_path, [f"t{n}" for n in range(10)], ["v1", "v2"])
    data = open_voc(Voc(), root)
    assert data.classes == VOC_CLASSES and len(VOC_CLASSES) == 21 and VOC_CLASSES[15] == "person"
    assert sizes(data) == {"train": 9, "val": 1, "test": 2}
    assert (data.splits["test"].load(0).classes == 20).all()
    assert "10 training and 2 validation images; the published lists have 1,464 and 1,449" in " ".join(data.notes)


def test_voc_takes_the_augmented_list_by_ids_or_by_paths(tmp_path: Path) -> None:
    root = voc(tmp_path, ["t0"], ["v1"], [f"a{n}" for n in range(20)])
    data = open_voc(Voc(augmented=True), root)
    assert sizes(data) == {"train": 18, "val": 2, "test": 1}
    assert data.splits["train"].pairs[0][1].parent.name == "SegmentationClassAug"  # type: ignore[attr-defined]
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    ids = (lists / "trainaug.txt").read_text().split()
    (lists / "trainaug.txt").unlink()
    (lists / "train_aug.txt").write_text(
        "".join(f"/JPEGImages/{one}.jpg /SegmentationClassAug/{one}.png\n" for one in ids)
    )
    assert sizes(open_voc(Voc(augmented=True), root)) == sizes(data)


def test_voc_never_trains_on_what_it_is_tested_on(tmp_path: Path) -> None:
    root = voc(tmp_path, ["t0"], ["v1"], ["t0", "v1", "a1"])
    with pytest.raises(ToastError, match="1 training images") as refused:
        open_voc(Voc(augmented=True), root)
    assert refused.value.code == "data.overlapping-splits"


def test_voc_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ToastError, match="VOC 2012") as refused:
        open_voc(Voc(), tmp_path)
    assert refused.value.code == "data.missing-dataset"
    root = voc(tmp_path, ["t0", "t1"], ["v1"])
    with pytest.raises(ToastError) as refused:
        open_voc(Voc(augmented=True), root)
    assert refused.value.code == "data.missing-list"
    (root / "VOCdevkit/VOC2012/SegmentationClass/t1.png").unlink()
    with pytest.raises(ToastError, match=r"1 of 4 .*train\.txt"):
        open_voc(Voc(), root)


def test_a_class_map_whose_values_a_file_does_not_keep_as_they_are_is_refused(tmp_path: Path) -> None:
    values = np.repeat(np.arange(3), 8)[None].repeat(24, 0)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "blurred.jpg")
    with pytest.raises(ToastError) as refused:
        read_class_map(tmp_path / "blurred.jpg", 3)
    assert refused.value.code == "data.lossy-class-map"
    assert "blurred.jpg" in str(refused.value)
    Image.fromarray((values + 0.6).astype(np.float32)).save(tmp_path / "parts.tif")
    with pytest.raises(ToastError) as refused:
        read_class_map(tmp_path / "parts.tif", 3)
    assert refused.value.code == "data.fractional-class-map"
    assert "parts.tif" in str(refused.value)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "whole.tif")
    assert (read_class_map(tmp_path / "whole.tif", 3) == values).all()


def ade(root: Path, names: int = 150) -> Path:
    home = root / "ADEChallengeData2016"
    for part, count in (("training", 10), ("validation", 3)):
        for number in range(count):
            save_image(home / f"images/{part}/{number}.jpg")
            save_map(home / f"annotations/{part}/{number}.png", [0, 1, 150, 7] * 3)
    rows = [f"{n}\t0.1\t10\t2\tthing {n}, stuff {n}" for n in range(1, names + 1)]
    (home / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return root


def test_ade20k_has_150_classes_and_zero_is_none_of_them(tmp_path: Path) -> None:
    data = open_ade20k(Ade(), ade(tmp_path))
    assert len(data.classes) == 150 and data.classes[149] == "thing 150, stuff 150"
    assert sizes(data) == {"train": 9, "val": 1, "test": 3}
    for split in data.splits.values():  # train and val are parts of one list, and test is another
        assert split.load(0).classes[0, :4].tolist() == [255, 0, 149, 6]


def test_ade20k_can_keep_zero_as_a_class_of_its_own(tmp_path: Path) -> None:
    data = open_ade20k(Ade(reduce_zero_label=False), ade(tmp_path))
    assert len(data.classes) == 151 and data.classes[0] == "other"
    assert data.splits["train"].load(0).classes[0, :4].tolist() == [0, 1, 150, 7]


def test_ade20k_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ToastError, match="ADE20K") as refused:
        open_ade20k(Ade(), tmp_path)
    assert refused.value.code == "data.missing-dataset"
    with pytest.raises(ToastError, match=r"150 .* 149") as refused:
        open_ade20k(Ade(), ade(tmp_path, names=149))
    assert refused.value.code == "data.wrong-class-count"
    (tmp_path / "ADEChallengeData2016/annotations/training/3.png").unlink()
    (tmp_path / "ADEChallengeData2016/objectInfo150.txt").unlink()
    with pytest.raises(ToastError, match=r"objectInfo150\.txt") as refused:
        open_ade20k(Ade(), tmp_path)
    assert refused.value.code == "data.unreadable-file"

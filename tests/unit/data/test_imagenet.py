from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.layouts import WNIDS, encoded, imagenet, imagenet_in_tars, lines, tarred
from toast_cli.data.base import get_image_splits
from toast_cli.data.datasets.imagenet import ImageNetOptions, open_imagenet
from toast_cli.utils.errors import ToastError


def test_the_official_archives_hold_what_the_folders_do(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    imagenet(tmp_path / "a")
    imagenet_in_tars(tmp_path / "b")
    folders, tars = (open_imagenet(ImageNetOptions(), tmp_path / name) for name in "ab")
    assert folders.classes == tars.classes == WNIDS
    for part, split in get_image_splits(folders, "it").items():
        other = get_image_splits(tars, "it")[part]
        assert [Path(name).name for name in other.names] == [Path(name).name for name in split.names]
        assert list(other.labels) == list(split.labels)
        for index in range(len(split)):
            np.testing.assert_array_equal(other.load(index).image, split.load(index).image)


def test_validation_is_the_official_one_and_sizes_are_held_against_the_published(tmp_path: Path) -> None:
    imagenet(tmp_path)
    data = open_imagenet(ImageNetOptions(), tmp_path)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 15, "val": 6}
    assert "official validation images" in data.notes[0]
    assert "1,281,167 and 50,000 of 1,000" in data.notes[1]


def test_validation_images_in_one_place_need_the_development_kit(tmp_path: Path) -> None:
    imagenet(tmp_path)
    root = tmp_path / "imagenet"
    for file in sorted(root.glob("val/*/*")):
        file.rename(root / "val" / file.name)
    for place in root.glob("val/*"):
        if place.is_dir():
            place.rmdir()
    with pytest.raises(ToastError) as refused:
        open_imagenet(ImageNetOptions(), tmp_path)
    assert refused.value.code == "data.missing-labels"
    assert "ILSVRC2012_devkit_t12.tar.gz" in refused.value.what_to_do
    (tmp_path / "other").mkdir()
    imagenet_in_tars(tmp_path / "other")
    (tmp_path / "other/imagenet/ILSVRC2012_devkit_t12").rename(root / "ILSVRC2012_devkit_t12")
    assert list(open_imagenet(ImageNetOptions(), tmp_path).splits["val"].labels) == [0, 0, 1, 1, 2, 2]  # type: ignore[attr-defined]
    lines(root / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", ["1", "2"])
    with pytest.raises(ToastError, match=r" 2 labels.* 6 validation images") as refused:
        open_imagenet(ImageNetOptions(), tmp_path)
    assert refused.value.code == "data.wrong-label-count"


def test_folders_of_other_names_are_told_which_source_takes_them(tmp_path: Path) -> None:
    imagenet(tmp_path)
    (tmp_path / "imagenet/train" / WNIDS[0]).rename(tmp_path / "imagenet/train/fish")
    with pytest.raises(ToastError, match="'fish'") as refused:
        open_imagenet(ImageNetOptions(), tmp_path)
    assert refused.value.code == "data.unknown-class"
    assert "folder:PATH" in refused.value.what_to_do


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    imagenet_in_tars(tmp_path)
    (tmp_path / "imagenet/ILSVRC2012_img_train.tar").write_bytes(content)
    with pytest.raises(ToastError, match=r"ILSVRC2012_img_train\.tar") as refused:
        open_imagenet(ImageNetOptions(), tmp_path)
    assert refused.value.code == "data.unreadable-archive"


def test_paths_that_lead_out_of_an_archive_lead_nowhere(tmp_path: Path) -> None:
    imagenet_in_tars(tmp_path)
    root = tmp_path / "imagenet"
    tarred(root / "inner.tar", {"../../evil/n01440764_1.JPEG": encoded(1), "n01440764_2.JPEG": encoded(2)})
    tarred(
        root / "ILSVRC2012_img_train.tar",
        {f"../{wnid}.tar": (root / "inner.tar").read_bytes() for wnid in WNIDS},
    )
    split = get_image_splits(open_imagenet(ImageNetOptions(), tmp_path), "it")["train"]
    assert split.names[0] == "n01440764/n01440764_1.JPEG"
    assert not list(tmp_path.rglob("evil"))

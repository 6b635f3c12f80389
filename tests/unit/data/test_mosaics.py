from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toast_cli.data.base import DataSet
from toast_cli.data.demo.mosaics import GridOptions, GridSplit, open_grid
from toast_cli.utils.errors import ToastError, UsageError

MakeFolder = Callable[[Mapping[str, int]], Path]


@pytest.fixture
def root(make_folder: MakeFolder) -> Path:
    """Photographs of two classes, one red and one green, and grey distractors that no two splits could share unseen."""
    root = make_folder({"birds/a": 12, "birds/b": 12, "others": 100})
    for name, colour in (("a", "red"), ("b", "lime")):
        for file in (root / "birds" / name).iterdir():
            Image.new("RGB", (12, 10), colour).save(file)
    for number, file in enumerate(sorted((root / "others").iterdir())):
        Image.new("RGB", (10, 14), (number + 1,) * 3).save(file)
    return root


def opened(root: Path, **options: object) -> DataSet:
    return open_grid(GridOptions(path="folder:birds+images:others", cell_side=8, **options), root)  # type: ignore[arg-type]


def greys(split: GridSplit) -> set[int]:
    """The distractors that the mosaics of a split show, by their shade."""
    pixels = np.concatenate([np.asarray(split.load(i).image).reshape(-1, 3) for i in range(len(split))])
    return set(pixels[(pixels == pixels[:, :1]).all(axis=1)][:, 0].tolist())


@pytest.mark.parametrize("cells", [2, 3])
def test_the_mask_is_the_cell_of_the_labelled_photograph(root: Path, cells: int) -> None:
    split = opened(root, cells=cells).splits["train"]
    for index in range(len(split)):
        sample = split.load(index)
        pixels = np.asarray(sample.image)
        assert pixels.shape == (8 * cells, 8 * cells, 3)
        assert sample.mask is not None and sample.mask.sum() == 64
        colour = [[255, 0, 0], [0, 255, 0]][sample.label]
        np.testing.assert_array_equal((pixels == colour).all(axis=2), sample.mask)


def test_a_mosaic_shows_each_distractor_once(root: Path) -> None:
    split = opened(root, cells=3).splits["train"]
    for index in range(len(split)):
        assert len(np.unique(np.asarray(split.load(index).image).reshape(-1, 3), axis=0)) == 9


def test_the_labelled_photograph_may_lie_in_any_cell(root: Path) -> None:
    split = opened(root, mosaics=40).splits["train"]
    seen = Counter(split.get_layout(index)[0] for index in range(len(split)))
    assert set(seen) == {0, 1, 2, 3}
    assert min(seen.values()) > 0.15 * len(split)


def test_no_distractor_of_one_split_returns_in_another(root: Path) -> None:
    splits = opened(root, mosaics=10).splits
    shown = {part: greys(split) for part, split in splits.items()}
    assert all(shown.values())
    assert not shown["train"] & shown["test"]
    assert not shown["train"] & shown["val"]
    assert not shown["val"] & shown["test"]


def test_photographs_that_are_distractors_too_stay_in_their_split_and_out_of_their_own_mosaic(root: Path) -> None:
    data = open_grid(
        GridOptions(path="folder:birds+folder:birds", cell_side=8, photographs={"val_fraction": 0.5}), root
    )
    splits = {part: split for part, split in data.splits.items() if isinstance(split, GridSplit)}
    for part, split in splits.items():
        assert {photo.name for photo in split.pool} == {photo.name for photo in split.photos}, part
        for index in range(len(split)):
            _, others = split.get_layout(index)
            assert split.photos[index % len(split.photos)].name not in {split.pool[other].name for other in others}


def test_a_mosaic_follows_from_the_seed_and_the_photograph_alone(root: Path) -> None:
    first, again = opened(root).splits["train"], opened(root).splits["train"]
    assert [first.get_layout(i) for i in range(len(first))] == [again.get_layout(i) for i in range(len(again))]
    few = opened(root, photographs={"shots": 3}).splits["train"]
    for index, name in enumerate(few.names):
        assert few.get_layout(index) == first.get_layout(first.names.index(name))
    other = opened(root, grid_seed=1).splits["train"]
    assert [first.get_layout(i) for i in range(len(first))] != [other.get_layout(i) for i in range(len(other))]


def test_more_mosaics_show_a_photograph_elsewhere_in_training_alone(root: Path) -> None:
    one, three = opened(root).splits, opened(root, mosaics=3).splits
    assert len(three["train"]) == 3 * len(one["train"])
    assert len(three["test"]) == len(one["test"])
    assert len(set(three["train"].names)) == len(three["train"])
    count = len(one["train"])
    assert len({three["train"].get_layout(turn * count) for turn in range(3)}) > 1
    assert three["train"].labels == one["train"].labels * 3


def test_classes_and_splits_are_those_of_the_labelled_source(make_folder: MakeFolder) -> None:
    root = make_folder({"birds/train/a": 3, "birds/train/b": 3, "birds/train/c": 3, "birds/test/b": 2, "others": 100})
    data = opened(root, classes=2)
    assert data.classes == ("a", "b")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert data.splits["test"].labels == [1, 1]


def test_a_class_that_the_distractors_hold_too_is_said(make_folder: MakeFolder) -> None:
    root = make_folder({"birds/a": 5, "birds/b": 5, "others/a": 40, "others/z": 40})
    data = open_grid(GridOptions(path="folder:birds+folder:others"), root)
    assert any("class 'a'" in note for note in data.notes)


def test_a_plus_in_a_folders_name_parts_nothing(make_folder: MakeFolder) -> None:
    root = make_folder({"b+irds/a": 5, "b+irds/b": 5, "o+thers": 60})
    assert open_grid(GridOptions(path="folder:b+irds+images:o+thers"), root).classes == ("a", "b")


class TestErrors:
    @pytest.mark.parametrize("path", ["cub", "cub+nothing-known:here", "+images:x", "cub+"])
    def test_what_does_not_name_two_data_sets_is_told_the_form(self, path: str) -> None:
        with pytest.raises(UsageError, match=r"grid:SOURCE\+DISTRACTORS") as refused:
            open_grid(GridOptions(path=path.ljust(3)), None)
        assert refused.value.code == "data.invalid-grid"

    def test_texts_make_no_grid(self, root: Path) -> None:
        (root / "talk.json").write_text('[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]')
        with pytest.raises(UsageError) as refused:
            open_grid(GridOptions(path="folder:birds+alpaca:talk.json"), root)
        assert refused.value.code == "data.not-images"

    def test_images_without_labels_cannot_be_the_labelled_ones(self, root: Path) -> None:
        with pytest.raises(UsageError, match="images:others") as refused:
            open_grid(GridOptions(path="images:others+folder:birds"), root)
        assert refused.value.code == "data.too-few-classes"

    def test_too_few_distractors_are_counted(self, make_folder: MakeFolder) -> None:
        root = make_folder({"birds/a": 12, "birds/b": 12, "others": 6})
        with pytest.raises(ToastError, match=r"\d distractors .* 3") as refused:
            opened(root)
        assert refused.value.code == "data.too-few-distractors"

    def test_a_wrong_field_of_a_source_is_named(self, root: Path) -> None:
        with pytest.raises(UsageError, match="shotss"):
            opened(root, photographs={"shotss": 3})

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image, features

from toast_cli.data.base import DataSet
from toast_cli.data.images.file_formats import get_image_suffixes
from toast_cli.data.images.image_folder import SOURCE, ImageFolderOptions, open_image_folder
from toast_cli.data.splits import compute_split_hash
from toast_cli.utils.errors import ToastError

MakeFolder = Callable[[Mapping[str, int]], Path]


def opened(root: Path, **options: object) -> DataSet:
    return open_image_folder(ImageFolderOptions(path=str(root), **options), None)  # type: ignore[arg-type]


def sizes(data: DataSet) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def test_a_folder_that_is_split_is_taken_as_it_is(make_folder: MakeFolder) -> None:
    root = make_folder({"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1, "test/dog": 2})
    data = opened(root)
    assert data.classes == ("cat", "dog")
    assert sizes(data) == {"train": 3 + 2, "val": 2, "test": 2}
    assert data.splits["test"].labels == (1, 1)
    assert data.notes == ()


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_the_validation_folder_has_several_names(make_folder: MakeFolder, name: str) -> None:
    data = opened(make_folder({"train/a": 2, "train/b": 2, f"{name}/a": 1}))
    assert sizes(data) == {"train": 4, "val": 1}


def test_a_missing_validation_split_is_held_out_of_train_and_said(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train/a": 10, "train/b": 20, "test/a": 1, "test/b": 1}), val_fraction=0.2)
    val = data.splits["val"]
    assert Counter(val.labels) == {0: 2, 1: 4}
    assert sizes(data) == {"train": 24, "val": 6, "test": 2}
    assert not set(val.names) & set(data.splits["train"].names)
    expected = f"20% of train held out per class (6 images), seed 0, split {compute_split_hash(val.names, val.labels)}"
    assert data.notes == (f"validation: {expected}",)


def test_a_missing_test_split_is_said_and_not_made(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}))
    assert "test" not in data.splits
    assert any(note.startswith("test:") and "no test split" in note for note in data.notes)


def test_a_folder_of_classes_is_split_in_three_with_every_class_in_each_part(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"a": 20, "b": 10, "c": 3}))
    for part in ("train", "val", "test"):
        assert set(data.splits[part].labels) == {0, 1, 2}, part
    assert sum(sizes(data).values()) == 33
    assert Counter(data.splits["test"].labels) == {0: 4, 1: 2, 2: 1}
    everything = [name for split in data.splits.values() for name in split.names]
    assert len(set(everything)) == 33
    assert [note.split(":")[0] for note in data.notes] == ["test", "validation"]


def test_the_same_folder_gives_the_same_split_wherever_it_lies(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 12, "b": 12})
    first = opened(root)
    moved = root.rename(tmp_path / "moved")
    second = opened(moved)
    assert {part: split.names for part, split in first.splits.items()} == {
        part: split.names for part, split in second.splits.items()
    }
    assert first.notes == second.notes
    assert opened(moved, split_seed=1).notes != second.notes


def test_shots_cut_the_training_split_alone(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 20, "b": 20})
    full, few = opened(root), opened(root, shots=2)
    assert sizes(few) == {**sizes(full), "train": 4}


def test_a_sample_is_the_image_behind_its_name(make_folder: MakeFolder) -> None:
    split = opened(make_folder({"train/a": 2, "train/b": 2, "val/b": 1})).splits["val"]
    sample = split.load(0)
    assert (sample.image.size, sample.label, sample.name, sample.mask) == ((12, 10), 1, "val/b/0.png", None)
    assert not split.has_masks


def test_images_are_found_in_folders_inside_a_class_and_hidden_ones_are_not(make_folder: MakeFolder) -> None:
    root = make_folder({"a/one/deeper": 2, "a/.thumbnails": 2, "b": 2, ".cache": 2})
    (root / "b" / "._0.png").write_bytes(b"not an image")
    (root / "b" / "labels.csv").write_text("0,1")
    data = opened(root, test_fraction=0, val_fraction=0)
    assert data.splits["train"].names == ("a/one/deeper/0.png", "a/one/deeper/1.png", "b/0.png", "b/1.png")


def test_every_ending_that_pillow_reads_counts_in_either_case(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 1, "train/b": 1, "val/a": 1})
    usual = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
    can = {ending for ending, codec in ((".jp2", "jpg_2000"), (".avif", "avif")) if features.check(codec)}
    assert usual | can <= get_image_suffixes() and not get_image_suffixes() & {"", ".heic", ".eps", ".h5", ".txt"}
    for ending in get_image_suffixes():
        (root / f"train/a/photo{ending.upper()}").touch()
    data = opened(root)
    assert len(data.splits["train"]) == 2 + len(get_image_suffixes())
    assert data.notes == (f"test: {root} has no test split, so none is reported",)


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".jp2", ".avif"])
def test_what_has_such_an_ending_is_decoded(make_folder: MakeFolder, ending: str) -> None:
    if ending not in get_image_suffixes():
        pytest.skip("this Pillow has no codec for it")
    root = make_folder({"train/a": 1, "train/b": 1, "val/a": 1})
    Image.new("RGB", (16, 8), "red").save(root / f"train/a/a{ending}")
    assert opened(root).splits["train"].load(1).image.size == (16, 8)


def test_what_is_not_read_is_said_with_its_name(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "test/a": 1})
    for name in ("train/a/photo.heic", "val/a/without an ending", "train/b/.hidden"):
        (root / name).touch()
    (root / "train/lost.png").touch()
    assert opened(root).notes == (
        f"{root}: not read, no image suffix: 1 (val/a/without an ending)",
        f"{root}: not read, HEIC needs pillow-heif (pip install pillow-heif): 1 (train/a/photo.heic)",
        f"{root}: not read, not in a class folder: 1 (train/lost.png)",
    )
    for number in range(9):
        (root / f"test/a/{number}.txt").touch()
    assert (
        "10 (test/a/0.txt, test/a/1.txt, test/a/2.txt, test/a/3.txt, test/a/4.txt and 5 more)" in opened(root).notes[0]
    )


def test_a_link_to_a_folder_inside_a_class_is_not_followed_and_said(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "test/a": 1})
    (root / "train/a/again").symlink_to(root / "train", target_is_directory=True)
    data = opened(root)
    assert len(data.splits["train"]) == 4
    assert data.notes == (f"{root}: links to folders are not followed: 1 (train/a/again)",)


def test_unlabelled_images_leave_nothing_out_silently_either(make_folder: MakeFolder) -> None:
    from toast_cli.data.images.unlabelled_folder import UnlabelledFolderOptions as Unlabelled
    from toast_cli.data.images.unlabelled_folder import open_unlabelled_folder

    root = make_folder({"a": 4})
    (root / "b.heic").touch()
    (root / "link").symlink_to(root / "a", target_is_directory=True)
    notes = open_unlabelled_folder(Unlabelled(path=str(root)), None).notes
    assert notes[1:3] == (
        f"{root}: not read, HEIC needs pillow-heif (pip install pillow-heif): 1 (b.heic)",
        f"{root}: links to folders are not followed: 1 (link)",
    )


@pytest.mark.parametrize("target", [".", ".."])
def test_a_class_folder_that_links_to_a_folder_around_it_is_refused(make_folder: MakeFolder, target: str) -> None:
    root = make_folder({"inner/a": 2, "inner/b": 2}) / "inner"
    (root / "again").symlink_to(target, target_is_directory=True)
    with pytest.raises(ToastError) as refused:
        opened(root)
    assert refused.value.code == "data.link-loop"
    assert "again" in refused.value.what


def test_a_link_to_itself_is_named_when_it_is_read(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 1, "train/b": 1, "val/a": 1})
    (root / "train/a/1.png").symlink_to("1.png")
    split = opened(root).splits["train"]
    with pytest.raises(ToastError) as refused:
        split.load(1)
    assert refused.value.code == "image.unreadable"
    assert "train/a/1.png" in str(refused.value)


def test_names_of_any_length_and_script_are_read(make_folder: MakeFolder) -> None:
    root = make_folder({"日本語": 1, "Ω" * 120: 1})
    for folder in root.iterdir():
        (folder / "0.png").rename(folder / ("ü" * 125 + ".png"))
    data = opened(root)
    assert data.classes == ("Ω" * 120, "日本語")
    assert data.splits["train"].load(0).name.endswith("ü.png")


def test_a_file_name_that_is_no_text_is_read_and_a_class_name_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1})
    try:
        (root / "a/0.png").rename(root / "a" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert opened(root).splits["train"].load(0).image.size == (12, 10)
    (root / "b").rename(root / os.fsdecode(b"\xfe"))
    with pytest.raises(ToastError) as refused:
        opened(root)
    assert refused.value.code == "data.unprintable-class"


def test_a_class_folder_may_be_a_link(make_folder: MakeFolder) -> None:
    root = make_folder({"elsewhere/a": 2, "picked/train/b": 2, "picked/val/b": 1})
    (root / "picked/train/a").symlink_to(root / "elsewhere/a", target_is_directory=True)
    assert opened(root / "picked").splits["train"].labels == (0, 0, 1, 1)


def test_a_class_may_be_called_train(make_folder: MakeFolder) -> None:
    assert opened(make_folder({"train": 5, "bus": 5})).classes == ("bus", "train")


def test_other_folders_beside_the_splits_are_named_in_a_note(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "test/a": 1, "extra/a": 1}))
    assert len(data.notes) == 1
    assert data.notes[0].endswith("not read: extra")


def test_an_empty_validation_folder_is_as_good_as_none(make_folder: MakeFolder) -> None:
    data = opened(make_folder({"train/a": 5, "train/b": 5, "val/a": 0, "test/a": 1}))
    assert sizes(data) == {"train": 8, "val": 2, "test": 1}
    assert "contains no images" in data.notes[0]


def test_a_relative_path_is_looked_up_in_the_data_dir_then_here(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder({"in_data/a": 3, "in_data/b": 3, "here/only/c": 3, "here/only/d": 3, "here/in_data/e": 3})
    monkeypatch.chdir(tmp_path / "pictures/here")
    given = tmp_path / "pictures"
    assert open_image_folder(ImageFolderOptions(path="in_data"), given).classes == ("a", "b")
    assert open_image_folder(ImageFolderOptions(path="only"), given).classes == ("c", "d")


def test_a_relative_path_is_found_in_the_folder_of_the_environment(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"birds/a": 3, "birds/b": 3})
    monkeypatch.setenv("TOAST_DATA_DIR", str(root))
    assert open_image_folder(ImageFolderOptions(path="birds"), None).classes == ("a", "b")


class TestErrors:
    def test_a_missing_folder_is_named_with_the_places_looked_at(self, tmp_path: Path) -> None:
        with pytest.raises(ToastError) as error:
            open_image_folder(ImageFolderOptions(path="nowhere"), tmp_path)
        assert error.value.code == "data.missing-folder"
        assert "'nowhere'" in str(error.value)
        assert str(tmp_path / "nowhere") in error.value.why
        assert "--data-dir" in error.value.what_to_do

    def test_a_file_is_not_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file.zip").touch()
        with pytest.raises(ToastError) as refused:
            opened(tmp_path / "file.zip")
        assert refused.value.code == "data.not-a-folder"
        assert "file.zip" in str(refused.value)

    def test_an_empty_folder_is_told_the_layouts(self, tmp_path: Path) -> None:
        with pytest.raises(ToastError) as error:
            opened(tmp_path)
        assert error.value.code == "data.no-class-folders"
        assert "PATH/CLASS" in error.value.what_to_do

    def test_images_outside_of_class_folders_are_mentioned(self, make_folder: MakeFolder) -> None:
        with pytest.raises(ToastError) as error:
            opened(make_folder({"a": 2}) / "a")
        assert error.value.code == "data.no-class-folders"
        assert "Images" in error.value.why

    def test_a_train_folder_without_class_folders_is_named(self, make_folder: MakeFolder) -> None:
        with pytest.raises(ToastError) as refused:
            opened(make_folder({"train": 2, "test": 2}))
        assert refused.value.code == "data.no-class-folders"
        assert "pictures/train" in refused.value.what

    def test_class_folders_without_any_image_are_named(self, make_folder: MakeFolder) -> None:
        with pytest.raises(ToastError) as refused:
            opened(make_folder({"a": 0, "b": 0}))
        assert refused.value.code == "data.no-images"
        assert "pictures" in str(refused.value)

    def test_a_class_without_a_training_image_is_named(self, make_folder: MakeFolder) -> None:
        with pytest.raises(ToastError) as refused:
            opened(make_folder({"train/a": 2, "train/b": 2, "train/empty": 0, "val/a": 1}))
        assert refused.value.code == "data.class-without-images"
        assert "'empty'" in str(refused.value)
        with pytest.raises(ToastError) as refused:
            opened(make_folder({"split/a": 2, "split/b": 2, "split/none": 0}) / "split")
        assert refused.value.code == "data.class-without-images"
        assert "'none'" in str(refused.value)

    @pytest.mark.parametrize("part", ["val", "test"])
    def test_a_class_missing_from_train_is_named_in_its_own_spelling(self, make_folder: MakeFolder, part: str) -> None:
        with pytest.raises(ToastError) as refused:
            opened(make_folder({"train/a": 2, "train/b": 2, f"{part}/Emu": 1, f"{part}/fox": 1, f"{part}/a": 1}))
        assert refused.value.code == "data.unknown-class"
        assert "'Emu', 'fox'" in str(refused.value) and part in str(refused.value)

    def test_a_single_class_is_named(self, make_folder: MakeFolder) -> None:
        with pytest.raises(ToastError) as refused:
            opened(make_folder({"train/cat": 3, "val/cat": 1}))
        assert refused.value.code == "data.too-few-classes"
        assert "'cat'" in str(refused.value)

    def test_two_folders_for_one_split_are_named(self, make_folder: MakeFolder) -> None:
        with pytest.raises(ToastError) as refused:
            opened(make_folder({"train/a": 1, "val/a": 1, "valid/a": 1}))
        assert refused.value.code == "data.duplicate-split"
        assert "val and valid" in str(refused.value)

    def test_test_without_train_is_not_taken_for_a_class(self, make_folder: MakeFolder) -> None:
        with pytest.raises(ToastError) as refused:
            opened(make_folder({"val/a": 1, "test/a": 1}))
        assert refused.value.code == "data.no-train-split"


def test_nested_folders_are_taken_for_classes_only_if_all_outer_ones_hold_the_same(make_folder: MakeFolder) -> None:
    tags = {f"{name}/tag {number}": 2 for name in "ab" for number in range(2)}
    some = opened(make_folder({**tags, "c": 4, "d": 4}))
    assert some.warnings == ()
    assert any(
        "classes 'a', 'b': the folders in them are read, their names are not used" in each for each in some.notes
    )


def test_outer_folders_with_the_same_folders_may_be_splits(make_folder: MakeFolder) -> None:
    (warning,) = opened(make_folder({f"{name}/{kind}": 3 for name in "ab" for kind in ("cat", "dog")})).warnings
    assert "the same folders, 'cat', 'dog'" in warning and "dataset.split_names={a: train, ...}" in warning


def test_the_source_says_what_it_needs() -> None:
    assert SOURCE.options is ImageFolderOptions
    assert "folder" in SOURCE.needs

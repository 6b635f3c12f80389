"""Folders of images: one folder per class, with or without train, val and test folders around them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import check_trainable_classes, read_class_file, require_known_classes, sort_class_names
from toast_cli.data.images.file_formats import get_image_suffixes
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.folder_scan import (
    DiskFolder,
    FolderContents,
    FolderTree,
    describe_unread_files,
    summarize_file_names,
)
from toast_cli.data.paths import list_candidate_paths
from toast_cli.data.splits import SPLIT_ALIASES, UnsplitDataOptions, complete_splits, make_train_val_test_splits
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXPECTED_FOLDER_LAYOUTS = "Expected are PATH/{train,val,test}/CLASS/*.jpg (val and test optional) or PATH/CLASS/*.jpg."


class ImageFolderOptions(UnsplitDataOptions):
    """A folder of images and how it is split."""

    name: Literal["folder"] = Field("folder", description="the data set")
    path: str = Field(
        min_length=1, description="the folder; a relative one is looked up in --data-dir, then in the current folder"
    )


def open_image_folder(options: ImageFolderOptions, data_dir: Path | None) -> DataSet:
    """Read the layout and the file names; no image is opened.

    Raises:
        ToastError: no such folder, no images in it, a single class, or a class without a training image.
    """
    return open_class_folders(
        options, DiskFolder(find_folder(options.path, data_dir)), read_class_file(options.class_file, data_dir)
    )


SOURCE = DataSource(ImageFolderOptions, open_image_folder, "a folder of images, one folder per class: folder:PATH")


def open_class_folders(options: UnsplitDataOptions, tree: FolderTree, given: tuple[str, ...] | None) -> DataSet:
    """Whatever holds a folder per class, with or without split folders around them.

    `given` are the classes where a file names them.

    Raises:
        ToastError: as `open_folder`.
    """
    folders = tree.folders()
    if not folders:
        loose = " Images lie directly in it, in no class folder." if tree.found().images else ""
        raise ToastError(
            f"There is no class folder in {tree.place()}.",
            f"The folder holds no folders.{loose}",
            EXPECTED_FOLDER_LAYOUTS,
            code="data.no-class-folders",
        )
    splits = _find_split_folders(tree, folders)
    if splits:
        return _open_split_folders(options, tree, given, splits)
    classes = given or sort_class_names(folders)
    require_known_classes(classes, {"the data": folders}, tree.place(), origin="the class file")
    images, found = _list_class_images(tree, "", classes)
    _require_images(images, tree.place())
    left = [*describe_unread_files(tree.place(), found), *_describe_loose_files(tree, [""])]
    unseen = check_trainable_classes(images, classes, tree.place(), given is not None)
    made, notes = make_train_val_test_splits(images, options)
    return DataSet(classes, made, (*unseen, *left, *notes))


def _open_split_folders(
    options: UnsplitDataOptions, tree: FolderTree, given: tuple[str, ...] | None, folders: Mapping[str, str]
) -> DataSet:
    """PATH/{train,val,test}/CLASS: the class folders of train are the class map, unless it is given."""
    class_folders = {part: tree.folders(folder) for part, folder in folders.items()}
    classes = given or sort_class_names(class_folders["train"])
    train = tree.place(folders["train"])
    if not class_folders["train"]:
        raise ToastError(
            f"There is no class folder in {train}.", what_to_do=EXPECTED_FOLDER_LAYOUTS, code="data.no-class-folders"
        )
    require_known_classes(classes, class_folders, tree.place(), "the class file" if given else "train")
    read = {part: _list_class_images(tree, path, classes) for part, path in folders.items()}
    parts = {part: files for part, (files, _) in read.items()}
    _require_images(parts["train"], train)
    notes = describe_unread_files(tree.place(), (each for _, found in read.values() for each in found))
    notes += _describe_loose_files(tree, ["", *folders.values()])
    notes += check_trainable_classes(parts["train"], classes, train, given is not None)
    unused = [name for name in tree.folders() if name not in folders.values()]
    if unused:
        noun = "folder is" if len(unused) == 1 else "folders are"
        notes.append(
            f"{tree.place()}: {len(unused)} {noun} neither train, val nor test and not read: {', '.join(unused)}"
        )
    for part in ("val", "test"):
        if part in parts and not len(parts[part]):
            notes.append(f"{part}: {tree.place(folders[part])} holds no image, so it is ignored")
            del parts[part]
    made, made_notes = complete_splits(parts, options, tree.place())
    return DataSet(classes, made, (*notes, *made_notes))


def find_folder(path: str, data_dir: Path | None) -> Path:
    """The folder that `path` means.

    Raises:
        ToastError: there is none.
    """
    looked = list_candidate_paths(path, data_dir)
    for place in looked:
        if place.is_dir():
            return place
    for place in looked:
        if place.exists():
            raise ToastError(f"{place} is not a folder.", what_to_do=EXPECTED_FOLDER_LAYOUTS, code="data.not-a-folder")
    raise ToastError(
        f"There is no folder '{path}'.",
        f"Looked for {' and '.join(map(str, looked))}.",
        "Give an existing folder as folder:PATH, or the folder it lies in as --data-dir.",
        code="data.missing-folder",
    )


def _find_split_folders(tree: FolderTree, folders: Sequence[str]) -> dict[str, str]:
    """The folders of train, val and test, or nothing where the folders are classes.

    A class may be called 'train' too: beside other classes, and with images but no folders in it, it is one.

    Raises:
        ToastError: two folders claim one split, or val or test stand there without train.
    """
    found: dict[str, str] = {}
    for name in folders:
        part = SPLIT_ALIASES.get(name.lower())
        if part is None:
            continue
        if part in found:
            raise ToastError(
                f"{tree.place()} has two folders for one split: {found[part]} and {name}.",
                what_to_do="Remove one.",
                code="data.duplicate-split",
            )
        found[part] = name
    only_splits = len(found) == len(folders)
    if "train" in found:
        return found if only_splits or tree.folders(found["train"]) else {}
    if only_splits:
        raise ToastError(
            f"{tree.place()} holds {', '.join(folders)} but no train folder.",
            what_to_do=EXPECTED_FOLDER_LAYOUTS,
            code="data.no-train-split",
        )
    return {}


def _list_class_images(tree: FolderTree, parent: str, classes: Sequence[str]) -> tuple[FileSplit, list[FolderContents]]:
    """All images of the classes' folders in a folder, in an order that no file system decides; and what lay there."""
    found = [tree.found(_join_path(parent, name)) for name in classes]
    images = sorted((label, image) for label, each in enumerate(found) for image in each.images)
    return FileSplit(tree.root, tuple(image for _, image in images), tuple(label for label, _ in images)), found


def _describe_loose_files(tree: FolderTree, folders: Sequence[str]) -> list[str]:
    """The sentence about files beside the classes' folders."""
    loose = [file for folder in folders for file in tree.files(folder)]
    return (
        [f"{tree.place('')}: not read, as they are in no class folder: {summarize_file_names(loose)}"] if loose else []
    )


def _join_path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _require_images(split: FileSplit, place: str) -> None:
    if not len(split):
        raise ToastError(
            f"There is no image in {place}.",
            f"Read are {' '.join(sorted(get_image_suffixes()))}.",
            EXPECTED_FOLDER_LAYOUTS,
            code="data.no-images",
        )

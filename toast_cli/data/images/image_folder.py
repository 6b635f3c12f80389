"""`folder`: images in one folder per class, with or without train, val and test folders around them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import check_trainable_classes, read_class_file, require_known_classes, sort_class_names
from toast_cli.data.images.file_formats import get_image_suffixes
from toast_cli.data.images.folder_scan import (
    DiskFolder,
    FolderContents,
    FolderTree,
    describe_unread_files,
    summarize_file_names,
)
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.paths import list_candidate_paths
from toast_cli.data.splits import SPLIT_ALIASES, UnsplitDataOptions, complete_splits, make_train_val_test_splits
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXPECTED_FOLDER_LAYOUTS = "Expected PATH/{train,val,test}/CLASS/*.jpg (val and test are optional) or PATH/CLASS/*.jpg."


class ImageFolderOptions(UnsplitDataOptions):
    """Options of a folder of images."""

    name: Literal["folder"] = Field("folder", description="the data set")
    path: str = Field(
        min_length=1, description="the folder; a relative path is looked up in --data-dir, then in the current folder"
    )


def open_image_folder(options: ImageFolderOptions, data_dir: Path | None) -> DataSet:
    """Read the layout and the file names of a folder, without opening any image.

    Raises:
        ToastError: the folder does not exist or contains no images, there is a single class, or a class has no
            training image.
    """
    return open_class_folders(
        options, DiskFolder(find_folder(options.path, data_dir)), read_class_file(options.class_file, data_dir)
    )


SOURCE = DataSource(ImageFolderOptions, open_image_folder, "a folder of images, one folder per class: folder:PATH")


def open_class_folders(options: UnsplitDataOptions, tree: FolderTree, given: tuple[str, ...] | None) -> DataSet:
    """Build a data set from a tree with one folder per class, with or without split folders around them.

    `given` are the classes that a class file lists, or None.

    Raises:
        ToastError: as in `open_image_folder`.
    """
    folders = tree.folders()
    if not folders:
        loose = " Images are directly in it, not in class folders." if tree.found().images else ""
        raise ToastError(
            f"{tree.place()} has no class folders.",
            f"It contains no folders.{loose}",
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
    unread_notes = [*describe_unread_files(tree.place(), found), *_describe_loose_files(tree, [""])]
    class_notes = check_trainable_classes(images, classes, tree.place(), given is not None)
    made, notes = make_train_val_test_splits(images, options)
    return DataSet(classes, made, (*class_notes, *unread_notes, *notes))


def _open_split_folders(
    options: UnsplitDataOptions, tree: FolderTree, given: tuple[str, ...] | None, folders: Mapping[str, str]
) -> DataSet:
    """Build a data set from PATH/{train,val,test}/CLASS. The class map is `given`, or the class folders of train."""
    class_folders = {part: tree.folders(folder) for part, folder in folders.items()}
    classes = given or sort_class_names(class_folders["train"])
    train = tree.place(folders["train"])
    if not class_folders["train"]:
        raise ToastError(
            f"{train} has no class folders.", what_to_do=EXPECTED_FOLDER_LAYOUTS, code="data.no-class-folders"
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
        noun = "folder" if len(unused) == 1 else "folders"
        notes.append(
            f"{tree.place()}: {len(unused)} {noun} not named train, val or test, not read: {', '.join(unused)}"
        )
    for part in ("val", "test"):
        if part in parts and not len(parts[part]):
            notes.append(f"{part}: {tree.place(folders[part])} contains no images and is ignored")
            del parts[part]
    made, made_notes = complete_splits(parts, options, tree.place())
    return DataSet(classes, made, (*notes, *made_notes))


def find_folder(path: str, data_dir: Path | None) -> Path:
    """Return the first existing folder among the candidate paths of `path`.

    Raises:
        ToastError: there is no such folder.
    """
    candidates = list_candidate_paths(path, data_dir)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    for candidate in candidates:
        if candidate.exists():
            raise ToastError(
                f"{candidate} is not a folder.", what_to_do=EXPECTED_FOLDER_LAYOUTS, code="data.not-a-folder"
            )
    raise ToastError(
        f"There is no folder '{path}'.",
        f"Looked for {' and '.join(map(str, candidates))}.",
        "Give an existing folder as folder:PATH, or its parent folder as --data-dir.",
        code="data.missing-folder",
    )


def _find_split_folders(tree: FolderTree, folders: Sequence[str]) -> dict[str, str]:
    """Return the folder names of train, val and test; empty if the folders are classes.

    A class may be called 'train': a folder of that name is a class if there are other classes and it contains images
    but no folders.

    Raises:
        ToastError: two folders have names of the same split, or there is a val or test folder without a train folder.
    """
    found: dict[str, str] = {}
    for name in folders:
        part = SPLIT_ALIASES.get(name.lower())
        if part is None:
            continue
        if part in found:
            raise ToastError(
                f"{tree.place()} has two folders for the same split: {found[part]} and {name}.",
                what_to_do="Remove one.",
                code="data.duplicate-split",
            )
        found[part] = name
    only_splits = len(found) == len(folders)
    if "train" in found:
        return found if only_splits or tree.folders(found["train"]) else {}
    if only_splits:
        raise ToastError(
            f"{tree.place()} has {', '.join(folders)} but no train folder.",
            what_to_do=EXPECTED_FOLDER_LAYOUTS,
            code="data.no-train-split",
        )
    return {}


def _list_class_images(tree: FolderTree, parent: str, classes: Sequence[str]) -> tuple[FileSplit, list[FolderContents]]:
    """Return the images in the class folders below `parent`, sorted, and the contents of each class folder."""
    found = [tree.found(_join_path(parent, name)) for name in classes]
    images = sorted((label, image) for label, each in enumerate(found) for image in each.images)
    return FileSplit(tree.root, tuple(image for _, image in images), tuple(label for label, _ in images)), found


def _describe_loose_files(tree: FolderTree, folders: Sequence[str]) -> list[str]:
    """Return a note on files outside of class folders."""
    loose = [file for folder in folders for file in tree.files(folder)]
    return [f"{tree.place('')}: not read, not in a class folder: {summarize_file_names(loose)}"] if loose else []


def _join_path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _require_images(split: FileSplit, place: str) -> None:
    if not len(split):
        raise ToastError(
            f"{place} contains no images.",
            f"Supported file types are {' '.join(sorted(get_image_suffixes()))}.",
            EXPECTED_FOLDER_LAYOUTS,
            code="data.no-images",
        )

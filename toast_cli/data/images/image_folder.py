"""`folder`: images in one folder per class, with or without train, val and test folders around them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import (
    check_trainable_classes,
    normalize_class_name,
    read_class_file,
    require_known_classes,
    sort_class_names,
)
from toast_cli.data.images.file_formats import get_image_suffixes
from toast_cli.data.images.folder_scan import (
    DiskFolder,
    FolderContents,
    FolderTree,
    describe_unread_files,
    is_image_name,
    summarize_file_names,
)
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.paths import list_candidate_paths
from toast_cli.data.split_names import SplitAssignment, assign_splits, is_plain_name, parse_split_name
from toast_cli.data.splits import (
    NamedSplitsOptions,
    complete_splits,
    format_class_names,
    make_train_val_test_splits,
    quote_class_name,
)
from toast_cli.utils.config import LOCAL_PATH
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

EXPECTED_FOLDER_LAYOUTS = "Expected PATH/{train,val,test}/CLASS/*.jpg (val and test are optional) or PATH/CLASS/*.jpg."

UNLABELLED_FOLDERS = ("unknown", "unlabeled", "unlabelled", "unclassified")
"""Names of an only folder of images without labels in a split."""


class ImageFolderOptions(NamedSplitsOptions):
    """Options of a folder of images."""

    name: Literal["folder"] = Field("folder", description="the data set")
    path: str = Field(
        min_length=1,
        examples=["photographs"],
        json_schema_extra=LOCAL_PATH,
        description="the folder; a relative path is looked up in --data-dir, then in the current folder",
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


SOURCE = DataSource(
    ImageFolderOptions,
    open_image_folder,
    "a folder of images, one folder per class: folder:PATH",
    layout=(
        "PATH/train/CLASS/*.jpg\n"
        "PATH/val/CLASS/*.jpg     (optional)\n"
        "PATH/test/CLASS/*.jpg    (optional)\n"
        "\n"
        "PATH/CLASS/*.jpg         (validation and test images are held out)"
    ),
)


def open_class_folders(options: NamedSplitsOptions, tree: FolderTree, given: tuple[str, ...] | None) -> DataSet:
    """Build a data set from a tree with one folder per class, with or without split folders around them.

    `given` are the classes that a class file lists, or None.

    Raises:
        ToastError: as in `open_image_folder`.
    """
    top = _find_inner_folder(tree, "")
    folders = tree.list_folders(top)
    if not folders:
        loose = " Images are directly in it, not in class folders." if tree.list_files_recursively().images else ""
        raise ToastError(
            f"{tree.get_display_path()} has no class folders.",
            f"It contains no folders.{loose}",
            EXPECTED_FOLDER_LAYOUTS,
            code="data.no-class-folders",
        )
    notes = [f"{tree.get_display_path()}: everything is read from {top}, its only folder"] if top else []
    splits = _find_split_folders(tree, top, folders, options, given)
    if splits is not None:
        return _open_split_folders(options, tree, top, given, splits, notes)
    if inner := _find_splits_in_classes(tree, top, folders):
        return _open_splits_in_classes(options, tree, top, given, inner, notes)
    groups = _group_by_class(tree, top)
    classes = given or sort_class_names(groups)
    require_known_classes(classes, {"the data": groups}, tree.get_display_path(top), origin="the class file")
    images, found = _list_class_images(tree, groups, classes)
    _require_images(images, tree.get_display_path(top))
    notes += [*describe_unread_files(tree.get_display_path(), found.values()), *_describe_loose_files(tree, [top])]
    notes += _describe_spellings(groups)
    notes += check_trainable_classes(images, classes, tree.get_display_path(top), given is not None)
    made, made_notes = make_train_val_test_splits(images, options)
    nested, warnings = _describe_nested_folders(tree.get_display_path(top), found)
    return DataSet(classes, made, (*notes, *nested, *made_notes), tuple(warnings))


def _open_split_folders(
    options: NamedSplitsOptions,
    tree: FolderTree,
    top: str,
    given: tuple[str, ...] | None,
    splits: SplitAssignment,
    notes: list[str],
) -> DataSet:
    """Build a data set from PATH/{train,val,test}/CLASS. The class map is `given`, or the class folders of train."""
    folders = {part: _find_inner_folder(tree, _join_path(top, name)) for part, name in splits.names.items()}
    groups = {part: _group_by_class(tree, folder) for part, folder in folders.items()}
    if "train" in groups and not groups["train"]:
        raise ToastError(
            f"{tree.get_display_path(folders['train'])} has no class folders.",
            what_to_do=f"{EXPECTED_FOLDER_LAYOUTS} If '{splits.names['train']}' is a class, list all classes in a "
            "dataset.class_file.",
            code="data.no-class-folders",
        )
    notes += splits.describe(tree.get_display_path(top), "folder")
    notes += [
        f"{part}: read from {folder}"
        for part, folder in folders.items()
        if folder != _join_path(top, splits.names[part])
    ]
    for part in [part for part in ("val", "test") if part in groups]:
        if unlabelled := _find_unlabelled_images(tree, folders[part], groups[part], groups.get("train", given or ())):
            notes.append(
                f"{part}: not read, {len(unlabelled):,} images in {tree.get_display_path(folders[part])} are in no "
                "class folder: they have no labels"
            )
            del groups[part]
    loose_in = [top, *(folders[part] for part in groups)]
    return _build_split_dataset(options, tree, given, groups, folders, notes, loose_in)


def _open_splits_in_classes(
    options: NamedSplitsOptions,
    tree: FolderTree,
    top: str,
    given: tuple[str, ...] | None,
    inner: Mapping[str, Mapping[str, str]],
    notes: list[str],
) -> DataSet:
    """Build a data set from PATH/CLASS/{train,val,test}; `inner` is the folder of each split by class."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name, parts in inner.items():
        for part, folder in parts.items():
            groups.setdefault(part, {}).setdefault(normalize_class_name(name), []).append(
                _join_path(_join_path(top, name), folder)
            )
    notes.append(f"{tree.get_display_path(top)}: the folders of every class are splits: {', '.join(groups)}")
    if "train" not in groups and given is None:
        raise _make_no_train_error(tree.get_display_path(top), f"{', '.join(groups)} in the class folders")
    folders = dict.fromkeys(groups, top)
    return _build_split_dataset(options, tree, given, groups, folders, notes, [top])


def _build_split_dataset(
    options: NamedSplitsOptions,
    tree: FolderTree,
    given: tuple[str, ...] | None,
    groups: Mapping[str, Mapping[str, list[str]]],
    folders: Mapping[str, str],
    notes: list[str],
    loose_in: Sequence[str],
) -> DataSet:
    """Build a data set from the folders of each class (`groups`), by split."""
    classes = given or sort_class_names(groups["train"])
    require_known_classes(classes, groups, tree.get_display_path(), "the class file" if given else "train")
    read = {part: _list_class_images(tree, group, classes) for part, group in groups.items()}
    parts = {part: files for part, (files, _) in read.items()}
    notes += describe_unread_files(
        tree.get_display_path(), (each for _, found in read.values() for each in found.values())
    )
    notes += _describe_loose_files(tree, loose_in)
    notes += [note for group in groups.values() for note in _describe_spellings(group)]
    warnings: list[str] = []
    if "train" in parts:
        train = tree.get_display_path(folders["train"])
        _require_images(parts["train"], train)
        notes += check_trainable_classes(parts["train"], classes, train, given is not None)
        nested, warnings = _describe_nested_folders(train, read["train"][1])
        notes += nested
    for part in ("val", "test"):
        if part in parts and not len(parts[part]):
            notes.append(f"{part}: {tree.get_display_path(folders[part])} contains no images and is ignored")
            del parts[part]
    made, made_notes = complete_splits(parts, options, tree.get_display_path())
    return DataSet(classes, made, (*notes, *made_notes), tuple(warnings))


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


def _find_split_folders(
    tree: FolderTree,
    top: str,
    folders: Sequence[str],
    options: NamedSplitsOptions,
    given: tuple[str, ...] | None,
) -> SplitAssignment | None:
    """Return the folders of train, val and test; None if the folders are classes.

    A class may be called 'train': a folder of that name is a class if there are other classes and it contains images
    but no folders, or if a class file lists it.

    Raises:
        ToastError: two folders have names of the same split, a name may mean val or test, or there is no train
            folder and no class file, with which other splits alone can be evaluated.
    """
    place = tree.get_display_path(top)
    if options.split_names:
        splits = assign_splits(folders, options.split_names, place)
        if "train" not in splits.names and given is None:
            raise _make_no_train_error(place, ", ".join(folders))
        return splits
    meanings = {name: meaning for name in folders if (meaning := parse_split_name(name)) is not None}
    if not meanings or (given is not None and set(map(normalize_class_name, meanings)) <= set(given)):
        return None
    nested = {name for name in meanings if tree.list_folders(_join_path(top, name))}
    plain = {name for name, meaning in meanings.items() if meaning.plain}
    only_splits = len(meanings) == len(folders)
    trains = {name for name, meaning in meanings.items() if meaning.split in ("train", "trainval")}
    if trains:
        others = nested - trains
        is_split = bool(trains & nested & plain) or bool(trains & nested and (only_splits or others))
        if is_split or (only_splits and trains & plain):
            return assign_splits(folders, {}, place)
        return None
    if nested & plain or (only_splits and (nested or plain)):
        if given is not None:
            return assign_splits(folders, {}, place)
        raise _make_no_train_error(place, ", ".join(sorted(meanings)))
    return None


def _make_no_train_error(place: str, found: str) -> ToastError:
    return ToastError(
        f"{place} has {found} but no train folder.",
        what_to_do=f"{EXPECTED_FOLDER_LAYOUTS} Other names: dataset.split_names={{NAME: train}}. If they are classes, "
        "list all classes in a dataset.class_file.",
        code="data.no-train-split",
    )


def _find_inner_folder(tree: FolderTree, folder: str) -> str:
    """Return the folder in which the classes or splits of `folder` are.

    That is an only folder that repeats the meaning of the one around it (`seg_train/seg_train`), has a name that tells
    nothing (`train/images`), or holds the split folders.
    """
    while True:
        inner = tree.list_folders(folder)
        if len(inner) != 1 or not (deeper := tree.list_folders(path := _join_path(folder, inner[0]))):
            return folder
        meaning, outer = parse_split_name(inner[0]), parse_split_name(folder.rpartition("/")[2])
        splits = [each for each in map(parse_split_name, deeper) if each is not None and each.plain]
        repeats = meaning is not None and outer is not None and meaning.split == outer.split
        holds_splits = meaning is None and any(split.split in ("train", "trainval") for split in splits)
        if not (repeats or is_plain_name(inner[0]) or holds_splits) or any(map(is_image_name, tree.list_files(folder))):
            return folder
        folder = path


def _find_unlabelled_images(
    tree: FolderTree, folder: str, groups: Mapping[str, Sequence[str]], classes: Collection[str]
) -> Sequence[str]:
    """Return the images of a split without class folders: in its folder, or in an only one such as `test/unknown`."""
    if not groups:
        return [name for name in tree.list_files(folder) if is_image_name(name)]
    name, paths = next(iter(groups.items()))
    tells_nothing = is_plain_name(name) or name.lower() in UNLABELLED_FOLDERS or parse_split_name(name) is not None
    return (
        tree.list_files_recursively(paths[0]).images
        if len(groups) == 1 and tells_nothing and name not in classes
        else []
    )


def _find_splits_in_classes(tree: FolderTree, top: str, folders: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the folder of each split, by class folder, if every class folder holds nothing but split folders."""
    found: dict[str, dict[str, str]] = {}
    for name in folders:
        path = _join_path(top, name)
        inner = tree.list_folders(path)
        meanings = [parse_split_name(each) for each in inner]
        if not inner or not all(meaning and meaning.plain for meaning in meanings):
            return {}
        if any(map(is_image_name, tree.list_files(path))):
            return {}
        found[name] = dict(assign_splits(inner, {}, tree.get_display_path(path)).names)
    return found


def _group_by_class(tree: FolderTree, parent: str) -> dict[str, list[str]]:
    """Return the folders of each class below `parent`: two, if its name is there in two forms of Unicode."""
    groups: dict[str, list[str]] = {}
    for name in tree.list_folders(parent):
        groups.setdefault(normalize_class_name(name), []).append(_join_path(parent, name))
    return groups


def _list_class_images(
    tree: FolderTree, groups: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> tuple[FileSplit, dict[str, FolderContents]]:
    """Return the images in the folders of each class, sorted, and the contents of each folder, by its path."""
    found = {
        path: (label, tree.list_files_recursively(path))
        for label, name in enumerate(classes)
        for path in groups.get(name, ())
    }
    images = sorted((label, image) for label, each in found.values() for image in each.images)
    split = FileSplit(tree.root, tuple(image for _, image in images), tuple(label for label, _ in images))
    return split, {path: each for path, (_, each) in found.items()}


def _describe_spellings(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a note on every class whose name is written in several forms of Unicode."""
    return [
        f"class '{name}' has {len(paths)} folders, whose names differ only in the form of Unicode; all are read"
        for name, paths in groups.items()
        if len(paths) > 1
    ]


def _describe_nested_folders(place: str, found: Mapping[str, FolderContents]) -> tuple[list[str], list[str]]:
    """Return notes and warnings on class folders that hold nothing but folders of images.

    If all of them hold the same folders, those may be the classes, and the outer folders splits.

    Args:
        place: the folder of the class folders, for messages.
        found: the contents of each class folder, by its path.
    """
    inner = {
        path: {image[len(path) + 1 :].partition("/")[0] for image in each.images}
        for path, each in found.items()
        if each.images and all("/" in image[len(path) + 1 :] for image in each.images)
    }
    if not inner:
        return [], []
    outer = sorted(path.rpartition("/")[2] for path in inner)
    shared = sorted(set.intersection(*inner.values())) if len(inner) == len(found) else []
    if len(shared) < 2:
        them = "it" if len(outer) == 1 else "them"
        return [f"{place}: {format_class_names(outer)}: the folders in {them} are read, their names are not used"], []
    same = ", ".join(map(quote_class_name, shared[:5]))
    return [], [
        f"{place}: {format_class_names(outer)} hold no images but the same folders, {same}: if those are the classes, "
        "rename the outer folders to train, val and test, or say what they are: "
        f"dataset.split_names={{{outer[0]}: train, ...}}"
    ]


def _describe_loose_files(tree: FolderTree, folders: Sequence[str]) -> list[str]:
    """Return a note on files outside of class folders."""
    loose = [file for folder in folders for file in tree.list_files(folder)]
    return (
        [f"{tree.get_display_path('')}: not read, not in a class folder: {summarize_file_names(loose)}"]
        if loose
        else []
    )


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

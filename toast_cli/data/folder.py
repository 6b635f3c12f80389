"""Folders of images: one folder per class, with or without train, val and test folders around them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.data.files import FileSplit
from toast_cli.data.location import data_folder
from toast_cli.data.source import DataSet, Source
from toast_cli.data.split import SplitOptions, divide, held_out_note, hold_out, listed, require_every_class
from toast_cli.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SPLIT_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LAYOUTS = "Expected are PATH/{train,val,test}/CLASS/*.jpg (val and test optional) or PATH/CLASS/*.jpg."


class Options(SplitOptions):
    """A folder of images and how it is split."""

    name: Literal["folder"] = Field("folder", description="the data set")
    path: str = Field(
        min_length=1, description="the folder; a relative one is looked up in --data-dir, then in the current folder"
    )
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of each class held out for test where the folder is not split at all"
    )


def open_folder(options: Options, data_dir: Path | None) -> DataSet:
    """Read the layout and the file names; no image is opened.

    Raises:
        ToastError: no such folder, no images in it, a single class, or a class without a training image.
    """
    root = find_folder(options.path, data_dir)
    folders = {folder.name: folder for folder in _subfolders(root)}
    if not folders:
        loose = " Images lie directly in it, in no class folder." if any(map(_is_image, root.iterdir())) else ""
        raise ToastError(f"There is no class folder in {root}.", f"The folder holds no folders.{loose}", LAYOUTS)
    splits = _split_folders(root, folders)
    return _open_split(options, root, splits) if splits else _open_flat(options, root, folders)


SOURCE = Source(Options, open_folder, "a folder of images, one folder per class: folder:PATH")


def _open_split(options: Options, root: Path, folders: Mapping[str, Path]) -> DataSet:
    """PATH/{train,val,test}/CLASS: the class folders of train are the class map."""
    class_folders = {part: _subfolders(folder) for part, folder in folders.items()}
    classes = tuple(folder.name for folder in class_folders["train"])
    if not classes:
        raise ToastError(f"There is no class folder in {folders['train']}.", what_to_do=LAYOUTS)
    for part, found in class_folders.items():
        unknown = [folder.name for folder in found if folder.name not in classes]
        if unknown:
            raise ToastError(
                f"{folders[part]} holds {listed(unknown)}, which {folders['train']} does not have.",
                "A class without training images cannot be learned.",
                "Add training images of it, or remove it.",
            )
    parts = {part: _files(root, found, classes) for part, found in class_folders.items()}
    _require_images(parts["train"], folders["train"])
    require_every_class(parts["train"], classes, str(folders["train"]))

    notes = []
    unused = [folder.name for folder in _subfolders(root) if folder not in folders.values()]
    if unused:
        noun = "folder is" if len(unused) == 1 else "folders are"
        notes.append(f"{root}: {len(unused)} {noun} neither train, val nor test and not read: {', '.join(unused)}")
    for part in ("val", "test"):
        if part in parts and not len(parts[part]):
            notes.append(f"{part}: {folders[part]} holds no image, so it is ignored")
            del parts[part]
    made, made_notes = divide(parts["train"], parts.get("val"), options)
    notes += made_notes
    if "test" in parts:
        made["test"] = parts["test"]
    else:
        notes.append(f"test: {root} has no test split, so none is reported")
    return DataSet(classes, made, tuple(notes))


def _open_flat(options: Options, root: Path, folders: Mapping[str, Path]) -> DataSet:
    """PATH/CLASS: test and validation are both made here."""
    classes = tuple(folders)
    images = _files(root, list(folders.values()), classes)
    _require_images(images, root)
    require_every_class(images, classes, str(root))
    # A class of three or more images keeps two here, so that validation and train get one each.
    kept, held = hold_out(images.names, images.labels, options.test_fraction, options.split_seed, leave=2)
    train, test = images.take(kept), images.take(held)
    made, notes = divide(train, None, options)
    if len(test):
        made["test"] = test
    return DataSet(
        classes, made, (held_out_note("test", "all images", options.test_fraction, options.split_seed, test), *notes)
    )


def find_folder(path: str, data_dir: Path | None) -> Path:
    """The folder that `path` means: --data-dir goes first where it was given, TOAST_DATA_DIR or ./data last."""
    here = Path(path).expanduser()
    places = [data_dir / here, here] if data_dir is not None else [here, data_folder(None) / here]
    places = list(dict.fromkeys(place.absolute() for place in places))
    for place in places:
        if place.is_dir():
            return place
    for place in places:
        if place.exists():
            raise ToastError(f"{place} is not a folder.", what_to_do=LAYOUTS)
    raise ToastError(
        f"There is no folder '{path}'.",
        f"Looked for {' and '.join(map(str, places))}.",
        "Give an existing folder as folder:PATH, or the folder it lies in as --data-dir.",
    )


def _split_folders(root: Path, folders: Mapping[str, Path]) -> dict[str, Path]:
    """The folders of train, val and test, or nothing where `root` holds classes.

    A class may be called 'train' too: beside other classes, and with images but no folders in it, it is one.

    Raises:
        ToastError: two folders claim one split, or val or test stand there without train.
    """
    found: dict[str, Path] = {}
    for name, folder in folders.items():
        part = SPLIT_OF.get(name.lower())
        if part is None:
            continue
        if part in found:
            raise ToastError(
                f"{root} has two folders for one split: {found[part].name} and {name}.", what_to_do="Remove one."
            )
        found[part] = folder
    only_splits = len(found) == len(folders)
    if "train" in found:
        return found if only_splits or _subfolders(found["train"]) else {}
    if only_splits:
        raise ToastError(f"{root} holds {', '.join(folders)} but no train folder.", what_to_do=LAYOUTS)
    return {}


def _files(root: Path, class_folders: Sequence[Path], classes: Sequence[str]) -> FileSplit:
    """All images below the class folders, in an order that no file system decides."""
    labels = {name: label for label, name in enumerate(classes)}
    found = sorted(
        (labels[folder.name], file.relative_to(root).as_posix())
        for folder in class_folders
        for file in images_below(folder)
    )
    return FileSplit(root, tuple(name for _, name in found), tuple(label for label, _ in found))


def images_below(folder: Path) -> list[Path]:
    """Images anywhere below a folder. Links to files are taken, links to folders are not followed: they may loop."""
    images = []
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        images += [file for file in (Path(place, name) for name in files) if _is_image(file)]
    return images


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ToastError(f"{folder} cannot be read.", error.strerror or str(error), "Check its permissions.") from error


def _require_images(split: FileSplit, folder: Path) -> None:
    if not len(split):
        raise ToastError(
            f"There is no image in {folder}.",
            f"Read are {' '.join(sorted(EXTENSIONS))}.",
            LAYOUTS,
        )

"""`torchvision:NAME`: the data sets of torchvision with a class for every image or every pixel."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from toast_cli.data.base import DataSet, DataSource, Sample, SplitKind
from toast_cli.data.class_map import (
    check_trainable_classes,
    normalize_class_names,
    read_class_file,
    require_known_classes,
    sort_class_names,
)
from toast_cli.data.datasets.torchvision_catalog import OTHER_SETS, SETS, TorchvisionSet
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.paths import DATA_DIR_VARIABLE, get_data_dir
from toast_cli.data.segmentation.dataset import (
    UNLABELLED_PIXEL,
    require_segmentable,
)
from toast_cli.data.splits import UnsplitDataOptions, complete_splits, make_train_val_test_splits
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import get_cache_folder

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class TorchvisionOptions(UnsplitDataOptions):
    """Options of torchvision's data sets: the set, and whether to download it."""

    name: Literal["torchvision"] = Field("torchvision", description="the data set")
    path: str = Field(
        examples=["EuroSAT"], description="the set, in any case: " + ", ".join(sorted(SETS, key=str.lower))
    )
    download: bool = Field(
        False,
        description="download the set if it is missing: into --data-dir or TOAST_DATA_DIR, else into TOAST_CACHE_DIR",
    )

    @field_validator("path")
    @classmethod
    def _find_set(cls, path: str) -> str:
        by_form = {name.lower(): name for name in (*SETS, *OTHER_SETS)}
        name = by_form.get(path.lower())
        if name in OTHER_SETS:
            raise ValueError(f"torchvision's {name} cannot be used: {OTHER_SETS[name]}")
        if name is None:
            near = get_close_matches(path.lower(), [each.lower() for each in SETS], n=1, cutoff=0.5)
            hint = f"The nearest is '{by_form[near[0]]}'." if near else f"Known: {', '.join(SETS)}."
            raise ValueError(f"torchvision has no set of this name with classes. {hint}")
        return name


def open_torchvision(options: TorchvisionOptions, data_dir: Path | None) -> DataSet:
    """Open the official splits of a set; hold out those that it does not have.

    Raises:
        UsageError: torchvision cannot download the set, or an option does not fit it.
        ToastError: the set is missing, damaged, or cannot be downloaded.
    """
    entry = SETS[options.path]
    root, loaded = _load_splits(options, entry, data_dir)
    if entry.pixels is not None:
        return _open_pixel_set(options, entry, loaded, str(root))
    parts, classes = _make_image_splits(loaded)
    named = read_class_file(options.class_file, data_dir)
    if named is not None:
        used = {part: {classes[label] for label in split.labels} for part, split in parts.items()}
        require_known_classes(named, used, str(root), "the class file")
        order = {name: label for label, name in enumerate(named)}
        parts = {
            part: replace(split, labels=tuple(order[classes[label]] for label in split.labels))
            for part, split in parts.items()
        }
        classes = named
    notes = [f"torchvision's {options.path}, read from {root}"]
    notes += check_trainable_classes(parts["train"], classes, str(root), named is not None)
    made, made_notes = (
        make_train_val_test_splits(parts["train"], options)
        if len(entry.splits) == 1
        else complete_splits(parts, options, f"torchvision's {options.path}")
    )
    return DataSet(classes, made, (*notes, *made_notes))


SOURCE = DataSource(
    TorchvisionOptions,
    open_torchvision,
    "a set as torchvision stores it, in the data folder; or dataset.download=true: torchvision:NAME",
    home="https://docs.pytorch.org/vision/stable/datasets.html",
    layout="torchvision:NAME looks for the folder that torchvision makes:\n"
    + "\n".join(f"  {name}: {entry.marker}" for name, entry in SETS.items()),
    tasks={name.lower(): "segmentation" for name, entry in SETS.items() if entry.pixels is not None},
)


@dataclass(frozen=True)
class TorchvisionSplit:
    """Images that torchvision holds in memory or reads itself, with their classes.

    Attributes:
        dataset: the data set.
        indices: the samples of the split, by their index in the data set.
        labels: class index of every sample; -1 if labels belong to pixels.
        names: name of every sample.
        value_classes: class of every pixel value; None if labels belong to images.
    """

    dataset: Any
    indices: tuple[int, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    value_classes: Mapping[int, int] | None = None
    has_masks: bool = False

    @property
    def kind(self) -> SplitKind:
        """Whether images or pixels have a class."""
        return "images" if self.value_classes is None else "pixels"

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Sequence[int]) -> TorchvisionSplit:
        """Return the split of the samples at `indices`, in that order."""
        return replace(
            self,
            indices=tuple(self.indices[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
        )

    def load(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            ToastError: torchvision cannot read it, or a pixel has an unknown value.
        """
        name = self.names[index]
        try:
            image, target = self.dataset[self.indices[index]]
            image = _to_rgb(image)
        except Exception as error:  # whatever a set raises on a damaged file
            raise ToastError(
                f"Cannot read image {name} of torchvision's {type(self.dataset).__name__}.",
                f"{type(error).__name__}: {error}",
                "Download the set again.",
                code="data.unreadable-image",
            ) from error
        if self.value_classes is None:
            return Sample(image, self.labels[index], name)
        require_segmentable(image, name)
        return Sample(image, -1, name, classes=self._read_classes(target, name))

    def _read_classes(self, target: Any, name: str) -> np.ndarray:
        import numpy as np

        values = np.asarray(target)
        classes = np.full(256, -1)
        for value, label in {**(self.value_classes or {}), UNLABELLED_PIXEL: UNLABELLED_PIXEL}.items():
            classes[value] = label
        found = classes[values]
        if (found < 0).any():
            raise ToastError(
                f"The class map of {name} has the value {values[found < 0][0]}, which is not a class.",
                what_to_do="Download the set again.",
                code="data.unknown-class",
            )
        return found.astype(np.uint8)


def _to_rgb(image: Any) -> Image:
    from torchvision.transforms.v2.functional import to_pil_image

    return (image if hasattr(image, "convert") else to_pil_image(image)).convert("RGB")


def _load_splits(
    options: TorchvisionOptions, entry: TorchvisionSet, data_dir: Path | None
) -> tuple[Path, dict[str, Any]]:
    """Return the root of a set and torchvision's object of every split, downloaded if asked for and missing."""
    data, cache = get_data_dir(data_dir), get_cache_folder() / "torchvision"
    roots = [place for base in (data, cache) for place in (base, base / options.path.lower())]
    root = next((place for place in roots if (place / entry.marker).exists()), None)
    if root is not None:
        _require_regular_files(root / Path(entry.marker).parts[0])
        try:
            return root, _construct_splits(options.path, entry, root, download=False)
        except ToastError:
            if not options.download:
                raise
    if not options.download:
        raise ToastError(
            f"torchvision's {options.path} was not found.",
            f"None of {', '.join(map(str, roots))} has {entry.marker}.",
            ("Add dataset.download=true to download it, or pass" if entry.downloads else "Pass")
            + f" the folder that contains {entry.marker} as --data-dir.",
            code="data.missing-dataset",
        )
    if not entry.downloads:
        raise UsageError(
            f"torchvision cannot download {options.path}.",
            "Its authors do not offer it without a login, or their address no longer exists.",
            f"Get it yourself, and pass the folder that contains {entry.marker} as --data-dir.",
            code="data.cannot-download",
        )
    base = data if data_dir is not None or os.environ.get(DATA_DIR_VARIABLE) else cache
    root = root or (base / options.path.lower() if entry.loose else base)

    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{options.path}.lock"):  # one of several processes downloads, the others find it
        return root, _construct_splits(options.path, entry, root, download=True)


def _require_regular_files(place: Path) -> None:
    """Check that a folder of a set holds files and folders alone, because torchvision opens them without a look.

    Raises:
        ToastError: something in it is a pipe or a device, reading which may never end.
    """
    waiting = [place]
    while waiting and (folder := waiting.pop()).is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not entry.is_file() and not entry.is_symlink():
                    raise ToastError(
                        f"{entry.path} is not a regular file.",
                        "Reading a pipe or a device may never end.",
                        "Remove it.",
                        code="data.not-a-regular-file",
                    )


def _construct_splits(name: str, entry: TorchvisionSet, root: Path, download: bool) -> dict[str, Any]:
    """Return torchvision's object of every split.

    Raises:
        ToastError: torchvision cannot open or download it.
    """
    from torchvision import datasets

    flag = {"download": download} if entry.downloads else {}
    made = {}
    for part, chosen in entry.splits.items():
        try:
            with redirect_stdout(sys.stderr):
                made[part] = getattr(datasets, name)(root=str(root), **entry.extra, **chosen, **flag)
        except Exception as error:  # whatever a set raises
            raise ToastError(
                f"torchvision cannot {'download' if download else 'open'} {name} ({part}) in {root}.",
                f"{type(error).__name__}: {error}",
                "Check the network and the free disk space, or download the set by hand."
                if download
                else "Download the set again, for example with dataset.download=true."
                if entry.downloads
                else "Get the set again.",
                code="data.download-failed" if download else "data.invalid-dataset",
            ) from error
    return made


def _make_image_splits(loaded: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the splits of a set with a class for every image, and its classes."""
    labels = {part: _list_labels(dataset) for part, dataset in loaded.items()}
    known = {part: [label for label in each if label is not None] for part, each in labels.items()}
    kept = {part: loaded[part] for part, each in known.items() if each and len(each) == len(labels[part])}
    listed = _list_class_names(loaded["train"])
    names = tuple(listed or ())
    if listed is None:  # the set numbers its classes
        names = sort_class_names({str(label) for label in known["train"]})
        index = {int(name): label for label, name in enumerate(names)}
        require_known_classes(names, {part: {*map(str, known[part])} for part in kept}, "torchvision's set")
        known = {part: [index[label] for label in known[part]] for part in kept}
    files = {part: _list_files(dataset) for part, dataset in kept.items()}
    splits: dict[str, Any] = {}
    if all(files.values()):
        root = Path(os.path.commonpath([file.parent for each in files.values() for file in each or ()]))
        for part, each in files.items():
            relative = [file.relative_to(root).as_posix() for file in each or ()]
            ordered = sorted(zip(relative, known[part], strict=True))  # INaturalist lists folders as the disk has them
            splits[part] = FileSplit(root, tuple(name for name, _ in ordered), tuple(label for _, label in ordered))
    else:
        for part, dataset in kept.items():
            count = range(len(dataset))
            numbered = tuple(f"{part}/{index:07d}" for index in count)
            splits[part] = TorchvisionSplit(dataset, tuple(count), tuple(known[part]), numbered)
    return splits, normalize_class_names(names)


def _list_labels(dataset: Any) -> list[int | None]:
    """Return the class of every sample without opening an image; None for one without a class."""
    if hasattr(dataset, "h5py"):  # PCAM
        file = dataset._base_folder / dataset._FILES[dataset._split]["targets"][0]
        with dataset.h5py.File(file) as targets:
            return [int(value) for value in targets["y"][:].reshape(-1)]
    values: Any = next(
        (getattr(dataset, name) for name in ("targets", "labels", "_labels", "y") if hasattr(dataset, name)), None
    )
    if values is None:
        pairs = getattr(dataset, "_samples", None) or getattr(dataset, "samples", None)
        # INaturalist has pairs of class and file.
        values = [label for _, label in pairs] if pairs else [label for label, _ in dataset.index]
    return [None if value is None else int(value) for value in values]


def _list_class_names(dataset: Any) -> list[str] | None:
    """Return the names of the classes in the order of the labels; None if the set has none."""
    found: Any = next(
        (getattr(dataset, name) for name in ("classes", "categories", "all_categories") if hasattr(dataset, name)), None
    )
    return None if found is None else [", ".join(name) if isinstance(name, tuple) else str(name) for name in found]


def _list_files(dataset: Any) -> list[Path] | None:
    """Return the file of every sample; None if torchvision reads the images from something else."""
    if hasattr(dataset, "all_categories"):
        return [Path(dataset.root, dataset.all_categories[label], name) for label, name in dataset.index]
    for attribute in ("_image_files", "_images", "_samples", "samples", "imgs"):
        found = getattr(dataset, attribute, None)
        if found:
            files = [each[0] if isinstance(each, tuple) else each for each in found]
            return [Path(file).absolute() for file in files] if isinstance(files[0], str | Path) else None
    return None


def _open_pixel_set(
    options: TorchvisionOptions, entry: TorchvisionSet, loaded: Mapping[str, Any], root: str
) -> DataSet:
    """Return a set with a class for every pixel."""
    for name in ("shots", "class_file"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"dataset.{name} does not support segmentation.",
                what_to_do="Leave it out.",
                code="data.unsupported-option",
            )
    assert entry.pixels is not None
    classes, values = entry.pixels(loaded["train"])
    splits: dict[str, Any] = {}
    for part, dataset in loaded.items():
        count = len(dataset)
        names = tuple(Path(file).name for file in dataset.images)
        splits[part] = TorchvisionSplit(dataset, tuple(range(count)), (-1,) * count, names, values)
    notes = [f"torchvision's {options.path}, read from {root}"]
    notes.append(f"test: torchvision's {options.path} has no test split, so none is reported")
    return DataSet(tuple(classes), splits, tuple(notes))

"""VTAB-1k: 19 tasks of 1,000 training images each, in the file-list layout in common use; needs no TensorFlow.

Zhai et al., *A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark* (2019). A task
is a folder of images and four lists: `train800.txt`, `val200.txt`, both in `train800val200.txt`, and `test.txt`; a line
is a path below the folder, a space and a class number. Settings are chosen on 800 + 200; then a model is trained on
all 1,000 and tested once (the paper's appendix A.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.files import read_text_file, require_files
from toast_cli.data.paths import get_data_dir
from toast_cli.data.splits import compute_split_hash, format_class_names
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError, did_you_mean

VTAB_FOLDER = "vtab-1k"
VTAB_URL = "https://google-research.github.io/task_adaptation"


@dataclass(frozen=True)
class VtabTask:
    """One task as published: its group, how many classes it has and how many test images, and what it is judged by."""

    group: Literal["natural", "specialized", "structured"]
    classes: int
    test: int
    metric: str = "accuracy"


VTAB_TASKS = {
    "cifar": VtabTask("natural", 100, 10_000),
    "caltech101": VtabTask("natural", 102, 6_084),
    "dtd": VtabTask("natural", 47, 1_880),
    "oxford_flowers102": VtabTask("natural", 102, 6_149),
    "oxford_iiit_pet": VtabTask("natural", 37, 3_669),
    "svhn": VtabTask("natural", 10, 26_032),
    "sun397": VtabTask("natural", 397, 21_750),
    "patch_camelyon": VtabTask("specialized", 2, 32_768),
    "eurosat": VtabTask("specialized", 10, 5_400),
    "resisc45": VtabTask("specialized", 45, 6_300),
    "diabetic_retinopathy": VtabTask("specialized", 5, 42_670),
    "clevr_count": VtabTask("structured", 8, 15_000),
    "clevr_dist": VtabTask("structured", 6, 15_000),
    "dmlab": VtabTask("structured", 6, 22_735),
    "kitti": VtabTask("structured", 4, 711),
    "dsprites_loc": VtabTask("structured", 16, 73_728),
    "dsprites_ori": VtabTask("structured", 16, 73_728),
    "smallnorb_azi": VtabTask("structured", 18, 12_150),
    "smallnorb_ele": VtabTask("structured", 9, 12_150),
}
"""By the names of their folders, in the order of the paper's table 2. VTAB judges every task by top-1 accuracy."""

LIST_SIZES = {"train800": 800, "val200": 200, "train800val200": 1_000}


class VtabOptions(NamedOptions):
    """Which task, and which of its lists are trained on."""

    name: Literal["vtab"] = Field("vtab", description="the data set")
    path: str = Field(description="the task: " + ", ".join(VTAB_TASKS))
    use: Literal["train800", "all1000"] = Field(
        "train800",
        description="train800: validated on val200, to choose settings; all1000: on both lists, without validation, "
        "for the run that is reported",
    )


def open_vtab(options: VtabOptions, data_dir: Path | None) -> DataSet:
    """Read a task's lists; no image is opened. Classes are called by their numbers, which is all that is published.

    Raises:
        UsageError: there is no such task.
        ToastError: its lists are not there, or one has an odd line or names an image that is not there.
    """
    task = VTAB_TASKS.get(options.path)
    if task is None:
        hint = did_you_mean(options.path, VTAB_TASKS)
        known = "" if "Known:" in hint else f" Known: {', '.join(VTAB_TASKS)}."
        raise UsageError(f"There is no VTAB task '{options.path}'.", what_to_do=hint + known, code="data.unknown-task")
    root = _find_root(get_data_dir(data_dir), options.path)
    if options.use == "train800":
        lists = {"train": "train800", "val": "val200", "test": "test"}
    else:
        lists = {"train": "train800val200", "test": "test"}
    splits = {part: _read_split(root, name, task.classes) for part, name in lists.items()}
    images = [root / name for split in splits.values() for name in split.names]
    require_files([(str(file), file) for file in images], f"images of {root}", "Fetch the task anew.")
    _require_disjoint(root, splits)
    notes = [f"VTAB-1k, {options.path}: {task.group}, {task.classes} classes, judged by top-1 {task.metric}"]
    for part, name in lists.items():
        wanted = LIST_SIZES.get(name, task.test)
        if len(splits[part]) != wanted:
            notes.append(f"{name}.txt holds {len(splits[part]):,} images; the published list has {wanted:,}.")
    seen = set(splits["train"].labels)
    missing = [str(label) for label in range(task.classes) if label not in seen]
    if missing:
        notes.append(f"train: no image of {format_class_names(missing)}")
    train = splits["train"]
    notes.append(f"train: {lists['train']}.txt, split {compute_split_hash(train.names, train.labels)}")
    return DataSet(tuple(map(str, range(task.classes))), splits, tuple(notes))


SOURCE = DataSource(
    VtabOptions,
    open_vtab,
    f"a folder per task in the data folder ({VTAB_FOLDER}/cifar/train800.txt, ...): vtab:TASK",
    home=VTAB_URL,
)


def _find_root(home: Path, task: str) -> Path:
    for place in (home / VTAB_FOLDER / task, home / task, home):
        if (place / "train800val200.txt").is_file() and place.name == task:
            return place
    raise ToastError(
        f"VTAB-1k's {task} was not found.",
        f"Neither {home / VTAB_FOLDER / task} nor {home / task} holds train800val200.txt.",
        "Get VTAB-1k in its file-list layout (a folder per task with train800.txt, val200.txt, train800val200.txt and "
        f"test.txt) and put it there, or name the folder that holds {VTAB_FOLDER} with --data-dir.",
        code="data.missing-dataset",
    )


def _read_split(root: Path, name: str, classes: int) -> FileSplit:
    """The images of one list."""
    file = root / f"{name}.txt"
    try:
        lines = read_text_file(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"The list {file} cannot be read.", str(error), "Fetch it anew.", code="data.unreadable-file"
        ) from error
    names, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= classes:
            why, code = f"expected a path and a class from 0 to {classes - 1}", "data.invalid-list"
        elif PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            why, code = "the path leads out of the task's folder", "data.unsafe-path"
        else:
            names.append(path)
            labels.append(int(label))
            continue
        raise ToastError(
            f"{file}, line {number}: {why}; found '{line}'.",
            what_to_do="Fetch the list anew, or mend it.",
            code=code,
        )
    if not names:
        raise ToastError(f"{file} names no image.", what_to_do="Fetch the task anew.", code="data.no-images")
    return FileSplit(root, tuple(names), tuple(labels))


def _require_disjoint(root: Path, splits: dict[str, FileSplit]) -> None:
    """An image that is trained on, or that settings are chosen by, is not judged by."""
    for first, second in combinations(splits, 2):
        both = sorted(set(splits[first].names).intersection(splits[second].names))
        if both:
            raise ToastError(
                f"{root}: {len(both):,} images of the {first} list are in the {second} list too, the first is "
                f"{both[0]}.",
                "A model must not be judged by what it was trained on or chosen by.",
                "Fetch the lists anew.",
                code="data.overlapping-splits",
            )

"""VTAB-1k: 19 tasks with 1,000 training images each, in the common file-list layout. TensorFlow is not required.

Zhai et al., *A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark* (2019). A task
is a folder with images and four lists: `train800.txt`, `val200.txt`, `train800val200.txt` (the union of the first two)
and `test.txt`. Each line is a path relative to the folder, a space and a class number. Hyperparameters are chosen by
training on 800 images and validating on 200; the final model is trained on all 1,000 and tested once (appendix A.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.images.files import read_text_file
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.listed_files import require_files
from toast_cli.data.paths import get_data_dir
from toast_cli.data.splits import compute_split_hash, format_class_names
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError, did_you_mean

VTAB_FOLDER = "vtab-1k"
VTAB_URL = "https://google-research.github.io/task_adaptation"


@dataclass(frozen=True)
class VtabTask:
    """A task as published: its group, the number of classes and test images, and its metric."""

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
"""Tasks by folder name, in the order of table 2 of the paper. The metric of every task is top-1 accuracy."""

LIST_SIZES = {"train800": 800, "val200": 200, "train800val200": 1_000}


class VtabOptions(NamedOptions):
    """Options of VTAB-1k: the task and the lists to train on."""

    name: Literal["vtab"] = Field("vtab", description="the data set")
    path: str = Field(examples=["caltech101"], description="the task: " + ", ".join(VTAB_TASKS))
    use: Literal["train800", "all1000"] = Field(
        "train800",
        description="train800: train on train800 and validate on val200, to choose hyperparameters; all1000: train on "
        "both lists without validation, for the result to report",
    )


def open_vtab(options: VtabOptions, data_dir: Path | None) -> DataSet:
    """Read the lists of a task, without opening any image.

    Classes are named by their numbers, because the lists contain no names.

    Raises:
        UsageError: If the task is unknown.
        ToastError: If a list or an image is missing, a line is invalid, or two lists share an image.
    """
    task = VTAB_TASKS.get(options.path)
    if task is None:
        hint = did_you_mean(options.path, VTAB_TASKS)
        known = "" if "Known:" in hint else f" Known: {', '.join(VTAB_TASKS)}."
        raise UsageError(f"Unknown VTAB task '{options.path}'.", what_to_do=hint + known, code="data.unknown-task")
    root = _find_root(get_data_dir(data_dir), options.path)
    if options.use == "train800":
        lists = {"train": "train800", "val": "val200", "test": "test"}
    else:
        lists = {"train": "train800val200", "test": "test"}
    splits = {part: _read_split(root, name, task.classes) for part, name in lists.items()}
    images = [root / name for split in splits.values() for name in split.names]
    require_files([(str(file), file) for file in images], f"images of {root}", "Download the task again.")
    _require_disjoint(root, splits)
    notes = [f"VTAB-1k, {options.path}: {task.group}, {task.classes} classes, metric: top-1 {task.metric}"]
    for part, name in lists.items():
        expected = LIST_SIZES.get(name, task.test)
        if len(splits[part]) != expected:
            notes.append(f"{name}.txt has {len(splits[part]):,} images; the published list has {expected:,}.")
    trained = set(splits["train"].labels)
    missing = [str(label) for label in range(task.classes) if label not in trained]
    if missing:
        notes.append(f"train: no images of {format_class_names(missing)}")
    train = splits["train"]
    notes.append(f"train: {lists['train']}.txt, split {compute_split_hash(train.names, train.labels)}")
    return DataSet(tuple(map(str, range(task.classes))), splits, tuple(notes))


SOURCE = DataSource(
    VtabOptions,
    open_vtab,
    f"one folder per task in the data folder ({VTAB_FOLDER}/cifar/train800.txt, ...): vtab:TASK",
    home=VTAB_URL,
    layout=(
        "vtab-1k/TASK/\n"
        "  train800.txt  val200.txt  train800val200.txt  test.txt   (lines: path, blank, class number)\n"
        "  images/..."
    ),
)


def _find_root(home: Path, task: str) -> Path:
    for place in (home / VTAB_FOLDER / task, home / task, home):
        if (place / "train800val200.txt").is_file() and place.name == task:
            return place
    raise ToastError(
        f"The VTAB-1k task {task} was not found.",
        f"Neither {home / VTAB_FOLDER / task} nor {home / task} contains train800val200.txt.",
        "Put VTAB-1k there in the file-list layout (one folder per task with train800.txt, val200.txt, "
        f"train800val200.txt and test.txt), or pass the folder that contains {VTAB_FOLDER} as --data-dir.",
        code="data.missing-dataset",
    )


def _read_split(root: Path, name: str, classes: int) -> FileSplit:
    """Read the images of a list."""
    file = root / f"{name}.txt"
    try:
        lines = read_text_file(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"Cannot read the list {file}.", str(error), "Download it again.", code="data.unreadable-file"
        ) from error
    names, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= classes:
            why, code = f"expected a path and a class from 0 to {classes - 1}", "data.invalid-list"
        elif PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            why, code = "the path is outside the folder of the task", "data.unsafe-path"
        else:
            names.append(path)
            labels.append(int(label))
            continue
        raise ToastError(
            f"{file}, line {number}: {why}; got '{line}'.",
            what_to_do="Download the list again, or correct the line.",
            code=code,
        )
    if not names:
        raise ToastError(f"{file} lists no images.", what_to_do="Download the task again.", code="data.no-images")
    return FileSplit(root, tuple(names), tuple(labels))


def _require_disjoint(root: Path, splits: dict[str, FileSplit]) -> None:
    """Check that no image is in more than one of the train, validation and test lists."""
    for first, second in combinations(splits, 2):
        both = sorted(set(splits[first].names).intersection(splits[second].names))
        if both:
            raise ToastError(
                f"{root}: {len(both):,} images of the {first} list are also in the {second} list, such as {both[0]}.",
                "A model must not be evaluated on images that it was trained or selected on.",
                "Download the lists again.",
                code="data.overlapping-splits",
            )

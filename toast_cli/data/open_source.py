"""The opening of any data source, with the checks that all of them share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.data.base import DataSet
from toast_cli.data.class_map import describe_similar_classes
from toast_cli.utils.errors import ToastError, require_type

if TYPE_CHECKING:
    from toast_cli.data.base import DataSource
    from toast_cli.utils.config import NamedOptions


def open_source(source: DataSource, options: NamedOptions, data_dir: Path | None, package: str = "") -> DataSet:
    """Open a data set. Leave out empty splits, with a note, and warn of classes that are hardly different.

    `package` is the distribution of the source, for messages about a plugin.

    Raises:
        ToastError: the data set cannot be opened, or has no training samples.
    """
    data = source.open(options, data_dir)
    require_type(data, DataSet, f"'open' of the data set '{options.name}'", package)
    empty = [part for part, split in data.splits.items() if not len(split)]
    if "train" in empty or not data.splits:
        raise ToastError(
            f"The data set '{options.name}' has no training samples.",
            what_to_do="Check the data set and its options.",
            code="data.no-train-split",
        )
    return replace(
        data,
        splits={part: split for part, split in data.splits.items() if part not in empty},
        notes=(*data.notes, *(f"{part}: the split is empty and is ignored" for part in empty)),
        warnings=(*data.warnings, *describe_similar_classes(data.classes)),
    )

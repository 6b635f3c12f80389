"""`shards`: WebDataset tar files, streamed: images in the number of ImageNet, which nobody wants to unpack.

A shard is a tar of samples, each a few files of one name: the image (`jpg`, `png`, ...) and its class (`cls`).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.class_map import read_class_file
from toast_cli.data.images.folder_scan import summarize_file_names
from toast_cli.data.images.unlabelled_folder import UNLABELLED_CLASSES
from toast_cli.data.paths import list_candidate_paths
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.data.streams.dataset import StreamSplit
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError


class WebDatasetOptions(NamedOptions):
    """Which shards, what their files are called, and how many samples they hold."""

    name: Literal["shards"] = Field("shards", description="the data set")
    path: str = Field(
        min_length=1,
        description="training shards: a folder, or a pattern with *, ? or {000..127}; relative ones are looked up in "
        "--data-dir, then in the current folder; addresses (https://..., hf://...) are read from there",
    )
    validation: str | None = Field(None, description="validation shards, likewise; left out: val_shards of the others")
    val_shards: int = Field(
        1, ge=0, description="shards held out for validation where there are none of its own; 0: no validation"
    )
    split_seed: int = Field(0, ge=0, description="seed that draws them, apart from the run's own seed")
    image_column: str | None = Field(None, description="ending of the images; left out: the only one there is")
    label_column: str | None = Field("cls", description="ending of the files with the class; null: there are no labels")
    classes: int | None = Field(None, ge=2, description="how many classes, where no class_file names them")
    class_file: str | None = Field(None, description="file with a class on each line, in the order of the numbers")
    samples: int | None = Field(
        None, ge=1, description="images in all training shards; left out: those on disk are counted from the tars"
    )
    validation_samples: int | None = Field(None, ge=1, description="images in the validation shards, likewise")
    shuffle_buffer: int = Field(
        1000, ge=1, description="each reader shuffles its shards, and so many undecoded images at a time"
    )


def open_shards(options: WebDatasetOptions, data_dir: Path | None) -> DataSet:
    """Find the shards, count their images where nobody says how many, and look at the first few; none is decoded.

    Raises:
        ToastError: there are no shards, one cannot be read, or its files are not as named.
        UsageError: how many images or classes there are has to be said.
    """
    train = _find_shards(options.path, data_dir)
    samples, validation_samples = options.samples, options.validation_samples
    notes = []
    if options.validation is not None:
        validation = _find_shards(options.validation, data_dir)
    else:
        count = min(options.val_shards, len(train) - 1)
        kept, held = hold_out(
            [Path(file).name for file in train], [0] * len(train), count / len(train), options.split_seed
        )
        if count and samples is not None and validation_samples is None:
            raise UsageError(
                "dataset.samples counts all training shards, and some of them are held out.",
                what_to_do="Leave it out, say dataset.validation_samples too, name dataset.validation, or use "
                "dataset.val_shards=0.",
                code="data.ambiguous-length",
            )
        if samples is not None and count:
            samples -= validation_samples or 0
        train, validation = [train[i] for i in kept], [train[i] for i in held]
        if held:
            digest = compute_split_hash([Path(file).name for file in validation], [0] * len(validation))
            notes.append(f"validation: {len(held)} shards held out, seed {options.split_seed}, split {digest}")
    classes = _get_class_names(options, data_dir)
    splits = {"train": _open_split(options, train, classes, samples, "dataset.samples")}
    if validation:
        splits["val"] = _open_split(options, validation, classes, validation_samples, "dataset.validation_samples")
    return DataSet(classes, splits, tuple(notes))


SOURCE = DataSource(
    WebDatasetOptions,
    open_shards,
    'WebDataset tar files, streamed: shards:FOLDER or shards:train-{0000..0127}.tar (pip install "datasets>=4.4")',
)


def _get_class_names(options: WebDatasetOptions, data_dir: Path | None) -> tuple[str, ...]:
    if options.label_column is None:
        return UNLABELLED_CLASSES
    named = read_class_file(options.class_file, data_dir)
    if named is None and options.classes is None:
        raise UsageError(
            "How many classes the shards have has to be said.",
            "It stands in no shard, and reading all of them to find out takes as long as an epoch.",
            "Say dataset.classes=1000, name a dataset.class_file, or use dataset.label_column=null for pre-tuning "
            "without labels.",
            code="data.unknown-class-names",
        )
    return named or tuple(map(str, range(options.classes or 0)))


def _open_split(
    options: WebDatasetOptions, files: list[str], classes: tuple[str, ...], samples: int | None, field: str
) -> StreamSplit:
    table = _open_stream(options.path, files)
    image = _find_image_column(options, table)
    if options.label_column is not None and options.label_column not in table.features:
        raise ToastError(
            f"{files[0]} has no '.{options.label_column}' files.",
            f"Its samples have {', '.join(f'.{name}' for name in table.features if not name.startswith('__'))}.",
            "Name the one with the class: dataset.label_column=NAME; null, if there is none.",
            code="data.missing-column",
        )
    # Which images there are is known where they were counted; else the shards stand for theirs.
    names = [Path(file).name for file in files]
    if samples is None:
        names = [f"{Path(file).name}/{member}" for file in files for member in _list_shard_images(file, image, field)]
        samples = len(names)
    if not samples:
        raise ToastError(
            f"The shards {options.path} hold no '.{image}' images.", what_to_do="Pack them anew.", code="data.no-images"
        )
    wanted = [name for name in ("__key__", image, options.label_column) if name is not None]
    table = table.select_columns(wanted).cast_column(image, type(table.features[image])(decode=False))
    return StreamSplit(
        table,
        image,
        options.label_column,
        classes,
        samples,
        options.path,
        "__key__",
        options.shuffle_buffer,
        digest=compute_split_hash(names, [0] * len(names)),
    )


def _open_stream(path: str, files: Sequence[str]) -> Any:
    """The shards as the library's stream."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ToastError(
            "Shards are read through the datasets library.",
            what_to_do='pip install "datasets>=4.4".',
            code="data.missing-library",
        ) from error
    try:
        return load_dataset("webdataset", data_files={"train": list(files)}, split="train", streaming=True)
    except Exception as error:  # the library raises whatever a damaged tar or a missing address makes it trip over
        raise ToastError(
            f"The shards {path} cannot be opened.",
            f"{type(error).__name__}: {error}",
            "Expected are tar files of samples, each an image and its class under one name: 0001.jpg, 0001.cls.",
            code="data.cannot-open",
        ) from error


def _find_image_column(options: WebDatasetOptions, table: Any) -> str:
    from datasets import Image

    found = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    if options.image_column is not None:
        found = [name for name in found if name == options.image_column]
    if options.image_column is None and len(found) > 1 and all("." in name for name in found):
        raise ToastError(
            f"The shards {options.path} have names with dots in them: {summarize_file_names(found)}.",
            "What follows the first dot of a name says what the file is, so every image is of a kind of its own.",
            "Pack them anew under names without dots, other than that before jpg or cls.",
            code="data.dotted-names",
        )
    if len(found) != 1:
        raise ToastError(
            f"The shards {options.path} have {len(found) or 'no'} kinds of images"
            + (f" called '.{options.image_column}'." if options.image_column else "."),
            f"Their samples have {', '.join(f'.{name}' for name in table.features if not name.startswith('__'))}.",
            "Name one: dataset.image_column=NAME.",
            code="data.missing-column" if options.image_column else "data.ambiguous-column",
        )
    return found[0]


def _list_shard_images(file: str, image: str, field: str) -> list[str]:
    """Names of the images in a shard, from the headers in it alone."""
    from toast_cli.data.images.archive_index import open_archive_index

    if "://" in file:
        raise UsageError(
            "How many images there are has to be said of shards that are not on this disk.",
            what_to_do=f"Say {field}=NUMBER.",
            code="data.unknown-length",
        )
    # What follows the first dot of a file's name says what it is, to the library too.
    return [name for name in open_archive_index(Path(file)).members if Path(name).name.partition(".")[2] == image]


def _find_shards(path: str, data_dir: Path | None) -> list[str]:
    """The shards that a folder or a pattern means, in the order of their names.

    Raises:
        ToastError: there is none.
    """
    if "://" in path:
        return list(_expand_braces(path))
    for place in list_candidate_paths(path, data_dir):
        patterns = [f"{glob.escape(str(place))}/*.tar"] if place.is_dir() else list(_expand_braces(str(place)))
        found = sorted({file for pattern in patterns for file in glob.glob(pattern)})  # noqa: PTH207 (whole paths)
        missing = [pattern for pattern in patterns if not glob.has_magic(pattern) and pattern not in found]
        if found and missing:
            raise ToastError(
                f"{len(missing):,} of {len(patterns):,} shards are missing.",
                f"The first is {missing[0]}.",
                "Fetch them, or give a shorter range.",
                code="data.missing-files",
            )
        odd = [file for file in found if not Path(file).is_file()]
        if odd:
            raise ToastError(
                f"The shard {odd[0]} is no regular file.",
                "Reading a folder, a pipe or a device may never come to an end.",
                "Remove it.",
                code="data.not-a-regular-file",
            )
        if found:
            return found
    raise ToastError(
        f"There are no shards '{path}'.",
        f"Looked for {' and '.join(map(str, list_candidate_paths(path, data_dir)))}.",
        "Give a folder of .tar files, or a pattern such as train-{0000..0127}.tar.",
        code="data.missing-files",
    )


def _expand_braces(pattern: str) -> Iterator[str]:
    """Every name that a range in braces stands for: `a-{08..10}` is a-08, a-09 and a-10."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand_braces(pattern[: found.start()] + f"{number:0{len(first)}d}" + pattern[found.end() :])

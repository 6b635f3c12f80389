"""`shards`: streamed WebDataset tar files, for data sets that are too large to unpack.

A shard is a tar of samples. A sample consists of files that share a name: the image (`jpg`, `png`, ...) and its class
(`cls`).
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
from toast_cli.data.images.files import hash_stamps
from toast_cli.data.images.folder_scan import summarize_file_names
from toast_cli.data.images.unlabelled_folder import UNLABELLED_CLASSES
from toast_cli.data.paths import list_candidate_paths
from toast_cli.data.split_names import parse_split_name
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.data.streams.stream_split import StreamSplit
from toast_cli.utils.config import LOCAL_PATH, NamedOptions
from toast_cli.utils.errors import ToastError, UsageError


class WebDatasetOptions(NamedOptions):
    """Options of WebDataset shards: their paths, the suffixes of their files, and the number of samples."""

    name: Literal["shards"] = Field("shards", description="the data set")
    path: str = Field(
        min_length=1,
        examples=["train-{0000..0127}.tar"],
        json_schema_extra=LOCAL_PATH,
        description="training shards: a folder, or a pattern with *, ? or {000..127}; relative paths are looked up in "
        "--data-dir, then in the current folder; URLs (https://..., hf://...) are streamed",
    )
    validation: str | None = Field(
        None,
        examples=["val-{000..007}.tar"],
        json_schema_extra=LOCAL_PATH,
        description="validation shards, likewise; default: val_shards of the training shards",
    )
    val_shards: int = Field(
        1, ge=0, description="training shards held out if there are no validation shards; 0: no validation"
    )
    split_seed: int = Field(
        0, ge=0, examples=[1], description="seed of the held-out shards, independent of the run's seed"
    )
    image_column: str | None = Field(
        None, examples=["jpg"], description="suffix of the images; default: the only one in the shards"
    )
    label_column: str | None = Field(
        "cls", examples=["json.label"], description="suffix of the files with the class; null: no labels"
    )
    classes: int | None = Field(None, ge=2, examples=[1000], description="number of classes, if there is no class_file")
    class_file: str | None = Field(
        None,
        examples=["classes.txt"],
        json_schema_extra=LOCAL_PATH,
        description="file with one class per line, in the order of the labels",
    )
    samples: int | None = Field(
        None,
        ge=1,
        examples=[1281167],
        description="number of images in all training shards; default: counted, if the shards are on disk",
    )
    validation_samples: int | None = Field(
        None, ge=1, examples=[50000], description="number of images in the validation shards, likewise"
    )
    shuffle_buffer: int = Field(
        1000,
        ge=1,
        description="number of undecoded images that each reader shuffles at a time, in addition to its shards",
    )


def open_shards(options: WebDatasetOptions, data_dir: Path | None) -> DataSet:
    """Find the shards, read their first samples, and count their images if the options do not give their number.

    No image is decoded.

    Raises:
        ToastError: there are no shards, a shard cannot be read, or it has no files of the expected suffixes.
        UsageError: the number of images or classes is unknown or ambiguous.
    """
    parts, notes = _divide_shards(find_shards(options.path, data_dir), options)
    train, validation = parts["train"], parts.get("val", [])
    samples, validation_samples = options.samples, options.validation_samples
    if options.validation is not None:
        validation = find_shards(options.validation, data_dir)
    elif not validation:
        count = min(options.val_shards, len(train) - 1)
        kept, held = hold_out(
            [Path(file).name for file in train], [0] * len(train), count / len(train), options.split_seed
        )
        if count and samples is not None and validation_samples is None:
            raise UsageError(
                "dataset.samples is ambiguous: it counts all training shards, but some of them are held out.",
                what_to_do="Remove it, add dataset.validation_samples, set dataset.validation, or use "
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
    if "test" in parts:
        splits["test"] = _open_split(options, parts["test"], classes, None, "dataset.path")
    return DataSet(classes, splits, tuple(notes))


SOURCE = DataSource(
    WebDatasetOptions,
    open_shards,
    'WebDataset tar files, streamed: shards:FOLDER or shards:train-{0000..0127}.tar (pip install "datasets>=4.4")',
    layout=("FOLDER/train-000000.tar ...\n  000001.jpg  000001.cls\n  000002.jpg  000002.cls"),
)


def _divide_shards(files: list[str], options: WebDatasetOptions) -> tuple[dict[str, list[str]], list[str]]:
    """Return the shards of each split by the names of the files, and a note on it. All are for training if none differ.

    Raises:
        ToastError: no shards are for training, or the split of some is not clear.
    """
    meanings = {file: parse_split_name(Path(file).name) or parse_split_name(Path(file).parent.name) for file in files}
    found = {meaning.split for meaning in meanings.values() if meaning is not None}
    if len(found) < 2:
        return {"train": files}, []
    parts: dict[str, list[str]] = {}
    for file, meaning in meanings.items():
        split = {"trainval": "train"}.get(meaning.split, meaning.split) if meaning is not None else "unclear"
        parts.setdefault(split, []).append(file)
    if "train" not in parts or "unclear" in parts:
        raise ToastError(
            f"The shards {options.path} belong to several splits: {', '.join(sorted(found))}.",
            f"The split of {parts['unclear'][0]} is not clear." if "unclear" in parts else "None are for training.",
            "Give a pattern for the training shards, and another one as dataset.validation.",
            code="data.unclear-split",
        )
    counts = ", ".join(f"{len(shards):,} for {part}" for part, shards in parts.items())
    return parts, [f"{options.path}: the names of the shards divide them: {counts}"]


def _get_class_names(options: WebDatasetOptions, data_dir: Path | None) -> tuple[str, ...]:
    if options.label_column is None:
        return UNLABELLED_CLASSES
    named = read_class_file(options.class_file, data_dir)
    if named is None and options.classes is None:
        raise UsageError(
            "The number of classes in the shards is unknown.",
            "Shards do not store it, and counting the classes would take as long as an epoch.",
            "Set dataset.classes=1000 or dataset.class_file=FILE, or use dataset.label_column=null for pre-tuning "
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
            "Give the suffix of the class files, dataset.label_column=NAME, or null if there are no labels.",
            code="data.missing-column",
        )
    # The hash covers image names if they were counted here, and shard names otherwise.
    names = [Path(file).name for file in files]
    if samples is None:
        names = [f"{Path(file).name}/{member}" for file in files for member in _list_shard_images(file, image, field)]
        samples = len(names)
    if not samples:
        raise ToastError(
            f"The shards {options.path} contain no '.{image}' images.",
            what_to_do="Pack them again.",
            code="data.no-images",
        )
    columns = [name for name in ("__key__", image, options.label_column) if name is not None]
    table = table.select_columns(columns).cast_column(image, type(table.features[image])(decode=False))
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
        content=hash_stamps([file if "://" in file else Path(file) for file in files]),
    )


def _open_stream(path: str, files: Sequence[str]) -> Any:
    """Return the shards as a stream of the `datasets` library."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ToastError(
            "Reading shards requires the datasets library.",
            what_to_do='Run: pip install "datasets>=4.4"',
            code="cli.missing-package",
        ) from error
    try:
        named = [file if "://" in file else glob.escape(file) for file in files]  # the library reads patterns
        return load_dataset("webdataset", data_files={"train": named}, split="train", streaming=True)
    except Exception as error:  # the library raises arbitrary exceptions on damaged tars and missing URLs
        raise ToastError(
            f"Cannot open the shards {path}.",
            f"{type(error).__name__}: {error}",
            "Expected tar files of samples, each with an image and a class of the same name: 0001.jpg, 0001.cls.",
            code="data.cannot-open",
        ) from error


def _find_image_column(options: WebDatasetOptions, table: Any) -> str:
    from datasets import Image

    found = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    if options.image_column is not None:
        found = [name for name in found if name == options.image_column]
    if options.image_column is None and len(found) > 1 and all("." in name for name in found):
        raise ToastError(
            f"The shards {options.path} have file names with dots: {summarize_file_names(found)}.",
            "WebDataset takes everything after the first dot as the suffix, so every image has a suffix of its own.",
            "Pack them again under names without dots, except before jpg or cls.",
            code="data.dotted-names",
        )
    if len(found) != 1:
        raise ToastError(
            f"The shards {options.path} have {len(found) or 'no'} image suffixes"
            + (f" '.{options.image_column}'." if options.image_column else "."),
            f"Their samples have {', '.join(f'.{name}' for name in table.features if not name.startswith('__'))}.",
            "Give the suffix of the images: dataset.image_column=NAME.",
            code="data.missing-column" if options.image_column else "data.ambiguous-column",
        )
    return found[0]


def _list_shard_images(file: str, image: str, field: str) -> list[str]:
    """Return the names of the images in a shard, by reading only its headers."""
    from toast_cli.data.images.archive_index import open_archive_index

    if "://" in file:
        raise UsageError(
            f"The number of images in {file} is unknown, because it is not on this disk.",
            what_to_do=f"Set {field}=NUMBER.",
            code="data.unknown-length",
        )
    # As in the library, everything after the first dot is the suffix.
    return [name for name in open_archive_index(Path(file)).members if Path(name).name.partition(".")[2] == image]


def find_shards(path: str, data_dir: Path | None) -> list[str]:
    """Return the sorted paths of the shards in a folder or matching a pattern.

    Raises:
        ToastError: there are none, a shard of a range is missing, or one is not a regular file.
    """
    if "://" in path:
        return list(_expand_braces(path))
    for place in list_candidate_paths(path, data_dir):
        if place.is_dir():
            base, patterns = f"{place}/", ["*.tar"]
        else:  # the given path is a pattern, the folder that it is looked up in is not
            given = str(Path(path).expanduser())
            base, patterns = str(place).removesuffix(given), list(_expand_braces(given))
        found = sorted({file for pattern in patterns for file in glob.glob(glob.escape(base) + pattern)})  # noqa: PTH207
        missing = [base + name for name in patterns if not glob.has_magic(name) and base + name not in found]
        if found and missing:
            raise ToastError(
                f"{len(missing):,} of {len(patterns):,} shards are missing.",
                f"The first is {missing[0]}.",
                "Download them, or give a shorter range.",
                code="data.missing-files",
            )
        odd = [file for file in found if not Path(file).is_file()]
        if odd:
            raise ToastError(
                f"The shard {odd[0]} is not a regular file.",
                "Reading a folder, a pipe or a device may never end.",
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
    """Yield every name of a pattern with ranges in braces: `a-{08..10}` is a-08, a-09 and a-10."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand_braces(pattern[: found.start()] + f"{number:0{len(first)}d}" + pattern[found.end() :])

"""Lookup of data sets in `--data-dir`, in the folder that the environment names or in `./data`, and their names."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath
from unicodedata import normalize

from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError

DATA_DIR_VARIABLE = "TOAST_DATA_DIR"
FILE_SUFFIXES = re.compile(
    r"(\.(arrow|bz2|csv|gz|jsonl?|md|ndjson|parquet|tar|tgz|tsv|txt|xlsx?|xz|zip|zst))+$", re.IGNORECASE
)
"""Suffixes of files of data, which names of runs leave out."""


def get_data_dir(given: Path | None) -> Path:
    """Return the folder of data sets: `given`, or `TOAST_DATA_DIR`, or `data` in the current folder.

    The folder need not exist.
    """
    if given is not None:
        return given
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "data").expanduser()


def list_candidate_paths(path: str, data_dir: Path | None) -> list[Path]:
    """Return the absolute paths where `path` is looked up, in order.

    With a `data_dir`: in it, then in the current folder. Without: in the current folder, then in the default folder
    of data sets. Last, backslashes are read as separators. A path whose names exist in another form of Unicode is
    replaced by the existing path.
    """
    found: dict[Path, None] = {}
    for here in dict.fromkeys((Path(path).expanduser(), Path(path.replace("\\", "/")).expanduser())):
        candidates = [data_dir / here, here] if data_dir is not None else [here, get_data_dir(None) / here]
        found |= dict.fromkeys(find_unicode_form(candidate.absolute()) for candidate in candidates)
    return list(found)


def find_unicode_form(path: Path) -> Path:
    """Return the existing path whose names equal those of `path` in some form of Unicode; `path` if there is none."""
    if str(path).isascii() or path.exists():
        return path
    place = Path(path.anchor)
    for name in path.parts[1:]:
        if not (place / name).exists():
            try:
                names = [entry.name for entry in place.iterdir()]
            except OSError:
                return path
            name = next((each for each in names if normalize("NFC", each) == normalize("NFC", name)), "")
            if not name:
                return path
        place /= name
    return place


def resolve_path(path: str, data_dir: Path | None) -> str:
    """Return the resolved path of an existing file or folder; return `path` itself if there is none (a hub's id)."""
    candidates = list_candidate_paths(path, data_dir)
    return next((str(candidate.resolve()) for candidate in candidates if candidate.exists()), path)


def find_file(path: str, data_dir: Path | None, shorthand: str) -> Path:
    """Return the first existing file among the candidate paths of `path`.

    `shorthand` is the form in which a user names such a file, for example `archive:FILE`.

    Raises:
        ToastError: there is no such file.
    """
    candidates = list_candidate_paths(path, data_dir)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ToastError(
        f"There is no file '{path}'.",
        f"Looked for {' and '.join(map(str, candidates))}.",
        f"Give an existing file as {shorthand}, or its folder as --data-dir.",
        code="data.missing-file",
    )


def get_dataset_label(dataset: NamedOptions) -> str:
    """Return a short name of the data of a recipe: the last part of its path, or the name of the data set.

    A pattern of files is named after its folder, and a task of a collection as `<collection>-<task>`.
    """
    path = getattr(dataset, "path", None)
    if not isinstance(path, str):
        return dataset.name
    if "path" not in type(dataset).list_path_fields():
        return dataset.name if re.search(r"[/\\:]", path) else f"{dataset.name}-{path}"
    place = PurePath(path.replace("\\", "/"))
    place = place.parent if re.search(r"[*?\[{]", place.name) else place
    name = FILE_SUFFIXES.sub("", place.name)
    return name if name.strip(".") else Path(path).absolute().name or dataset.name

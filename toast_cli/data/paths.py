"""Where data sets lie: `--data-dir`, else the environment, else `./data`."""

from __future__ import annotations

import os
from pathlib import Path

from toast_cli.utils.errors import ToastError

DATA_DIR_VARIABLE = "TOAST_DATA_DIR"


def get_data_dir(given: Path | None) -> Path:
    """The folder that holds data sets: what the user gave, else `TOAST_DATA_DIR`, else `data` in the current folder.

    The folder need not exist; whoever looks into it says what is missing there.
    """
    if given is not None:
        return given
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "data").expanduser()


def list_candidate_paths(path: str, data_dir: Path | None) -> list[Path]:
    """Where a path may lie: --data-dir goes first where it was given, TOAST_DATA_DIR or ./data last."""
    here = Path(path).expanduser()
    found = [data_dir / here, here] if data_dir is not None else [here, get_data_dir(None) / here]
    return list(dict.fromkeys(place.absolute() for place in found))


def resolve_path(path: str, data_dir: Path | None) -> str:
    """The same for one place from whatever folder it is named; a path that is nowhere (a hub's id) stays as it is."""
    return next((str(place.resolve()) for place in list_candidate_paths(path, data_dir) if place.exists()), path)


def find_file(path: str, data_dir: Path | None, shorthand: str) -> Path:
    """The file that `path` means; `shorthand` is how a user names one, for example `archive:FILE`.

    Raises:
        ToastError: there is none.
    """
    looked = list_candidate_paths(path, data_dir)
    for place in looked:
        if place.is_file():
            return place
    raise ToastError(
        f"There is no file '{path}'.",
        f"Looked for {' and '.join(map(str, looked))}.",
        f"Give an existing file as {shorthand}, or the folder it lies in as --data-dir.",
        code="data.missing-file",
    )

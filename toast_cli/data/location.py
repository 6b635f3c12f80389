"""Where data sets lie: `--data-dir`, else the environment, else `./data`."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "TOAST_DATA_DIR"


def data_folder(given: Path | None) -> Path:
    """The folder that holds data sets: what the user gave, else `TOAST_DATA_DIR`, else `data` in the current folder.

    The folder need not exist; whoever looks into it says what is missing there.
    """
    if given is not None:
        return given
    return Path(os.environ.get(VARIABLE) or "data").expanduser()

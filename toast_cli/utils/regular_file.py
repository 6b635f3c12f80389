"""Regular files alone are read: a pipe, a socket or a device may never come to an end."""

from __future__ import annotations

import stat
from pathlib import Path


def require_regular_file(path: Path) -> Path:
    """The path, once it is known to be a file that has an end.

    Raises:
        OSError: it is not there, or is a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("It is no regular file: a folder, a pipe, a socket or a device.")
    return path

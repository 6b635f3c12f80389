"""One process at a time at a folder."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from toast_cli.errors import ToastError
from toast_cli.fingerprint import digest_of
from toast_cli.places import cache_folder


def lock_of(folder: Path) -> FileLock:
    """While it is held, no other process of this machine gets it for the same folder; who dies lets go of it.

    The lock lies in the cache, so that the folder holds nothing but what it is for.

    Raises:
        ToastError: it cannot lie there.
    """
    locks = cache_folder() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToastError(
            f"The cache folder {locks} cannot be made.",
            error.strerror or str(error),
            "Name another in TOAST_CACHE_DIR, where files can be written.",
        ) from error
    return FileLock(locks / f"{digest_of(str(folder.resolve()).encode()).hex()}.lock")

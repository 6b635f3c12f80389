"""Repositories of the Hugging Face hub, or of the endpoint in HF_ENDPOINT, that are named like a local path."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from toast_cli.utils.errors import ToastError

LOGGER = logging.getLogger(__name__)
REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE_SUFFIX = re.compile(r"\.(safetensors|pth?|bin|npz|onnx|xml|pt2|ckpt|ya?ml|json|gguf)$", re.IGNORECASE)
READ_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.yaml", "*.md")
"""Files that are downloaded. Nothing else is read, and no format that could hold code."""

LOOKUP_SECONDS = 5.0
"""Time limit of the question whether the hub has a repository."""

FOLDER_FILES = ("config.json", "adapter_config.json", "artifact.json")
"""Files of repositories that are opened as a folder."""


def is_repository_id(name: str | Path) -> bool:
    """Return whether a name is OWNER/NAME and there is no local folder OWNER."""
    text = name if isinstance(name, str) else name.as_posix()
    if not REPOSITORY_ID.fullmatch(text) or FILE_SUFFIX.search(text):
        return False
    return not Path(text.partition("/")[0]).is_dir()  # `runs/mine` is a path, also if it is mistyped


def find_repository_name(path: Path) -> str | None:
    """Return OWNER--NAME of the repository that a path in the hub's cache belongs to; None for any other path."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if cache not in path.parents:
        return None
    return path.relative_to(cache).parts[0].removeprefix("models--")


def resolve_place(place: str | Path) -> Path:
    """Return a local path as it is, or the download of a repository of the hub.

    A local folder OWNER wins over an owner of that name on the hub, and a name is a path if HF_HUB_OFFLINE is set and
    the cache lacks the repository. A repository with a single safetensors file and no
    configuration beside it, as `toast export --push` makes them, gives that file; any other gives its folder.

    Raises:
        ToastError: The hub has no such repository, or cannot be reached and the cache does not have it.
    """
    if not is_repository_id(place):
        return Path(place).expanduser()
    folder = _find_or_download(place if isinstance(place, str) else place.as_posix())
    if folder is None:
        return Path(place)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and not any((folder / name).is_file() for name in FOLDER_FILES):
        return files[0]
    return folder


def _find_or_download(name: str) -> Path | None:
    """Return the folder in the hub's cache with the newest files of a repository; None if offline and not cached."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        try:
            return Path(snapshot_download(name, allow_patterns=list(READ_FILES), local_files_only=True))
        except LocalEntryNotFoundError:
            return None
    missing = "Check the path or the name. A private repository needs 'hf auth login'."
    try:
        HfApi().model_info(name, timeout=LOOKUP_SECONDS)  # the download itself would retry for half a minute
        folder = Path(snapshot_download(name, allow_patterns=list(READ_FILES)))
    except RepositoryNotFoundError as error:
        raise ToastError(
            f"There is no file or folder '{name}', and no repository of that name on the hub.",
            "It does not exist, or it is private and no token is set.",
            missing,
            code="hub.missing-repository",
        ) from error
    except Exception as error:  # the hub's client raises the errors of its libraries too
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ToastError(
            f"There is no file or folder '{name}', and it cannot be downloaded from the hub.",
            why,
            missing,
            code="hub.cannot-download",
        ) from error
    LOGGER.info("%s: %s", name, folder)
    return folder

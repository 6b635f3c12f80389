"""Data sets of the Hugging Face hub and folders of the datasets library, looked up without long waits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toast_cli.data.paths import FILE_SUFFIXES
from toast_cli.utils.errors import ToastError, UsageError

SAVED_FILES = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` of the datasets library wrote."""

LOOKUP_SECONDS = 5.0
"""Time limit of the question whether the hub has a data set; the library would retry for half a minute."""


def looks_like_path(name: str) -> bool:
    """Return whether a name can only be that of a file or folder: ids of the hub are `NAME` or `OWNER/NAME`."""
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or FILE_SUFFIXES.search(name) is not None
        or not name.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum()
    )


def require_hub_dataset(name: str, candidates: Sequence[Path] = (), option: str = "dataset.subset") -> None:
    """Check that a name is that of a data set on the hub or in its cache, with one short request.

    Args:
        name: what the user gave, which is no local file or folder.
        candidates: the places where it was looked up, for the message.
        option: the options to check, for the message.

    Raises:
        UsageError: It can only be the name of a file or folder.
        ToastError: The hub has no such data set, or cannot be reached, and the cache does not have it.
    """
    if looks_like_path(name):
        raise UsageError(
            f"The file or folder {candidates[0] if candidates else name} does not exist.",
            f"Looked for {' and '.join(map(str, candidates))}." if len(candidates) > 1 else "",
            "Check the path after the name of the data set, or in the setting that has it, such as dataset.val_path.",
            code="data.missing-file",
        )
    if _is_cached(name) or (why := _find_hub_error(name)) is None:
        return
    raise ToastError(
        f"Cannot open '{name}' as a file or as a Hugging Face data set.",
        f"There is no such file or folder, and {why}.",
        f"Check the name and {option}, or use a local file.",
        code="data.cannot-open",
    )


def _find_hub_error(name: str) -> str | None:
    """Return why the hub has no data set of that name; None if it has it."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked, because HF_HUB_OFFLINE is set"
    try:
        HfApi().repo_info(name, repo_type="dataset", timeout=LOOKUP_SECONDS)
    except RepositoryNotFoundError:
        return "the Hugging Face hub has no data set of that name, or it is private"
    except Exception as error:  # the hub's client raises the errors of its libraries too
        return f"the Hugging Face hub cannot be asked ({type(error).__name__}: {error})"
    return None


def _is_cached(name: str) -> bool:
    from datasets import config
    from huggingface_hub import constants

    folders = (
        Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}",
        Path(config.HF_DATASETS_CACHE) / name.replace("/", "___"),
    )
    return any(folder.is_dir() and any(os.scandir(folder)) for folder in folders)


def import_datasets() -> Any:
    """Return the datasets library.

    Raises:
        ToastError: It is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ToastError(
            "Reading data sets of the hub, and folders that it saved, requires the datasets library.",
            what_to_do='Install it with: pip install "datasets>=4.4"',
            code="cli.missing-package",
        ) from error
    return datasets


def load_splits(where: str | Path, subset: str | None) -> Mapping[str, Any]:
    """Return the splits of a data set of the hub, or of a folder with one, as tables on disk.

    Raises:
        ToastError: The datasets library is not installed, or cannot open it.
    """
    datasets = import_datasets()
    try:
        found = datasets.load_dataset(str(where), subset)
    except Exception as error:  # the hub's client raises many types, such as timeouts
        raise _make_open_error(where, error) from error
    return found if isinstance(found, Mapping) else {"train": found}


def load_saved_splits(folder: Path) -> Mapping[str, Any]:
    """Return the splits of a folder that `save_to_disk` wrote.

    Raises:
        ToastError: The datasets library is not installed, or cannot open it.
    """
    datasets = import_datasets()
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow raises its own types for damaged files
        raise _make_open_error(folder, error) from error
    return found if isinstance(found, Mapping) else {"train": found}


def _make_open_error(where: str | Path, error: Exception) -> ToastError:
    return ToastError(
        f"Cannot open the data set '{where}'.",
        f"{type(error).__name__}: {error}",
        "Check the name and dataset.subset; a folder must be whole.",
        code="data.cannot-open",
    )

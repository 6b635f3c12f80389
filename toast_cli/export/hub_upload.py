"""Uploading an export to the Hugging Face hub, or to any endpoint that HF_ENDPOINT names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toast_cli.utils.errors import ToastError, UsageError


def check_repository_name(name: str) -> None:
    """Refuse a name that no repository can have, before anything is exported.

    Raises:
        UsageError: it is none.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(
            f"'{name}' cannot be a repository's name.",
            str(error).split(":")[0],
            "OWNER/NAME",
            code="export.invalid-repository",
        ) from error


def upload_export(name: str, paths: Sequence[Path]) -> str:
    """Upload files, or what is in folders, to a private repository that is made if need be; returns where they lie.

    All in one commit: whoever looks meanwhile finds nothing, or everything.

    Raises:
        ToastError: the hub cannot be reached, or does not let us; the export stays where it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        added = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in files]
        api.create_commit(repo_id=repository.repo_id, operations=added, commit_message="Export by toast")
    except Exception as error:  # the hub fails in as many ways as there are networks
        raise ToastError(
            f"{paths[0]} was exported, but could not be uploaded to '{name}'.",
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "Log in with 'hf auth login', or check the network; the file is kept.",
            code="export.upload-failed",
        ) from error
    return str(repository)

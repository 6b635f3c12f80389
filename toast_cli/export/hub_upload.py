"""Upload of an export to the Hugging Face Hub, or to the endpoint in HF_ENDPOINT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toast_cli.utils.errors import ToastError, UsageError


def check_repository_name(name: str) -> None:
    """Check a repository name before anything is exported.

    Raises:
        UsageError: The name is invalid.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(
            f"Invalid repository name '{name}'.",
            str(error).split(":")[0],
            "Use OWNER/NAME.",
            code="export.invalid-repository",
        ) from error


def upload_export(name: str, paths: Sequence[Path]) -> str:
    """Upload files and the contents of folders to a repository, and return its URL.

    A missing repository is created as private. All files are uploaded in a single commit.

    Raises:
        ToastError: The Hub cannot be reached or denies access. The local export is kept.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        added = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in files]
        api.create_commit(repo_id=repository.repo_id, operations=added, commit_message="Export by toast")
    except Exception as error:  # network errors have many types
        raise ToastError(
            f"Cannot upload {paths[0]} to '{name}'.",
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "The export is kept. Log in with 'hf auth login', or check the network.",
            code="export.upload-failed",
        ) from error
    return str(repository)

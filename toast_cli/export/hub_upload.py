"""Upload of an export to the Hugging Face Hub, or to the endpoint in HF_ENDPOINT, with a model card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from toast_cli.export.base import ExportRequest
from toast_cli.export.redact_paths import find_base_model, redact_config
from toast_cli.storage.export_card import PLACEHOLDER, format_graph_card, format_weights_card
from toast_cli.storage.load_model import LoadedModel
from toast_cli.utils.errors import ToastError, UsageError

CARD_FILE = "README.md"


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


def make_card(loaded: LoadedModel, name: str, wanted: ExportRequest, target: Path, repository: str) -> str:
    """Return the card of an export for its repository: its own with the name filled in, or a new one for a file."""
    if (target / CARD_FILE).is_file():
        card = (target / CARD_FILE).read_text(encoding="utf-8")
        card = card.replace(f"local-dir:{PLACEHOLDER}", f"hf-hub:{PLACEHOLDER}")
    else:
        published, base = redact_config(loaded.config), find_base_model(loaded)
        if name == "safetensors":
            card = format_weights_card(loaded, published, wanted.dtype, base, wanted.part, target.name)
        else:
            card = format_graph_card(loaded, published, wanted.dtype, base, name, target.name)
    return card.replace(PLACEHOLDER, repository)


def upload_export(name: str, paths: Sequence[Path], card: str) -> str:
    """Upload files and the contents of folders to a repository with a model card, and return its URL.

    A missing repository is created as private. All files are uploaded in a single commit, large ones through LFS.

    Raises:
        ToastError: The Hub cannot be reached or denies access. The local export is kept.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        files = {place: file for path in paths for place, file in _list_files(path) if place != CARD_FILE}
        added = [CommitOperationAdd(path_in_repo=place, path_or_fileobj=file) for place, file in files.items()]
        added.append(CommitOperationAdd(path_in_repo=CARD_FILE, path_or_fileobj=card.encode()))
        api.create_commit(repo_id=repository.repo_id, operations=added, commit_message="Export by toast")
    except Exception as error:  # network errors have many types
        raise ToastError(
            f"Cannot upload {paths[0]} to '{name}'.",
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "The export is kept. Log in with 'hf auth login', or check the network.",
            code="export.upload-failed",
        ) from error
    return str(repository)


def _list_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of an export with their places in the repository: a folder's contents without its name."""
    if not path.is_dir():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield file.relative_to(path).as_posix(), file

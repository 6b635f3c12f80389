"""Detection of toast's own files, which need no import."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from toast_cli.storage.adapter import (
    ADAPTER_CONFIG_FILE,
    ARTIFACT_FOLDER,
    ARTIFACT_METADATA_KEY,
    FULL_MODEL_FILE,
    is_peft_folder,
)
from toast_cli.utils.errors import UsageError
from toast_cli.utils.files import require_regular_file
from toast_cli.utils.names import quote_argument


def reject_toast_files(path: Path) -> None:
    """Check that a path is not a run, an adapter, a pre-tuned artifact or an export of toast.

    Raises:
        UsageError: It is one; the message says how to use it.
    """
    kind, place = _detect_kind(path)
    if not kind:
        return
    use = "toast tune --init-from" if "artifact" in kind else "toast eval --run"
    raise UsageError(
        f"{path} is {kind} and does not need to be imported.",
        "'toast import' is for checkpoints of the authors' released code.",
        f"Use it directly: {use} {quote_argument(place)}",
        code="export.import-not-needed",
    )


def _detect_kind(path: Path) -> tuple[str, Path]:
    """Return a description of toast's own file (empty if it is not one), and the path to pass to other commands."""
    if is_peft_folder(path):
        return "", path
    if path.is_dir():
        if (path / "adapter" / ADAPTER_CONFIG_FILE).is_file() or (path / ADAPTER_CONFIG_FILE).is_file():
            return "a toast run or adapter", path
        if (path / ARTIFACT_FOLDER).is_dir() or (path / f"{ARTIFACT_FOLDER}.json").is_file():
            return "a pre-tuned toast artifact", path
        if (path / "config.json").is_file() and _read_metadata_keys(path / FULL_MODEL_FILE):
            return "an export by 'toast export --format hf'", path
        return "", path
    if (path.parent / ADAPTER_CONFIG_FILE).is_file():
        return "part of a toast adapter", path.parent
    if (path.parent / f"{ARTIFACT_FOLDER}.json").is_file():
        return "part of a pre-tuned toast artifact", path.parent
    entries = _read_metadata_keys(path)
    if ARTIFACT_METADATA_KEY in entries:
        return "a pre-tuned artifact by 'toast export'", path
    return ("a file by 'toast export'", path) if "toast" in entries else ("", path)


def _read_metadata_keys(path: Path) -> set[str]:
    """Return the metadata keys of a safetensors file; empty for another kind of file."""
    try:
        with safe_open(require_regular_file(path), framework="np") as file:
            return set(file.metadata() or {})
    except (SafetensorError, OSError):
        return set()

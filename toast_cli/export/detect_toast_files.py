"""What toast itself wrote, told apart from the checkpoints that it imports: it is used as it is."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from toast_cli.storage.adapter import ADAPTER_CONFIG_FILE, ARTIFACT_FOLDER, ARTIFACT_METADATA_KEY, FULL_MODEL_FILE
from toast_cli.utils.errors import UsageError
from toast_cli.utils.files import require_regular_file


def reject_toast_files(path: Path) -> None:
    """Check that this is no run, adapter, start or export of toast's own.

    Raises:
        UsageError: it is; with what it is and what it is for.
    """
    kind, place = _detect_kind(path)
    if not kind:
        return
    use = f"toast tune --init-from {place}" if "start" in kind else f"toast eval --run {place}"
    raise UsageError(
        f"{path} is {kind}, and needs no import.",
        "Imported are checkpoints of the code that the paper's authors released.",
        f"Use it as it is: {use}",
        code="export.import-not-needed",
    )


def _detect_kind(path: Path) -> tuple[str, Path]:
    """What it is, or nothing, and what to name in its place."""
    if path.is_dir():
        if (path / "adapter" / ADAPTER_CONFIG_FILE).is_file() or (path / ADAPTER_CONFIG_FILE).is_file():
            return "a run or an adapter of toast", path
        if (path / ARTIFACT_FOLDER).is_dir() or (path / f"{ARTIFACT_FOLDER}.json").is_file():
            return "a pre-tuned start of toast", path
        if (path / "config.json").is_file() and _read_metadata_keys(path / FULL_MODEL_FILE):
            return "a folder that 'toast export --format hf' wrote", path
        return "", path
    if (path.parent / ADAPTER_CONFIG_FILE).is_file():
        return "part of an adapter of toast", path.parent
    if (path.parent / f"{ARTIFACT_FOLDER}.json").is_file():
        return "part of a pre-tuned start of toast", path.parent
    entries = _read_metadata_keys(path)
    if ARTIFACT_METADATA_KEY in entries:
        return "a pre-tuned start that 'toast export' wrote", path
    return ("a file that 'toast export' wrote", path) if "toast" in entries else ("", path)


def _read_metadata_keys(path: Path) -> set[str]:
    """The names in a safetensors file's metadata; none where it is something else."""
    try:
        with safe_open(require_regular_file(path), framework="np") as file:
            return set(file.metadata() or {})
    except (SafetensorError, OSError):
        return set()

"""The report of a folder of exports, and the check that a target may be written. Does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toast_cli.utils.errors import ToastError, UsageError

REPORT_FILE = "export_report.json"


def read_reports(path: Path) -> dict[str, Any]:
    """Return the reports of earlier exports, by file name; empty if there is no report.

    Raises:
        ToastError: The report is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        why = f"Expected a JSON object, got {type(found).__name__}."
    except OSError:
        return {}
    except (ValueError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
    raise ToastError(
        f"{path} is damaged.", why, "Remove it, or export to another folder.", code="export.damaged-report"
    )


def is_folder_export(path: Path) -> bool:
    """Return whether a folder is an export by 'toast export' with this name."""
    return path.is_dir() and path.name in read_reports(path / REPORT_FILE)


def require_free_target(target: Path, replace: bool) -> None:
    """Check that an export may be written to `target`. A folder that is not an export is never replaced.

    Raises:
        UsageError: `target` exists, and it is not an export or `replace` is false.
    """
    if target.is_dir() and not is_folder_export(target):
        raise UsageError(
            f"Cannot replace the folder {target}: it was not written by 'toast export' under this name.",
            "All its files would be lost.",
            "Choose another --out.",
            code="export.foreign-folder",
        )
    if target.exists() and not replace:
        raise UsageError(
            f"{target} already exists.",
            what_to_do="Choose another --out, or add --force to overwrite it.",
            code="disk.already-exists",
        )

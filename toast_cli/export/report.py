"""What lies in a folder of exports already: their report, and what may be written over. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toast_cli.utils.errors import ToastError, UsageError

REPORT_FILE = "export_report.json"


def read_reports(path: Path) -> dict[str, Any]:
    """What was exported into this folder before.

    Raises:
        ToastError: the report of it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        why = f"It holds a {type(found).__name__}."
    except OSError:
        return {}
    except (ValueError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
    raise ToastError(
        f"{path} is damaged.", why, "Remove it, or export to another folder.", code="export.damaged-report"
    )


def is_folder_export(path: Path) -> bool:
    """Whether a folder is what 'toast export' wrote under this name."""
    return path.is_dir() and path.name in read_reports(path / REPORT_FILE)


def require_free_target(target: Path, replace: bool) -> None:
    """Refuse to write over what is there: unless told to, and a folder that no export made in any case.

    Raises:
        UsageError: it would be gone.
    """
    if target.is_dir() and not is_folder_export(target):
        raise UsageError(
            f"{target} is a folder already, and not one that 'toast export' wrote under this name.",
            "It would be gone, with all that is in it.",
            "Choose another --out.",
            code="export.foreign-folder",
        )
    if target.exists() and not replace:
        raise UsageError(
            f"{target} already exists.", what_to_do="Choose another --out, or say --force.", code="disk.already-exists"
        )

"""Models in a folder in the layout of transformers or on the hub: their classes, and errors. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from toast_cli.plugin import ToastError, UsageError, refuse_lfs_pointers


def build_missing_config_error(folder: Path) -> UsageError:
    """Return the error of a folder without a model."""
    return UsageError(
        f"There is no model in {folder}.",
        "config.json is missing.",
        "Give the folder that transformers' save_pretrained wrote, or a download of the model's repository.",
        code="weights.missing-model",
    )


def build_unavailable_error(family: str, place: str, error: Exception) -> ToastError:
    """Return the error that names why a model cannot be loaded from a folder or a Hugging Face id."""
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        return build_missing_config_error(Path(place))
    if Path(place).is_dir():
        refuse_lfs_pointers(Path(place))
        return ToastError(
            f"The model in {place} could not be loaded.",
            why,
            "Download all of its files again.",
            code="weights.cannot-load",
        )
    if place.startswith(("/", ".", "~")) or place.count("/") > 1:  # not a name of a repository
        return ToastError(
            f"There is no model in {place}.",
            "The folder does not exist.",
            "Give its path: --weights FOLDER.",
            code="weights.missing-model",
        )
    return ToastError(
        f"The model '{place}' could not be downloaded.",
        why,
        f"There is no folder {place} either. For a run that used a folder, give --weights FOLDER. With a network, run "
        "again (a gated model needs 'hf auth login'). Without one, give a folder that holds the model with "
        f"--weights FOLDER or --backbone {family}:FOLDER; --weights none starts from random weights.",
        code="weights.cannot-download",
    )


def list_model_classes(folder: Path) -> list[str]:
    """Return the names of the classes in the configuration of a model; none if it has no readable configuration."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    classes = config.get("architectures") if isinstance(config, dict) else None
    return [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []

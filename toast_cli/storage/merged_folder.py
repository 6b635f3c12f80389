"""Folders of merged language models: plain folders of transformers with a record of the run that they were made from.

transformers and other programs ignore the record, `toast_config.json`. With it, toast opens the folder like a run.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from toast_cli.recipe.lookup import resolve_recorded_backbone
from toast_cli.recipe.parse import build_recipe
from toast_cli.storage.adapter import FORMAT, MERGED_CONFIG_FILE, AdapterConfig
from toast_cli.storage.checksums import add_checksum, parse_record
from toast_cli.utils.errors import ToastError
from toast_cli.utils.files import write_json

WEIGHTS_PATTERN = "*.safetensors"


def write_merged_record(folder: Path, config: AdapterConfig) -> None:
    """Write the record of a folder, with the checksums of its weights."""
    weights = sorted(folder.glob(WEIGHTS_PATTERN))
    write_json(folder / MERGED_CONFIG_FILE, add_checksum(asdict(replace(config, whole=True)), weights))


def read_merged_config(folder: Path) -> AdapterConfig | None:
    """Return the configuration of the run whose model a folder holds; None if the folder has no record.

    The backbone of its recipe is the folder, and what the method trained is part of the weights.

    Raises:
        ToastError: The record or the weights are damaged.
    """
    file = folder / MERGED_CONFIG_FILE
    if not file.is_file():
        return None
    try:
        config = parse_record(AdapterConfig, file.read_bytes(), FORMAT, folder)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ToastError(
            f"{folder} is damaged, or its weights were changed after the export.",
            str(error),
            f"Export it again. If you changed the weights, remove {MERGED_CONFIG_FILE} and name the folder as a "
            "--backbone.",
            code="adapter.damaged",
        ) from error
    recorded = build_recipe(config.recipe, {}, origin=str(folder))
    recorded = resolve_recorded_backbone(recorded, config.toast_version)
    backbone = {"name": f"{recorded.plugins.backbone.family}:{folder}"}
    return replace(config, recipe={**recorded.model_dump(mode="json"), "backbone": backbone})

"""Adapters on disk: the trained tensors, and everything needed to put them back on their backbone.

A folder holds `adapter_model.safetensors` (the trained tensors), `adapter_config.json`, `README.md` and, if the method
froze tensors that it added (Lite's feedback path), `frozen_start.safetensors`. An exported file holds the same tensors,
the configuration in its metadata and, if no other file has it, the configuration that the backbone is built from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from toast_cli.backbones.base import Backbone
from toast_cli.model.model import Model, count_elements
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.checksums import (
    add_checksum,
    dump_checksummed_json,
    parse_record,
    read_checksummed_tensors,
    read_metadata,
    write_checksummed_tensors,
)
from toast_cli.storage.file_type import describe_file_type
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import write_json, write_tensors, write_text
from toast_cli.utils.hub import resolve_place
from toast_cli.utils.names import quote_argument
from toast_cli.utils.version import __version__

FORMAT = 1
TRAINED_TENSORS_FILE = "adapter_model.safetensors"
FROZEN_TENSORS_FILE = "frozen_start.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
FULL_MODEL_FILE = "model.safetensors"
"""The file of a folder for transformers: the whole model, with the configuration in the metadata."""

MERGED_CONFIG_FILE = "toast_config.json"
"""The record of the run in a plain folder of transformers: see `merged_folder`."""

ARTIFACT_FOLDER = "artifact"
"""Subfolder of a run folder that pre-tuning writes instead of an adapter."""

ARTIFACT_METADATA_KEY = "toast-artifact"
"""Metadata key of an exported artifact, instead of `toast`."""

BACKBONE_METADATA_KEY = "toast-backbone"
"""Metadata key of an exported backbone, instead of `toast`. Its value is the name of the backbone."""

REEXPORT_HINT = (
    "Export it again from its run. To restore a run's own adapter from its checkpoints, remove RUN/adapter and "
    "RUN/results.json, then run 'toast tune --resume RUN'."
)
"""What to do about an adapter that cannot be used."""

BACKBONE_FILES_KEY = "backbone"
"""Metadata key of an exported file under which the `Backbone.files` are stored."""


@dataclass(frozen=True)
class AdapterConfig:
    """The configuration of an adapter: everything except its tensors.

    `classes` are in the order of the logits. A `whole` adapter also holds every tensor of the backbone. A `folded` one
    has one matrix per level instead of the feedback path and is for inference only. `lineage` has the models that its
    training started from, oldest first: where each was (`from`), its `kind` (tuned or pre-tuned), `backbone`, `method`,
    `dataset` and `seed`, the SHA-256 of its `tensors`, and the classes that were `new` and `dropped` in the next one.
    """

    recipe: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: dict[str, Any] | None
    backbone_fingerprint: str
    trained_parameters: int
    whole: bool = False
    folded: bool = False
    lineage: tuple[dict[str, Any], ...] = ()
    format: int = FORMAT
    toast_version: str = __version__


def build_adapter_config(
    model: Model, recipe: Recipe, classes: tuple[str, ...], lineage: tuple[dict[str, Any], ...] = ()
) -> AdapterConfig:
    """Return the configuration of a model's adapter."""
    return AdapterConfig(
        recipe=recipe.model_dump(mode="json"),
        classes=classes,
        preprocessing=asdict(model.backbone.preprocessing) if model.backbone.preprocessing else None,
        backbone_fingerprint=model.backbone_fingerprint,
        trained_parameters=count_elements(model.get_trained_parameters().values()),
        whole=model.get_network_tensors().keys() <= {*model.get_trained_parameters(), *model.get_frozen_additions()},
        lineage=lineage,
    )


def save_adapter_folder(
    folder: Path, trained: Mapping[str, Tensor], frozen: Mapping[str, Tensor], config: AdapterConfig, card: str
) -> None:
    """Write an adapter folder: trained tensors, frozen tensors that the method added, configuration and model card.

    The configuration is written last, so a folder that has one is complete.
    """
    write_tensors(folder / TRAINED_TENSORS_FILE, trained)
    if frozen:
        write_tensors(folder / FROZEN_TENSORS_FILE, frozen)
    write_text(folder / "README.md", card)
    files = [folder / TRAINED_TENSORS_FILE, *([folder / FROZEN_TENSORS_FILE] if frozen else [])]
    write_json(folder / ADAPTER_CONFIG_FILE, add_checksum(asdict(config), files))


def save_adapter_file(
    path: Path,
    model: Model,
    config: AdapterConfig,
    *,
    with_backbone: bool = False,
    with_files: bool = False,
    cast: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Write adapter and configuration to one file, each tensor converted by `cast`.

    `with_backbone` includes the backbone's tensors; `with_files` includes only the files that it is built from.
    """
    tensors: dict[str, Tensor] = {**model.get_trained_parameters(), **model.get_frozen_additions()}
    if with_backbone:
        tensors |= model.get_network_tensors()
        config = replace(config, whole=True)
    tensors = {name: cast(tensor) for name, tensor in tensors.items()}
    files = build_files_metadata(model.backbone) if config.whole or with_files else {}
    write_checksummed_tensors(path, tensors, {"toast": dump_checksummed_json(asdict(config)), **files})


def build_files_metadata(backbone: Backbone) -> dict[str, str]:
    """Return the metadata entry with the files that a backbone is built from, or an empty dict if its name suffices."""
    files = dict(backbone.files())
    return {BACKBONE_FILES_KEY: json.dumps(files, ensure_ascii=False)} if files else {}


def read_backbone_files(path: Path) -> dict[str, str]:
    """Return the `Backbone.files` stored in an exported file, or an empty dict for a folder.

    Raises:
        ToastError: The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        files = json.loads(read_metadata(path).get(BACKBONE_FILES_KEY, "{}"))
        return {str(name): str(text) for name, text in files.items()}
    except (SafetensorError, OSError) as error:
        raise _make_unreadable_error(path, error) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise _make_damaged_error(path, error) from error


def find_model_file(path: Path) -> Path:
    """Return the file with model and configuration of a folder for transformers; any other path unchanged.

    OWNER/NAME, if nothing local has that name, is downloaded from the hub.

    Raises:
        ToastError: The hub cannot give the repository.
    """
    path = resolve_place(path)
    if (path / MERGED_CONFIG_FILE).is_file():
        return path
    return path / FULL_MODEL_FILE if (path / FULL_MODEL_FILE).is_file() and (path / "config.json").is_file() else path


def is_peft_folder(path: Path) -> bool:
    """Return whether a folder holds an adapter in the format of PEFT, whose files have the names of toast's."""
    try:
        config = json.loads((path / ADAPTER_CONFIG_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "peft_type" in config


def read_adapter(path: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Return configuration and tensors of a run folder, an adapter folder or an exported file.

    Raises:
        UsageError: There is no adapter at `path`.
        ToastError: The adapter is damaged or has a newer format.
    """
    if path.is_dir():
        folder = find_adapter_folder(path)
        _, trained = _read_tensors(folder / TRAINED_TENSORS_FILE)
        _, frozen = (
            _read_tensors(folder / FROZEN_TENSORS_FILE) if (folder / FROZEN_TENSORS_FILE).is_file() else ({}, {})
        )
        return _parse_config((folder / ADAPTER_CONFIG_FILE).read_bytes(), folder), {**trained, **frozen}
    _require_file(path)
    metadata, tensors = _read_tensors(path)
    return _parse_metadata(metadata, path), tensors


def read_adapter_config(path: Path) -> AdapterConfig:
    """Return the configuration of a run folder, an adapter folder or an exported file, without reading its tensors.

    Raises:
        UsageError: There is no adapter at `path`.
        ToastError: The configuration is damaged or has a newer format.
    """
    if path.is_dir():
        folder = find_adapter_folder(path)
        return _parse_config((folder / ADAPTER_CONFIG_FILE).read_bytes(), folder)
    _require_file(path)
    try:
        metadata = read_metadata(path)
    except (SafetensorError, OSError) as error:
        raise _make_unreadable_error(path, error) from error
    return _parse_metadata(metadata, path)


def find_adapter_folder(path: Path) -> Path:
    """Return the adapter folder in a run folder, or the adapter folder itself.

    Raises:
        UsageError: There is none.
    """
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    if is_peft_folder(folder):
        raise UsageError(
            f"{path} is an adapter in the format of PEFT.",
            "toast writes this format, but does not read it.",
            "Open it with PeftModel.from_pretrained, or name the run that it was exported from.",
            code="adapter.peft-format",
        )
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return folder
    if (path / ARTIFACT_FOLDER).is_dir() or (path / f"{ARTIFACT_FOLDER}.json").is_file():
        raise _make_not_an_adapter_error(path)
    unfinished = (path / "recipe.yaml").is_file()
    raise UsageError(
        f"There is no adapter in {path}.",
        "The run has not finished." if unfinished else f"It holds no {ADAPTER_CONFIG_FILE}.",
        "Name a finished run folder, an adapter folder, or an exported file or hf folder.",
        code="run.unfinished" if unfinished else "adapter.missing",
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        there = "It is not a regular file but a pipe, a socket or a device." if path.exists() else ""
        raise UsageError(
            f"There is no run, adapter or exported file at {path}.", there, "Check --run.", code="adapter.missing"
        )


def _parse_metadata(metadata: Mapping[str, str], path: Path) -> AdapterConfig:
    """Return the configuration in the metadata of an exported file."""
    if ARTIFACT_METADATA_KEY in metadata:
        raise _make_not_an_adapter_error(path)
    if BACKBONE_METADATA_KEY in metadata:
        raise UsageError(
            f"{path} is not an adapter: it holds only the weights of a backbone, {metadata[BACKBONE_METADATA_KEY]}.",
            what_to_do=f"Use it as --weights {quote_argument(path)}, or load it with the backbone's own library.",
            code="adapter.backbone-weights-only",
        )
    if "toast" not in metadata:
        raise UsageError(
            f"{path} was not exported by toast.",
            "Its metadata has no entry 'toast'.",
            "Name a file that 'toast export' wrote.",
            code="adapter.foreign-file",
        )
    return _parse_config(metadata["toast"], path)


def _parse_config(text: str | bytes, path: Path) -> AdapterConfig:
    try:
        return parse_record(AdapterConfig, text, FORMAT, path)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise _make_damaged_error(path, error) from error


def _make_not_an_adapter_error(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not a model: it holds a pre-tuned feedback path, from which tuning starts.",
        what_to_do=f"Tune from it: toast tune --init-from {quote_argument(path)}",
        code="artifact.not-a-model",
    )


def _make_damaged_error(path: Path, error: Exception) -> ToastError:
    return ToastError(f"{path} is damaged.", str(error), REEXPORT_HINT, code="adapter.damaged")


def _make_unreadable_error(path: Path, error: Exception) -> ToastError:
    if description := describe_file_type(path):
        what = f"{path} is not a run, an adapter or an exported safetensors file."
        return UsageError(what, description, "Name the run that it was made from.", code="adapter.unsupported-file")
    return ToastError(f"{path} is missing or damaged.", str(error), REEXPORT_HINT, code="adapter.damaged")


def _read_tensors(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    try:
        return read_checksummed_tensors(path)
    except (SafetensorError, OSError) as error:
        raise _make_unreadable_error(path, error) from error
    except ValueError as error:
        raise ToastError(
            f"The weights in {path} are damaged.",
            "Their checksum differs from the recorded one.",
            "Export again, or download the file again.",
            code="adapter.damaged",
        ) from error

"""The start of a run from an earlier model (`init_from`): a tuned model, or a pre-tuned feedback path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toast_cli.data.identity import DataIdentity
from toast_cli.data.paths import get_dataset_label
from toast_cli.model.model import Model
from toast_cli.recipe.lookup import resolve_recorded_backbone
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.safe_yaml import parse_value
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import (
    ADAPTER_CONFIG_FILE,
    ARTIFACT_FOLDER,
    FULL_MODEL_FILE,
    MERGED_CONFIG_FILE,
    AdapterConfig,
    find_model_file,
    read_adapter_config,
)
from toast_cli.storage.lineage import describe_chain
from toast_cli.storage.load_model import find_weights
from toast_cli.storage.merged_folder import read_merged_config
from toast_cli.storage.pretuned import (
    SHIPPED_ARTIFACT,
    Lineage,
    describe_feedback_mismatch,
    find_tensors_file,
    initialize_from_artifact,
    is_artifact,
    read_artifact,
    resolve_artifact_path,
)
from toast_cli.training.continuation.tuned_model import initialize_from_tuned_model
from toast_cli.training.data.run_data import build_results_record, read_data_record
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hub import resolve_place
from toast_cli.utils.names import quote_argument
from toast_cli.utils.tensor_fingerprints import hash_tensors


@dataclass(frozen=True)
class Start:
    """The model that a run starts from.

    Attributes:
        lineage: that model and those that it started from, oldest first, as in `AdapterConfig.lineage`.
        messages: sentences for the user: where the run starts, and what differs from there.
        has_method: whether the method's tensors start there too, and not only the head.
        data: what is recorded of the data of that model; None if nothing is.
    """

    lineage: tuple[dict[str, Any], ...]
    messages: tuple[str, ...]
    has_method: bool = True
    data: DataIdentity | None = None


def is_tuned_model(path: Path) -> bool:
    """Return whether `init_from` names a tuned model, or a run that will be one, and not a pre-tuned artifact."""
    if is_artifact(path) or (path / ARTIFACT_FOLDER).is_dir():
        return False
    parts = ("adapter", ADAPTER_CONFIG_FILE, FULL_MODEL_FILE, MERGED_CONFIG_FILE, "recipe.yaml")
    return path.is_file() or any((path / part).exists() for part in parts)


def read_start_recipe(init_from: str | None, overrides: Sequence[str], weights: str | None) -> dict[str, Any] | None:
    """Return the recipe of the tuned model that a command line starts from; None if it starts from anything else.

    Args:
        init_from: the value of `--init-from`.
        overrides: the overrides, which may set `init_from` instead.
        weights: the value of `--weights`, which replaces the recorded weights of the backbone.

    Raises:
        UsageError: the run has not finished.
        ToastError: the model is damaged, or the weights of its backbone are missing.
    """
    for override in overrides:
        if override.startswith("init_from="):
            init_from = parse_value(override.partition("=")[2], override)
    if not isinstance(init_from, str) or init_from == SHIPPED_ARTIFACT:
        return None
    path = resolve_place(init_from)
    if not is_tuned_model(path):
        return None
    if (merged := read_merged_config(path)) is not None:
        return merged.recipe
    path = find_model_file(path)
    config = read_adapter_config(path)
    recipe = resolve_recorded_backbone(build_recipe(config.recipe, {}, origin=str(path)), config.toast_version)
    values = recipe.model_dump(mode="json")
    recorded = recipe.backbone.weights
    found = find_weights(recorded, path)
    given = weights is not None or any(override.startswith("backbone.weights=") for override in overrides)
    if not given and found not in (None, "none") and not Path(found).expanduser().exists():
        raise _make_missing_weights_error(path, recipe, config, str(recorded))
    return {**values, "backbone": {**values["backbone"], "weights": found}}


def _make_missing_weights_error(path: Path, recipe: Recipe, config: AdapterConfig, recorded: str) -> ToastError:
    hint = "Give their new path: --weights FILE."
    if config.whole and recipe.method.name == "full":
        hint = "All of them are in the model itself: use --weights none."
    elif config.whole and not recipe.plugins.method.alters:
        command = f"toast export --run {quote_argument(path)} --what backbone --out FILE"
        hint = f"Write them from the model with '{command}', then give --weights FILE."
    return ToastError(
        f"The backbone of {path} cannot be built: its weights are no longer at {recorded}.",
        what_to_do=hint,
        code="weights.missing-file",
    )


def initialize_model(model: Model, recipe: Recipe, classes: tuple[str, ...]) -> Start:
    """Copy the tensors of the recipe's `init_from` to a model on the CPU.

    Raises:
        UsageError: there is no model and no artifact, or this method cannot continue from it.
        ToastError: it is damaged, or of another backbone or shape.
    """
    assert recipe.init_from is not None
    path = resolve_artifact_path(recipe)
    if not is_tuned_model(path):
        return _initialize_from_artifact(path, model, recipe)
    if recipe.pretuning is not None:
        raise UsageError(
            f"{path} is a tuned model, and pre-tuning starts from a feedback path alone.",
            what_to_do="Name an output of 'toast pretune', or leave --init-from out.",
            code="artifact.missing",
        )
    if (merged := read_merged_config(path)) is not None:
        return _start_from_merged_folder(path, merged, model, recipe)
    tuned = initialize_from_tuned_model(find_model_file(path), model, recipe, classes)
    steps = (*tuned.config.lineage, tuned.describe_origin(recipe.init_from))
    messages = (f"Start: {describe_chain(steps)}", *tuned.messages)
    return Start(steps, messages, tuned.has_method, read_data_record(path) if path.is_dir() else None)


def _start_from_merged_folder(path: Path, config: AdapterConfig, model: Model, recipe: Recipe) -> Start:
    """Return the start of a run on a model whose backbone already has everything that was trained.

    Raises:
        UsageError: the run has another backbone.
    """
    earlier = build_recipe(config.recipe, {}, origin=str(path))
    if recipe.backbone.name != earlier.backbone.name:
        raise UsageError(
            f"{path} is a backbone of its own, and this run has {recipe.backbone.name}.",
            "What was trained is part of its weights.",
            f"Leave --backbone out, or name {earlier.backbone.name} without --init-from.",
            code="adapter.wrong-backbone",
        )
    origin: dict[str, Any] = {
        "from": recipe.init_from,
        "kind": "tuned",
        "backbone": earlier.backbone.name,
        "method": earlier.method.name,
        "dataset": earlier.dataset.name,
        "data": get_dataset_label(earlier.dataset),
        "seed": earlier.seed,
        "tensors": model.backbone_fingerprint,
        "new": [],
        "dropped": [],
    }
    steps = (*config.lineage, origin)
    note = f"{recipe.method.name} starts fresh: the weights of the backbone have what {earlier.method.name} learned."
    return Start(steps, (f"Start: {describe_chain(steps)}", note), has_method=False)


def _initialize_from_artifact(path: Path, model: Model, recipe: Recipe) -> Start:
    lineage = initialize_from_artifact(path, model, recipe)
    _, tensors = read_artifact(path)
    origin = {
        "from": recipe.init_from,
        "kind": "pre-tuned",
        "backbone": lineage.backbone,
        "method": lineage.recipe["method"]["name"],
        "dataset": lineage.recipe["dataset"]["name"],
        "data": lineage.results.get("data", lineage.recipe["dataset"]["name"]),
        "seed": lineage.recipe["seed"],
        "tensors": hash_tensors(tensors),
        "new": [],
        "dropped": [],
    }
    mismatch = describe_feedback_mismatch(lineage, recipe.method)
    messages = (f"Start: {describe_chain([origin])}", *([] if mismatch is None else [mismatch]))
    return Start((origin,), messages, data=_read_artifact_data(path, lineage))


def _read_artifact_data(path: Path, lineage: Lineage) -> DataIdentity | None:
    """Return what is known of the data of an artifact: the record of its run folder, or the hashes in its results."""
    folder = find_tensors_file(path).parent
    recorded = read_data_record(folder.parent) if path.is_dir() and folder.name == ARTIFACT_FOLDER else None
    if recorded is None and lineage.results.get("split_hashes"):
        recorded = build_results_record(lineage.results)
    return recorded

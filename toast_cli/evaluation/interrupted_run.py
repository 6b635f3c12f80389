"""The model of an interrupted run, as its last checkpoint has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toast_cli.recipe.parse import load_recipe
from toast_cli.storage.adapter import build_adapter_config
from toast_cli.storage.checkpoint import (
    find_checkpoint,
    is_checkpoint_lost,
    load_checkpoint,
    load_checkpoint_state,
    load_extra_tensors,
)
from toast_cli.storage.load_model import LoadedModel, rebuild_model
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.data.run_data import read_data_record
from toast_cli.training.ema import EMA_PREFIX
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.names import quote_argument
from toast_cli.utils.tensor_fingerprints import copy_tensors


def load_interrupted_model(path: Path, weights: str | None = None) -> LoadedModel:
    """Rebuild the model of a run that has not finished from `checkpoints/last`, on the CPU and in evaluation mode.

    With `training.ema`, it has the averaged weights, as the finished run would. `weights` replaces the weights file of
    the recipe.

    Raises:
        UsageError: there is no checkpoint yet, or the run pre-trains a feedback path.
        ToastError: the checkpoint or the recipe is damaged, or the backbone's weights cannot be found.
    """
    folder = RunFolder.reopen(path, extend=True)
    recipe = load_recipe(path / "recipe.yaml")
    if recipe.pretuning is not None:
        raise UsageError(
            f"{path} is not a model: it pre-tunes a feedback path, from which tuning starts.",
            what_to_do=f"Finish it first: toast pretune --resume {quote_argument(path)}",
            code="artifact.not-a-model",
        )
    require_checkpoint(path)
    recorded = read_data_record(path)
    classes = () if recorded is None or recorded.classes is None else tuple(recorded.classes)
    model, recipe = rebuild_model(path, recipe, classes, weights)
    copy_tensors(load_extra_tensors(folder.checkpoints, "start"), model.state_dict())
    load_checkpoint(folder.checkpoints, "last", model)
    extra = load_extra_tensors(folder.checkpoints, "last")
    averaged = {name.removeprefix(EMA_PREFIX): extra[name] for name in extra if name.startswith(EMA_PREFIX)}
    copy_tensors(averaged, model.get_trained_parameters())
    model.eval()
    return LoadedModel(model, recipe, classes, build_adapter_config(model, recipe, classes), path)


def require_checkpoint(path: Path) -> None:
    """Check that an interrupted run has an intact checkpoint.

    Raises:
        UsageError: it was interrupted before the first one.
        ToastError: the checkpoints are damaged.
    """
    checkpoints = path / "checkpoints"
    if is_checkpoint_lost(checkpoints, "last"):
        raise ToastError(
            f"The run {path} has not finished, and its last checkpoint is damaged.",
            "A file is missing or its SHA-256 does not match.",
            f"Start the run again: --recipe {quote_argument(path / 'recipe.yaml')} --output-dir NEW.",
            code="checkpoint.damaged",
        )
    if find_checkpoint(checkpoints, "last") is None:
        raise UsageError(
            f"The run {path} has not finished, and it has no checkpoint yet.",
            what_to_do=f"Resume it: toast tune --resume {quote_argument(path)}",
            code="run.unfinished",
        )


def describe_last_checkpoint(path: Path) -> str:
    """Return a message on how far an interrupted run had come.

    Raises:
        UsageError, ToastError: see `require_checkpoint`.
    """
    require_checkpoint(path)
    state: dict[str, Any] = load_checkpoint_state(path / "checkpoints", "last") or {}
    at, epochs = state.get("at", {}), load_recipe(path / "recipe.yaml").training.epochs
    return (
        f"The run {path} has not finished: using its last checkpoint, after epoch {at.get('epochs', 0)} of {epochs} "
        f"and step {at.get('steps', 0):,}."
    )

"""Changes of a run's recipe when it is resumed: more epochs of a finished run, and what does not change its weights.

The record in `lineage.json` is written before `recipe.yaml`, so that an extension that is interrupted between the two
is completed when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toast_cli.model.recipe_data import count_workers
from toast_cli.recipe.overrides import apply_overrides
from toast_cli.recipe.parse import validate_partial_recipe
from toast_cli.recipe.schema import Recipe, TrainingOptions
from toast_cli.recipe.unvalidated_recipe import PartialRecipe
from toast_cli.storage.checkpoint import load_checkpoint_state
from toast_cli.storage.checksums import read_checksummed_json
from toast_cli.storage.lineage import RunLineage, read_lineage
from toast_cli.storage.run_folder import RunFolder, has_finished
from toast_cli.training.optimization import compute_learning_rate, count_warmup_steps
from toast_cli.training.state import BestEpoch, TrainingProgress, wrap_state_errors
from toast_cli.utils.config import is_automatic
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.names import quote_argument

CHANGEABLE_FIELDS = {
    "training.epochs": "larger",
    "training.max_steps": "larger, or null",
    "training.patience": "",
    "training.save_every": "",
    "training.log_every": "",
    "training.workers": "",
    "images.on_error": "skip",
}
"""Fields that may change when a run is resumed, and the values that they may get; empty for any value."""
KEPT_RESULTS = ("selected_epoch", "validation", "test", "seconds")
"""Fields of the results of an earlier end that the record of an extension keeps."""


@dataclass(frozen=True)
class Extension:
    """A changed recipe of a run, with its lineage, which records the change.

    `before` is the recipe so far, and `at` is the progress of its last checkpoint.
    """

    recipe: Recipe
    lineage: RunLineage
    before: Recipe
    at: TrainingProgress


def check_changes(overrides: Sequence[str], run: Path) -> None:
    """Check that the overrides given with `--resume` only name fields that may change.

    Raises:
        UsageError: one names another field.
    """
    for override in overrides:
        field = override.partition("=")[0]
        if field not in CHANGEABLE_FIELDS:
            raise UsageError(
                f"{field} cannot change when a run is resumed.",
                "The epochs so far were trained with another value, so no recipe would describe the result.",
                f"Only {', '.join(CHANGEABLE_FIELDS)} and --device may change. To go on with other settings, start a "
                f"new run from this one: toast tune --init-from {quote_argument(run)} {quote_argument(override)}.",
                code="resume.conflicting-options",
            )


def prepare_extension(run: RunFolder, recipe: Recipe, overrides: Sequence[str]) -> Extension | None:
    """Return the recipe of a resumed run with its changes, and their record; None if there are none.

    Changes of an extension that was interrupted are made again.

    Raises:
        UsageError: a field or a value may not change, or nothing would be left to train.
        ToastError: a record of the run is damaged, or its checkpoint is lost.
    """
    check_changes(overrides, run.path)
    lineage = read_lineage(run.path)
    finished = has_finished(run.path)
    before = _change_recipe(recipe, lineage.changes) if lineage.extensions else recipe
    changed = _override_recipe(before, overrides)
    state = load_checkpoint_state(run.checkpoints, "last")
    if state is None and finished:
        raise ToastError(
            f"{run.path} cannot be extended: it has no intact checkpoint of its last epoch.",
            what_to_do=f"Start a new run from its result: toast tune --init-from {quote_argument(run.path)}.",
            code="checkpoint.missing",
        )
    at, best = TrainingProgress(), BestEpoch()
    if state is not None:
        with wrap_state_errors(run.checkpoints):
            at, best = TrainingProgress(**state["at"]), BestEpoch(**state["best"])
    changes = _list_changes(before, changed)
    _check_values(changes, before, changed, at)
    if finished:
        _require_steps_left(run.path, changed.training, at, best)
    if not changes:
        return Extension(before, lineage, before, at) if lineage.extensions else None
    results = read_checksummed_json(run.path / "results.json") if finished else None
    record = {
        "changes": changes,
        "epochs": at.epochs,
        "steps": at.steps,
        "results": None if results is None else {name: results[name] for name in KEPT_RESULTS if name in results},
        "environment": None,
    }
    return Extension(changed, replace(lineage, extensions=(*lineage.extensions, record)), before, at)


def describe_extension_schedule(extension: Extension, batches: int) -> list[str]:
    """Return notes on the learning rate of an extended run; `batches` is the number of batches in an epoch."""
    before, now, at = extension.before.training, extension.recipe.training, extension.at
    if (before.epochs, before.max_steps) == (now.epochs, now.max_steps) or not at.steps:
        return []
    steps = -(-batches // now.accumulate)
    if at.steps != at.epochs * steps and not at.batches:
        return [
            "An epoch of the run was cut short (training.max_steps), and counts as finished: training goes on with "
            f"epoch {at.epochs + 1}. The result is not that of one run of this length."
        ]
    had, has = (count_warmup_steps(training, steps) for training in (before, now))
    if now.schedule == "constant" and had == has:
        return ["The learning rate is constant, so the weights will be those of one run of this length."]
    if now.schedule == "constant":
        return [
            f"The learning rate is constant, but one run of {now.epochs} epochs would have a warm-up of {has:,} steps "
            f"instead of {had:,}. The result is not that of one run."
        ]
    old, new = (compute_learning_rate(training, steps, at.steps) for training in (before, now))
    return [
        f"From here on, the learning rate follows the schedule of {now.epochs} epochs: it is {new:.3g} at step "
        f"{at.steps + 1:,}, where the schedule of {before.epochs} epochs has {old:.3g}. The result is not that of one "
        f"run of {now.epochs} epochs.",
    ]


def _override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    if not overrides:
        return recipe
    draft = PartialRecipe(recipe.model_dump(mode="json"), origin="the recipe of the run")
    apply_overrides(draft, overrides)
    changed = validate_partial_recipe(draft)
    if not is_automatic(changed.training.workers):
        return changed
    return changed.model_copy(
        update={"training": changed.training.model_copy(update={"workers": count_workers(changed)})}
    )


def _change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    draft = PartialRecipe(recipe.model_dump(mode="json"), origin="the recipe of the run")
    for field, value in changes.items():
        section, name = field.split(".")
        draft.set_value((section, name), value, "lineage.json")
    return validate_partial_recipe(draft)


def _get_field(recipe: Recipe, field: str) -> Any:
    section, name = field.split(".")
    return getattr(getattr(recipe, section), name)


def _list_changes(before: Recipe, now: Recipe) -> dict[str, list[Any]]:
    values = {field: [_get_field(before, field), _get_field(now, field)] for field in CHANGEABLE_FIELDS}
    return {field: pair for field, pair in values.items() if pair[0] != pair[1]}


def _check_values(changes: Mapping[str, Sequence[Any]], before: Recipe, now: Recipe, at: TrainingProgress) -> None:
    for field, (old, new) in changes.items():
        rule = CHANGEABLE_FIELDS[field]
        larger = (field == "training.max_steps" and new is None) or (None not in (old, new) and new > old)
        if (rule.startswith("larger") and not larger) or (rule == "skip" and new != "skip"):
            raise UsageError(
                f"{field}={new} is not allowed when a run is resumed: it was {old}.",
                f"After epoch {at.epochs} and step {at.steps:,}, its value must be {rule}.",
                "Give such a value, or start a new run.",
                code="resume.conflicting-options",
            )


def _require_steps_left(run: Path, training: TrainingOptions, at: TrainingProgress, best: BestEpoch) -> None:
    """Check that a finished run would train at least one more step.

    Raises:
        UsageError: nothing is left to train.
    """
    patience, validated = training.patience, at.epochs % training.validate_every == 0
    if at.epochs >= training.epochs:
        why, hint = f"It has trained {at.epochs} of {training.epochs} epochs.", f"training.epochs={2 * at.epochs}"
    elif training.max_steps is not None and at.steps >= training.max_steps:
        why, hint = f"It has reached training.max_steps={training.max_steps}.", "training.max_steps=null"
    elif patience is not None and best.metrics is not None and validated and at.epochs - best.epoch >= patience:
        why = f"It stopped early: validation has not improved since epoch {best.epoch} (training.patience={patience})."
        hint = "training.patience=null"
    else:
        return
    raise UsageError(
        f"The run {run} has already finished, and there is nothing left to train.",
        why,
        f"To train for longer, add {hint} to the command.",
        code="run.already-finished",
    )

"""Measuring a trained model again: the same numbers as at the end of its run, or on other data."""

from __future__ import annotations

from typing import Any, cast

from toast_cli.evaluation.open_run import OpenedRun, RunRequest, open_run, open_session
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.tasks.segmentation import Segmentation
from toast_cli.training.evaluate import evaluate_model, report_skipped_samples
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import UsageError


def evaluate_run(request: RunRequest, reporter: Reporter, evaluation: str | None = None) -> dict[str, Any]:
    """Return metrics of a saved model on a split, its size and cost.

    `evaluation` says how a model that labels pixels is shown images; None leaves it as the run has it.

    Raises:
        UsageError: there is no such split, no feedback to scale, or no such way to show images.
        ToastError: the data set's classes are not the model's, or nothing can be loaded.
    """
    run, split = open_run(request), request.split
    if evaluation is not None:
        apply_evaluation_mode(run, evaluation)
    session, recipe = open_session(run, reporter), run.recipe
    with_attention = session.can_measure_attention(split)
    batches = session.batches(split, with_masks=with_attention)
    metrics = evaluate_model(
        run.model, reporter.track(batches, len(batches), split), run.accelerator, with_attention=with_attention
    )
    return {
        "run": str(request.path),
        "backbone": recipe.backbone.name,
        "dataset": recipe.dataset.name,
        "method": recipe.method.name,
        "split": split,
        **({} if request.alpha is None else {"alpha": request.alpha}),
        **({"evaluation": recipe.task.evaluation} if hasattr(recipe.task, "evaluation") else {}),
        **session.sizes(),
        {"val": "validation"}.get(split, split): metrics,
        "skipped": report_skipped_samples(reporter, **{split: batches}),
    }


def apply_evaluation_mode(run: OpenedRun, evaluation: str) -> None:
    """Show a model that labels pixels whole images, or windows that slide over them.

    Raises:
        UsageError: the model does not label pixels, or there is no such way.
    """
    before = run.model.objective
    if not isinstance(before, Segmentation):
        raise UsageError(
            "--evaluation is for models that label pixels.", what_to_do="Leave it out.", code="task.not-segmentation"
        )
    task = run.recipe.task.model_dump(mode="json") | {"evaluation": evaluation}
    run.recipe = replace_recipe_fields(run.recipe, task=task)
    run.model.objective = Segmentation(before.head, before.classes, before.window, cast("Any", run.recipe.task))

"""Evaluation of a finished run, on its own test split or on other data."""

from __future__ import annotations

from typing import Any, cast

from toast_cli.evaluation.open_run import OpenedRun, RunRequest, open_run, open_session
from toast_cli.model.mirror_average import DESCRIPTION, require_mirrorable
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.tasks.segmentation import Segmentation
from toast_cli.training.evaluate import evaluate_model, report_skipped_samples
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import UsageError


def evaluate_run(
    request: RunRequest, reporter: Reporter, evaluation: str | None = None, flips: bool = False
) -> dict[str, Any]:
    """Return the metrics of a saved model on a split, with its size and cost.

    `evaluation` is how a segmentation model is applied to images, `whole` or `slide`; None keeps the run's setting.
    With `flips`, the scores of every image are averaged with those of its mirror image.

    Raises:
        UsageError: the split does not exist, the model cannot be used with `flips`, `alpha` is set for a model without
            feedback, or `evaluation` is not valid.
        ToastError: the classes of the data set differ from the model's, or the run or its data cannot be loaded.
    """
    run, split = open_run(request), request.split
    if flips:
        require_mirrorable(run.model.objective)
    if evaluation is not None:
        apply_evaluation_mode(run, evaluation)
    session, recipe = open_session(run, reporter), run.recipe
    with_attention = session.can_measure_attention(split)
    batches = session.make_loader(split, with_masks=with_attention)
    metrics = evaluate_model(
        run.model,
        reporter.track_progress(batches, len(batches), split),
        run.accelerator,
        with_attention=with_attention,
        flips=flips,
    )
    return {
        "run": str(request.path),
        "backbone": recipe.backbone.name,
        "dataset": recipe.dataset.name,
        "method": recipe.method.name,
        "split": split,
        **({} if request.alpha is None else {"alpha": request.alpha}),
        **({"evaluation": recipe.task.evaluation} if hasattr(recipe.task, "evaluation") else {}),
        **({"test_time_flips": DESCRIPTION} if flips else {}),
        **session.measure_model_sizes(),
        {"val": "validation"}.get(split, split): metrics,
        "skipped": report_skipped_samples(reporter, session.data, **{split: batches}),
    }


def apply_evaluation_mode(run: OpenedRun, evaluation: str) -> None:
    """Apply a segmentation model to whole images or with a sliding window.

    Raises:
        UsageError: the model is not a segmentation model, or there is no such mode.
    """
    before = run.model.objective
    if not isinstance(before, Segmentation):
        raise UsageError(
            "--evaluation is only for models that label pixels.",
            what_to_do="Leave it out.",
            code="task.not-segmentation",
        )
    task = run.recipe.task.model_dump(mode="json") | {"evaluation": evaluation}
    run.recipe = replace_recipe_fields(run.recipe, task=task)
    run.model.objective = Segmentation(before.head, before.classes, before.window, cast("Any", run.recipe.task))

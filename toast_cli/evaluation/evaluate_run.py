"""Evaluation of a finished run, on its own test split or on other data."""

from __future__ import annotations

from typing import Any, cast

from toast_cli.evaluation.open_run import OpenedRun, RunRequest, open_run, open_session
from toast_cli.model.mirror_average import DESCRIPTION, require_mirrorable
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.tasks.segmentation import Segmentation
from toast_cli.training.evaluate import (
    AnswersCallback,
    SamplePredictions,
    answers_with_classes,
    collect_answers,
    evaluate_model,
    report_skipped_samples,
)
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import UsageError


def evaluate_run(
    request: RunRequest,
    reporter: Reporter,
    evaluation: str | None = None,
    on_answers: AnswersCallback | None = None,
    require_classes: bool = False,
    flips: bool = False,
) -> dict[str, Any]:
    """Return the metrics of a saved model on a split, with its size and cost.

    `evaluation` is how a segmentation model is applied to images, `whole` or `slide`; None keeps the run's setting.
    `on_answers` receives the model's answers to the split; `require_classes` refuses a model that gives none. With
    `flips`, the scores of every image are averaged with those of its mirror image.

    Raises:
        UsageError: the split does not exist, `alpha` is set for a model without feedback, `evaluation` is not valid,
            the model does not answer with classes, or it cannot be used with `flips`.
        ToastError: the classes of the data set differ from the model's, or the run or its data cannot be loaded.
    """
    run, split = open_run(request), request.split
    if flips:
        require_mirrorable(run.model.objective)
    if evaluation is not None:
        apply_evaluation_mode(run, evaluation)
    if require_classes and not answers_with_classes(run.model.objective):
        raise make_no_classes_error(run)
    session, recipe = open_session(run, reporter), run.recipe
    with_attention = session.can_measure_attention(split)
    batches = session.make_loader(split, with_masks=with_attention)
    predictions = SamplePredictions()
    tracked = reporter.track_progress(batches, len(batches), split)
    metrics = evaluate_model(
        run.model, tracked, run.accelerator, with_attention=with_attention, answers=predictions, flips=flips
    )
    answers = collect_answers(session, split, batches, predictions)
    if require_classes and answers is None:  # the task of a plugin that predicts none
        raise make_no_classes_error(run)
    if answers is not None and on_answers is not None and run.accelerator.is_main_process:
        on_answers(answers)
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


def make_no_classes_error(run: OpenedRun) -> UsageError:
    """Return the error about a report on a model that does not answer with classes."""
    return UsageError(
        f"A report needs a model that answers with classes, and {run.request.path} is a run of the task "
        f"'{run.recipe.task.name}'.",
        what_to_do="Leave --report out.",
        code="task.no-classes",
    )


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

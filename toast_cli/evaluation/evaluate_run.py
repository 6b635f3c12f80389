"""Evaluation of a finished run, on its own test split or on other data."""

from __future__ import annotations

from itertools import chain
from typing import Any, cast

from toast_cli.evaluation.open_run import ALL_SPLITS, OpenedRun, RunRequest, open_run, open_session
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.tasks.segmentation import Segmentation
from toast_cli.training.class_warnings import describe_weak_classes
from toast_cli.training.evaluate import evaluate_model, report_skipped_samples
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import UsageError


def evaluate_run(request: RunRequest, reporter: Reporter, evaluation: str | None = None) -> dict[str, Any]:
    """Return the metrics of a saved model on a split, or on every split together (`all`), with its size and cost.

    `evaluation` is how a segmentation model is applied to images, `whole` or `slide`; None keeps the run's setting.

    Raises:
        UsageError: the split does not exist, `alpha` is set for a model without feedback, or `evaluation` is not valid.
        ToastError: the data set has classes that the model does not know, or the run or its data cannot be loaded.
    """
    run, split = open_run(request), request.split
    if evaluation is not None:
        apply_evaluation_mode(run, evaluation)
    session, recipe = open_session(run, reporter), run.recipe
    parts = tuple(session.data.splits) if split == ALL_SPLITS else (split,)
    with_attention = all(map(session.can_measure_attention, parts))
    loaders = {part: session.make_loader(part, with_masks=with_attention) for part in parts}
    batches, total = chain.from_iterable(loaders.values()), sum(map(len, loaders.values()))
    meter = run.model.objective.evaluation_meter()
    metrics = evaluate_model(
        run.model,
        reporter.track_progress(batches, total, split),
        run.accelerator,
        with_attention=with_attention,
        meter=meter,
    )
    warnings = describe_weak_classes(split, meter.class_counts(), session.data.classes)
    if request.dataset is None and {"train", "val"} & set(parts):
        warnings.append(f"{split}: the model was trained on train and selected on val, so only test is unseen.")
    return {
        "run": str(request.path),
        "backbone": recipe.backbone.name,
        "dataset": recipe.dataset.name,
        "method": recipe.method.name,
        "split": split,
        **({} if request.alpha is None else {"alpha": request.alpha}),
        **({"evaluation": recipe.task.evaluation} if hasattr(recipe.task, "evaluation") else {}),
        **session.measure_model_sizes(),
        {"val": "validation"}.get(split, split): metrics,
        "warnings": warnings,
        "skipped": report_skipped_samples(reporter, session.data, **loaders),
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

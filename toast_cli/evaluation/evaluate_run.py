"""Evaluation of a finished run, on its own test split or on other data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from toast_cli.data.base import BatchLoader, DataSet
from toast_cli.data.paths import get_dataset_label
from toast_cli.data.subset import ChainedSplit
from toast_cli.evaluation.measured_texts import describe_learned_texts, describe_measured_texts
from toast_cli.evaluation.open_run import ALL_SPLITS, OpenedRun, RunRequest, choose_split, open_run, open_session
from toast_cli.evaluation.texts.exact_answers import AnswerRequest, compare_answers, require_conversations
from toast_cli.model.mirror_average import DESCRIPTION, require_mirrorable
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.tasks.segmentation import Segmentation
from toast_cli.training.closing_warnings.classes import describe_weak_answers, describe_weak_classes
from toast_cli.training.evaluate import (
    AnswersCallback,
    SamplePredictions,
    can_collect_answers,
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
    require_answers: bool = False,
    flips: bool = False,
    compared: AnswerRequest | None = None,
) -> dict[str, Any]:
    """Return the metrics of a saved model on a split, or on every split together (`all`), with its size and cost.

    `evaluation` is how a segmentation model is applied to images, `whole` or `slide`; None keeps the run's setting.
    `on_answers` receives the model's answers to the split; `require_answers` refuses a model whose answers
    are texts. With `flips`, the scores of every image are averaged with those of its mirror image. With `compared`, a
    language model also answers the prompts of the split, and the results have how many answers are exact.

    Raises:
        UsageError: the split does not exist, `alpha` is set for a model without feedback, `evaluation` is not valid,
            the model answers with texts, or it cannot be used with `flips`.
        ToastError: the data set has classes that the model does not know, or the run or its data cannot be loaded.
    """
    run = open_run(request)
    if flips:
        require_mirrorable(run.model.objective)
    if evaluation is not None:
        apply_evaluation_mode(run, evaluation)
    if require_answers and not can_collect_answers(run.model.objective):
        raise make_no_answers_error(run)
    session, recipe = open_session(run, reporter), run.recipe
    split = choose_split(request, session.data)
    parts = tuple(session.data.splits) if split == ALL_SPLITS else (split,)
    if compared is not None:
        require_conversations(run, session.data, parts)
    samples = session.data.splits[split] if split in parts else ChainedSplit(tuple(session.data.splits.values()))
    with_attention = all(map(session.can_measure_attention, parts))
    loaders = {part: session.make_loader(part, with_masks=with_attention) for part in parts}
    measured = describe_measured_texts(session.data, split, parts, loaders)
    for note in measured.get("measured", {}).get("notes", ()):
        reporter.report_message(note)
    predictions, meter = SamplePredictions(), run.model.objective.evaluation_meter()
    metrics = evaluate_model(
        run.model,
        reporter.track_progress(_chain_batches(session.data, loaders), sum(map(len, loaders.values())), split),
        run.accelerator,
        with_attention=with_attention,
        answers=predictions,
        flips=flips,
        meter=meter,
    )
    for loader in loaders.values():
        predictions.names |= getattr(loader, "names", {})
    answers = collect_answers(session, split, samples, predictions)
    if require_answers and answers is None:  # the task of a plugin that predicts none
        raise make_no_answers_error(run)
    if answers is not None and on_answers is not None and run.accelerator.is_main_process:
        on_answers(answers)
    warnings = describe_weak_classes(split, meter.class_counts(), session.data.classes)
    warnings += describe_weak_answers(split, metrics)
    if request.dataset is None and {"train", "val"} & set(parts):
        warnings.append(f"{split}: the model was trained on train and selected on val, so only test is unseen.")
    warnings += describe_learned_texts(request, session.data, parts)
    exact: dict[str, Any] = {}
    if compared is not None:
        texts = compare_answers(run, session.data, split, parts, samples, compared.new_tokens, reporter)
        compared.on_answers(texts)
        exact["exact_answers"] = texts.to_dict()
        warnings += texts.list_warnings(compared.new_tokens)
    return {
        "run": str(request.path),
        "backbone": recipe.backbone.name,
        "dataset": recipe.dataset.name,
        "data": get_dataset_label(recipe.dataset),
        "method": recipe.method.name,
        "split": split,
        **measured,
        **({} if request.alpha is None else {"alpha": request.alpha}),
        **({"evaluation": recipe.task.evaluation} if hasattr(recipe.task, "evaluation") else {}),
        **({"test_time_flips": DESCRIPTION} if flips else {}),
        **session.measure_model_sizes(),
        {"val": "validation"}.get(split, split): metrics,
        **exact,
        "warnings": warnings,
        "skipped": report_skipped_samples(reporter, session.data, **loaders),
    }


def make_no_answers_error(run: OpenedRun) -> UsageError:
    """Return the error about a report on a model that answers neither with classes nor with labels or numbers."""
    return UsageError(
        f"A report needs a model that answers with classes, labels or numbers, and {run.request.path} is of the task "
        f"'{run.recipe.task.name}'.",
        what_to_do="Leave --report out.",
        code="task.no-classes",
    )


def _chain_batches(data: DataSet, loaders: Mapping[str, BatchLoader]) -> Iterator[dict[str, Any]]:
    """Yield the batches of several splits, with the indices of their samples in the chain of the splits."""
    before = 0
    for part, loader in loaders.items():
        for batch in loader:
            yield {**batch, "index": batch["index"] + before} if before and "index" in batch else batch
        before += len(data.splits[part])


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

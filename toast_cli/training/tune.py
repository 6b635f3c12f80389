"""Tuning (`toast tune`): a run from recipe to results, which evaluates the test split once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toast_cli.data.base import BatchLoader, describe_masks, get_split_kind
from toast_cli.data.paths import get_dataset_label
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import AdapterConfig, build_adapter_config, save_adapter_folder
from toast_cli.storage.checkpoint import load_checkpoint
from toast_cli.storage.model_card import format_adapter_card
from toast_cli.storage.run_folder import RunFolder, read_metrics
from toast_cli.tasks.base import Meter
from toast_cli.tasks.class_counts import ClassCounts
from toast_cli.training.automatic.settings import choose_automatic_settings
from toast_cli.training.callbacks import Callbacks
from toast_cli.training.closing_warnings.classes import (
    describe_small_label_validation,
    describe_small_validation,
    describe_weak_answers,
    describe_weak_classes,
)
from toast_cli.training.closing_warnings.convergence import (
    describe_divergence,
    describe_unsettled_loss,
    find_start_metrics,
    read_validation_losses,
)
from toast_cli.training.closing_warnings.texts import describe_endless_answers, describe_few_validation_texts
from toast_cli.training.evaluate import (
    AnswersCallback,
    SamplePredictions,
    SplitAnswers,
    can_collect_answers,
    collect_answers,
    evaluate_model,
    report_skipped_samples,
)
from toast_cli.training.feature_cache import build_cached_step
from toast_cli.training.loop import TrainingLoop
from toast_cli.training.optimization import describe_schedule
from toast_cli.training.plan.run_time import estimate_run_time
from toast_cli.training.reporter import Reporter
from toast_cli.training.run import Run
from toast_cli.training.session import Session
from toast_cli.training.step import TrainingStep
from toast_cli.training.tracking.figures import RunFigures
from toast_cli.utils.constants import NOTHING_TO_MEASURE
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import write_text
from toast_cli.utils.formatting import format_duration
from toast_cli.utils.tensor_fingerprints import gather_full_tensors


def tune_model(
    recipe: Recipe,
    output_dir: Path | None,
    reporter: Reporter,
    resume: bool = False,
    overrides: Sequence[str] = (),
    on_answers: AnswersCallback | None = None,
    figures: RunFigures | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train according to a recipe; return the run folder and the results.

    With `resume`, `output_dir` is the folder of an interrupted run of this recipe, which is resumed exactly: on a CPU
    the final weights are bit for bit those of a run without interruption. `overrides` then change a few fields, such as
    `training.epochs=20`, which extends a finished run (see `continuation.extension`).

    Validation selects the model. The test split is evaluated once, at the end, with the selected model; with
    `test: false` in the recipe it is not evaluated. If the run is extended, it is evaluated again at the new end, and
    the results count how often. `on_answers` receives the selected model's answers to the test split; if the data has
    none, to the validation split. `figures` draws the curves, and pictures for the trackers.

    Raises:
        ToastError: any error that the user can fix. Finished work stays in the run folder.
    """
    run = prepare_tuning(recipe, output_dir, reporter, resume, overrides)
    results = run_tuning(run, on_answers=on_answers, figures=figures)
    return run.folder, results


def prepare_tuning(
    recipe: Recipe, output_dir: Path | None, reporter: Reporter, resume: bool = False, overrides: Sequence[str] = ()
) -> Run:
    """Open the data and build the model of a recipe, see `tune_model`. Nothing is written.

    Raises:
        ToastError: the recipe, the data, the model or the run to resume cannot be used.
    """
    if recipe.pretuning is not None:
        raise UsageError(
            "This recipe is for pre-tuning.", what_to_do="Use it with 'toast pretune'.", code="recipe.for-pretuning"
        )
    recipe, chosen = choose_automatic_settings(
        recipe,
        lambda session, train: build_training_step(session, train, None)[0],
        reporter,
        None if resume else output_dir,
    )
    return Run.prepare(recipe, output_dir, reporter, resume, overrides=overrides, automatic=chosen)


def run_tuning(
    run: Run,
    callbacks: Callbacks | None = None,
    on_answers: AnswersCallback | None = None,
    figures: RunFigures | None = None,
) -> dict[str, Any]:
    """Train, test and save a prepared run; return the results. Its model then has the weights of the best epoch.

    `callbacks`, `on_answers` and `figures` are as in `tune_model`.

    Raises:
        ToastError: any error that the user can fix. Finished work stays in the run folder.
    """
    session, reporter = run.session, run.reporter
    run.figures = figures or RunFigures()
    recipe, model, accelerator, data = session.recipe, session.model, session.accelerator, session.data
    training = recipe.training
    train = session.make_loader("train", train=True)
    with_attention = (
        recipe.training.validate_attention and "val" in data.splits and session.can_measure_attention("val")
    )
    validation = session.make_loader("val", with_masks=with_attention) if "val" in data.splits else None
    step, notes = build_training_step(session, train, validation)
    if validation is not None and get_split_kind(data.splits["val"]) == "conversations":
        notes += describe_few_validation_texts(len(data.splits["val"]), training.epochs)
    with run.open() as folder:
        run.report_start(train, [*describe_schedule(recipe.training, len(train)), *notes])
        run.report_leaks()
        sizes, memory = session.measure_model_sizes(), session.estimate_memory(next(iter(train)))
        for message in filter(None, (str(memory), memory.format_warning(accelerator.device))):
            reporter.report_message(message)
        session.move_to_device()
        run.start()
        if not run.resumed and (seconds := estimate_run_time(session, step, train)) is not None:
            reporter.report_message(f"About {format_duration(seconds)} to go.")
        loop = TrainingLoop(run, step, train, validation, validate_attention=with_attention, callbacks=callbacks)
        best = loop.fit()
        if best.metrics is None and validation is None:
            reporter.report_message("There is no validation split, so the last epoch is kept.")
        load_checkpoint(folder.checkpoints, "best", model)
        if model.objective.calibrates:
            best.metrics = calibrate_model(run, step, validation, best.metrics)
        results: dict[str, Any] = {
            "backbone": recipe.backbone.name,
            "dataset": recipe.dataset.name,
            "data": get_dataset_label(recipe.dataset),
            "method": recipe.method.name,
            "seed": recipe.seed,
            "classes": len(data.classes),
            "samples": {name: len(split) for name, split in data.splits.items()},
            "split_hashes": run.split_hashes,
            "split_contents": run.split_contents,
            **sizes,
            "attention_can_be_drawn": model.backbone.has_attention and model.backbone.preprocessing is not None,
            "selected_epoch": best.epoch,
            "selected_by": None if best.metrics is None else step.select,
            "validation": best.metrics,
            "test": None,
            **run.describe_history(),
        }
        config: AdapterConfig = build_adapter_config(model, recipe, data.classes, run.lineage.start)
        trained, frozen = (
            gather_full_tensors(model.get_trained_parameters()),
            gather_full_tensors(model.get_frozen_additions()),
        )
        if folder.writes:  # before the test, which may fail
            save_adapter_folder(
                folder.adapter, trained, frozen, config, format_adapter_card(config, results, run.lineage.warnings)
            )
        test, answers, warnings = None, list[SplitAnswers](), describe_small_validation(best.metrics, training.epochs)
        if best.metrics is not None and data.target == "labels":
            images: Any = data.splits["val"]
            warnings += describe_small_label_validation(
                images.labels, data.classes, training.epochs, model.objective.calibrates
            )
        warnings += describe_divergence(loop.losses, training.lr)
        if model.objective.target == "text":
            metrics = list(read_metrics(folder.metrics))
            results["validation_before"] = find_start_metrics(metrics)
            recommended = session.find_recommended_rate().rate
            warnings += describe_endless_answers("val", best.metrics)
            warnings += describe_unsettled_loss(read_validation_losses(metrics), training, len(train), recommended)
        if best.class_counts is not None:
            warnings += describe_weak_classes("val", ClassCounts.from_dict(best.class_counts), data.classes)
        warnings += describe_weak_answers("val", best.metrics)
        if recipe.test and "test" in data.splits:
            test = session.make_loader("test", with_masks=session.can_measure_attention("test"))
            meter = model.objective.evaluation_meter()
            results |= evaluate_test_split(run, test, meter, answers.append)
            warnings += describe_weak_classes("test", meter.class_counts(), data.classes)
            warnings += describe_weak_answers("test", results["test"])
            results["test_evaluations"] = run.count_test_evaluations()
            if folder.writes:
                write_text(folder.adapter / "README.md", format_adapter_card(config, results, run.lineage.warnings))
        elif validation is not None and (training.trackers or (on_answers is not None and "test" not in data.splits)):
            collect_validation_answers(run, answers.append)
        if answers and on_answers is not None and (recipe.test or "test" not in data.splits):
            on_answers(answers[0])
        results["skipped"] = report_skipped_samples(reporter, data, train=train, val=validation, test=test)
        results["warnings"] = warnings
        results["seconds"] = run.seconds
        folder.write_results(results)
        run.show_results(results, "val" if test is None else "test", answers[0] if answers else None)
    return results


def calibrate_model(
    run: Run, step: TrainingStep, validation: BatchLoader | None, metrics: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Calibrate the objective of the selected model on the validation split; return its metrics after that.

    Without validation `metrics` of the selected model, report that nothing was chosen.
    """
    if validation is None or metrics is None:
        run.reporter.report_message("Warning: without a validation split, thresholds are not chosen: they stay at 0.5.")
        return None
    session, notes = run.session, list[str]()
    batches = run.reporter.track_progress(validation, len(validation), "thresholds")
    measured = evaluate_model(session.model, batches, session.accelerator, step=step, notes=notes)
    for note in notes:
        run.reporter.report_message(note)
    return {**metrics, **measured}


def evaluate_test_split(
    run: Run, test: BatchLoader, meter: Meter, on_answers: AnswersCallback | None = None
) -> dict[str, Any]:
    """Return the metrics on the test split and the region of the attention shares; write the predictions.

    The `meter` given, of the task's evaluation, holds the counts by class afterwards.

    Without a readable sample there are no metrics, and the user is told.
    """
    session, predictions = run.session, SamplePredictions()
    with_attention = session.can_measure_attention("test")
    batches = run.reporter.track_progress(test, len(test), "test")
    try:
        metrics = evaluate_model(
            session.model,
            batches,
            session.accelerator,
            with_attention=with_attention,
            answers=predictions,
            meter=meter,
        )
    except ToastError as error:
        if error.code != NOTHING_TO_MEASURE:
            raise
        run.reporter.report_message(f"test: not evaluated. {error.what}")
        return {"test": None}
    predictions.names |= getattr(test, "names", {})
    answers = collect_answers(session, "test", session.data.splits["test"], predictions)
    if answers is not None and answers.target == "class":
        run.folder.write_answers(format_answers_record(answers))
    if answers is not None and on_answers is not None and session.accelerator.is_main_process:
        on_answers(answers)
    return {"test": metrics, "attended_region": describe_masks(session.data.splits["test"]) if with_attention else None}


def collect_validation_answers(run: Run, on_answers: AnswersCallback) -> None:
    """Pass the selected model's answers to the validation split to `on_answers`. This takes a pass over the split."""
    session, predictions = run.session, SamplePredictions()
    if not can_collect_answers(session.model.objective):
        return
    batches = session.make_loader("val")  # not that of the training, which may leave out cached images
    tracked = run.reporter.track_progress(batches, len(batches), "validation")
    evaluate_model(session.model, tracked, session.accelerator, answers=predictions)
    predictions.names |= getattr(batches, "names", {})
    answers = collect_answers(session, "val", session.data.splits["val"], predictions)
    if answers is not None and session.accelerator.is_main_process:
        on_answers(answers)


def format_answers_record(answers: SplitAnswers) -> dict[str, list[Any]]:
    """Return the answers to a split as JSON, a list per column; without probabilities if the task has none."""
    columns = {name: column.tolist() for name, column in answers.columns.items()}
    columns["probability"] = [round(value, 6) for value in columns["probability"]]
    if any(map(math.isnan, columns["probability"])):
        del columns["probability"]
    return columns


def build_training_step(
    session: Session, train: BatchLoader, validation: BatchLoader | None
) -> tuple[TrainingStep, list[str]]:
    """Return the training step, cached with `training.cache`, and notes for the user.

    Raises:
        ToastError: the first passes cannot be cached.
    """
    if not session.recipe.training.cache:
        return TrainingStep(session.model), []
    splits = {"train": train} if validation is None else {"train": train, "val": validation}
    step, note = build_cached_step(session.recipe, session.model, splits, session.accelerator)
    return step, [note]

"""Pre-tuning (`toast pretune`): train the initial weights of the feedback path once per backbone (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from toast_cli.data.paths import get_dataset_label
from toast_cli.recipe.schema import PretuningOptions, Recipe
from toast_cli.steering.feedback import INIT_STD
from toast_cli.storage.checkpoint import load_checkpoint
from toast_cli.storage.pretuned import save_artifact
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.automatic.settings import choose_automatic_settings
from toast_cli.training.evaluate import evaluate_model, report_skipped_samples
from toast_cli.training.loop import TrainingLoop
from toast_cli.training.optimization import count_total_steps, describe_schedule, sum_learning_rates
from toast_cli.training.reporter import Reporter
from toast_cli.training.run import Run
from toast_cli.training.step import DistillationStep, PretuningStep
from toast_cli.training.tracking.figures import RunFigures
from toast_cli.utils.config import is_automatic
from toast_cli.utils.errors import UsageError


def to_pretuning_recipe(recipe: Recipe, gradient: bool = True) -> Recipe:
    """Return the recipe for pre-tuning: P stays the identity (section 3.2) unless `pretuning.train_P` is set.

    Raises:
        UsageError: the method has no full feedback path, or the options of the recipe exclude each other.
    """
    options = recipe.pretuning or PretuningOptions()
    if recipe.method.name != "toast":
        raise UsageError(
            f"The method '{recipe.method.name}' cannot be pre-tuned: it does not train the whole feedback path.",
            what_to_do="Leave the method out, or set method.name=toast.",
            code="method.no-feedback-path",
        )
    if not gradient and getattr(recipe.method, "start", None) != "least-squares":
        raise UsageError(
            "Pre-tuning without gradients needs method.start=least-squares.", code="training.nothing-to-do"
        )
    if not gradient and (is_automatic(recipe.training.lr) or is_automatic(recipe.training.batch_size)):
        raise UsageError(
            "auto is chosen for training with gradients, and --least-squares trains nothing.",
            what_to_do="Leave training.lr=auto and training.batch_size=auto out.",
            code="training.nothing-to-do",
        )
    if recipe.training.cache:
        raise UsageError(
            "training.cache cannot be used for pre-tuning, which reconstructs levels that the cache does not keep.",
            what_to_do="Leave training.cache out.",
            code="training.conflicting-options",
        )
    if options.target == "first-pass" and options.passes == "both":
        raise UsageError(
            "pretuning.passes=both cannot be combined with pretuning.target=first-pass, which has no task loss.",
            what_to_do="Leave pretuning.passes out.",
            code="training.conflicting-options",
        )
    method = recipe.method.model_copy(update={"train_P": options.train_P})
    return recipe.model_copy(update={"pretuning": options, "method": method})


def describe_short_pretuning(recipe: Recipe, batches: int, length: int | None) -> list[str]:
    """Return a warning if pre-tuning on text is too short to be worth more than the start that tuning has without it.

    A step of Adam moves a weight by about the learning rate. If the sum of all rates is below the spread of random
    weights, the artifact is close to its own start: random, or least squares over other texts than those of the task.

    Args:
        recipe: The recipe of the pre-tuning.
        batches: The number of batches in an epoch.
        length: The tokens of a block of text, or None if the data are not text.
    """
    training = recipe.training
    if length is None or "adam" not in training.optimizer:
        return []
    steps_per_epoch = -(-batches // training.accumulate)
    steps = count_total_steps(training, steps_per_epoch)
    (moved,) = sum_learning_rates(training, steps_per_epoch, [steps])
    if moved >= INIT_STD:
        return []
    seen = steps * training.accumulate * training.batch_size * length
    needed = float(f"{seen * INIT_STD / moved:.1g}")
    start = getattr(recipe.method, "start", "random")
    close = "random" if start == "random" else "the least-squares start of this text"
    return [
        f"Pre-tuning takes {steps:,} steps (about {seen:,} tokens), which move a weight by {moved:.2g} or less: the "
        f"artifact will be close to {close}. Tuning without it starts at least squares over its own texts, which is "
        f"better. About {needed:,.0f} tokens are needed."
    ]


def requires_labels(recipe: Recipe, gradient: bool = True) -> bool:
    """Return whether pre-tuning needs labelled data."""
    return gradient and recipe.pretuning is not None and recipe.pretuning.target == "labels"


def pretune_model(
    recipe: Recipe,
    output_dir: Path | None,
    reporter: Reporter,
    gradient: bool = True,
    resume: bool = False,
    overrides: Sequence[str] = (),
    figures: RunFigures | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Pre-tune according to a recipe; return the run folder, which holds the artifact, and the results.

    Without `gradient`, the artifact is the least-squares start. With `resume`, `output_dir` is the folder of an
    interrupted run of this recipe, which is resumed exactly. `overrides` are as in `tune_model`. `figures` draws the
    curves, and pictures for the trackers.

    Raises:
        UsageError: the method has no full feedback path, or the recipe's options exclude each other.
        ToastError: any other error that the user can fix.
    """
    if resume and recipe.pretuning is None:
        raise UsageError(
            "This is not a pre-tuning run.",
            what_to_do="Use 'toast tune --resume' to resume it.",
            code="resume.not-a-pretuning",
        )
    recipe = to_pretuning_recipe(recipe, gradient)
    options, labels = recipe.pretuning, requires_labels(recipe, gradient)
    assert options is not None
    make_step = partial(PretuningStep if options.target == "labels" else DistillationStep, options=options)
    recipe, chosen = choose_automatic_settings(
        recipe, lambda session, _: make_step(session.model), reporter, None if resume else output_dir, labels=labels
    )
    run = Run.prepare(recipe, output_dir, reporter, resume, overrides=overrides, labels=labels, automatic=chosen)
    run.figures = figures or RunFigures()
    session = run.session
    recipe, model = session.recipe, session.model
    sizes = session.measure_model_sizes()
    session.move_to_device()
    step = make_step(model)
    train = session.make_loader("train", train=True)
    validation = session.make_loader("val") if "val" in session.data.splits else None
    measured = validation or session.make_loader("train")

    def reconstruction() -> dict[str, float]:
        return evaluate_model(model, measured, session.accelerator, step=step)["reconstruction"]

    with run.open() as folder:
        warnings = describe_short_pretuning(recipe, len(train), getattr(train, "longest", None)) if gradient else []
        schedule = describe_schedule(recipe.training, len(train)) if gradient else []
        run.report_start(train, [*schedule, *(f"Warning: {text}" for text in warnings)])
        run.report_leaks()
        random_losses = {} if gradient else reconstruction()
        run.start()
        if run.resumed:
            load_checkpoint(folder.checkpoints, "start", model)  # the loop restores `last` later
        # With gradients, `before` is of the start they train from; without them, of the random initial weights.
        before = reconstruction() if gradient else random_losses
        results: dict[str, Any] = {
            "backbone": recipe.backbone.name,
            "dataset": recipe.dataset.name,
            "data": get_dataset_label(recipe.dataset),
            "samples": {name: len(split) for name, split in session.data.splits.items()},
            "split_hashes": run.split_hashes,
            "split_contents": run.split_contents,
            **sizes,
            **run.describe_history(),
        }
        if gradient:
            best = TrainingLoop(run, step, train, validation).fit()
            load_checkpoint(folder.checkpoints, "best", model)
            results |= {"selected_epoch": best.epoch, "validation": best.metrics}
        results["before"] = before
        results["after"] = reconstruction()
        results["skipped"] = report_skipped_samples(reporter, session.data, train=train, val=validation)
        results["warnings"] = warnings
        results["seconds"] = run.seconds
        save_artifact(folder, model, recipe, results)
        folder.write_results(results)
    return folder, results

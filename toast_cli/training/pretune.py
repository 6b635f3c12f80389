"""`toast pretune`: give the feedback path its start, once per backbone (section 3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toast_cli.data.splits import get_split_hash
from toast_cli.recipe.schema import PretuningOptions, Recipe
from toast_cli.storage.checkpoint import load_checkpoint
from toast_cli.storage.pretuned import save_artifact
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.evaluate import evaluate_model, report_skipped_samples
from toast_cli.training.loop import TrainingLoop
from toast_cli.training.optimization import describe_schedule
from toast_cli.training.reporter import Reporter
from toast_cli.training.run import Run
from toast_cli.training.step import DistillationStep, PretuningStep
from toast_cli.utils.errors import UsageError


def to_pretuning_recipe(recipe: Recipe, gradient: bool = True) -> Recipe:
    """The recipe as pre-tuning takes it: P stays the identity (section 3.2) unless `pretuning.train_P` says otherwise.

    Raises:
        UsageError: it asks for what cannot be pre-tuned.
    """
    options = recipe.pretuning or PretuningOptions()
    if recipe.method.name != "toast":
        raise UsageError(
            "Pre-tuning is of the whole feedback path.",
            what_to_do="Leave the method out, or set method.name=toast.",
            code="training.no-feedback-path",
        )
    if not gradient and getattr(recipe.method, "start", None) != "least-squares":
        raise UsageError(
            "Without gradients, only method.start=least-squares makes an artifact.", code="training.nothing-to-do"
        )
    if recipe.training.cache:
        raise UsageError(
            "Pre-tuning rebuilds every level of both passes, and training.cache keeps the end of the first alone.",
            what_to_do="Leave training.cache out.",
            code="training.conflicting-options",
        )
    if options.target == "first-pass" and options.passes == "both":
        raise UsageError(
            "With pretuning.target=first-pass there is no task loss of the first pass to average.",
            what_to_do="Leave pretuning.passes out.",
            code="training.conflicting-options",
        )
    method = recipe.method.model_copy(update={"train_P": options.train_P})
    return recipe.model_copy(update={"pretuning": options, "method": method})


def requires_labels(recipe: Recipe, gradient: bool = True) -> bool:
    """Whether pre-tuning needs labelled data."""
    return gradient and recipe.pretuning is not None and recipe.pretuning.target == "labels"


def pretune_model(
    recipe: Recipe, output_dir: Path | None, reporter: Reporter, gradient: bool = True, resume: bool = False
) -> tuple[RunFolder, dict[str, Any]]:
    """Pre-tune as the recipe says and return the run folder, which holds the artifact, and its results.

    Without `gradient`, the least-squares start is the artifact. With `resume`, `output_dir` is the folder of an
    interrupted run of this recipe, which goes on exactly.

    Raises:
        UsageError: the recipe's method has no feedback path, or leaves nothing to do.
        ToastError: anything else that a user can mend.
    """
    if resume and recipe.pretuning is None:
        raise UsageError(
            "This run is no pre-tuning.",
            what_to_do="'toast tune --resume' goes on with it.",
            code="resume.not-a-pretuning",
        )
    recipe = to_pretuning_recipe(recipe, gradient)
    run = Run.prepare(recipe, output_dir, reporter, resume, labels=requires_labels(recipe, gradient))
    session = run.session
    recipe, model, options = session.recipe, session.model, session.recipe.pretuning
    assert options is not None
    sizes = session.sizes()
    session.place()
    step = (PretuningStep if options.target == "labels" else DistillationStep)(model, options)
    train = session.batches("train", train=True)
    validation = session.batches("val") if "val" in session.data.splits else None
    measured = validation or session.batches("train")

    def reconstruction() -> dict[str, float]:
        return evaluate_model(model, measured, session.accelerator, step=step)["reconstruction"]

    with run.open() as folder:
        run.announce(train, describe_schedule(recipe.training, len(train)) if gradient else ())
        drawn = {} if gradient else reconstruction()
        run.start()
        if run.resumed:
            load_checkpoint(folder.checkpoints, "start", model)  # the loop puts back what the run had come to
        # Before the stage: what gradients start from; without them, what was drawn at random.
        before = reconstruction() if gradient else drawn
        results: dict[str, Any] = {
            "backbone": recipe.backbone.name,
            "dataset": recipe.dataset.name,
            "samples": {name: len(split) for name, split in session.data.splits.items()},
            "split_hashes": {name: get_split_hash(split) for name, split in session.data.splits.items()},
            **sizes,
        }
        if gradient:
            best = TrainingLoop(run, step, train, validation).fit()
            load_checkpoint(folder.checkpoints, "best", model)
            results |= {"selected_epoch": best.epoch, "validation": best.metrics}
        results["before"] = before
        results["after"] = reconstruction()
        results["skipped"] = report_skipped_samples(reporter, train=train, val=validation)
        results["seconds"] = run.seconds
        save_artifact(folder, model, recipe, results)
        folder.write_results(results)
    return folder, results

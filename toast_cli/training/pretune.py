"""`toast pretune`: give the feedback path its start, once per backbone (section 3.2)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from toast_cli.data.splits import get_split_hash
from toast_cli.recipe.schema import PretuningOptions, Recipe
from toast_cli.storage.checkpoint import load_checkpoint
from toast_cli.storage.load_model import resolve_recorded_backbone
from toast_cli.storage.pretuned import save_artifact
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.evaluate import evaluate_model
from toast_cli.training.loop import fit
from toast_cli.training.notices import lock_run_folder, report_run_start, report_skipped_samples
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import prepare_session
from toast_cli.training.setup import get_default_run_name, has_checkpoint, open_run_folder, start_or_resume
from toast_cli.training.step import DistillationStep, PretuningStep
from toast_cli.training.tensorboard import open_metrics_logger
from toast_cli.utils.errors import UsageError


def to_pretuning_recipe(recipe: Recipe, gradient: bool = True) -> Recipe:
    """The recipe as pre-tuning takes it: P stays the identity (section 3.2) unless `pretuning.train_P` says otherwise.

    Raises:
        UsageError: it asks for what cannot be pre-tuned.
    """
    options = recipe.pretuning or PretuningOptions()
    if recipe.method.name != "toast":
        raise UsageError(
            "Pre-tuning is of the whole feedback path.", what_to_do="Leave the method out, or set method.name=toast."
        )
    if not gradient and getattr(recipe.method, "start", None) != "least-squares":
        raise UsageError("Without gradients, only method.start=least-squares makes an artifact.")
    if recipe.training.cache:
        raise UsageError(
            "Pre-tuning rebuilds every level of both passes, and training.cache keeps the end of the first alone.",
            what_to_do="Leave training.cache out.",
        )
    if options.target == "first-pass" and options.passes == "both":
        raise UsageError(
            "With pretuning.target=first-pass there is no task loss of the first pass to average.",
            what_to_do="Leave pretuning.passes out.",
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
    started = time.perf_counter()
    if resume and recipe.pretuning is None:
        raise UsageError("This run is no pre-tuning.", what_to_do="'toast tune --resume' goes on with it.")
    recipe = to_pretuning_recipe(recipe, gradient)
    labels = requires_labels(recipe, gradient)
    if resume and output_dir is not None:
        recipe = resolve_recorded_backbone(recipe, RunFolder(output_dir).toast_version())
    assert recipe.pretuning is not None
    session = prepare_session(recipe, labels=labels, begun=resume and has_checkpoint(output_dir), place=False)
    sizes = session.sizes()
    session.place()
    model = session.model
    step = (PretuningStep if recipe.pretuning.target == "labels" else DistillationStep)(model, recipe.pretuning)
    train = session.batches("train", train=True)
    validation = session.batches("val") if "val" in session.data.splits else None
    folder = open_run_folder(session, output_dir, f"pretune-{get_default_run_name(recipe)}", resume)
    report_run_start(session, train, folder, reporter, gradient)
    measured = validation or session.batches("train")

    def reconstruction() -> dict[str, float]:
        return evaluate_model(model, measured, session.accelerator, step=step)["reconstruction"]

    with lock_run_folder(folder, reporter, "pretune"):
        drawn = {} if gradient else reconstruction()
        goes_on = start_or_resume(session, folder, reporter, resume)
        if goes_on:
            load_checkpoint(folder.checkpoints, "start", model)  # `fit` puts back what the run had come to
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
        with (
            open_metrics_logger(folder, recipe.training.tensorboard) as log,
            lock_run_folder(folder, reporter, "pretune"),
        ):
            best = fit(
                step,
                train,
                validation,
                recipe.training,
                session.accelerator,
                folder,
                reporter,
                log,
                resume=goes_on,
            )
        load_checkpoint(folder.checkpoints, "best", model)
        results |= {"selected_epoch": best.epoch, "validation": best.metrics}
    results["before"] = before
    results["after"] = reconstruction()
    results["skipped"] = report_skipped_samples(reporter, train=train, val=validation)
    results["seconds"] = folder.spent + time.perf_counter() - started
    save_artifact(folder, model, recipe, results)
    folder.write_results(results)
    return folder, results

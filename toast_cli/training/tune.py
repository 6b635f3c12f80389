"""A run from recipe to results: start, training, and one look at the test split."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from toast_cli.data.base import Batches, marks_of
from toast_cli.data.splits import hash_of
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.adapter import AdapterConfig, describe, save_folder
from toast_cli.storage.checkpoint import load_checkpoint
from toast_cli.storage.legacy_backbones import with_recorded_backbone
from toast_cli.storage.model_card import adapter_card
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.distributed.collectives import merged
from toast_cli.training.evaluate import Answers, evaluate
from toast_cli.training.feature_cache import cached_step
from toast_cli.training.loop import fit
from toast_cli.training.notices import at_work, say_first, say_skipped
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session, prepare
from toast_cli.training.setup import begin, default_run_name, has_begun, open_folder
from toast_cli.training.step import Step
from toast_cli.training.tensorboard import metrics_logger
from toast_cli.utils.dtensor import whole
from toast_cli.utils.errors import UsageError


def tune(
    recipe: Recipe, output_dir: Path | None, reporter: Reporter, resume: bool = False
) -> tuple[RunFolder, dict[str, Any]]:
    """Train as the recipe says and return the run folder and its results.

    With `resume`, `output_dir` is the folder of an interrupted run of this recipe, which goes on exactly: on a CPU it
    ends with the weights, bit for bit, of a run that was never interrupted.

    Selection is by validation alone; the test split is seen once, at the end, by the model that was selected; with
    `test: false` in the recipe, never.

    Raises:
        ToastError: anything a user can mend; what had been finished stays in the run folder.
    """
    started = time.perf_counter()
    if recipe.pretuning is not None:
        raise UsageError("This recipe is for pre-tuning.", what_to_do="Give it to 'toast pretune'.")
    if resume and output_dir is not None:
        recipe = with_recorded_backbone(recipe, RunFolder(output_dir).toast_version())
    session = prepare(recipe, begun=resume and has_begun(output_dir), place=False)
    model, accelerator, data = session.model, session.accelerator, session.data
    train = session.batches("train", train=True)
    looks = recipe.training.validate_attention and "val" in data.splits and session.shows_attention("val")
    validation = session.batches("val", with_masks=looks) if "val" in data.splits else None
    step, notes = tuning_step(session, train, validation)
    folder = open_folder(session, output_dir, default_run_name(recipe), resume)
    say_first(session, train, folder, reporter)
    for note in notes:
        reporter.message(note)
    sizes, memory = session.sizes(), session.memory(train)
    for message in filter(None, (str(memory), memory.warning(accelerator.device))):
        reporter.message(message)
    session.place()
    with at_work(folder, reporter, "tune"):
        goes_on = begin(session, folder, reporter, resume)
    with metrics_logger(folder, recipe.training.tensorboard) as log, at_work(folder, reporter, "tune"):
        best = fit(
            step,
            train,
            validation,
            recipe.training,
            accelerator,
            folder,
            reporter,
            log,
            resume=goes_on,
            validate_attention=looks,
        )
    if best.metrics is None:
        reporter.message("There is no validation split: the last epoch is kept.")
    load_checkpoint(folder.checkpoints, "best", model)
    results: dict[str, Any] = {
        "backbone": recipe.backbone.name,
        "dataset": recipe.dataset.name,
        "method": recipe.method.name,
        "seed": recipe.seed,
        "classes": len(data.classes),
        "samples": {name: len(split) for name, split in data.splits.items()},
        "split_hashes": {name: hash_of(split) for name, split in data.splits.items()},
        **sizes,
        "attention_can_be_drawn": model.backbone.has_attention and model.backbone.preprocessing is not None,
        "selected_epoch": best.epoch,
        "validation": best.metrics,
        "test": None,
    }
    test = None
    if recipe.test and "test" in data.splits:
        shows, answers = session.shows_attention("test"), Answers()
        test = session.batches("test", with_masks=shows)
        seen = reporter.track(test, len(test), "test")
        with at_work(folder, reporter, "tune"):
            results["test"] = evaluate(model, seen, accelerator, with_attention=shows, answers=answers)
        results["attended_region"] = marks_of(data.splits["test"]) if shows else None
        if given := merged(answers).given:
            columns = zip(*((place, *given[place]) for place in sorted(given)), strict=True)
            folder.write_answers(dict(zip(("index", "label", "chosen"), columns, strict=True)))
    results["skipped"] = say_skipped(reporter, train=train, val=validation, test=test)
    results["seconds"] = folder.spent + time.perf_counter() - started
    config: AdapterConfig = describe(model, recipe, data.classes)
    trained, frozen = whole(model.trained()), whole(model.frozen_additions())
    if folder.writes:
        save_folder(folder.adapter, trained, frozen, config, adapter_card(config, results))
    folder.write_results(results)
    return folder, results


def tuning_step(session: Session, train: Batches, validation: Batches | None) -> tuple[Step, list[str]]:
    """What a step of tuning does, and what a user should read about it.

    Raises:
        ToastError: first passes are to be kept, and cannot be.
    """
    if not session.recipe.training.cache:
        return Step(session.model), []
    splits = {"train": train} if validation is None else {"train": train, "val": validation}
    step, note = cached_step(session.recipe, session.model, splits, session.accelerator)
    return step, [note]

"""The choice of all settings that are `auto`, before a run starts.

The trials use a session of their own, which is discarded. So the run that follows is the same as one whose recipe has
the chosen numbers from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from accelerate.utils import release_memory, set_seed

from toast_cli.data.base import BatchLoader
from toast_cli.model.recipe_data import count_workers
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.automatic.batch_size import find_batch_size
from toast_cli.training.automatic.lr_range import LRRange, measure_lr_range
from toast_cli.training.automatic.placeholders import fill_placeholders, set_training_fields
from toast_cli.training.optimization import check_optimizer
from toast_cli.training.reporter import Reporter
from toast_cli.training.run import AutomaticSettings, initialize_feedback
from toast_cli.training.session import Session, prepare_session
from toast_cli.training.step import TrainingStep
from toast_cli.training.tracking.libraries import check_trackers, log_in_to_trackers
from toast_cli.utils.config import is_automatic
from toast_cli.utils.errors import UsageError

MakeStep = Callable[[Session, BatchLoader], TrainingStep]


def choose_automatic_settings(
    recipe: Recipe, make_step: MakeStep, reporter: Reporter, output_dir: Path | None, *, labels: bool = True
) -> tuple[Recipe, AutomaticSettings]:
    """Return the recipe with a number for every setting that is `auto`, and these numbers.

    The batch size is chosen before the learning rate, which depends on it. A recipe of a run that is resumed has
    numbers, so nothing is chosen again.

    Raises:
        UsageError: the output folder holds files, the recipe cannot be run, or the model is sharded and the batch size
            is `auto`.
        ToastError: a tracker cannot be logged in to, no batch size fits, no learning rate lowers the loss, or any
            other error of `prepare_session`.
    """
    numbers: dict[str, int | float] = {}
    lr_range = None

    def choose(name: str, number: int | float) -> None:
        nonlocal recipe
        numbers[name] = number
        recipe = set_training_fields(recipe, **{name: number})

    training = recipe.training
    if is_automatic(training.workers):
        choose("workers", count_workers(recipe))
    if is_automatic(training.batch_size) or is_automatic(training.lr):
        RunFolder.require_free(output_dir)  # before the trials, which take time
        check_trackers(training.trackers)
        log_in_to_trackers(training.trackers)
    if is_automatic(training.batch_size) and training.shard:
        raise UsageError(
            "training.batch_size=auto cannot be combined with training.shard.",
            "If one process runs out of memory, the others wait for its shards.",
            "Set training.batch_size to a number.",
            code="training.conflicting-options",
        )
    prepare = partial(prepare_session, labels=labels, place=False)
    if is_automatic(training.batch_size):
        choose("batch_size", find_batch_size(prepare(fill_placeholders(recipe)), make_step))
        release_memory()
        reporter.report_message(
            f"training.batch_size=auto: {numbers['batch_size']}, the largest power of two that fits. The learning rate "
            "is not scaled."
        )
    if is_automatic(training.lr):
        session = prepare(fill_placeholders(recipe))
        lr_range = _measure_from_start(session, make_step, reporter)
        choose("lr", lr_range.suggestion)
        check_optimizer(recipe.training)
        del session
        release_memory()
        head = "" if training.head_lr is None else f" The head keeps training.head_lr={training.head_lr:g}."
        reporter.report_message(f"training.lr=auto: {numbers['lr']:g}, by a range test.{head}")
    return recipe, AutomaticSettings(numbers, None if lr_range is None else lr_range.format_csv())


def _measure_from_start(session: Session, make_step: MakeStep, reporter: Reporter) -> LRRange:
    """Run the range test from the weights that the run starts from."""
    train = session.make_loader("train", train=True)
    step = make_step(session, train)
    session.move_to_device()
    if session.start is None or not session.start.has_method:
        initialize_feedback(session, reporter)
    if session.accelerator.num_processes > 1:
        set_seed(session.recipe.seed, device_specific=True)
    return measure_lr_range(session, step, train, reporter)

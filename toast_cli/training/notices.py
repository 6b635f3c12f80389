"""What a user reads of a run: before it, where it is interrupted, and of what it could not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from toast_cli.data.base import BatchLoader
from toast_cli.storage.checkpoint import find_checkpoint
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.distributed.collectives import merge_dicts_across_processes
from toast_cli.training.optimization import describe_schedule
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.utils.errors import ToastError


def report_run_start(
    session: Session, train: BatchLoader, folder: RunFolder, reporter: Reporter, gradient: bool = True
) -> None:
    """What a user should read before a run: its folder, its data and, with `gradient`, its steps."""
    training = session.recipe.training
    steps = describe_schedule(training, -(-len(train) // training.accumulate)) if gradient else []
    for message in (
        f"Run folder: {folder.path}",
        *session.data.notes,
        *train.notes,
        *session.describe_backbone(),
        *steps,
    ):
        reporter.message(message)


@contextmanager
def lock_run_folder(folder: RunFolder, reporter: Reporter, command: str) -> Iterator[None]:
    """No other process works on the run meanwhile, and whoever interrupts it reads how it goes on.

    Raises:
        ToastError: another process is at it.
    """
    try:
        with folder.held():
            yield
    except KeyboardInterrupt:
        reporter.stopped(f"toast {command} --resume {folder.path}")
        raise
    except ToastError as error:
        if isinstance(error.__cause__, OSError) and find_checkpoint(folder.checkpoints, "last") is not None:
            reporter.message(f"Once that is mended, it goes on with: toast {command} --resume {folder.path}")
        raise


def report_skipped_samples(reporter: Reporter, **batches: BatchLoader | None) -> dict[str, dict[str, str]]:
    """Say how many samples of every split could not be read and were left out; returns all of them, with the reasons.

    All processes must call it.
    """
    found = {
        part: merge_dicts_across_processes(loader.skipped) for part, loader in batches.items() if loader is not None
    }
    for part, skipped in found.items():
        if skipped:
            named = "; ".join(f"{name} ({why})" for name, why in list(skipped.items())[:3])
            more = f"; and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
            reporter.message(f"{part}: {len(skipped):,} could not be read and were skipped: {named}{more}")
    return {part: skipped for part, skipped in found.items() if skipped}

"""Selection of the run that a command works on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.cli.output.console import err, print_line
from toast_cli.storage.run_folder import DEFAULT_RUNS_FOLDER, find_newest_run
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.model.generation import TextGenerator


def resolve_run_path(run: Path | None) -> Path:
    """Return `run`, or the newest run if it is None. The path of the newest run is printed on stderr.

    Raises:
        UsageError: `run` is None and there is no finished run.
    """
    if run is not None:
        return run
    newest = find_newest_run()
    if newest is None:
        raise UsageError(
            f"No finished run in {DEFAULT_RUNS_FOLDER.absolute()}.",
            what_to_do="Train one with 'toast tune', or pass --run.",
            code="run.none-found",
        )
    print_line(f"Newest run: {newest}", err)
    return newest


def print_message(text: str) -> None:
    """Print a line on stderr."""
    print_line(text, err)


def load_writer(
    run: Path,
    weights: str | None,
    device: str | None,
    raw: bool = False,
    interrupted: bool = False,
    alpha: float | None = None,
) -> TextGenerator:
    """Load a run's language model for generation.

    Prompts are formatted with the template that the run was trained with, unless `raw` is true. With `interrupted`, a
    run that has not finished is loaded from its last checkpoint, which is printed on stderr. `alpha` scales the signals
    of the feedback.

    Raises:
        UsageError: The run is not one of a language model, it has no checkpoint, `alpha` is set without feedback, or
            the device is not available.
        ToastError: The run is damaged, or its backbone has no tokenizer.
    """
    from toast_cli.evaluation.interrupted_run import describe_last_checkpoint
    from toast_cli.evaluation.open_run import RunRequest, make_text_generator, open_run
    from toast_cli.storage.run_folder import is_unfinished

    if interrupted and is_unfinished(run):
        print_message(describe_last_checkpoint(run))
    request = RunRequest(run, weights=weights, device=device, alpha=alpha, interrupted=interrupted)
    return make_text_generator(open_run(request), print_message, raw)

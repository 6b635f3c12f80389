"""The run that a verb works on: the one named, or the newest, which is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.cli.output.console import err, print_line
from toast_cli.storage.run_folder import DEFAULT_RUNS_FOLDER, find_newest_run
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.model.generation import TextGenerator


def resolve_run_path(run: Path | None) -> Path:
    """Return the run to work on: the one named, or the newest.

    Raises:
        UsageError: none was named and there is none.
    """
    if run is not None:
        return run
    newest = find_newest_run()
    if newest is None:
        raise UsageError(
            f"There is no finished run in {DEFAULT_RUNS_FOLDER.absolute()}.",
            what_to_do="Make one with 'toast tune', or name one with --run.",
            code="run.none-found",
        )
    print_line(f"Newest run: {newest}", err)
    return newest


def print_message(text: str) -> None:
    """Print a line beside the results, on stderr."""
    print_line(text, err)


def load_writer(run: Path, weights: str | None, device: str | None, raw: bool = False) -> TextGenerator:
    """Load a run's language model, to answer in the form that it was trained on; `raw` leaves prompts unmarked."""
    from toast_cli.evaluation.open_run import RunRequest, open_run
    from toast_cli.model.generation import TextGenerator

    opened = open_run(RunRequest(run, weights=weights, device=device))
    template = None if raw else getattr(opened.recipe.dataset, "template", None)
    return TextGenerator(opened.model, template, print_message)

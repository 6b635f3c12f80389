"""Which run a verb works on: the one named, or the newest, which is then said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.cli.output.console import err, print_line
from toast_cli.storage.run_folder import DEFAULT_RUNS_FOLDER, find_newest_run
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.model.generation import TextGenerator


def resolve_run_path(run: Path | None) -> Path:
    """The run to work on.

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
        )
    print_line(f"Newest run: {newest}", err)
    return newest


def print_message(text: str) -> None:
    """Say something beside the results."""
    print_line(text, err)


def load_writer(run: Path, weights: str | None, device: str | None, raw: bool = False) -> TextGenerator:
    """A run's language model, ready to answer in the form that it was trained on; `raw` leaves prompts unmarked."""
    from toast_cli.model.generation import TextGenerator
    from toast_cli.storage.load_model import load_model
    from toast_cli.training.distributed.devices import make_accelerator

    loaded = load_model(run, weights)
    template = None if raw else getattr(loaded.recipe.dataset, "template", None)
    accelerator = make_accelerator(device or loaded.recipe.device, loaded.recipe.precision)
    return TextGenerator(loaded.model.to(accelerator.device), template, print_message)

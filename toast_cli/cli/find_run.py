"""Which run a verb works on: the one named, or the newest, which is then said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.cli.output.console import err, say
from toast_cli.storage.run_folder import RUNS, newest_run
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.model.generation import Writer


def chosen_run(run: Path | None) -> Path:
    """The run to work on.

    Raises:
        UsageError: none was named and there is none.
    """
    if run is not None:
        return run
    newest = newest_run()
    if newest is None:
        raise UsageError(
            f"There is no finished run in {RUNS.absolute()}.",
            what_to_do="Make one with 'toast tune', or name one with --run.",
        )
    say(f"Newest run: {newest}", err)
    return newest


def tell(text: str) -> None:
    """Say something beside the results."""
    say(text, err)


def run_writer(run: Path, weights: str | None, device: str | None, raw: bool = False) -> Writer:
    """A run's language model, ready to answer in the form that it was trained on; `raw` leaves prompts unmarked."""
    from toast_cli.evaluation.evaluate_run import changed
    from toast_cli.model.generation import Writer
    from toast_cli.storage.load_model import load
    from toast_cli.training.distributed.devices import make_accelerator

    loaded = load(run, weights)
    template = None if raw else getattr(loaded.recipe.dataset, "template", None)
    return Writer(loaded.model.to(make_accelerator(changed(loaded.recipe, device=device)).device), template, tell)

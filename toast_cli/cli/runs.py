"""Which run a verb works on: the one named, or the newest, which is then said."""

from __future__ import annotations

from pathlib import Path

from toast_cli.cli.console import err, say
from toast_cli.errors import UsageError
from toast_cli.storage.run_folder import RUNS, newest_run


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

"""The folder of an experiment: what was asked for, so that its standing and its tables can be had at any time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from toast_cli.bench.scheduler.jobs import Experiment
from toast_cli.bench.suite import parse
from toast_cli.recipe.checksum import seal_holds, sealed_text
from toast_cli.storage.checksums import read_sealed, sealed
from toast_cli.utils.atomic import write_json, write_text
from toast_cli.utils.errors import ToastError, UsageError

BENCHES = Path("bench")
"""Where experiments lie unless told otherwise, below the current folder."""
ASKED = "experiment.json"
SUITE = "suite.yaml"
AGAIN = "Call 'toast bench SUITE' with the same suite, folder and options: it goes on, and writes the file anew."


def remember(out: Path, experiment: Experiment, text: str, ledger: str | None) -> None:
    """Keep the suite's text and what the command line asked for; a ledger's URL only if it holds no password."""
    asked = {name: value for name, value in asdict(experiment).items() if name != "suite"}
    kind, _, place = (ledger or "").partition(":")
    if kind == "journal":
        ledger = f"journal:{Path(place).absolute()}"  # found from anywhere, as the folder is
    write_text(out / SUITE, sealed_text(text))
    asked["known"] = dict(experiment.contents)  # tables can be had where the files are no more
    write_json(out / ASKED, sealed({**asked, "ledger": None if ledger is None or "@" in ledger else ledger}))


def recall(out: Path) -> tuple[Experiment, str | None]:
    """What was asked for, and the ledger.

    Raises:
        UsageError: nothing was begun there.
        ToastError: what is kept there is damaged.
    """
    if not (out / ASKED).is_file():
        raise UsageError(f"There is no experiment in {out}.", what_to_do="Begin one with 'toast bench SUITE'.")
    asked: dict[str, Any] = read_sealed(out / ASKED, AGAIN)
    ledger = asked.pop("ledger")
    suite = parse(_suite(out / SUITE), str(out / SUITE))
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    return Experiment(suite=suite, **lists), ledger


def _suite(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(f"{path} cannot be read.", str(error), AGAIN) from error
    if not seal_holds(text):
        raise ToastError(f"{path} is damaged.", "It is not what was written, by its sha256.", AGAIN)
    return text


def newest(root: Path = BENCHES) -> Path:
    """The experiment that was begun or joined last.

    Raises:
        UsageError: there is none.
    """
    begun = list(root.glob(f"*/{ASKED}"))
    if not begun:
        raise UsageError(f"There is no experiment in {root.absolute()}.", what_to_do="Begin one: 'toast bench SUITE'.")
    return max(begun, key=lambda path: path.stat().st_mtime_ns).parent

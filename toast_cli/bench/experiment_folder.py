"""The folder of an experiment: what was asked for, so that its standing and its tables can be had at any time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from toast_cli.bench.scheduler.jobs import Experiment
from toast_cli.bench.suite import parse_suite
from toast_cli.recipe.checksum import add_checksum_line, is_checksum_valid
from toast_cli.storage.checksums import add_checksum, read_checksummed_json
from toast_cli.utils.atomic import write_json, write_text
from toast_cli.utils.errors import ToastError, UsageError

DEFAULT_BENCH_DIR = Path("bench")
"""Where experiments lie unless told otherwise, below the current folder."""
EXPERIMENT_FILE = "experiment.json"
SUITE_FILE = "suite.yaml"
RESTART_HINT = "Call 'toast bench SUITE' with the same suite, folder and options: it goes on, and writes the file anew."


def save_experiment(out: Path, experiment: Experiment, text: str, ledger: str | None) -> None:
    """Keep the suite's text and what the command line asked for; a ledger's URL only if it holds no password."""
    asked = {name: value for name, value in asdict(experiment).items() if name != "suite"}
    kind, _, place = (ledger or "").partition(":")
    if kind == "journal":
        ledger = f"journal:{Path(place).absolute()}"  # found from anywhere, as the folder is
    write_text(out / SUITE_FILE, add_checksum_line(text))
    asked["known"] = dict(experiment.contents)  # tables can be had where the files are no more
    write_json(
        out / EXPERIMENT_FILE, add_checksum({**asked, "ledger": None if ledger is None or "@" in ledger else ledger})
    )


def load_experiment(out: Path) -> tuple[Experiment, str | None]:
    """What was asked for, and the ledger.

    Raises:
        UsageError: nothing was begun there.
        ToastError: what is kept there is damaged.
    """
    if not (out / EXPERIMENT_FILE).is_file():
        raise UsageError(
            f"There is no experiment in {out}.",
            what_to_do="Begin one with 'toast bench SUITE'.",
            code="bench.no-experiment",
        )
    asked: dict[str, Any] = read_checksummed_json(out / EXPERIMENT_FILE, RESTART_HINT)
    ledger = asked.pop("ledger")
    suite = parse_suite(_read_suite_text(out / SUITE_FILE), str(out / SUITE_FILE))
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    return Experiment(suite=suite, **lists), ledger


def _read_suite_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"{path} cannot be read.", str(error), RESTART_HINT, code="bench.unreadable-experiment"
        ) from error
    if not is_checksum_valid(text):
        raise ToastError(
            f"{path} is damaged.",
            "It is not what was written, by its sha256.",
            RESTART_HINT,
            code="bench.damaged-experiment",
        )
    return text


def find_newest_experiment(root: Path = DEFAULT_BENCH_DIR) -> Path:
    """The experiment that was begun or joined last.

    Raises:
        UsageError: there is none.
    """
    begun = list(root.glob(f"*/{EXPERIMENT_FILE}"))
    if not begun:
        raise UsageError(
            f"There is no experiment in {root.absolute()}.",
            what_to_do="Begin one: 'toast bench SUITE'.",
            code="bench.no-experiment",
        )
    return max(begun, key=lambda path: path.stat().st_mtime_ns).parent

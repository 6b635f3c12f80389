"""The experiment folder: a copy of the suite and of the command's options, which `status` and `tables` read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from toast_cli.bench.scheduler.jobs import Experiment
from toast_cli.bench.suite import parse_suite
from toast_cli.storage.checksums import add_checksum, read_checksummed_json
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import write_json, write_text
from toast_cli.utils.hashing import add_checksum_line, is_checksum_valid

DEFAULT_BENCH_DIR = Path("bench")
"""Default parent of experiment folders, relative to the current folder."""
EXPERIMENT_FILE = "experiment.json"
SUITE_FILE = "suite.yaml"
RESTART_HINT = (
    "Run 'toast bench SUITE' again with the same suite, folder and options: it writes the file again and resumes."
)


def save_experiment(out: Path, experiment: Experiment, text: str, ledger: str | None) -> None:
    """Write the suite's text and the command's options to `out`.

    A ledger URL that contains a user name or a password is not written.
    """
    options = {name: value for name, value in asdict(experiment).items() if name != "suite"}
    kind, _, place = (ledger or "").partition(":")
    if kind == "journal":
        ledger = f"journal:{Path(place).absolute()}"  # the ledger must be found from any working directory
    write_text(out / SUITE_FILE, add_checksum_line(text))
    options["known"] = dict(experiment.contents)  # `tables` must work after the input files were deleted
    write_json(
        out / EXPERIMENT_FILE, add_checksum({**options, "ledger": None if ledger is None or "@" in ledger else ledger})
    )


def load_experiment(out: Path) -> tuple[Experiment, str | None]:
    """Return the experiment of a folder and the URL of its ledger, None for the default ledger.

    Raises:
        UsageError: `out` contains no experiment.
        ToastError: a file of the experiment is damaged.
    """
    if not (out / EXPERIMENT_FILE).is_file():
        raise UsageError(
            f"No experiment in {out}.",
            what_to_do="Start one with 'toast bench SUITE'.",
            code="bench.no-experiment",
        )
    options: dict[str, Any] = read_checksummed_json(out / EXPERIMENT_FILE, RESTART_HINT)
    ledger = options.pop("ledger")
    suite = parse_suite(_read_suite_text(out / SUITE_FILE), str(out / SUITE_FILE))
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    return Experiment(suite=suite, **arguments), ledger


def _read_suite_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ToastError(
            f"Cannot read {path}.", str(error), RESTART_HINT, code="bench.unreadable-experiment"
        ) from error
    if not is_checksum_valid(text):
        raise ToastError(
            f"{path} is damaged.",
            "Its content does not match its SHA-256 checksum.",
            RESTART_HINT,
            code="bench.damaged-experiment",
        )
    return text


def find_newest_experiment(root: Path = DEFAULT_BENCH_DIR) -> Path:
    """Return the folder of the experiment that was started or joined last.

    Raises:
        UsageError: `root` contains no experiment.
    """
    files = list(root.glob(f"*/{EXPERIMENT_FILE}"))
    if not files:
        raise UsageError(
            f"No experiment in {root.absolute()}.",
            what_to_do="Start one with 'toast bench SUITE'.",
            code="bench.no-experiment",
        )
    return max(files, key=lambda path: path.stat().st_mtime_ns).parent
